"""The event log: complete lines only, and of a service never more than a disk can spare."""

from __future__ import annotations

from pathlib import Path

from fedstill.cloud_server.journal.event_log import METRICS_FILE, EventTail, Metrics, read_events


def test_a_study_keeps_every_event_and_a_cut_line_is_ended(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text('{"event": "one", "time": 1}\n{"event": "tw')
    metrics = Metrics(tmp_path)
    for number in range(500):
        metrics.emit("more", number=number)
    metrics.close()
    found = list(read_events(tmp_path))
    assert [event["event"] for event in found] == ["one", *["more"] * 500]


def test_a_service_puts_its_log_aside_and_who_follows_it_goes_on(tmp_path: Path) -> None:
    metrics, tail = Metrics(tmp_path, most_bytes=2000), EventTail(tmp_path)
    seen = []
    for number in range(200):
        metrics.emit("more", number=number)
        seen += [event["number"] for event in tail.new()]
    metrics.close()
    assert seen == list(range(200))
    sizes = [path.stat().st_size for path in tmp_path.glob(f"{METRICS_FILE}*")]
    assert len(sizes) == 2
    assert max(sizes) <= 2000


ODD = (
    b"""5
{}
[{"event": "one", "time": 1}]
{"event": "one"}
{"event": 1, "time": 1}
{"event": "one", "time": "now"}
{"event": "one", "time": NaN}
{"event": "one", "time": true}
{"event": "one", "time": 1"""
    + 400 * b"0"
    + b"""}
\xff\xfe{"event"
"""
    + b"[" * 100_000
    + b"\n"
)


def test_lines_that_are_no_events_are_passed_over(tmp_path: Path) -> None:
    good = b'{"event": "one", "time": 1, "name": "\xff"}\n'
    (tmp_path / METRICS_FILE).write_bytes(ODD + good)
    for found in (list(read_events(tmp_path)), EventTail(tmp_path).new()):
        assert [(event["event"], event["time"]) for event in found] == [("one", 1)]
