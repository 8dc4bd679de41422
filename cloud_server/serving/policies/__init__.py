"""Serving policies, a file each; Algorithms 1 to 3 of the thesis among them."""
