"""Clips of a watched folder that become clips of the device, if its owner wants that."""
