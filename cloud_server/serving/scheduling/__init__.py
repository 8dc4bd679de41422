"""Queries, profiles, latency, virtual time: what policies decide on."""
