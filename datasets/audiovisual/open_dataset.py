"""A dataset by its path: a manifest of one's own clips, or a folder of ``fedstill data prepare``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.clip import ClipSource
from fedstill.datasets.audiovisual.manifest import ManifestSource
from fedstill.datasets.audiovisual.prepare import PreparedSource


def open_dataset(
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    class_names: Sequence[str] | None = None,
    frame_count: int = 10,
    allow_outside: bool = False,
) -> ClipSource:
    """Open a dataset; nothing is decoded yet.

    ``dataset.index`` says for every clip what is known without decoding, ``dataset.load(position)`` decodes one:
    float32 sound (samples,) in [-1, 1] with its rate in Hz, and uint8 RGB frames (n, height, width, 3).

    Args:
        path: a manifest (``.csv`` or ``.tsv``), or a prepared folder.
        root: of a manifest: what its paths are relative to; its own folder by default.
        class_names: the classes in the order that you want; of a manifest by default all its labels, sorted. A
            prepared folder with others is refused.
        frame_count: of a manifest: frames per clip, uniformly spaced in time. A prepared folder has as many as it has.
        allow_outside: of a manifest: whether its paths may lead out of ``root``.

    Raises:
        DataError: no such dataset, or a bad row, naming the line and what to do.
    """
    where = Path(path)
    if where.suffix.lower() in (".csv", ".tsv"):
        folder = None if root is None else Path(root)
        return ManifestSource(where, folder, class_names, frame_count, allow_outside=allow_outside)
    if where.is_dir():
        return PreparedSource(where, class_names)
    raise DataError(f"{where}: is neither a manifest (.csv) nor a folder of fedstill data prepare")
