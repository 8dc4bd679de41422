"""Streams of randomness: one for every purpose of every seed, so that no piece of work depends on another's."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, *purpose: object) -> torch.Generator:
    """A separate random generator for every purpose, the same on every machine."""
    return torch.Generator().manual_seed(stream(seed, *purpose))


def stream(seed: int, *purpose: object) -> int:
    """A 63-bit seed derived from the run's seed and a purpose."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
