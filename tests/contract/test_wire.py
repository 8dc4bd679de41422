"""Guards the wire: every message survives Flower's serialisation, and whatever does not fit is a WireError by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedstill.protos.messages import (
    EvaluationRequest,
    EvaluationResult,
    GraphsRequest,
    GraphsResult,
    Hello,
    HelloRequest,
    InstallRequest,
    InstallResult,
    Job,
    MissingDependency,
    PrototypeRequest,
    PrototypeUpload,
    Student,
    StudentGraphs,
    WireError,
    require_same_classes,
)
from fedstill.protos.records import decode, encode, payload_bytes, plain_records

NAMES = ("neutral", "happy", "sad", "fear", "disgust", "angry")
JOB = Job("latency_sensitive", "fedstill", 3, 2)
VERSION, OTHER = "0123456789abcdef" * 4, "f" * 64
STUDENT = Student(np.arange(9, dtype=np.uint8), '{"classes": 6}', NAMES, VERSION, OTHER)
SURE = np.full(8, 1 / 8, np.float32)
EVEN = np.full((3, 6), 1 / 6, np.float32)
CARD = np.repeat([1, 90], [1, 169]).astype(np.uint8)
"""Its layout, and a byte per value."""


def upload(**changes: Any) -> PrototypeUpload:
    values: dict[str, Any] = {
        "job": JOB,
        "probabilities": np.full((3, 6), 1 / 6, np.float32),
        "counts": np.array([8, 9, 20], np.int64),
        "class_names": NAMES,
        "confidence": SURE,
    }
    return PrototypeUpload(**values | changes)


def prototype_request(**changes: Any) -> PrototypeRequest:
    values: dict[str, Any] = {
        "job": JOB, "student": STUDENT, "kind": "constrained", "samples_per_prototype": 3, "min_size": 8,
        "upload_limit": 0, "temperature": 2.5,
    }  # fmt: skip
    return PrototypeRequest(**values | changes)


def private_request(**changes: Any) -> PrototypeRequest:
    private = {"kind": "dp", "epsilon": 4.0, "delta": 1e-5, "centres": EVEN}
    return prototype_request(**private | changes)


def evaluation_request(**changes: Any) -> EvaluationRequest:
    values: dict[str, Any] = {
        "job": JOB, "student": STUDENT, "compressor": np.empty(0, np.uint8), "rung": "",
    }  # fmt: skip
    return EvaluationRequest(**values | changes)


def result(**changes: Any) -> EvaluationResult:
    values: dict[str, Any] = {"job": JOB, "correct": 7, "total": 12, "seconds": 0.25, "bytes_per_clip": 348}
    return EvaluationResult(**values | changes)


def install_request(**changes: Any) -> InstallRequest:
    values: dict[str, Any] = {
        "job": JOB, "student": STUDENT, "canaries": VERSION, "audio": np.ones((2, 4, 3), np.float32),
        "frames": np.ones((2, 1, 1, 5, 5), np.uint8), "teacher": np.full((2, 6), 1 / 6, np.float32),
        "compressors": np.ones(3, np.uint8), "minimum_agreement": 0.5,
    }  # fmt: skip
    return InstallRequest(**values | changes)


def install_result(**changes: Any) -> InstallResult:
    values: dict[str, Any] = {
        "job": JOB, "installed": True, "agreement": 0.75, "reason": "", "current": VERSION
    }  # fmt: skip
    return InstallResult(**values | changes)


MESSAGES: dict[str, object] = {
    "HelloRequest": HelloRequest("0.1.0", "{}", settled=True, begun=True),
    "GraphsRequest": GraphsRequest(JOB, StudentGraphs("{}", np.ones(9, np.uint8), np.ones(3, np.uint8))),
    "GraphsResult": GraphsResult(JOB),
    "Hello": Hello("device0", "0.1.0", 0, "ab" * 32),
    "ChangedHello": Hello("device0", "0.1.0", 0, "ab" * 32, "drift"),
    "Job": JOB,
    "Student": STUDENT,
    "PrototypeRequest": prototype_request(),
    "PrivateRequest": private_request(),
    "PrivateCardRequest": private_request(card=True, card_share=0.25),
    "PrototypeUpload": upload(),
    "CardUpload": upload(card=CARD),
    "EvaluationRequest": evaluation_request(),
    "EvaluationResult": result(),
    "Lacking": MissingDependency("base", VERSION),
    "InstallRequest": install_request(expected=0.8, low=0.75, high=0.86),
    "InstallResult": install_result(),
    "BadClips": install_result(bad_clips=("2 empty", "1 no sound")),
    "BadTestClips": result(bad_clips=("1000000000 missing",)),
}


OPTIONAL_FIELDS = {
    "PrototypeUpload": ("confidence", "card"),
    "CardUpload": ("confidence", "card"),
    "EvaluationResult": ("bad_clips",),
    "BadTestClips": ("bad_clips",),
    "InstallResult": ("bad_clips",),
    "BadClips": ("bad_clips",),
    "InstallRequest": ("expected", "low", "high"),
}
"""What an earlier release does not send; ``test_recorded_wire.py`` reads such messages."""


def travelled(content: RecordDict) -> RecordDict:
    """The records after Flower took them to bytes and back."""
    blobs = {key: part.deflate() for key, part in get_all_nested_objects(content).items()}
    return cast(RecordDict, inflate_object_from_contents(content.object_id, blobs))


def answered(message: object) -> PrototypeRequest | None:
    """The request that an upload answers; nothing else needs one."""
    if not isinstance(message, PrototypeUpload):
        return None
    return prototype_request(job=message.job, student=replace(STUDENT, class_names=message.class_names))


def as_packed(upload: PrototypeUpload) -> PrototypeUpload:
    """An upload as it arrives: shares are multiples of 2**-23."""

    def rounded(shares: np.ndarray) -> np.ndarray:
        return (np.round(shares.astype(np.float64) * 2**23) / 2**23).astype(np.float32)

    return replace(upload, probabilities=rounded(upload.probabilities), confidence=rounded(upload.confidence))


def same(one: object, other: object) -> bool:
    """Equal field by field, arrays by type and value."""
    if is_dataclass(one):
        return type(one) is type(other) and all(
            same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)
        )
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other)
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("name", MESSAGES)
def test_every_message_survives_the_wire(name: str) -> None:
    message = MESSAGES[name]
    found = decode(type(message), travelled(encode(message)), answered(message))
    assert same(found, as_packed(message) if isinstance(message, PrototypeUpload) else message)


@pytest.mark.parametrize("name", MESSAGES)
def test_every_message_survives_the_wire_by_the_rule_for_all(name: str) -> None:
    """As an older device sends its uploads."""
    message = MESSAGES[name]
    assert same(decode(type(message), travelled(plain_records(message))), message)


jobs = st.builds(
    Job,
    scenario=st.sampled_from(["latency_insensitive", "latency_sensitive"]),
    arm=st.from_regex(r"[a-z_]{1,20}(\.[a-z_]{1,9}\.[0-9]{1,3})?", fullmatch=True),
    seed=st.integers(0, 2**40),
    round=st.integers(0, 999),
)


@st.composite
def uploads(draw: st.DrawFn) -> PrototypeUpload:
    rows, classes = draw(st.integers(1, 8)), draw(st.integers(1, 6))
    shape = (rows, classes)
    values = draw(arrays.arrays(np.float64, shape, elements=st.floats(0, 1))) + 1e-6
    return PrototypeUpload(
        draw(jobs),
        (values / values.sum(axis=1, keepdims=True)).astype(np.float32),
        draw(arrays.arrays(np.int64, rows, elements=st.integers(1, 10**9))),
        tuple(draw(st.lists(st.text(max_size=8), min_size=classes, max_size=classes))),
    )


@settings(deadline=None)
@given(uploads())
def test_every_upload_survives_the_wire(message: PrototypeUpload) -> None:
    assert same(decode(PrototypeUpload, travelled(plain_records(message))), message)
    found = decode(PrototypeUpload, travelled(encode(message)), answered(message))
    assert same(found, as_packed(message))
    assert np.abs(found.probabilities - message.probabilities).max() <= 2**-24
    assert same(decode(PrototypeUpload, encode(found), answered(found)), found), "a second way rounds no more"


@settings(deadline=None)
@given(jobs, st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 1e9), st.integers(1, 10**6))
def test_every_result_survives_the_wire(job: Job, right: int, wrong: int, seconds: float, size: int) -> None:
    message = EvaluationResult(job, right, max(1, right + wrong), seconds, size)
    assert same(decode(EvaluationResult, travelled(encode(message))), message)


def test_bytes_are_those_of_the_content() -> None:
    small, large = (
        payload_bytes(encode(Student(np.zeros(n, np.uint8), "{}", NAMES, VERSION))) for n in (0, 10_000)
    )
    assert large - small == 10_000 + 6, "and six more digits in the headers"


@pytest.mark.parametrize("name", MESSAGES)
def test_bytes_are_those_that_flower_sends(name: str) -> None:
    for content in (encode(MESSAGES[name]), plain_records(MESSAGES[name])):
        parts = get_all_nested_objects(content).values()
        assert payload_bytes(content) == sum(len(part.deflate()) for part in parts)


@pytest.mark.parametrize("name", ["PrototypeUpload", "EvaluationResult"])
@pytest.mark.parametrize("field", ["labels", "audio", "job.labels"])
def test_an_undeclared_array_is_refused_by_name(name: str, field: str) -> None:
    content = plain_records(MESSAGES[name])
    content.array_records["arrays"][field] = Array(np.array([3, 4], np.int64))
    with pytest.raises(WireError, match=f"^{field}: not a field of {name}"):
        decode(type(MESSAGES[name]), travelled(content))


def test_an_undeclared_text_is_refused_by_name() -> None:
    content = encode(MESSAGES["EvaluationResult"])
    content.config_records["fields"]["predictions"] = "[0, 1, 2]"
    with pytest.raises(WireError, match=r"^predictions: not a field"):
        decode(EvaluationResult, travelled(content))


def test_an_undeclared_record_is_refused() -> None:
    content = encode(MESSAGES["Hello"])
    content["metrics"] = MetricRecord({"accuracy": 0.5})
    with pytest.raises(WireError, match=r"^records: .*metrics"):
        decode(Hello, content)


@pytest.mark.parametrize("name", [name for name in MESSAGES if "Hello" not in name])
def test_a_missing_field_is_named(name: str) -> None:
    content = plain_records(MESSAGES[name])
    records: tuple[Any, ...] = (content.array_records["arrays"], content.config_records["fields"])
    for record in records:
        for field in list(record):
            if field in OPTIONAL_FIELDS.get(name, ()):
                continue
            value = record.pop(field)
            with pytest.raises(WireError, match=f"^{field}: missing"):
                decode(type(MESSAGES[name]), content)
            record[field] = value
    decode(type(MESSAGES[name]), content)


def spoilt(value: float) -> np.ndarray:
    rows = EVEN.copy()
    rows[1, 2] = value
    return rows


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: upload(probabilities=spoilt(np.nan)), "probabilities: NaN"),
        (lambda: upload(probabilities=spoilt(np.inf)), "probabilities: NaN or infinite"),
        (lambda: upload(probabilities=spoilt(0.9)), "probabilities: every row must .* sum to 1"),
        (lambda: upload(probabilities=spoilt(-0.1)), "probabilities: every row must be non-negative"),
        (lambda: upload(probabilities=EVEN.astype(np.float64)), "probabilities: needs a float32 array"),
        (lambda: upload(probabilities=EVEN[0]), "probabilities: needs a float32 array of 2 dim"),
        (lambda: upload(probabilities=EVEN[:0], counts=np.empty(0, np.int64)), "probabilities: no rows"),
        (lambda: upload(probabilities=EVEN.tolist()), "probabilities: .*got list"),
        (lambda: upload(class_names=NAMES[:5]), "probabilities: 6 columns for 5 class names"),
        (lambda: upload(counts=np.array([8, 9])), "counts: needs 3 values"),
        (lambda: upload(counts=np.array([8, 9, 0])), "counts: needs 3 values from 1"),
        (lambda: upload(counts=np.array([8.0, 9.0, 1.0])), "counts: needs a int64 array"),
        (lambda: upload(counts=np.array([2**62, 2**62, 1])), "counts: "),
        (lambda: result(correct=13), "correct: 13 of 12"),
        (lambda: result(correct=-1), "correct: -1"),
        (lambda: result(correct=0, total=0), "correct: 0 of 0"),
        (lambda: result(seconds=float("nan")), "seconds: "),
        (lambda: result(seconds=-1.0), "seconds: "),
        (lambda: result(bytes_per_clip=-1), "bytes_per_clip: "),
        (lambda: Job("latency", "a", 0, 0), "scenario: unknown 'latency'"),
        (lambda: Job("latency_sensitive", "a", 0, -1), "round: -1"),
        (lambda: Student(np.zeros(3, np.int8), "{}", NAMES, VERSION), "weights: needs a uint8"),
        (lambda: Student(np.zeros(3, np.uint8), "{}", (), VERSION), "class_names: empty"),
        (lambda: Student(np.zeros(3, np.uint8), "{}", NAMES, VERSION[1:]), "version: needs 64"),
        (lambda: Student(np.zeros(3, np.uint8), "{}", NAMES, "../" * 21 + "a"), "version: needs 64"),
        (lambda: Student(np.zeros(3, np.uint8), "{}", NAMES, VERSION, VERSION.upper()), "base: needs 64"),
        (lambda: Hello("a", "0.1.0", 0, change="weather"), "change: unknown 'weather'"),
        (lambda: MissingDependency("labels", VERSION), "item: unknown 'labels'"),
        (lambda: MissingDependency("base", ""), "version: needs 64"),
        (lambda: install_request(canaries="x"), "canaries: needs 64"),
        (lambda: install_request(audio=np.ones((2, 4), np.float32)), "audio: needs a float32"),
        (lambda: install_request(audio=np.full((2, 4, 3), np.nan, np.float32)), "audio: NaN"),
        (lambda: install_request(frames=np.ones((1, 1, 1, 5, 5), np.uint8)), "frames: 1 clips for 2"),
        (lambda: install_request(teacher=EVEN), "teacher: needs one row per clip"),
        (lambda: install_request(teacher=EVEN[:2, :5]), "teacher: needs one row per clip and one column"),
        (lambda: install_request(teacher=-EVEN[:2]), "teacher: needs finite, non-negative"),
        (lambda: install_request(minimum_agreement=float("nan")), "minimum_agreement: nan"),
        (lambda: install_request(expected=0.8), "expected: needs low, expected and high"),
        (lambda: install_request(expected=0.8, low=0.9, high=0.95), "expected: needs low, expected and high"),
        (lambda: install_request(expected=0.8, low=0.7, high=float("nan")), "expected: needs low"),
        (lambda: install_request(expected=0.8, low=0.7, high=1.01), "expected: needs low"),
        (lambda: install_result(agreement=1.5), "agreement: 1.5"),
        (lambda: install_result(reason="too bad"), "reason: belongs"),
        (lambda: install_result(installed=False), "reason: belongs"),
        (lambda: install_result(installed=False, reason="a\nb"), "reason: needs one line"),
        (lambda: install_result(installed=False, reason="a" * 501), "reason: needs one line of at most"),
        (lambda: install_result(current="x"), "current: needs 64"),
        (lambda: install_result(current=""), "current: empty"),
        (lambda: install_result(bad_clips=("2 /home/ann/walk.mp4",)), "bad_clips: needs a number of clips"),
        (lambda: install_result(bad_clips=("walk.mp4",)), "bad_clips: needs a number of clips"),
        (lambda: install_result(bad_clips=("0 empty",)), "bad_clips: needs a number of clips"),
        (lambda: result(bad_clips=("1000000001 empty",)), "bad_clips: needs a number of clips"),
        (lambda: result(bad_clips=("1 empty", "2 empty")), "bad_clips: says 'empty' twice"),
        (lambda: prototype_request(kind="raw"), "kind: unknown 'raw'"),
        (lambda: prototype_request(min_size=0), "min_size: 0 is below 1"),
        (lambda: prototype_request(samples_per_prototype=0), "samples_per_prototype: 0 is below 1"),
        (lambda: prototype_request(upload_limit=-1), "upload_limit: -1"),
        (lambda: prototype_request(temperature=0.0), "temperature: 0.0"),
        (lambda: prototype_request(temperature=float("nan")), "temperature: nan"),
        (lambda: prototype_request(epsilon=1.0), "epsilon: is for kind dp, not for constrained"),
        (lambda: prototype_request(delta=1e-5), "delta: is for kind dp"),
        (lambda: prototype_request(centres=EVEN), "centres: is for kind dp"),
        (lambda: private_request(epsilon=0.0), "epsilon: 0.0"),
        (lambda: private_request(epsilon=float("nan")), "epsilon: nan"),
        (lambda: private_request(epsilon=float("inf")), "epsilon: inf"),
        (lambda: private_request(delta=0.0), "delta: 0.0"),
        (lambda: private_request(delta=1.0), "delta: 1.0"),
        (lambda: private_request(upload_limit=9), "upload_limit: "),
        (lambda: private_request(centres=EVEN[:0]), "centres: needs 1 to"),
        (lambda: private_request(centres=EVEN[:, :5]), "centres: needs 1 to 4096 rows of 6"),
        (lambda: private_request(centres=np.resize(EVEN, (4097, 6))), "centres: needs 1 to 4096"),
        (lambda: private_request(centres=2 * EVEN), "centres: every row must sum to 1"),
        (lambda: private_request(centres=spoilt(np.nan)), "centres: needs finite"),
        (lambda: private_request(centres=EVEN.astype(np.float64)), "centres: needs a float32"),
        (lambda: private_request(centres=EVEN[0]), "centres: needs a float32 array of 2 dim"),
        (lambda: prototype_request(card=True), "card: is for kind histogram or dp, not for constrained"),
        (lambda: prototype_request(kind="histogram", coarse=True), "coarse: is for kind kmeans or constrained"),
        (lambda: prototype_request(card_share=0.5), "card_share: is for kind dp, not for constrained"),
        (lambda: prototype_request(kind="histogram", card=True, card_share=0.5), "card_share: is for kind dp"),
        (lambda: private_request(card=True), "card_share: 0.0 is not between 0 and 1"),
        (lambda: private_request(card=True, card_share=1.0), "card_share: 1.0 is not between 0 and 1"),
        (lambda: private_request(card=True, card_share=float("nan")), "card_share: nan is not between"),
        (lambda: private_request(card_share=0.5), "card_share: no card is asked for"),
        (lambda: upload(card=CARD[:-1]), "card: needs 170 bytes, or none"),
        (lambda: upload(card=CARD + np.uint8(1)), "card: has layout 2, and 1 is known"),
        (lambda: upload(card=CARD.astype(np.float32)), "card: needs a uint8"),
        (lambda: upload(confidence=SURE[:3]), "confidence: needs 8 values, or none"),
        (lambda: upload(confidence=2 * SURE), "confidence: must sum to 1"),
        (lambda: upload(confidence=SURE * np.float32(np.nan)), "confidence: needs finite"),
        (lambda: upload(confidence=SURE.astype(np.float64)), "confidence: needs a float32"),
        (lambda: evaluation_request(compressor=np.zeros(3)), "compressor: needs a uint8"),
        (lambda: require_same_classes(NAMES, NAMES[::-1]), "class_names: expected .*neutral.* received .*angry"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_cannot_be_made(make: Callable[[], object], text: str) -> None:
    with pytest.raises(WireError, match=f"^{text}") as caught:
        make()
    assert "\n" not in str(caught.value)


def attempt(content: RecordDict) -> tuple[PrototypeUpload | None, str]:
    """The upload, or None and why it was refused; any other error fails the test."""
    try:
        return decode(PrototypeUpload, content), ""
    except WireError as error:
        return None, str(error)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["probabilities", "counts"]),
    arrays.arrays(
        st.sampled_from([np.float32, np.float64, np.int64, np.int8, np.bool_, np.complex64, "<U3", ">f4", "M8[s]"]),
        arrays.array_shapes(min_dims=0, max_dims=4, max_side=7),
    ),
)  # fmt: skip
def test_any_other_array_is_refused_or_fits(field: str, other: np.ndarray) -> None:
    content = plain_records(upload())
    content.array_records["arrays"][field] = Array(other)
    found, refusal = attempt(content)
    if found is None:
        assert refusal.split(":")[0] in ("probabilities", "counts")
    else:
        assert np.array_equal(getattr(found, field), other)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["probabilities", "counts"]), st.data())
def test_damaged_bytes_are_refused_or_fit(field: str, data: st.DataObject) -> None:
    content = plain_records(upload())
    whole = content.array_records["arrays"][field]
    blob = bytearray(whole.data)
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(blob[: data.draw(st.integers(0, len(blob)))])
    content.array_records["arrays"][field] = Array(whole.dtype, whole.shape, whole.stype, cut)
    assert "\n" not in attempt(content)[1]


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(list(plain_records(upload()).config_records["fields"])), json_like | st.text(max_size=10)
)
def test_any_other_text_is_refused_or_fits(field: str, value: object) -> None:
    content = plain_records(upload())
    content.config_records["fields"][field] = value if isinstance(value, str) else json.dumps(value)
    assert "\n" not in attempt(content)[1]


def changed(field: str, value: Any) -> RecordDict:
    """The upload with a config value of another kind."""
    content = plain_records(upload())
    content.config_records["fields"][field] = value
    return content


def as_array(field: str, value: np.ndarray) -> RecordDict:
    """The upload with an array where a text belongs."""
    content = plain_records(upload())
    del content.config_records["fields"][field]
    content.array_records["arrays"][field] = Array(value)
    return content


@pytest.mark.parametrize(
    "content",
    [
        changed("job.seed", "9" * 5000),
        changed("class_names", "[" * 100_000),
        changed("class_names", b"\xff\x00"),
        changed("job.seed", [1, 2]),
        changed("job.seed", "true"),
        changed("job.seed", "Infinity"),
        as_array("job.scenario", np.arange(3.0)),
        as_array("job.scenario", np.array(["latency_sensitive"])),
        as_array("job.round", np.arange(3)),
        as_array("job.seed", np.array(3)),
        as_array("class_names", np.array(NAMES)),
        RecordDict(),
        RecordDict({"arrays": ConfigRecord({}), "fields": ConfigRecord({})}),
        RecordDict({"arrays": ArrayRecord({}), "fields": ArrayRecord({})}),
        RecordDict({"arrays": ArrayRecord({}), "fields": MetricRecord({"a": 1})}),
        RecordDict({"arrays": ArrayRecord({}), "fields": ConfigRecord({})}),
    ],
    ids=[
        "endless number", "deep list", "bytes", "a list", "a boolean", "infinity", "array for a name",
        "text array for a name", "array for a round", "array for a seed", "array of class names", "nothing",
        "no arrays", "no fields", "metrics for fields", "both empty",
    ],
)  # fmt: skip
def test_other_kinds_of_content_are_refused(content: RecordDict) -> None:
    with pytest.raises(WireError) as caught:
        decode(PrototypeUpload, content)
    assert "\n" not in str(caught.value)


def test_an_array_in_hello_is_refused() -> None:
    content = encode(MESSAGES["Hello"])
    del content.config_records["fields"]["partition"]
    content.array_records["arrays"]["partition"] = Array(np.arange(2))
    with pytest.raises(WireError, match=r"^partition: "):
        decode(Hello, content)
