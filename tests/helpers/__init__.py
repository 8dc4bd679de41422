"""What several rooms' tests share: real processes, stand-ins and made data."""
