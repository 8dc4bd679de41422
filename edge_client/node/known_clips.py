"""The clips that a device had when its student was made for it: ``known_clips.json`` in its folder. It never travels.

A clip is known by its content, so that one with a new name is not a new clip, and one with an old name may be. Another
version of fedstill may compute clips otherwise; then the names count.

After drift the older clips are left behind: the next student is for what the device meets now. They stay in the folder,
but are neither summarised nor compared with.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedstill.common.atomic_files import PRIVATE, replace_file
from fedstill.datasets.audiovisual.store import ClipStore
from fedstill.edge_client.folder import KNOWN_CLIPS_FILE
from fedstill.edge_client.node.change_note import mark_of, read_note
from fedstill.protos.messages import DRIFTED, Job

Clips = tuple[tuple[str, str], ...]
"""Name, and digest of the content, of each clip."""
DIGITS = 16


@dataclass(frozen=True)
class KnownClips:
    """What is remembered.

    Attributes:
        job: the personalisation in which they became known.
        version: of fedstill, which computed the content.
        clips: for which the student is.
        left: from before the device drifted.
    """

    job: str
    version: str
    clips: Clips
    left: Clips = ()

    @property
    def count(self) -> int:
        """Of all; a few clips after drift do not make every further one a change."""
        return len(self.clips) + len(self.left)

    @property
    def digest(self) -> str:
        """Of the clips for which the student is: others, another digest."""
        return sha256(json.dumps(self.clips).encode()).hexdigest()[:DIGITS]

    def parts(self, store: ClipStore) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Which clips of the store are newer, and which are left behind, bool (clips,) each."""
        found = clips_of(store)
        return self._absent(found, self.clips + self.left), ~self._absent(found, self.left)

    def gone(self, store: ClipStore) -> int:
        """How many known clips the store does not have any more."""
        return int(self._absent(self.clips, clips_of(store)).sum())

    def _absent(self, clips: Clips, others: Clips) -> npt.NDArray[np.bool_]:
        """Which clips are not among the others."""
        names, digests = {name for name, _ in others}, {digest for _, digest in others}
        comparable = self.version == version("fedstill")
        absent = [digest not in digests if comparable else name not in names for name, digest in clips]
        return np.array(absent, bool)

    def write(self, folder: Path) -> None:
        """Into the device's folder, unless it says that already."""
        if self != read_known_clips(folder):
            replace_file(folder / KNOWN_CLIPS_FILE, json.dumps(asdict(self)).encode(), PRIVATE)


def clips_of(store: ClipStore, positions: Iterable[int] | None = None) -> Clips:
    """As they are remembered: pictures by their profile if there is one, since they are the most of a clip. All, or
    those at these positions."""
    seen = store.frames if store.profiles is None else store.profiles
    return tuple(
        (
            store.info[place].clip_id,
            sha256(store.audio[place].tobytes() + seen[place].tobytes()).hexdigest()[:DIGITS],
        )
        for place in (range(len(store.info)) if positions is None else positions)
    )


def name_of(run: str, job: Job) -> str:
    """Of a personalisation, whichever of its outer rounds this is."""
    return f"{run}/{job.scenario}/{job.arm}/{job.seed}"


def known_from_now(folder: Path, job: str, store: ClipStore) -> tuple[KnownClips, npt.NDArray[np.bool_]]:
    """The clips that the next student of the device is for, and which of the store these are, bool (clips,).

    Nothing is written: the answer that tells of these clips may still fail.
    """
    before, clips = read_known_clips(folder), clips_of(store)
    left = np.zeros(len(clips), bool)
    if before is not None:
        drifted = before.job != job and read_note(folder, mark_of(folder)).change == DRIFTED
        newer, left = before.parts(store)
        left = ~newer if drifted else left
    if left.all():  # the newer ones are gone: what is there is what the device has
        left[:] = False
    kept, gone = (tuple(clips[place] for place in np.flatnonzero(part)) for part in (~left, left))
    return KnownClips(job, version("fedstill"), kept, gone), ~left


def make_known(folder: Path, job: str, store: ClipStore) -> None:
    """From now on, these are the clips that the device's student was made for."""
    known_from_now(folder, job, store)[0].write(folder)


def read_known_clips(folder: Path) -> KnownClips | None:
    """None if there is no file, or a damaged one: then nothing is known to have changed."""
    try:
        found = json.loads((folder / KNOWN_CLIPS_FILE).read_text("utf-8"))
        clips, left = (
            tuple((str(name), str(digest)) for name, digest in part)
            for part in (found["clips"], found.get("left", ()))  # an older version left none
        )
        return KnownClips(str(found["job"]), str(found["version"]), clips, left)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
