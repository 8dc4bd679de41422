"""The clips that a device had when its student was made for it: ``known_clips.json`` in its folder. It never travels.

A clip is known by its content, so that one with a new name is not a new clip, and one with an old name may be. Another
version of fedstill may compute clips otherwise; then the names count.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedstill.common.atomic_files import PRIVATE, replace_file
from fedstill.datasets.audiovisual.store import ClipStore
from fedstill.edge_client.folder import KNOWN_CLIPS_FILE
from fedstill.protos.messages import Job

Clips = tuple[tuple[str, str], ...]
"""Name, and digest of the content, of each clip."""
DIGITS = 16


@dataclass(frozen=True)
class KnownClips:
    """What is remembered.

    Attributes:
        job: the personalisation in which they became known.
        version: of fedstill, which computed the content.
    """

    job: str
    version: str
    clips: Clips

    def newer(self, store: ClipStore) -> npt.NDArray[np.bool_]:
        """Which clips of the store are not known, bool (clips,)."""
        return self._absent(clips_of(store), self.clips)

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
            content = json.dumps({"job": self.job, "version": self.version, "clips": self.clips})
            replace_file(folder / KNOWN_CLIPS_FILE, content.encode(), PRIVATE)


def clips_of(store: ClipStore) -> Clips:
    """As they are remembered: pictures by their profile if there is one, since they are the most of a clip."""
    seen = store.frames if store.profiles is None else store.profiles
    return tuple(
        (info.clip_id, sha256(heard.tobytes() + shown.tobytes()).hexdigest()[:DIGITS])
        for info, heard, shown in zip(store.info, store.audio, seen, strict=True)
    )


def name_of(run: str, job: Job) -> str:
    """Of a personalisation, whichever of its outer rounds this is."""
    return f"{run}/{job.scenario}/{job.arm}/{job.seed}"


def make_known(folder: Path, job: str, store: ClipStore) -> None:
    """From now on, these are the clips that the device's student was made for."""
    KnownClips(job, version("fedstill"), clips_of(store)).write(folder)


def read_known_clips(folder: Path) -> KnownClips | None:
    """None if there is no file, or a damaged one: then nothing is known to have changed."""
    try:
        found = json.loads((folder / KNOWN_CLIPS_FILE).read_text("utf-8"))
        clips = tuple((str(name), str(digest)) for name, digest in found["clips"])
        return KnownClips(str(found["job"]), str(found["version"]), clips)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
