"""Sound files: what is really in them, whatever their header or their name says."""
