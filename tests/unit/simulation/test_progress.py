"""Guards the live display: it draws every event of an event log, and no device's text can break it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from fedstill.cloud_server.journal.event_log import METRICS_FILE
from fedstill.simulation.progress import LiveProgress, tree_memory_mb

JOB = {"event": "job", "scenario": "latency_sensitive", "arm": "fedstill", "client": 1, "seed": 0}


def shown(folder: Path, *events: Mapping[str, object]) -> str:
    """What the console says after these events."""
    lines = [json.dumps({"time": 0.0, **event}) for event in events]
    (folder / METRICS_FILE).write_text("\n".join(lines) + "\n")
    console = Console(file=io.StringIO(), width=200)
    with LiveProgress(folder, console):
        pass
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_run_is_drawn(tmp_path: Path) -> None:
    text = shown(
        tmp_path,
        {"event": "seed", "seed": 0, "jobs": 4},
        {"event": "teacher_epoch", "seed": 0, "epoch": 1, "epochs": 2, "loss": 1.5},
        {"event": "teacher", "seed": 0, "correct": 30, "total": 40},
        JOB,
        {"event": "finished"},
    )
    for words in ("teacher epochs", "1/2", "75.0%", "1/4", "fedstill, client 1"):
        assert words in text


@pytest.mark.parametrize("reason", ["camera [/dev/video0] is gone", "[red]", "x[0] = [bold]y", "[/]", "[[]"])
def test_a_devices_words_are_shown_as_they_are(reason: str, tmp_path: Path) -> None:
    failure = {**JOB, "event": "failure", "round": 0, "reason": reason}
    refused = {"event": "refused", "node": "77", "reason": reason}
    text = shown(tmp_path, failure, refused)
    assert text.count(reason) == 2
    assert "client 1, fedstill" in text


def test_memory_is_measured() -> None:
    assert 1 < tree_memory_mb() < 1e6
