"""Files that end the process which decodes them, as a damaged one can in a library written in C: no exception says so.

The clip that is being decoded is written down before, so the next process knows which one the last one died of. Other
things end processes, too: the power, an operator, too little memory. So a clip is tried twice.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fedstill.edge_client.folder import DECODING_FILE
from fedstill.edge_client.node.bad_clips import Look

MOST_DEATHS = 2


@dataclass
class DeadlyClips:
    """Of a device's folder; one process at a time."""

    folder: Path
    _clip: str = field(init=False, default="")
    _look: Look = field(init=False, default=())
    _deaths: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        try:
            found = json.loads(self._file.read_text("utf-8"))
            look = tuple((int(size), int(time)) for size, time in found["look"])
            self._clip, self._look, self._deaths = (
                str(found["clip"]),
                look,
                min(int(found["deaths"]) + 1, MOST_DEATHS),
            )
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return

    def is_deadly(self, clip_id: str, look: Look) -> bool:
        """Whether ``MOST_DEATHS`` processes have died of this clip, whose files were as they are now."""
        return self._deaths >= MOST_DEATHS and (clip_id, look) == (self._clip, self._look)

    def begin(self, clip_id: str, look: Look) -> None:
        """This clip is decoded now."""
        known = self._deaths if (clip_id, look) == (self._clip, self._look) else 0
        note = json.dumps({"clip": clip_id, "look": look, "deaths": known})
        with suppress(OSError):  # a full disk is no fault of the clip's
            self._file.write_text(note, "utf-8")

    def end(self) -> None:
        """Nothing is decoded any more."""
        with suppress(OSError):
            self._file.unlink()

    @property
    def _file(self) -> Path:
        return self.folder / DECODING_FILE
