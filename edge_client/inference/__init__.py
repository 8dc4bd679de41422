"""Clips answered on the device or by the cloud, whichever the link allows."""
