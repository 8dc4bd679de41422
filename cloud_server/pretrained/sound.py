"""The sound of the public clips as an encoder reads it; a spectrogram does not give it back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedstill.common.errors import ConfigError
from fedstill.datasets.audiovisual.sound_store import SoundStore
from fedstill.datasets.audiovisual.specs import AudioSpec
from fedstill.datasets.audiovisual.spectrogram import resample
from fedstill.datasets.audiovisual.waveform import fit_length
from fedstill.models.audiovisual.pretrained import SOUND_RATE

NO_SOUND = (
    "teacher.pretrained_audio: there are public clips without sound, only with feature matrices; use clips with "
    "waveforms, or leave this table out"
)


@dataclass(frozen=True)
class Waveforms:
    """Sound as an encoder's input: the same piece of each clip that its spectrogram shows."""

    sound: SoundStore
    spec: AudioSpec

    def __call__(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """float32 (len(rows), samples) at ``SOUND_RATE``. Raises ConfigError if a clip has no sound."""
        return torch.from_numpy(np.stack([self._piece(int(row)) for row in rows]))

    def _piece(self, position: int) -> npt.NDArray[np.float32]:
        waveform = self.sound.waveform(position)
        if not len(waveform):
            raise ConfigError(NO_SOUND)
        wanted = replace(self.spec, sample_rate=SOUND_RATE)
        return fit_length(waveform, self.spec.sample_rate, wanted, resample)
