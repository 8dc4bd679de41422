"""Image tasks of the serving tier."""
