"""A device's clips in the place where its handlers look for them: ``data``, a clip store, made when first needed.

A store that exists is used as it is. A manifest waits until the coordinator has sent the format of clips.
The codecs are loaded only then: most of a device's processes find a store.
"""

from __future__ import annotations

import json
from pathlib import Path

from fedstill.common.atomic_files import PRIVATE, replace_file
from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.clip_format import format_from_json
from fedstill.datasets.audiovisual.store import META_FILE, ClipStore, build_store, open_store
from fedstill.edge_client.folder import CLIPS_FILE, DATA_FOLDER, FORMAT_FILE

MANIFEST = "manifest.csv"


def use_clips(data: Path, folder: Path, *, allow_outside: bool = False) -> None:
    """Record where this device's clips are: a prepared clip store, a manifest, or the folder with ``manifest.csv``.

    ``allow_outside``: whether the manifest's paths may lead out of its folder.

    Raises:
        DataError: there is nothing usable.
    """
    if (data / MANIFEST).is_file() and not (data / META_FILE).exists():
        data = data / MANIFEST
    if (data / META_FILE).exists():
        open_store(data)
    elif data.suffix == ".csv" and data.exists():
        from fedstill.datasets.audiovisual.manifest import ManifestSource

        ManifestSource(data, allow_outside=allow_outside)
    else:
        raise DataError(
            f"{data}: no {MANIFEST} and no prepared folder; see docs/how-to/bring-your-own-data.md"
        )
    folder.mkdir(parents=True, exist_ok=True)
    noted = {"data": str(data.resolve()), "allow_outside": allow_outside}
    replace_file(folder / CLIPS_FILE, json.dumps(noted).encode(), PRIVATE)


def own_clips(folder: Path) -> ClipStore:
    """The device's clips as tensors.

    Raises:
        DataError: they cannot be decoded, the coordinator's classes differ from the manifest's, a detector is missing,
            or a ready store shows another part of its clips than the fleet's students see.
    """
    file = folder / CLIPS_FILE
    noted = json.loads(file.read_text()) if file.exists() else {"data": str(folder / DATA_FOLDER)}
    data = Path(noted["data"])
    if data.is_dir():
        return _as_wanted(open_store(data), folder)
    from fedstill.datasets.audiovisual.manifest import ManifestSource

    wanted = format_from_json((folder / FORMAT_FILE).read_text())
    source = ManifestSource(
        data,
        class_names=wanted.class_names,
        frame_count=wanted.frames.count,
        allow_outside=bool(noted.get("allow_outside")),
    )
    return build_store(
        source,
        range(len(source.index)),
        wanted.audio,
        wanted.frames,
        folder / DATA_FOLDER,
        feature_steps=wanted.feature_steps,
    )


def _as_wanted(store: ClipStore, folder: Path) -> ClipStore:
    """The store, unless it was made without the crop or the voice that the coordinator's format has."""
    if not (folder / FORMAT_FILE).exists():
        return store
    wanted = format_from_json((folder / FORMAT_FILE).read_text())
    for name, found, asked in (
        ("frames.crop", store.frame_spec.crop, wanted.frames.crop),
        ("audio.voice", store.audio_spec.voice, wanted.audio.voice),
    ):
        if found != asked:
            raise DataError(
                f"{store.directory}: was made with {name} {found}, but this fleet's students need {asked}: "
                "give the agent the manifest instead"
            )
    return store
