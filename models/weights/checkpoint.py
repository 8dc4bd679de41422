"""Checkpoints: ``NAME.safetensors`` beside ``NAME.json``; never pickle.

The JSON says what the weights mean (network, class names, audio and frame settings, format version), so
that weights can never be used with another class order or another spectrogram. This is the one file
of this room that touches a disk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedstill.common.atomic_files import replace_file
from fedstill.models.audiovisual.compression import RATES, CompressionNet
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.models.audiovisual.specs import CheckpointError as CheckpointError
from fedstill.models.audiovisual.specs import NetworkSpec
from fedstill.models.audiovisual.specs import network_from_json as network_from_json
from fedstill.models.audiovisual.specs import network_to_json as network_to_json
from fedstill.models.weights.packing import load_packed, pack

FORMAT = 1


@dataclass(frozen=True)
class CheckpointMeta:
    """What the weights mean. ``audio`` and ``frames`` are the specs of the datasets room, as plain dicts.

    ``pretrained`` says of a teacher which of its encoders somebody else trained, by modality. Its ``network`` does not
    describe these, so such a checkpoint is opened by the run that made it, with :func:`load_weights`.
    """

    network: NetworkSpec
    class_names: tuple[str, ...]
    audio: dict[str, Any]
    frames: dict[str, Any]
    pretrained: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(stem: Path, net: AudioVisualNet, meta: CheckpointMeta) -> None:
    """Write ``stem.safetensors`` and then ``stem.json``, each by rename: a half-written pair is never read."""
    described = {
        "format": FORMAT,
        "network": json.loads(network_to_json(meta.network)),
        "class_names": list(meta.class_names),
        "audio": meta.audio,
        "frames": meta.frames,
    } | ({"pretrained": meta.pretrained} if meta.pretrained else {})
    stem.parent.mkdir(parents=True, exist_ok=True)
    replace_file(stem.with_name(f"{stem.name}.safetensors"), pack(net.state_dict()).tobytes())
    replace_file(stem.with_name(f"{stem.name}.json"), json.dumps(described, indent=1).encode())


def checkpoint_exists(stem: Path) -> bool:
    """Whether there is a finished checkpoint at ``stem``; the JSON is written last."""
    return stem.with_name(f"{stem.name}.json").exists()


def load_checkpoint(stem: Path) -> tuple[AudioVisualNet, CheckpointMeta]:
    """Rebuild the network and its description. Raises CheckpointError in one line."""
    path = stem.with_name(f"{stem.name}.json")
    try:
        described = json.loads(path.read_text())
        blob = np.frombuffer(stem.with_name(f"{stem.name}.safetensors").read_bytes(), dtype=np.uint8)
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename}: no such checkpoint") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged ({error})") from error
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        found = described.get("format") if isinstance(described, dict) else None
        raise CheckpointError(f"{path}: format {found}, this fedstill reads {FORMAT}")
    if described.get("pretrained"):
        raise CheckpointError(f"{path}: a teacher with pretrained encoders, which only its own run can open")
    try:
        network = network_from_json(json.dumps(described["network"]))
        meta = CheckpointMeta(
            network, tuple(described["class_names"]), described["audio"], described["frames"]
        )
        if len(meta.class_names) != network.classes:
            raise ValueError(f"{len(meta.class_names)} class names for {network.classes} outputs")
        net = AudioVisualNet(network)
        load_packed(net, blob)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{stem}: unusable ({error})") from error
    return net.eval(), meta


def load_weights(stem: Path, net: AudioVisualNet) -> AudioVisualNet:
    """Load a checkpoint's weights into a network that is built already. Raises CheckpointError in one line."""
    path = stem.with_name(f"{stem.name}.safetensors")
    try:
        load_packed(net, np.frombuffer(path.read_bytes(), dtype=np.uint8))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: unusable ({error})") from error
    return net.eval()


def save_levels(stem: Path, levels: Mapping[float, CompressionNet]) -> None:
    """Keep the trained compression levels of a student beside its checkpoint, one file per rate."""
    for rate, level in levels.items():
        replace_file(_level_path(stem, rate), pack(level.state_dict()).tobytes())


def load_levels(stem: Path, network: NetworkSpec) -> dict[float, CompressionNet]:
    """The levels for the ``RATES`` above 1 that are beside a checkpoint, maybe none. Raises CheckpointError in one
    line."""
    levels = {}
    for rate in RATES:
        path = _level_path(stem, rate)
        if rate == 1 or not path.exists():
            continue
        levels[rate] = CompressionNet(network.feature_width, network.classes, rate)
        try:
            load_packed(levels[rate], np.frombuffer(path.read_bytes(), dtype=np.uint8))
        except ValueError as error:
            raise CheckpointError(f"{path}: unusable ({error})") from error
        levels[rate].eval()
    return levels


def _level_path(stem: Path, rate: float) -> Path:
    return stem.with_name(f"{stem.name}.rung-{rate:g}.safetensors")
