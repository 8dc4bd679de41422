"""How devices record: simulated conditions, the card that tells of one, and public clips rendered to it."""
