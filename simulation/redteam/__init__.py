"""What an attacker who owns the cloud could learn from each kind of upload, measured on public clips."""
