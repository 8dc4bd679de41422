"""The settings of one pretrained encoder, which are a table of an experiment file; read without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Modality = Literal["visual", "audio"]
NEEDED = ("model", "weights", "sha256", "licence")


@dataclass(frozen=True, slots=True)
class PretrainedSettings:
    """Weights of an encoder that somebody else trained, from a local file; never from a network."""

    model: str = (
        ""  # visual: of timm; audio: of torchaudio.models; local-dir: what the folder says; empty: none
    )
    weights: str = ""  # safetensors file, or a folder with config.json and model.safetensors
    sha256: str = ""  # of the safetensors file; any other file is refused
    licence: str = ""  # of the weights; kept with the results
    frozen: bool = True  # false: trained further with the rest of the teacher
    rate: float = 0.05  # if not frozen: its learning rate, as a share of the teacher's

    def __post_init__(self) -> None:
        given = [key for key in NEEDED if getattr(self, key)]
        for key in NEEDED:
            if given and key not in given:
                raise ValueError(f"{key}: not set; pretrained weights need {', '.join(NEEDED)}")
        if self.sha256 and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError("sha256: needs the 64 lower-case hexadecimal digits that sha256sum prints")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate: {self.rate} is no share above 0 and up to 1")

    @property
    def used(self) -> bool:
        """Whether the teacher has such an encoder."""
        return bool(self.model)
