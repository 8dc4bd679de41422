"""Weights of other programs, brought into the form that the serving tier reads."""
