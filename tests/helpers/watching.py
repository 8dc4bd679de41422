"""``run_watch`` in a thread, and clips that arrive in its folder."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from PIL import Image

from fedstill.edge_client.inference.clip_files import read_clip
from fedstill.edge_client.inference.watch import run_watch
from helpers.media import write_video

POLL = 0.02


def classify(path: Path) -> dict[str, Any]:
    clip = read_clip(path, 2)
    return {"class": "calm", "samples": len(clip.audio), "frames": len(clip.frames)}


class Watching:
    """``run_watch`` in a thread."""

    def __init__(
        self,
        tmp_path: Path,
        classify: Callable[[Path], dict[str, Any]] = classify,
        poll: float = POLL,
        finish: Callable[[tuple[Path, ...]], None] | None = None,
        answered_well: Callable[[], None] | None = None,
    ) -> None:
        self.folder, self.state = tmp_path / "in", tmp_path / "state"
        self.folder.mkdir(exist_ok=True)
        self.out = io.StringIO()
        self._stop = threading.Event()
        self.classify = classify

        def run() -> None:
            rest = self.folder, self.state, self.out, self._stop, poll, finish, answered_well
            run_watch(self.classify, *rest)

        self._thread = threading.Thread(target=run)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Without their times, which are looked at apart."""
        found = [json.loads(line) for line in self.out.getvalue().splitlines()]
        assert all(line.pop("schema") == 1 for line in found)
        times = [datetime.fromisoformat(line.pop("time")) for line in found]
        assert times == sorted(times)
        assert all(one.utcoffset() == timedelta(0) for one in times)
        return found

    def settle(self) -> None:
        """Long enough for every clip that is going to be read."""
        time.sleep(25 * POLL)

    def __enter__(self) -> Watching:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


def land(path: Path) -> Path:
    """A video that appears complete, however slow this machine is at writing one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_video(path.parent.parent / path.name).rename(path)


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path
