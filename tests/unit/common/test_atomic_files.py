"""Guards every file that is replaced: durable in the right order, the old one kept on failure, permissions as asked."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedstill.common.atomic_files import PART, PRIVATE, PUBLIC, replace_file, replace_text, replacing


def by_library(path: Path) -> None:
    with replacing(path) as part:
        part.write_bytes(b"new")


WRITERS: dict[str, Callable[[Path], object]] = {
    "bytes": lambda path: replace_file(path, b"new"),
    "text": lambda path: replace_text(path, "new"),
    "library": by_library,
}


@pytest.mark.parametrize("how", WRITERS)
def test_the_file_is_on_disk_before_its_name_and_its_name_before_we_return(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, calls = tmp_path / "file", []
    path.write_text("old")
    real_sync, real_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        calls.append(("fsync", Path(f"/proc/self/fd/{handle}").readlink().suffix or "folder"))
        real_sync(handle)

    def replace(*names: Any) -> None:
        calls.append(("replace", Path(names[1]).name))
        real_replace(*names)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    WRITERS[how](path)
    assert calls == [("fsync", PART), ("replace", "file"), ("fsync", "folder")]
    assert path.read_text() == "new"


@pytest.mark.parametrize("how", WRITERS)
def test_a_failure_leaves_the_old_file_and_nothing_else(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(handle: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        WRITERS[how](path)
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("mode", "found"), [(None, 0o640), (PRIVATE, 0o600), (PUBLIC, 0o644)])
def test_permissions_are_those_asked_for_else_the_umask_decides(
    mode: int | None, found: int, tmp_path: Path
) -> None:
    before = os.umask(0o027)
    try:
        replace_file(tmp_path / "file", b"", mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == found


def test_a_secret_is_never_readable_by_others_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = os.open, []

    def watched(path: Any, flags: int, *mode: int) -> int:
        handle = real(path, flags, *mode)
        if flags & os.O_CREAT:
            seen.append(stat.S_IMODE(os.fstat(handle).st_mode))
        return handle

    monkeypatch.setattr(os, "open", watched)
    before = os.umask(0)
    try:
        replace_file(tmp_path / "secret", b"key", PRIVATE)
    finally:
        os.umask(before)
    assert seen == [0o600]


def test_text_makes_its_folder(tmp_path: Path) -> None:
    path = replace_text(tmp_path / "new" / "folder" / "file", "größer")
    assert path.read_bytes() == "größer".encode()
