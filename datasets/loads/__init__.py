"""Loads of the serving tier: arrival times, query mixes."""
