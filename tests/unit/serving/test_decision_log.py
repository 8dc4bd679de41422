"""The decision log: a line per batch, and never more than two files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from fedstill.cloud_server.serving.server.decision_log import DecisionLog
from fedstill.cloud_server.serving.server.events import RanBatch

BATCH = RanBatch(100.0, "-10", {"cats": 2, "dogs": 1}, 0.020, 0.025, (0.001, 0.2, 0.05), 7, 1, 0.0004)
BATCH = replace(BATCH, versions={"cats": 7, "dogs": 1})


def test_a_line_says_what_was_decided_and_what_came_of_it(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "made" / "decisions.jsonl")
    log.ran(BATCH)
    log.close()
    (line,) = (tmp_path / "made" / "decisions.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "time": 100.0,
        "batch": 3,
        "tasks": {"cats": 2, "dogs": 1},
        "versions": {"cats": 7, "dogs": 1},
        "schedule": "-10",
        "predicted_ms": 20.0,
        "actual_ms": 25.0,
        "waiting_ms": 200.0,
        "queue": 7,
        "evicted": 1,
        "decision_ms": 0.4,
    }


def test_a_line_names_its_callers_and_counts_what_their_limits_refused_since_the_last(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "decisions.jsonl")
    log.limited("shop", 2, True)
    log.limited("shop", 3, False)
    log.limited("shop", 1, False)
    log.ran(replace(BATCH, nodes={"shop": 2, "yard": 1}, requests=("a", "b")))
    log.ran(BATCH)
    log.close()
    first, second = map(json.loads, (tmp_path / "decisions.jsonl").read_text().splitlines())
    assert (first["nodes"], first["requests"]) == ({"shop": 2, "yard": 1}, ["a", "b"])
    assert first["rate_limited"] == {"shop": 4}
    assert not {"nodes", "requests", "rate_limited"} & second.keys()


def test_it_does_not_grow_for_ever(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "decisions.jsonl", largest_bytes=2000)
    for _ in range(100):
        log.ran(BATCH)
    log.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["decisions.jsonl", "decisions.jsonl.1"]
    for name in files:
        content = (tmp_path / name).read_text()
        assert len(content) <= 2000
        assert all(json.loads(line)["batch"] == 3 for line in content.splitlines())
