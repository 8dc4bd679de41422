"""The format of a run's clips: class names and how media become tensors. A device learns it before it decodes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec, spec_values


@dataclass(frozen=True)
class ClipFormat:
    """``class_names`` in the order of the logits, and the two specifications.

    ``feature_steps``: columns of a ready feature matrix; None as in formats that say nothing of it: they stay as
    they are.
    """

    class_names: tuple[str, ...]
    audio: AudioSpec
    frames: FrameSpec
    feature_steps: int | None = None


def format_to_json(made: ClipFormat) -> str:
    """The format as it travels and is stored in a device's folder."""
    plain = {
        "class_names": made.class_names,
        "audio": spec_values(made.audio),
        "frames": spec_values(made.frames),
        "feature_steps": made.feature_steps,
    }
    return json.dumps(plain)


def format_from_json(text: str) -> ClipFormat:
    """The inverse of :func:`format_to_json`. Raises DataError if the text is not one."""
    try:
        values: dict[str, Any] = json.loads(text)
        names = tuple(values["class_names"])
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError("class_names: needs texts")
        steps = values.get("feature_steps")
        if steps is not None and (type(steps) is not int or steps < 1):
            raise ValueError(f"feature_steps: {steps!r} is no number of columns")
        return ClipFormat(names, AudioSpec(**values["audio"]), FrameSpec(**values["frames"]), steps)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"clip format: {error}") from error
