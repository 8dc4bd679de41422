"""JSON log lines: one object each, whatever is logged."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fedstill.common.json_logs import JsonFormatter


def logged(message: str, *arguments: object, error: Any = None, **fields: str) -> dict[str, Any]:
    record = logging.LogRecord("fedstill.a", logging.WARNING, "file", 1, message, arguments, error)
    record.created = 1_700_000_000.25
    line = JsonFormatter(lambda: fields).format(record)
    assert "\n" not in line
    return dict(json.loads(line))


def test_a_line_says_when_who_what_and_for_whom() -> None:
    assert logged("event=serving port=%d hint='a b'", 7, request_id="r1") == {
        "time": "2023-11-14T22:13:20.250+00:00",
        "level": "WARNING",
        "logger": "fedstill.a",
        "event": "serving",
        "message": "event=serving port=7 hint='a b'",
        "request_id": "r1",
    }
    assert "event" not in logged("no event=here")


def test_an_exception_is_in_its_line() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        line = logged("event=failed", error=sys.exc_info())
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: first\nsecond")


@given(st.text())
def test_any_text_is_one_line(text: str) -> None:
    assert logged("%s", text)["message"] == text
