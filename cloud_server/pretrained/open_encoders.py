"""From a checked weights file to an encoder: timm builds networks for pictures, torchaudio those for sound.

Nothing here can download: networks are built without weights, and weights come from the file that was read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import timm
import torchaudio.models
from safetensors import SafetensorError
from safetensors.torch import load
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from fedstill.cloud_server.pretrained.huggingface_sound import builder_and_arguments, torchaudio_state
from fedstill.cloud_server.pretrained.settings import Modality, PretrainedSettings
from fedstill.cloud_server.pretrained.weights_file import LOCAL_DIR, WeightsFile, read_weights
from fedstill.common.errors import ConfigError
from fedstill.models.audiovisual.pretrained import PictureEncoder, PretrainedEncoder, SoundEncoder

GENERAL = ("wav2vec2_model", "wavlm_model")
"""torchaudio's builders for any size: their arguments are in the JSON file beside the weights."""
SOUND_MODELS = (
    *GENERAL, "wav2vec2_base", "wav2vec2_large", "wav2vec2_large_lv60k", "wav2vec2_xlsr_300m", "wav2vec2_xlsr_1b",
    "wav2vec2_xlsr_2b", "hubert_base", "hubert_large", "hubert_xlarge", "wavlm_base", "wavlm_large",
)  # fmt: skip

BUILD_ERRORS = (
    RuntimeError, ValueError, KeyError, TypeError, IndexError, AttributeError, AssertionError, ArithmeticError,
)  # fmt: skip
"""What timm and torchaudio raise for a configuration that makes no network."""


def open_encoder(modality: Modality, settings: PretrainedSettings) -> PretrainedEncoder:
    """The encoder with its weights, fp32.

    Raises:
        ConfigError: the file, its hash, the model's name or the fit of both is wrong.
    """
    file = read_weights(settings)
    try:
        state = {name: tensor.float() for name, tensor in load(file.content).items()}
    except (SafetensorError, ValueError, KeyError) as error:
        raise ConfigError(f"{file.path}: is not a safetensors file ({error})") from error
    return _pictures(settings, file, state) if modality == "visual" else _sound(settings, file, state)


def _pictures(settings: PretrainedSettings, file: WeightsFile, state: dict[str, Tensor]) -> PictureEncoder:
    source = f"{LOCAL_DIR}:{file.path.parent}" if settings.model == LOCAL_DIR else settings.model
    if settings.model == LOCAL_DIR:
        file.read_config()  # its mistakes in one line
    elif ":" in source or not timm.is_model(source.partition(".")[0]):
        raise ConfigError(f"model {source!r} is not a model of timm, such as vit_tiny_patch16_224")
    try:
        net = timm.create_model(source, pretrained=False, num_classes=0)
    except BUILD_ERRORS as error:
        raise ConfigError(f"timm cannot build {source} ({_one_line(error)})") from error
    _load(net, state, file.path, settings.model, heads=_classifiers(net))
    data = resolve_model_data_config(net)  # type: ignore[no-untyped-call]
    _, height, width = data["input_size"]
    features = getattr(net, "head_hidden_size", None) or net.num_features
    return PictureEncoder(net, cast(int, features), (height, width), data["mean"], data["std"])


def _sound(settings: PretrainedSettings, file: WeightsFile, state: dict[str, Tensor]) -> SoundEncoder:
    builder = settings.model
    arguments: dict[str, Any] = {}
    if settings.model not in (*SOUND_MODELS, LOCAL_DIR):
        known = ", ".join((*SOUND_MODELS, LOCAL_DIR))
        raise ConfigError(f"model {settings.model!r} of torchaudio is not one of {known}")
    try:
        if settings.model == LOCAL_DIR:
            config = file.read_config()
            builder, arguments = builder_and_arguments(config)
            state = torchaudio_state(state, config)
        elif settings.model in GENERAL:
            arguments = file.read_config()
        make = getattr(torchaudio.models, builder)
        net = make(**{**_without_head_and_dropout(make), **arguments})
    except ConfigError:
        raise
    except BUILD_ERRORS as error:
        raise ConfigError(f"{file.config}: torchaudio cannot build it ({_one_line(error)})") from error
    net.aux = None
    _load(net, state, file.path, settings.model, heads=("aux",))
    width = int(net.encoder.feature_projection.projection.out_features)
    return SoundEncoder(net, width, normalise=not _has_group_norm(net))


def _without_head_and_dropout(make: Callable[..., nn.Module]) -> dict[str, Any]:
    """Arguments that do not matter here, so that a JSON file needs none of them."""
    names = inspect.signature(make).parameters
    return {name: 0.0 for name in names if name.endswith(("_dropout", "_layer_drop"))} | {"aux_num_out": None}


def _has_group_norm(net: nn.Module) -> bool:
    """Networks whose first layer is group-normalised were trained on plain waveforms, the others on normalised ones."""
    return any(isinstance(part, nn.GroupNorm) for part in net.modules())


def _classifiers(net: nn.Module) -> tuple[str, ...]:
    """Names of a timm network's heads, which are left out."""
    names = getattr(net, "pretrained_cfg", {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _load(
    net: nn.Module, state: Mapping[str, Tensor], path: Path, model: str, heads: tuple[str, ...]
) -> None:
    left_out = tuple(f"{head}." for head in heads)
    try:
        net.load_state_dict({name: value for name, value in state.items() if not name.startswith(left_out)})
    except RuntimeError as error:
        raise ConfigError(f"{path}: does not fit {model} ({_one_line(error)})") from error


def _one_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()[:200] if str(error).strip() else type(error).__name__
