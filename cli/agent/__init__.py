"""``fedstill agent``."""
