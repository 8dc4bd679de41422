"""What the owner of a device sees of it, and may have deleted."""
