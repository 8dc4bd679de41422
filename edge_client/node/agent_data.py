"""A device's clips in the place where its handlers look for them: ``data``, a clip store, made when first needed.

A store that exists is used as it is. A manifest waits until the coordinator has sent the format of clips. The codecs
are loaded only then: most of a device's processes find a store. Clips that cannot be used are left out and remembered
(``bad_clips.py``); a device works with the others. Those that it has learned from its watched folder join them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from fedstill.common.atomic_files import PRIVATE, replace_file
from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.clip import Clip
from fedstill.datasets.audiovisual.clip_format import format_from_json
from fedstill.datasets.audiovisual.clip_tensors import require_detectors
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.audiovisual.store import META_FILE, ClipStore, build_store, open_store
from fedstill.datasets.decoding.decoder_errors import decoder_errors
from fedstill.datasets.files.faults import FAULTS, ROW, UNDECODABLE, BadClip, count_faults, in_words
from fedstill.edge_client.folder import CLIPS_FILE, DATA_FOLDER, FORMAT_FILE
from fedstill.edge_client.inbox.joined_store import with_learned
from fedstill.edge_client.node.bad_clips import BadClips, Look, Tried, look_at, read_bad_clips
from fedstill.edge_client.node.deadly_clips import DeadlyClips
from fedstill.edge_client.privacy.prototypes import DeviceError

if TYPE_CHECKING:
    from fedstill.datasets.audiovisual.manifest import ManifestSource

MANIFEST = "manifest.csv"
ALL = "all"
"""Stands for the name of a clip if the fault is not one clip's."""


def use_clips(data: Path, folder: Path, *, allow_outside: bool = False) -> None:
    """Record where this device's clips are: a prepared clip store, a manifest, or the folder with ``manifest.csv``.

    ``allow_outside``: whether the manifest's paths may lead out of its folder. Rows of the manifest that cannot be used
    are remembered as bad clips. A new call has all bad clips tried again.

    Raises:
        DataError: there is nothing usable.
    """
    bad: list[Tried] = []
    if (data / MANIFEST).is_file() and not (data / META_FILE).exists():
        data = data / MANIFEST
    if (data / META_FILE).exists():
        open_store(data)
    elif data.suffix == ".csv" and data.exists():
        from fedstill.datasets.audiovisual.manifest import ManifestSource

        source = ManifestSource(data, allow_outside=allow_outside, skip_bad=True)
        bad = [*map(Tried, source.bad), *_unchanged(source, folder).values()]
    else:
        raise DataError(
            f"{data}: no {MANIFEST} and no prepared folder; see docs/how-to/bring-your-own-data.md"
        )
    folder.mkdir(parents=True, exist_ok=True)
    noted = {"data": str(data.resolve()), "allow_outside": allow_outside}
    replace_file(folder / CLIPS_FILE, json.dumps(noted).encode(), PRIVATE)
    BadClips("", tuple(bad)).write(folder)


def own_clips(folder: Path) -> ClipStore:
    """The device's usable clips as tensors, with those of its watched folder if its owner wants that.

    Raises:
        DeviceError: there is none, a detector is missing, or a ready store shows another part of its clips than the
            fleet's students see. It names no file: the coordinator reads it.
    """
    file = folder / CLIPS_FILE
    noted = json.loads(file.read_text()) if file.exists() else {"data": str(folder / DATA_FOLDER)}
    data = Path(noted["data"])
    with _nothing_usable(folder):
        if not data.is_dir():
            return with_learned(_from_manifest(data, folder, bool(noted.get("allow_outside"))), folder)
        store = open_store(data)
    BadClips().write(folder)
    _require_same_part(store, folder)
    return with_learned(store, folder)


def _require_same_part(store: ClipStore, folder: Path) -> None:
    """Raises DeviceError if the store was made without the crop or the voice that the coordinator's format has."""
    if not (folder / FORMAT_FILE).exists():
        return
    wanted = format_from_json((folder / FORMAT_FILE).read_text())
    for name, found, asked in (
        ("frames.crop", store.frame_spec.crop, wanted.frames.crop),
        ("audio.voice", store.audio_spec.voice, wanted.audio.voice),
    ):
        if found != asked:
            raise DeviceError(
                f"its prepared clips were made with {name} {found}, but this fleet's students need {asked}: "
                "give the agent the manifest instead"
            )


@contextmanager
def _nothing_usable(folder: Path) -> Iterator[None]:
    """Keep the reason here, for the owner, and raise what the coordinator may know."""
    try:
        yield
    except DataError as error:
        known = read_bad_clips(folder)
        clips = [one for one in known.clips if one.clip.clip_id != ALL]
        counts = f": {in_words(count_faults(one.clip for one in clips))}" if clips else ""
        whole = Tried(BadClip(ALL, error.fault or ROW, str(error)))
        BadClips(known.tried_for, (*clips, whole)).write(folder)
        raise DeviceError(f"none of this device's clips can be used{counts}; its own log says why") from error


def _require_detectors(audio: AudioSpec, frames: FrameSpec) -> None:
    try:
        require_detectors(audio, frames)
    except DataError as error:
        raise DeviceError(str(error)) from error


def _from_manifest(data: Path, folder: Path, allow_outside: bool) -> ClipStore:
    from fedstill.datasets.audiovisual.manifest import ManifestSource

    content = (folder / FORMAT_FILE).read_text()
    wanted = format_from_json(content)
    _require_detectors(wanted.audio, wanted.frames)
    source = ManifestSource(
        data,
        class_names=wanted.class_names,
        frame_count=wanted.frames.count,
        allow_outside=allow_outside,
        skip_bad=True,
    )
    started = (folder / CLIPS_FILE).stat().st_mtime_ns
    tried_for = sha256(f"{version('fedstill')} {started} {content}".encode()).hexdigest()
    bad, looked = _unchanged(source, folder), _LookedAt(source, DeadlyClips(folder))
    if read_bad_clips(folder).tried_for != tried_for:
        bad = _tried_again(looked, bad)

    def leave_out(position: int, error: DataError) -> None:
        bad[position] = _bad(source, position, looked.looks.get(position, ()), error)

    try:
        positions = [position for position in range(len(source.index)) if position not in bad]
        if not positions:
            raise DataError(
                f"{data}: none of its {len(source.index)} clips can be used: see each one's reason"
            )
        return build_store(
            looked,
            positions,
            wanted.audio,
            wanted.frames,
            folder / DATA_FOLDER,
            feature_steps=wanted.feature_steps,
            on_bad=leave_out,
        )
    finally:
        rest = (bad[position] for position in sorted(bad))
        BadClips(tried_for, (*map(Tried, source.bad), *rest)).write(folder)
        looked.deadly.end()


def _unchanged(source: ManifestSource, folder: Path) -> dict[int, Tried]:
    """The clips that are known as bad and whose files are as they were then, by position."""
    positions = {info.clip_id: position for position, info in enumerate(source.index)}
    found = {}
    for one in read_bad_clips(folder).clips:
        position = positions.get(one.clip.clip_id)
        if position is not None and one.look and one.look == look_at(source.files(position)):
            found[position] = one
    return found


def _tried_again(source: _LookedAt, known: dict[int, Tried]) -> dict[int, Tried]:
    """Those that still cannot be read. They are read by themselves first: a store is not made anew for them."""
    found = {}
    for position, one in known.items():
        try:
            with decoder_errors(Path(one.clip.clip_id)):
                source.load(position)
        except DataError as error:
            found[position] = _bad(source, position, one.look, error)
    return found


def _bad(source: ManifestSource | _LookedAt, position: int, look: Look, error: DataError) -> Tried:
    fault = error.fault if error.fault in FAULTS else UNDECODABLE
    return Tried(BadClip(source.index[position].clip_id, fault, str(error)), look)


class _LookedAt:
    """A manifest as a ClipSource that looks at the files of each clip before they are read.

    A clip of which processes have died is refused.
    """

    def __init__(self, source: ManifestSource, deadly: DeadlyClips) -> None:
        self._source, self.deadly = source, deadly
        self.name, self.class_names, self.index = source.name, source.class_names, source.index
        self.looks: dict[int, Look] = {}

    def load(self, position: int) -> Clip:
        clip_id, look = self.index[position].clip_id, look_at(self._source.files(position))
        self.looks[position] = look
        if self.deadly.is_deadly(clip_id, look):
            raise DataError(
                f"clip {clip_id}: ends the program that decodes it: convert or remove it", UNDECODABLE
            )
        self.deadly.begin(clip_id, look)
        return self._source.load(position)
