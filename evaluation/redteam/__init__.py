"""Attacks on what a device uploads."""
