"""Weights as bytes: checkpoints, updates, canaries."""
