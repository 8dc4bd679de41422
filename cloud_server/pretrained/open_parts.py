"""From settings and a clip store to the pretrained parts of a teacher.

timm takes seconds to import, so it is imported only if an encoder really has to be opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import cast

import torch

from fedstill.cloud_server.pretrained.frozen_features import Inputs, Positions, kept_features
from fedstill.cloud_server.pretrained.parts import (
    FineTunedPictures,
    FineTunedSound,
    Frozen,
    Part,
    PretrainedParts,
)
from fedstill.cloud_server.pretrained.settings import Modality, PretrainedSettings
from fedstill.cloud_server.pretrained.sound import NO_SOUND, Waveforms
from fedstill.common.errors import ConfigError
from fedstill.datasets.audiovisual.specs import spec_values
from fedstill.datasets.audiovisual.store import ClipStore
from fedstill.models.audiovisual.pretrained import PictureEncoder, PretrainedEncoder, SoundEncoder
from fedstill.models.vit.preprocess import to_tensors


def open_parts(
    chosen: Mapping[Modality, PretrainedSettings],
    store: ClipStore,
    folder: Path,
    device: torch.device,
) -> PretrainedParts:
    """Open every encoder that is needed; one whose features of this store are kept in ``folder`` is not.

    Raises:
        ConfigError: as ``open_encoder`` does, or the store has no sound for an encoder of sound.
    """

    def inputs_of(modality: Modality) -> Inputs:
        if modality == "visual":
            return _frames(store)
        if store.sound is None:
            raise ConfigError(NO_SOUND)
        return Waveforms(store.sound, store.audio_spec)

    def part_of(modality: Modality, settings: PretrainedSettings) -> Part:
        return _part(modality, settings, store, inputs_of(modality), folder, device)

    return PretrainedParts(**{modality: part_of(modality, settings) for modality, settings in chosen.items()})


def _part(
    modality: Modality,
    settings: PretrainedSettings,
    store: ClipStore,
    inputs: Inputs,
    folder: Path,
    device: torch.device,
) -> Part:
    def opened() -> PretrainedEncoder:
        from fedstill.cloud_server.pretrained.open_encoders import open_encoder

        return open_encoder(modality, settings).to(device)

    if settings.frozen:
        stem = folder / modality
        return Frozen(*kept_features(stem, settings, _fingerprint(store), inputs, len(store), opened))
    encoder = opened()
    if isinstance(encoder, PictureEncoder):
        return FineTunedPictures(encoder, settings.rate)
    return FineTunedSound(cast(SoundEncoder, encoder), settings.rate, inputs)


def _frames(store: ClipStore) -> Inputs:
    def inputs(rows: Positions) -> torch.Tensor:
        return to_tensors(store.audio[rows], store.frames[rows])[1]

    return inputs


def _fingerprint(store: ClipStore) -> str:
    """Of the clips and their form."""
    values = (spec_values(spec).values() for spec in (store.audio_spec, store.frame_spec))
    said = [store.dataset, *map(str, chain.from_iterable(values))]
    return hashlib.sha256("\n".join([*said, *(clip.clip_id for clip in store.info)]).encode()).hexdigest()
