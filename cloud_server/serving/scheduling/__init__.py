"""Queries, profiles, latency and virtual time: the basis of the policies' decisions."""
