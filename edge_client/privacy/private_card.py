"""A capture card with differential privacy: noisy counts and noisy sums of clipped, coarse profiles.

A clip's 169 values become 34 coarse ones: 12 smooth mel bands for the floor and 12 for the level, 6 grey quantiles, 4
rings. Each is clipped to a public range around a public centre, and all together to the length ``LONGEST``, in units of
that range. So a clip adds one vector (sound known, pictures known, x), no longer than sqrt(2 + LONGEST^2): that is the
L2 sensitivity of the whole release under adding or removing one clip, and the noise is Gaussian with ``sigma`` times
it. All that follows (dividing by the noisy counts, leaving out a part that noise would make misleading, spreading back
to 169 values) sees noisy numbers only and costs nothing. The wire carries the same bytes as an exact card.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fedstill.datasets.audiovisual.capture_card import (
    BANDS,
    GREYS,
    PICTURE,
    RINGS,
    SOUND,
    CaptureCard,
    to_bytes,
)

Floats = npt.NDArray[np.float64]

FULL = (BANDS, BANDS, GREYS, RINGS)
COARSE = (12, 12, 6, 4)
"""Floors, levels, grey quantiles, rings."""
_IS_SOUND = np.repeat([True, True, False, False], COARSE)
CENTRE = np.concatenate(
    [np.full(12, -55.0), np.full(12, -35.0), np.linspace(32, 223, 6), np.linspace(50, 25, 4)]
)
"""Public, round: between a silent and a noisy room, and a picture with all greys. Looked at: ``digit_pairs`` alone."""
REACH = np.repeat([40.0, 40.0, 160.0, 20.0], COARSE)
"""A value further from the centre than this (decibels, grey values) counts as just so far."""
LONGEST = 3.0
"""The length of a clip's deviation from the centre, in units of ``REACH``; at most 5.8 would be possible."""
SENSITIVITY = math.sqrt(2 + LONGEST**2)
MOST_ERROR = 0.075
"""Standard deviation of the noise in units of ``REACH``: 3 dB of sound, 12 grey values. A part with more is left out,
since clips rendered to it would be those of another device."""


def private_card(
    profiles: npt.NDArray[np.floating], sigma: float, min_size: int, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """The bytes of a card, uint8 (CARD_BYTES,), from profiles (clips, CARD_SIZE) of the device's own clips.

    Args:
        sigma: the noise multiplier; the release is 1 / sigma Gaussian private.
        min_size: a part that fewer clips seem to have is left out.
        rng: of the noise; it must be unpredictable to everybody else, or the guarantee is void.
    """
    noise = SENSITIVITY * sigma
    exact = contributions(profiles).sum(axis=0)
    noisy = exact + rng.normal(0.0, noise, exact.shape)
    counts, sums = noisy[:2], noisy[2:]
    coarse = CENTRE + REACH * np.clip(sums / np.maximum(np.where(_IS_SOUND, *counts), 1), -1, 1)
    values = _plausible(_spread() @ coarse)
    for count, part in zip(counts, (SOUND, PICTURE), strict=True):
        if count < max(min_size, noise / MOST_ERROR):
            values[part] = np.nan
    return to_bytes(CaptureCard(values, clips=1))  # the bytes do not hold how many


def contributions(profiles: npt.NDArray[np.floating]) -> Floats:
    """Each clip's vector (sound known, pictures known, 34 values), float64 (clips, 36), of length SENSITIVITY at most.

    Whatever a profile holds: a part with NaN or infinity counts as unknown and adds nothing. A refusal would reveal
    that such a clip is there.
    """
    values = np.asarray(profiles, np.float64)
    parts = np.stack([np.isfinite(values[:, part]).all(axis=1) for part in (SOUND, PICTURE)], axis=1)
    known = np.where(_IS_SOUND, parts[:, :1], parts[:, 1:])
    coarse = np.where(np.isfinite(values), values, 0.0) @ _reduction().T
    deviation = known * np.clip((coarse - CENTRE) / REACH, -1, 1)
    length = np.linalg.norm(deviation, axis=1, keepdims=True)
    shorter = deviation * np.minimum(1.0, LONGEST / np.maximum(length, LONGEST))
    return np.column_stack([parts, shorter])


def _plausible(values: Floats) -> npt.NDArray[np.float32]:
    """What every real card has: levels not below floors, grey quantiles in order."""
    levels, greys = slice(BANDS, 2 * BANDS), slice(2 * BANDS, 2 * BANDS + GREYS)
    values[levels] = np.maximum(values[levels], values[:BANDS])
    values[greys] = np.maximum.accumulate(values[greys])
    return values.astype(np.float32)


@lru_cache(maxsize=1)
def _spread() -> Floats:
    """Linear interpolation from coarse to all values, (CARD_SIZE, 34)."""
    return _in_blocks([_hats(few, many).T for few, many in zip(COARSE, FULL, strict=True)])


@lru_cache(maxsize=1)
def _reduction() -> Floats:
    """To the coarse values whose interpolation is nearest (least squares), (34, CARD_SIZE)."""
    hats = [_hats(few, many).T for few, many in zip(COARSE, FULL, strict=True)]
    return _in_blocks([np.linalg.pinv(block).astype(np.float64) for block in hats])


def _hats(few: int, many: int) -> Floats:
    """(few, many) triangles around equally spaced values, the outer ones at the ends; columns sum to 1."""
    places = np.linspace(0, many - 1, few)
    return np.stack([np.interp(np.arange(many), places, one) for one in np.eye(few)])


def _in_blocks(blocks: list[Floats]) -> Floats:
    """The blocks on the diagonal, zeros elsewhere."""
    found, row, column = np.zeros(np.sum([block.shape for block in blocks], axis=0)), 0, 0
    for block in blocks:
        rows, columns = block.shape
        found[row : row + rows, column : column + columns] = block
        row, column = row + rows, column + columns
    return found
