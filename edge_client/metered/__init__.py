"""What a metered link costs in a month: the count of it, and the relay that counts."""
