"""In which units two capture cards are compared: a difference of 1 is just noticed. numpy alone, for devices, too."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedstill.datasets.audiovisual.capture_card import BANDS, CARD_SIZE, GREYS, PICTURE, RINGS, SOUND

Doubles = npt.NDArray[np.float64]

SOUND_UNIT = 2.0
"""Decibels: by how much renderings of one card differ anyway."""
GREY_UNIT, RING_UNIT = 8.0, 1.5
"""Grey values and decibels."""
INAUDIBLE_DB = -80.0
"""What is softer counts as this soft."""

_UNITS = np.empty(CARD_SIZE)
_UNITS[SOUND] = SOUND_UNIT * np.sqrt(2 * BANDS)
_UNITS[PICTURE][:GREYS], _UNITS[PICTURE][GREYS:] = (
    GREY_UNIT * np.sqrt(2 * GREYS),
    RING_UNIT * np.sqrt(2 * RINGS),
)


def in_units(values: npt.NDArray[np.floating]) -> Doubles:
    """Values of cards or profiles, (..., CARD_SIZE), in units in which the length of a difference is a root mean
    square, of sound and of pictures alike."""
    heard = np.array(values, np.float64)
    heard[..., SOUND] = np.maximum(heard[..., SOUND], INAUDIBLE_DB)
    return np.asarray(heard / _UNITS)
