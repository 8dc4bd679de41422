"""Small networks with random weights in files, as if somebody had trained them, and the settings that name them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import timm
import torch
import torchaudio.models
from safetensors.torch import save_file
from torch import nn

from fedstill.cloud_server.pretrained.settings import PretrainedSettings

TIMM_MODEL = "test_vit"
HUBERT: dict[str, Any] = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": [[16, 10, 5], [16, 8, 8], [16, 4, 4]],
    "extractor_conv_bias": False,
    "encoder_embed_dim": 24,
    "encoder_pos_conv_kernel": 8,
    "encoder_pos_conv_groups": 4,
    "encoder_num_layers": 2,
    "encoder_num_heads": 2,
    "encoder_ff_interm_features": 32,
    "encoder_layer_norm_first": False,
}
"""A HuBERT for 100 steps a second instead of 50, 40,000 times smaller than the base model."""


def written_timm(folder: Path, model: str = TIMM_MODEL, seed: int = 0) -> Path:
    """Random weights of a timm model with its classifier, as they are published."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = timm.create_model(model, pretrained=False)
    return _written(folder / f"{model}.safetensors", net)


def written_hubert(folder: Path, seed: int = 0) -> Path:
    """Random weights of a small HuBERT, with the JSON file that describes it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = small_hubert()
    path = _written(folder / "hubert.safetensors", net)
    path.with_suffix(".json").write_text(json.dumps(HUBERT))
    return path


def small_hubert() -> torchaudio.models.Wav2Vec2Model:
    dropouts = dict.fromkeys(
        ("encoder_projection_dropout", "encoder_attention_dropout", "encoder_ff_interm_dropout",
         "encoder_dropout", "encoder_layer_drop"), 0.1,
    )  # fmt: skip
    return torchaudio.models.wav2vec2_model(**HUBERT, **dropouts, aux_num_out=None)


def settings_of(path: Path, model: str, frozen: bool = True) -> PretrainedSettings:
    return PretrainedSettings(model, str(path), sha256(path), "Apache-2.0", frozen)


def overrides_of(modality: str, settings: PretrainedSettings) -> list[str]:
    """The same as after ``--set``."""
    table = f"teacher.pretrained_{modality}"
    values = {"model": settings.model, "weights": settings.weights, "licence": settings.licence}
    return [
        *(f"{table}.{key}={json.dumps(value)}" for key, value in values.items()),
        f'{table}.sha256="{settings.sha256}"',
        f"{table}.frozen={json.dumps(settings.frozen)}",
    ]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _written(path: Path, net: nn.Module) -> Path:
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, path)
    return path
