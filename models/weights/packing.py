"""Weights as one block of bytes: Flower's cost per message grows with the number of arrays, not their size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn


def pack(state: Mapping[str, Tensor]) -> npt.NDArray[np.uint8]:
    """A state dict (any dtypes) as safetensors bytes, uint8 (bytes,)."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    return np.frombuffer(safetensors.torch.save(contiguous), dtype=np.uint8)


def unpack(blob: npt.NDArray[np.uint8]) -> dict[str, Tensor]:
    """The inverse of :func:`pack`. Raises ValueError if the bytes are not a safetensors file."""
    try:
        return safetensors.torch.load(blob.tobytes())
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"weights: not a safetensors block ({error})") from error


def load_packed(module: nn.Module, blob: npt.NDArray[np.uint8]) -> None:
    """Load packed weights strictly. Raises ValueError naming what is missing or unexpected."""
    _load(module, unpack(blob))


def arrays(module: nn.Module) -> dict[str, npt.NDArray[Any]]:
    """The state dict as numpy arrays on the CPU; they may share memory with the module."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in module.state_dict().items()}


def load_arrays(module: nn.Module, state: Mapping[str, npt.NDArray[Any]]) -> None:
    """The inverse of :func:`arrays`, copying. Raises ValueError naming what is missing or unexpected."""
    _load(module, {name: torch.tensor(value) for name, value in state.items()})


def _load(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(f"weights: {str(error).splitlines()[-1].strip()}") from error
