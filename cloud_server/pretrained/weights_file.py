"""From settings to a file whose SHA-256 is the promised one; no torch, so that a mistake is found in a moment."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedstill.cloud_server.pretrained.settings import PretrainedSettings
from fedstill.common.errors import ConfigError
from fedstill.common.paths import data_path

LOCAL_DIR = "local-dir"
"""timm's own word for a model whose folder says what it is."""
FOLDER_WEIGHTS, FOLDER_CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True)
class WeightsFile:
    """A weights file with the right content.

    Attributes:
        content: of the safetensors file.
        config: the JSON file that describes the architecture: ``config.json`` of a folder, else ``NAME.json`` beside
            ``NAME.safetensors``; it may be missing.
    """

    path: Path
    content: bytes
    config: Path

    def read_config(self) -> dict[str, Any]:
        """The JSON object of ``config``. Raises ConfigError in one line."""
        try:
            found = json.loads(self.config.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"{self.config}: cannot be read ({error.strerror}); it describes the model"
            ) from error
        except ValueError as error:
            raise ConfigError(f"{self.config}: is not JSON ({error})") from error
        if not isinstance(found, dict):
            raise ConfigError(f"{self.config}: needs a JSON object")
        return found


def read_weights(settings: PretrainedSettings) -> WeightsFile:
    """Read the file and compare its hash before anything else is done with it.

    Raises:
        ConfigError: no such file, or another content than ``sha256`` says.
    """
    place = data_path(settings.weights)
    is_folder = place.is_dir()
    path = place / FOLDER_WEIGHTS if is_folder else place
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}): check weights") from error
    found = hashlib.sha256(content).hexdigest()
    if found != settings.sha256:
        raise ConfigError(
            f"{path}: its sha256 is {found}, not {settings.sha256}: another file than was meant"
        )
    return WeightsFile(path, content, place / FOLDER_CONFIG if is_folder else path.with_suffix(".json"))
