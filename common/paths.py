"""The places of data and weights that do not come with fedstill."""

from __future__ import annotations

import os
from pathlib import Path

from fedstill.common.errors import ConfigError

VIT_WEIGHTS = "weights/vit_tiny_patch16_224_augreg_in21k_ft_in1k.fp16.safetensors"
"""The serving tier's default weights, below the data folder."""


def data_path(text: str) -> Path:
    """A path to data: as given, else under $FEDSTILL_DATA, else under ../shared/data.

    Raises:
        ConfigError: it is in none of them.
    """
    places = [Path(), Path(os.environ.get("FEDSTILL_DATA", "../shared/data"))]
    for place in places:
        if (place / Path(text).expanduser()).exists():
            return (place / Path(text).expanduser()).resolve()
    raise ConfigError(f"{text}: not found here nor under {places[1]} (set FEDSTILL_DATA, or give its path)")
