"""The Python client of the serving tier."""
