"""wav2vec 2.0, HuBERT and WavLM in folders as Hugging Face saves them: their ``config.json`` and names of weights.

torchaudio has the same networks and can import a ``transformers`` model, which would need that package. Names and
arguments differ in a few words only, so the files are enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torchaudio.models.wav2vec2.utils.import_huggingface import transform_wavlm_encoder_state

BUILDERS = {"wav2vec2": "wav2vec2_model", "hubert": "wav2vec2_model", "wavlm": "wavlm_model"}
"""Hugging Face's ``model_type`` -> torchaudio's builder."""
ARGUMENTS = {
    "extractor_conv_bias": "conv_bias",
    "encoder_embed_dim": "hidden_size",
    "encoder_pos_conv_kernel": "num_conv_pos_embeddings",
    "encoder_pos_conv_groups": "num_conv_pos_embedding_groups",
    "encoder_num_layers": "num_hidden_layers",
    "encoder_num_heads": "num_attention_heads",
    "encoder_ff_interm_features": "intermediate_size",
    "encoder_layer_norm_first": "do_stable_layer_norm",
}
WAVLM_ARGUMENTS = {"encoder_num_buckets": "num_buckets", "encoder_max_distance": "max_bucket_distance"}
PLACES = {
    "feature_extractor.": "feature_extractor.",
    "feature_projection.": "encoder.feature_projection.",
    "encoder.": "encoder.transformer.",
}
"""Beginnings of names, Hugging Face's -> torchaudio's; what begins otherwise belongs to the pre-training."""


def builder_and_arguments(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """torchaudio's builder and its arguments for a ``config.json``.

    Raises:
        ValueError: another kind of model, or a key is missing.
    """
    kind = config.get("model_type")
    if kind not in BUILDERS:
        raise ValueError(f"model_type {kind!r} is not one of {', '.join(BUILDERS)}")
    names = ARGUMENTS | (WAVLM_ARGUMENTS if kind == "wavlm" else {})
    needed = [*names.values(), "feat_extract_norm", "conv_dim", "conv_kernel", "conv_stride"]
    for key in needed:
        if key not in config:
            raise ValueError(f"{key} is missing")
    layers = zip(config["conv_dim"], config["conv_kernel"], config["conv_stride"], strict=True)
    return BUILDERS[kind], {
        "extractor_mode": f"{config['feat_extract_norm']}_norm",
        "extractor_conv_layer_config": list(layers),
        **{ours: config[theirs] for ours, theirs in names.items()},
    }


def torchaudio_state(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The same weights under torchaudio's names; heads and pre-training weights are left out."""
    prefix = f"{config['model_type']}."
    plain = {name.removeprefix(prefix): value for name, value in state.items()}
    if config["model_type"] == "wavlm":
        inside = {
            name.removeprefix("encoder."): value
            for name, value in plain.items()
            if name.startswith("encoder.")
        }
        transform_wavlm_encoder_state(inside, config["num_hidden_layers"])
        plain = {name: value for name, value in plain.items() if not name.startswith("encoder.")}
        plain |= {f"encoder.{name}": value for name, value in inside.items()}
    return {
        PLACES[place] + name.removeprefix(place): value
        for name, value in plain.items()
        for place in PLACES
        if name.startswith(place)
    }
