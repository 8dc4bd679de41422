"""The robustness experiment: devices that differ from the public clips by how they record, and by what."""
