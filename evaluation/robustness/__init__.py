"""Devices that record otherwise than the public clips: what personalisation is worth there, and beside what."""
