"""``fedstill loadtest``."""
