"""Messages of earlier revisions, recorded as they were on the wire, are still read; and what we send, they could read.

``tests/data/wire`` holds what was recorded; never edit it. ``revision_866284a`` has the answers of its devices alone:
its requests had settings that were dropped since.
"""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from flwr.app import RecordDict
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedstill.protos import messages
from fedstill.protos.messages import (
    EvaluationResult,
    Hello,
    InstallResult,
    Job,
    PrototypeRequest,
    PrototypeUpload,
)
from fedstill.protos.records import decode, encode

RECORDED = Path(__file__).parents[1] / "data" / "wire"
OLD, BEFORE = "revision_866284a", "revision_b3697dc"
CASES = [
    (revision, name)
    for revision in (OLD, BEFORE)
    for name in json.loads((RECORDED / f"{revision}.json").read_text())
]
JOB = Job("latency_insensitive", "fedstill", 3, 2)
VERSION = "0123456789abcdef" * 4


def recorded(revision: str, name: str) -> RecordDict:
    """A message as it arrived."""
    kept = json.loads((RECORDED / f"{revision}.json").read_text())[name]
    objects = {one: zlib.decompress(base64.b64decode(text)) for one, text in kept["objects"].items()}
    return cast(RecordDict, inflate_object_from_contents(kept["id"], objects))


def kind_of(name: str) -> type:
    """``HistogramRequest`` is a request of another kind."""
    return cast(type, getattr(messages, name.replace("Histogram", "Prototype")))


def asked(revision: str, name: str) -> PrototypeRequest | None:
    if (revision, name) != (BEFORE, "PrototypeUpload"):
        return None
    return decode(PrototypeRequest, recorded(BEFORE, "HistogramRequest"))


def read(revision: str, name: str) -> object:
    return decode(kind_of(name), recorded(revision, name), asked(revision, name))


@pytest.mark.parametrize(("revision", "name"), CASES)
def test_a_recorded_message_is_read(revision: str, name: str) -> None:
    assert type(read(revision, name)).__name__ == kind_of(name).__name__


def test_what_the_oldest_devices_say_is_understood() -> None:
    assert read(OLD, "Hello") == Hello("hall", "0.1.0", 1)
    assert read(OLD, "EvaluationResult") == EvaluationResult(JOB, 7, 12, 0.25, 348)
    assert read(OLD, "InstallResult") == InstallResult(JOB, True, 0.75, "", VERSION)
    upload = read(OLD, "PrototypeUpload")
    assert isinstance(upload, PrototypeUpload)
    assert np.array_equal(upload.probabilities, np.array([[0.25, 0.75], [0.5, 0.5]], np.float32))
    assert (len(upload.confidence), len(upload.card)) == (0, 0)


def test_the_contents_are_those_that_were_recorded() -> None:
    assert read(BEFORE, "Hello") == Hello("hall", "0.1.0", 1, "ab" * 32)
    upload = read(BEFORE, "PrototypeUpload")
    assert isinstance(upload, PrototypeUpload)
    assert upload.counts.tolist() == [8]
    assert set(upload.card[1:].tolist()) == {90}


@pytest.mark.parametrize("name", [name for revision, name in CASES if revision == BEFORE])
def test_what_says_nothing_new_is_sent_as_before(name: str) -> None:
    """The same fields, so that the release before lacks nothing and refuses nothing."""
    before, now = recorded(BEFORE, name), encode(read(BEFORE, name), asked(BEFORE, name))
    for records in ("config_records", "array_records"):
        was, found = getattr(before, records), getattr(now, records)
        assert set(found) == set(was)
        assert all(set(found[one]) == set(was[one]) for one in was)
