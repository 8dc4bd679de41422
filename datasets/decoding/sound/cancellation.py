"""Stereo whose channels cancel out when they are mixed: one microphone wired the wrong way round.

Each channel alone sounds right, so nobody notices, but the mean of both, which a model hears, is next to silence.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LOST = 0.1  # of the level: 20 dB; channels that have nothing in common lose 3 dB, six of them 8 dB
FAINT = 1e-3  # below -60 dB, channels are noise and may cancel by chance


def cancels_out(channels: npt.NDArray[np.float32]) -> bool:
    """Whether the mean of (channels, samples) is at least 20 dB below the channels themselves."""
    level = _level(channels)
    return level > FAINT and _level(channels.mean(axis=0, dtype=np.float64)) < LOST * level


def is_suspicious(mix: npt.NDArray[np.float32]) -> bool:
    """Whether a mix is so quiet that channels of full level may have cancelled out: only then it pays to look."""
    return _level(mix) < LOST


def _level(samples: npt.NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
