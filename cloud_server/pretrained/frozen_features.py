"""A frozen encoder's features of all public clips: computed once per run, shared by all seeds, kept on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedstill.cloud_server.pretrained.settings import PretrainedSettings
from fedstill.common.atomic_files import replace_text, replacing
from fedstill.models.audiovisual.network import parameter_count
from fedstill.models.audiovisual.pretrained import PretrainedEncoder

Floats = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]
Inputs = Callable[[Positions], Tensor]
"""Positions of public clips -> an encoder's input."""
BATCH = 16
"""Clips at a time; these encoders are large."""


def kept_features(
    stem: Path,
    settings: PretrainedSettings,
    clips: str,
    inputs: Inputs,
    count: int,
    open_it: Callable[[], PretrainedEncoder],
) -> tuple[Floats, int]:
    """Features of clips 0 .. ``count`` - 1, and how many parameters the encoder has.

    Args:
        stem: of the two files in which they are kept.
        clips: a fingerprint of the clips; features of others, or of other weights, are made anew.
        open_it: called only if they are.

    Returns:
        float32 (count, width), memory-mapped, and the number.
    """
    meaning = {"model": settings.model, "sha256": settings.sha256, "clips": clips}
    array, note = stem.with_suffix(".npy"), stem.with_suffix(".json")
    kept = json.loads(note.read_text()) if note.exists() else {}
    if {name: kept.get(name) for name in meaning} != meaning:
        stem.parent.mkdir(parents=True, exist_ok=True)
        note.unlink(missing_ok=True)
        encoder = open_it()
        with replacing(array) as part, part.open("wb") as file:
            np.save(file, encode(encoder, inputs, count), allow_pickle=False)
        kept = {**meaning, "parameters": parameter_count(encoder)}
        replace_text(note, json.dumps(kept))
    return np.load(array, mmap_mode="r", allow_pickle=False), int(kept["parameters"])


@torch.no_grad()
def encode(encoder: PretrainedEncoder, inputs: Inputs, count: int) -> Floats:
    """The encoder's features of clips 0 .. ``count`` - 1, float32 (count, width)."""
    device = next(encoder.parameters()).device
    rows = [np.arange(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]
    features: Floats = torch.cat([encoder(inputs(some).to(device)).float().cpu() for some in rows]).numpy()
    return features
