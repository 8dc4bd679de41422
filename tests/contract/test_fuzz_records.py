"""Guards the codec and the device's handlers against anything: 10,000 mutated messages, none of which gets through.

What comes back is always a value that the message's own rules accept, or a WireError that begins with a field's name.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from helpers.fuzz import FACTOR
from helpers.runs import prepared_run
from test_wire import MESSAGES, answered, same

from fedstill.edge_client.node.client_app import app
from fedstill.protos.messages import WireError
from fedstill.protos.records import decode, encode, plain_records
from fedstill.simulation.inprocess import InProcessGrid

MUTATED = 10_000 * FACTOR
HANDLED = 300 * FACTOR
NAMED = re.compile(r"[A-Za-z_][\w.]*: ")
TEXTS = (
    "",
    "null",
    "{",
    "[]",
    "-1",
    "NaN",
    "Infinity",
    "1e999",
    '"\\ud800"',
    "[" * 2000,
    "9" * 400,
    "true",
    '"x"',
    "0.5",
)
DTYPES = (
    "float32",
    "float64",
    "int8",
    "uint8",
    "int64",
    "object",
    "bool",
    "complex64",
    "<U8",
    "nonsense",
    "",
)


def mutate(content: RecordDict, rng: random.Random) -> RecordDict:
    """One to three random injuries to a message."""
    for _ in range(rng.randint(1, 3)):
        packed = content.config_records.get("fields")
        if packed is not None and "upload" in packed:
            rng.choice(PACKED_INJURIES)(packed, rng)
            continue
        arrays, texts = content.array_records.get("arrays"), content.config_records.get("fields")
        if arrays is None or texts is None:
            return content
        rng.choice(INJURIES)(content, arrays, texts, rng)
    return content


def _text(_: RecordDict, arrays: ArrayRecord, texts: ConfigRecord, rng: random.Random) -> None:
    if texts:
        texts[rng.choice(list(texts))] = rng.choice(TEXTS)


def _bitten_text(_: RecordDict, arrays: ArrayRecord, texts: ConfigRecord, rng: random.Random) -> None:
    if texts:
        name = rng.choice(list(texts))
        said = str(texts[name])
        cut = rng.randrange(len(said) + 1)
        texts[name] = said[:cut] + rng.choice('\x00"{}[]:,0aé') + said[cut + 1 :]


def _no_text(_: RecordDict, arrays: ArrayRecord, texts: ConfigRecord, rng: random.Random) -> None:
    if texts:
        name, kind = rng.choice(list(texts)), rng.randrange(4)
        texts[name] = (7, 0.5, b"\xff", True)[kind]


def _gone(_: RecordDict, arrays: ArrayRecord, texts: ConfigRecord, rng: random.Random) -> None:
    record = rng.choice([one for one in (arrays, texts) if one] or [texts])
    if record:
        del record[rng.choice(list(record))]


def _extra(_: RecordDict, arrays: ArrayRecord, texts: ConfigRecord, rng: random.Random) -> None:
    texts[rng.choice(["labels", "job", "job.job", "", "a" * 500])] = "1"


def _bytes(_: RecordDict, arrays: ArrayRecord, texts: ConfigRecord, rng: random.Random) -> None:
    if arrays:
        array = arrays[rng.choice(list(arrays))]
        data = bytearray(array.data)
        for _ in range(rng.randint(1, 8)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        array.data = bytes(data[: rng.choice([len(data), len(data) // 2, 0])])


def _type(_: RecordDict, arrays: ArrayRecord, texts: ConfigRecord, rng: random.Random) -> None:
    if arrays:
        arrays[rng.choice(list(arrays))].dtype = rng.choice(DTYPES)


def _shape(_: RecordDict, arrays: ArrayRecord, texts: ConfigRecord, rng: random.Random) -> None:
    if arrays:
        shape = tuple(rng.choice([-1, 0, 1, 6, 2**40]) for _ in range(rng.randint(0, 4)))
        arrays[rng.choice(list(arrays))].shape = shape


def _swapped(_: RecordDict, arrays: ArrayRecord, texts: ConfigRecord, rng: random.Random) -> None:
    value = rng.choice(
        [np.full((2, 6), np.nan, np.float32), np.zeros(0), np.arange(3), np.ones((1, 1, 1), np.int8)]
    )
    name = rng.choice([*arrays, *texts, "weights"])
    texts.pop(name, None)
    arrays[name] = Array(value)


def _records(content: RecordDict, arrays: ArrayRecord, texts: ConfigRecord, rng: random.Random) -> None:
    kind = rng.randrange(3)
    if kind == 0:
        content["metrics"] = MetricRecord({"accuracy": 0.5})
    elif kind == 1:
        del content["fields"]
    else:
        content["arrays"] = ConfigRecord({"a": "b"})


def _packed_bytes(packed: ConfigRecord, rng: random.Random) -> None:
    data = bytearray(packed_of(packed))
    for _ in range(rng.randint(1, 8)):
        if data:
            data[rng.randrange(len(data))] = rng.randrange(256)
    packed["upload"] = bytes(data)


def _packed_cut(packed: ConfigRecord, rng: random.Random) -> None:
    data = packed_of(packed)
    packed["upload"] = data[: rng.randrange(len(data) + 1)] + rng.choice([b"", b"labels", data])


def _packed_no_bytes(packed: ConfigRecord, rng: random.Random) -> None:
    values = ("text", 7, 0.5, True, [b"a"], [1, 2])
    packed["upload"] = rng.choice(values)


def _packed_extra(packed: ConfigRecord, rng: random.Random) -> None:
    packed[rng.choice(["labels", "job.arm", "probabilities", "", "a" * 500])] = rng.choice(["1", b"1"])


def packed_of(packed: ConfigRecord) -> bytes:
    """The bytes, unless an earlier injury left none."""
    data = packed["upload"]
    return data if isinstance(data, bytes) else b""


PACKED_INJURIES = (_packed_bytes, _packed_cut, _packed_no_bytes, _packed_extra)
INJURIES = (_text, _bitten_text, _no_text, _gone, _extra, _bytes, _type, _shape, _swapped, _records)


@pytest.mark.slow
def test_ten_thousand_mutated_messages_never_get_through_the_codec() -> None:
    rng = random.Random(7)
    refused = 0
    for number in range(MUTATED):
        name = list(MESSAGES)[number % len(MESSAGES)]
        kind, asked = type(MESSAGES[name]), answered(MESSAGES[name])
        write = (encode, plain_records)[number // len(MESSAGES) % 2]  # both forms of an upload
        content = mutate(write(MESSAGES[name]), rng)
        value = decoded(kind, content, asked)
        if isinstance(value, WireError):
            refused += 1
            assert NAMED.match(str(value)), f"{name}: no field is named in {str(value)[:200]!r}"
            assert "\n" not in str(value)
        else:
            assert same(decode(kind, write(value), answered(value)), value), (
                "what is accepted travels again unchanged"
            )
    assert refused > MUTATED // 2


def decoded(kind: type, content: RecordDict, asked: object) -> object:
    try:
        return decode(kind, content, asked)
    except WireError as error:
        return error


@pytest.fixture(scope="module")
def device_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_run(tmp_path_factory.mktemp("device"))


REQUESTS = {
    "query.hello": "HelloRequest",
    "query.prototypes": "PrototypeRequest",
    "evaluate.student": "EvaluationRequest",
    "train.install": "InstallRequest",
}


def test_mutated_requests_change_nothing_on_a_device(device_run: Path) -> None:
    """A handler refuses in one line, or answers; what it keeps on disk is what a valid request may leave."""
    grid = InProcessGrid(app, 1, {"run-dir": str(device_run)})
    node = next(iter(grid.get_node_ids()))
    folder = device_run / "devices" / "0"
    rng = random.Random(11)
    for number in range(HANDLED):
        action = list(REQUESTS)[number % len(REQUESTS)]
        content = mutate(encode(MESSAGES[REQUESTS[action]]), rng)
        before = snapshot(folder)
        (identity,) = grid.push_messages([Message(content, node, action)])
        (reply,) = grid.pull_messages([identity])
        if reply.has_error():
            reason = str(reply.error.reason)
            assert "\n" not in reason.strip(), reason
            assert snapshot(folder) == before, f"{action} was refused and yet changed the device: {reason}"


def snapshot(folder: Path) -> dict[str, bytes]:
    """All that a device keeps, locks left out."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_the_fuzzer_reaches_every_kind_of_injury() -> None:
    """Guards the guard: each injury changes a message."""
    for injury in INJURIES:
        for seed in range(20):
            content, before = (plain_records(MESSAGES["PrototypeUpload"]) for _ in range(2))
            injury(
                content,
                content.array_records["arrays"],
                content.config_records["fields"],
                random.Random(seed),
            )
            if described(content) != described(before):
                break
        else:
            pytest.fail(f"{injury.__name__} never changes anything")
    for packed_injury in PACKED_INJURIES:
        changed = []
        for seed in range(20):
            content = encode(MESSAGES["CardUpload"])
            packed_injury(content.config_records["fields"], random.Random(seed))
            changed.append(described(content) != described(encode(MESSAGES["CardUpload"])))
        assert any(changed), f"{packed_injury.__name__} never changes anything"


def described(content: RecordDict) -> str:
    arrays = {
        name: (array.dtype, list(array.shape), array.data.hex())
        for record in content.array_records.values()
        for name, array in record.items()
    }
    texts = {name: str(value) for record in content.config_records.values() for name, value in record.items()}
    return json.dumps([arrays, texts, sorted(map(str, content))])
