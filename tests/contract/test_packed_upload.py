"""Guards the packed form of an upload: 512 bytes for 32 classes with a card, and whatever does not fit is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from helpers.recorded_clips import noisy_store
from hypothesis import given, settings
from hypothesis import strategies as st
from test_wire import CARD, EVEN, JOB, NAMES, STUDENT, prototype_request, same, travelled, upload

from fedstill.cloud_server.federation.downlink import Downlink
from fedstill.cloud_server.federation.exchange import Exchange
from fedstill.datasets.audiovisual.capture_card import CARD_BYTES
from fedstill.edge_client.folder import DATA_FOLDER
from fedstill.edge_client.node.client_app import app, device_directory
from fedstill.edge_client.node.device import Device
from fedstill.edge_client.privacy.privacy_policy import PrivacyPolicy, write_policy
from fedstill.edge_client.students.torch_runtime import load_torch
from fedstill.models.audiovisual.confidence import CONFIDENCE_BINS
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.models.audiovisual.specs import EncoderSpec, NetworkSpec
from fedstill.protos.messages import Job, PrototypeRequest, PrototypeUpload, WireError
from fedstill.protos.packed_upload import coarse_rows, pack_upload, unpack_upload
from fedstill.protos.records import decode, encode
from fedstill.simulation.inprocess import InProcessGrid

MOST_BYTES = 512
CLASSES = tuple(f"a class with a long name, number {number}" for number in range(32))
CLIPS = 40
ASKED = prototype_request()
WHOLE = pack_upload(upload(card=CARD))
HEAD = 22


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """The folder of a run's only device."""
    folder = device_directory(tmp_path, 0)
    noisy_store(folder / DATA_FOLDER, CLASSES, CLIPS, features=(32, 32))
    return folder


def histogram_request() -> PrototypeRequest:
    """Of a job and of classes whose names are long."""
    torch.manual_seed(0)
    net = AudioVisualNet(NetworkSpec(EncoderSpec("resnet10", 2), 8, len(CLASSES), "concat", 1))
    return prototype_request(
        job=Job("latency_insensitive", "a_rather_long_name_of_an_arm.and_its_sweep.128", 2**40, 99),
        student=Downlink("exact", CLASSES).shipment(net.eval()).student,
        kind="histogram",
        card=True,
    )


def private_request() -> PrototypeRequest:
    centre = np.full((1, 32), 1 / 32, np.float32)
    private: dict[str, Any] = {
        "kind": "dp", "epsilon": 800.0, "delta": 1e-5, "centres": centre, "card_share": 0.5, "min_size": 1,
    }  # fmt: skip
    return replace(histogram_request(), **private)


@pytest.mark.parametrize("asked", [histogram_request(), private_request()], ids=["histogram", "dp"])
def test_what_a_device_uploads_for_32_classes_fits_into_512_bytes(
    asked: PrototypeRequest, device: Path, tmp_path: Path
) -> None:
    """The content of the reply as Flower serialises it, ids and headers included; the traffic ledger counts that."""
    if asked.kind == "dp":
        write_policy(device, PrivacyPolicy(accepts="dp", epsilon=900.0, noise_seed=0))
    grid = InProcessGrid(app, 1, {"run-dir": str(tmp_path)})
    (node,) = grid.get_node_ids()
    found, cost = Exchange(grid, 60).ask(node, "query.prototypes", asked, PrototypeUpload)
    content = travelled(grid.outbound[0].content)
    assert cost.up_bytes == sum(len(part.deflate()) for part in get_all_nested_objects(content).values())
    assert 400 < cost.up_bytes <= MOST_BYTES
    assert (found.job, found.class_names) == (asked.job, CLASSES)
    assert len(found.card) == CARD_BYTES
    assert len(found.confidence) == (CONFIDENCE_BINS if asked.kind == "histogram" else 0)
    if asked.kind == "histogram":
        made = Device(device, load_torch, str(tmp_path)).prototypes(asked)
        assert np.array_equal(found.card, made.card)
        assert found.counts.tolist() == made.counts.tolist() == [CLIPS]
        np.testing.assert_allclose(found.confidence, made.confidence, rtol=0, atol=2**-24)
        np.testing.assert_allclose(found.probabilities, made.probabilities, rtol=0, atol=2**-24)


@given(st.floats(1e-4, 1))
def test_a_share_that_matters_is_rounded_by_less_than_a_thousandth(share: float) -> None:
    rows = np.array([[share, 1 - share, 0, 0, 0, 0]], np.float32)
    found = unpack_upload(pack_upload(upload(probabilities=rows, counts=np.array([9]))), ASKED)
    assert found.probabilities[0, 0] == pytest.approx(share, rel=1e-3)


@given(st.integers(1, 40), st.integers(2, 600), st.integers(0, 2**32 - 1))
def test_coarse_rows_take_one_byte_a_share_and_come_back_exactly(count: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    exact = rng.dirichlet(np.full(classes, 0.3), count).astype(np.float32)
    rows = coarse_rows(exact)
    names = tuple(str(number) for number in range(classes))
    asked = replace(ASKED, student=replace(STUDENT, class_names=names), kind="constrained", coarse=True)
    sent = PrototypeUpload(asked.job, rows, np.full(count, 3, np.int64), names)
    data = pack_upload(sent, coarse=True)
    assert len(data) == HEAD + count * (4 + classes)
    found = unpack_upload(data, asked)
    assert same(found, sent)
    assert pack_upload(found, coarse=True) == data
    largest = exact.max(axis=1, keepdims=True)
    assert np.abs(rows / rows.max(axis=1, keepdims=True) - exact / largest).max() <= 0.5 / 255 + 1e-6


def test_layout_1_stays_readable() -> None:
    """The bytes of 2026, written out: digests, 2 rows of 2 classes, no confidences, no card."""
    data = bytes.fromhex(LAYOUT_1)
    asked = replace(ASKED, student=replace(STUDENT, class_names=("no", "yes")))
    rows = np.array([[0.25, 0.75], [1, 0]], np.float32)
    expected = PrototypeUpload(JOB, rows, np.array([7, 10**9], np.int64), ("no", "yes"))
    assert same(unpack_upload(data, asked), expected)
    assert pack_upload(expected) == data


LAYOUT_1 = "010c82edb07870a0fc34dc3d20270b622302000000000700000000ca9a3b000020000060000080000000"
"""Layout, job, classes, rows, parts; counts, shares."""


def at(place: int, value: int) -> bytes:
    """The whole upload with one byte replaced."""
    return WHOLE[:place] + bytes([value]) + WHOLE[place + 1 :]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "upload: 0 bytes are too few"),
        (WHOLE[: HEAD - 1], "upload: 21 bytes are too few"),
        (at(0, 2), "upload: has layout 2, and 1 is known: update the older side"),
        (b"\x00", "upload: has layout 0"),
        (at(1, WHOLE[1] ^ 1), "job: answers another question"),
        (at(9, WHOLE[9] ^ 1), "class_names: other ones than .*neutral"),
        (at(17, 2), "upload: 2 rows and its parts need"),
        (at(20, 255), "upload: 4278190083 rows and its parts need"),
        (at(17, 0)[: HEAD + 194], "probabilities: no rows"),
        (at(21, 7), "upload: has unknown parts 0x7"),
        (at(21, 1), "upload: 3 rows and its parts need"),
        (WHOLE[:-1], "upload: 3 rows and its parts need"),
        (WHOLE + b"\x03", "upload: 3 rows and its parts need"),
        (at(HEAD, 0), "counts: needs 3 values from 1"),
        (at(HEAD + 3, 255), "counts: needs 3 values from 1"),
        (at(HEAD + 14, 127), "probabilities: every row must"),
        (at(HEAD + 12 + 54 + 2, 127), "confidence: must sum to 1"),
        (at(len(WHOLE) - 170, 2), "card: has layout 2, and 1 is known"),
    ],
)
def test_bytes_that_do_not_fit_are_refused_by_name(data: bytes, text: str) -> None:
    with pytest.raises(WireError, match=f"^{text}") as caught:
        unpack_upload(data, ASKED)
    assert "\n" not in str(caught.value)


def beside(name: str, value: Any) -> RecordDict:
    content = encode(upload())
    content.config_records["fields"][name] = value
    return content


def with_record(name: str, record: Any) -> RecordDict:
    content = encode(upload())
    content[name] = record
    return content


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: beside("labels", "[0, 1]"), "labels: not a field of PrototypeUpload"),
        (lambda: beside("job.seed", "3"), "job.seed: not a field"),
        (lambda: beside("upload", "text"), "upload: needs bytes, got str"),
        (lambda: beside("upload", [b"a", b"b"]), "upload: needs bytes, got list"),
        (lambda: beside("upload", 7), "upload: needs bytes, got int"),
        (lambda: RecordDict({"fields": ConfigRecord({})}), "upload: missing"),
        (
            lambda: with_record("arrays", ArrayRecord({"labels": Array(np.arange(2))})),
            "job.scenario: missing",
        ),
        (lambda: with_record("metrics", MetricRecord({"a": 1})), "records: expected .*metrics"),
    ],
)
def test_nothing_travels_beside_a_packed_upload(make: Callable[[], RecordDict], text: str) -> None:
    with pytest.raises(WireError, match=f"^{text}"):
        decode(PrototypeUpload, travelled(make()), ASKED)


def test_an_upload_of_another_round_or_for_other_classes_is_refused() -> None:
    for asked, text in (
        (replace(ASKED, job=replace(JOB, round=3)), "job: "),
        (replace(ASKED, student=replace(STUDENT, class_names=NAMES[::-1])), "class_names: "),
    ):
        with pytest.raises(WireError, match=f"^{text}"):
            unpack_upload(WHOLE, asked)


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_damaged_bytes_are_refused_or_fit(data: st.DataObject) -> None:
    blob = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(0, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(blob[: data.draw(st.integers(0, len(blob)) | st.just(len(blob)))])
    refused_or_same(cut)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda tail: WHOLE[:17] + tail))
def test_any_bytes_are_refused_or_fit(data: bytes) -> None:
    refused_or_same(data)


def refused_or_same(data: bytes) -> None:
    """What is accepted is no more than what can be read of it."""
    refusal = ""
    try:
        found = unpack_upload(data, ASKED)
    except WireError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert refusal or pack_upload(found) == data


def test_an_even_summary_stays_even() -> None:
    found = unpack_upload(pack_upload(upload(probabilities=EVEN)), ASKED)
    assert len(np.unique(found.probabilities)) == 1
