"""What cloud and device agree on when a student takes batch norm statistics of a device's own clips. No torch."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

FEWEST_CLIPS = 2
"""A deep layer has one value per clip and channel: a single clip has no variance there."""
MOST_CLIPS, MOST_BYTES = 256, 2**28
"""Of which the statistics are: all of these pass through the network at once, in about so much memory."""
BYTES_PER_CHANNEL = 4
"""And value of a clip: a few layers at a time, of which the first has the most values."""
OWN = "own/"
"""Begins the names of the outputs of ``onnx_export.statistics_graph``."""
STATISTICS = ("running_mean", "running_var")
"""The ends of their names in a state dict."""


def most_clips(audio_shape: tuple[int, ...], frame_shape: tuple[int, ...], width: int) -> int:
    """Of clips of these shapes, how many statistics may be of. width: channels of the encoders' first layer."""
    values = math.prod(audio_shape) + math.prod(frame_shape)
    return max(FEWEST_CLIPS, min(MOST_CLIPS, MOST_BYTES // (BYTES_PER_CHANNEL * width * values)))


def least_share(decided: npt.NDArray[np.integer], classes: int) -> float:
    """Of the class that is decided least: how often, as a part of an equal share; 0 without clips.

    Args:
        decided: a class for each clip, from 0.
    """
    counts = np.bincount(decided, minlength=classes)
    return float(counts.min() * classes / max(1, len(decided)))
