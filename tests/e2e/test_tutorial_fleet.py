"""The page of a stranger's hour is typed as it stands: real processes on loopback, on other ports, with short days."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.documented import ROOT, blocks
from helpers.quick import quick_environment
from helpers.tutorial import reading

from fedstill.common.flower_cli import free_port

PAGE = "docs/tutorial/fleet.md"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_stranger_gets_a_fleet_replaces_a_device_and_changes_a_microphone(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    ports = {f"127.0.0.1:{port}": f"127.0.0.1:{free_port()}" for port in (9092, 9093)}
    page = [block for block in blocks() if block.page == PAGE and block.language]
    assert {block.language for block in page} == {"sh", "text"}
    with reading(tmp_path, ports, {**quick_environment(), "QUICK_DAYS": "1"}) as tutorial:
        tutorial.follow(page)
        said = "".join(tutorial.said(name) for name in ("cloud", "kitchen", "hall-2"))
    assert "Traceback" not in said
