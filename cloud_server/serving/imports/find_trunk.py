"""The Vision Transformer among the tensors of a file, whatever module it was wrapped in, and the head behind it.

``module.`` (data parallel), ``model.``, ``backbone.`` and any other wrapping only lengthen names. So the patch
embedding, which every ViT has once, says where the trunk is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fedstill.cloud_server.serving.imports.read_state import ImportFault

Library = Literal["timm", "transformers"]
ANCHORS: Mapping[Library, str] = {
    "timm": "patch_embed.proj.weight",
    "transformers": "embeddings.patch_embeddings.projection.weight",
}
"""Name of the patch embedding's weight inside a trunk."""
SHOWN = 4


@dataclass(frozen=True)
class FoundTrunk:
    """A trunk with the names that its library gives them, and what else the file holds.

    Attributes:
        prefix: that its names had, with the dot.
        outside: under the names of the file.
    """

    library: Library
    prefix: str
    inside: dict[str, Tensor]
    outside: dict[str, Tensor]


def find_trunk(path: Path, state: Mapping[str, Tensor]) -> FoundTrunk:
    """The one trunk of the file. Raises ImportFault if there is none, or several."""
    found = [
        (library, name.removesuffix(anchor))
        for library, anchor in ANCHORS.items()
        for name in state
        if name == anchor or name.endswith(f".{anchor}")
    ]
    if not found:
        raise ImportFault(
            f"{path}: holds no Vision Transformer of timm or transformers: none of its {len(state)} tensors is a "
            f"{' or '.join(ANCHORS.values())}"
        )
    if len(found) > 1:
        places = ", ".join(prefix or "(top)" for _, prefix in found)
        raise ImportFault(f"{path}: holds {len(found)} networks, at {places}: save the one that is meant")
    ((library, prefix),) = found
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return FoundTrunk(
        library, prefix, inside, {name: value for name, value in state.items() if not name.startswith(prefix)}
    )


def split_head(found: FoundTrunk) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The trunk's tensors without its head's, and all that may be the head's: what is outside if none is inside."""
    if (
        not found.prefix and found.library == "transformers"
    ):  # the head beside a trunk without a name of its own
        inside = {name: value for name, value in found.inside.items() if not name.startswith("classifier.")}
        return inside, {name: value for name, value in found.inside.items() if name not in inside}
    head = {name: value for name, value in found.inside.items() if name.startswith(("head.", "fc."))}
    if not head:
        return found.inside, found.outside
    return {name: value for name, value in found.inside.items() if name not in head}, head


def linear_head(path: Path, candidates: Mapping[str, Tensor], width: int) -> tuple[Tensor, Tensor] | None:
    """Weight (classes, width) and bias (classes,) of the one linear layer behind the trunk; None if nothing is there.

    Raises:
        ImportFault: something else is there, of which it cannot be known how it is used.
    """
    if not candidates:
        return None
    weights = [name for name, value in candidates.items() if value.ndim == 2 and value.shape[1] == width]
    if len(weights) == 1 and weights[0].endswith("weight"):
        weight, bias = candidates[weights[0]], weights[0].removesuffix("weight") + "bias"
        if set(candidates) <= {weights[0], bias}:
            return weight, candidates.get(bias, torch.zeros(len(weight), dtype=weight.dtype))
    names = sorted(candidates)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    raise ImportFault(
        f"{path}: behind the trunk are {', '.join(names[:SHOWN])}{more}, and a head is one linear layer: "
        "give --no-head to import the trunk alone"
    )
