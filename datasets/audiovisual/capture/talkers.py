"""Babble of the people in a clip store, of the public speakers say."""

from __future__ import annotations

import numpy as np

from fedstill.datasets.audiovisual.capture.babble import Babble
from fedstill.datasets.audiovisual.store import ClipStore

VOICES = 48
"""Enough that five of them are hardly ever the same, few enough to be held in memory."""


def babble_of(store: ClipStore) -> Babble:
    """Voices from recordings that are spread evenly over the store; invented ones if it kept no sound."""
    if store.sound is None:
        return Babble()
    _, first = np.unique(store.sound.sounds(), return_index=True)
    rows = np.sort(first[store.sound.places[first, 1] > 0])
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(VOICES, len(rows))).round().astype(np.int64))]
    return Babble(tuple(store.sound.waveform(row) for row in chosen), store.audio_spec.sample_rate)
