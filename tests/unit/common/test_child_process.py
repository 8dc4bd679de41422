"""A long-lived child: its log is bounded, and who looks at a folder does not keep its owner out."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from fedstill.common import child_process
from fedstill.common.child_process import Child
from fedstill.common.folder_lock import FolderInUse, in_use, sole_user


def test_a_log_is_put_aside_and_the_child_writes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "MOST_LOG_BYTES", 4000)
    child = Child("talker", tmp_path)
    script = "import time\nfor n in range(10**6): print('line', n, flush=True); time.sleep(0.0005)"
    child.start([sys.executable, "-c", script], dict(os.environ), tmp_path)
    old = tmp_path / "talker.log.1"
    limit = time.monotonic() + 30
    while not old.exists() and time.monotonic() < limit:
        assert child.poll() is None
        time.sleep(0.01)
    while b"\nline " not in child.log_file.read_bytes() and time.monotonic() < limit:
        time.sleep(0.01)
    child.stop()
    assert 4000 < old.stat().st_size < 400_000
    said = child.log_file.read_bytes()
    assert b"\nline " in said
    assert b"\0" not in said, "it appends, and leaves no hole"


def test_a_copied_folder_does_not_end_the_child_of_the_one_it_came_from(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    (tmp_path / "first").mkdir()
    living = Child("sleeper", tmp_path / "first")
    living.start(command, dict(os.environ), tmp_path)
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    other = Child("sleeper", tmp_path / "copy")
    other.start(command, dict(os.environ), tmp_path)
    assert living.poll() is None
    again = Child("sleeper", tmp_path / "first")  # after a kill of its parent
    again.start(command, dict(os.environ), tmp_path)
    limit = time.monotonic() + 20
    while living.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    assert living.poll() is not None, "its own orphan is ended"
    assert other.poll() is None
    for child in (other, again):
        child.stop()


@pytest.mark.parametrize("what", ["a clock that was set", "an older version"])
def test_an_orphan_is_known_again_after(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    orphan = Child("sleeper", tmp_path)
    orphan.start(command, dict(os.environ), tmp_path)
    if what == "an older version":
        pid_file = tmp_path / "sleeper.pid"
        left = json.loads(pid_file.read_text())
        pid_file.write_text(json.dumps({name: left[name] for name in ("pid", "started", "folder")}))
    else:
        real = psutil.boot_time()  # from the clock and the time since then; a device without RTC gets it late
        monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: real + 86_400)
    again = Child("sleeper", tmp_path)  # after a kill of its parent
    again.start(command, dict(os.environ), tmp_path)
    limit = time.monotonic() + 20
    while orphan.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    assert orphan.poll() is not None
    again.stop()


def test_who_starts_nothing_ends_what_is_left_of_before(tmp_path: Path) -> None:
    """An agent that may send nothing starts no node, and must not leave that of a killed one running."""
    orphan = Child("sleeper", tmp_path)
    orphan.start([sys.executable, "-c", "import time; time.sleep(60)"], dict(os.environ), tmp_path)
    Child("sleeper", tmp_path).stop()
    assert orphan.poll() is not None


def test_a_process_of_another_boot_with_the_same_number_is_left_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    other = Child("sleeper", tmp_path)
    other.start(command, dict(os.environ), tmp_path)
    pid_file = tmp_path / "sleeper.pid"
    pid_file.write_text(json.dumps({**json.loads(pid_file.read_text()), "boot": "of before"}))
    again = Child("sleeper", tmp_path)
    again.start(command, dict(os.environ), tmp_path)
    assert other.poll() is None
    for child in (other, again):
        child.stop()


def test_a_folder_has_one_user_and_a_look_at_it_changes_nothing(tmp_path: Path) -> None:
    assert not in_use(tmp_path / "absent")
    with sole_user(tmp_path / "state"):
        assert in_use(tmp_path / "state")
        with pytest.raises(FolderInUse), sole_user(tmp_path / "state"):
            raise AssertionError("two users")
    assert not in_use(tmp_path / "state")


def test_looks_do_not_keep_an_owner_out(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(lambda: [in_use(tmp_path) for _ in range(3000)])
        for _ in range(50):
            with sole_user(tmp_path):
                pass
