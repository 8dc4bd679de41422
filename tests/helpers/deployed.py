"""A run over real media files, and the two sides that must agree: what was counted, and what answers clips."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fedstill.cloud_server.distillation import compression_training
from fedstill.cloud_server.distillation.run_plan import read_plan, write_plan
from fedstill.cloud_server.federation.jobs import TABLE_PRECISIONS
from fedstill.cloud_server.journal.event_log import METRICS_FILE, read_events
from fedstill.common.run_layout import JOURNAL_FILE, personal_students, student_name
from fedstill.datasets.audiovisual.store import open_store
from fedstill.edge_client.folder import COMPRESSORS_FOLDER, SHELF_FOLDER
from fedstill.edge_client.inference.cloud_connection import CloudConnection
from fedstill.edge_client.inference.cloud_stream import Address
from fedstill.edge_client.inference.current_student import CurrentStudent
from fedstill.edge_client.inference.levels import compression_levels
from fedstill.edge_client.node.loading import loader
from fedstill.edge_client.students.level_files import CompressedRuntime, read_compressors
from fedstill.edge_client.students.students import ModelStore
from fedstill.models.audiovisual.levels import Precision
from fedstill.protos.features import FeatureVectors, encode_features
from fedstill.simulation.inprocess import run_inprocess
from helpers.clip_files import write_clip_files
from helpers.inference import made_server, wait_until
from helpers.runs import prepared_run

DEVICES = (0, 1)
SCENARIO = "latency_insensitive"
CLOSE = 1e-3
"""A lead in probability that the last digits of two libraries may turn round."""
LARGE_ENOUGH_TO_LEARN = (
    "frames.count=2",
    "audio.skip_silence=true",
    "teacher.encoder.width=8",
    "teacher.epochs=12",
    "student.encoder.width=8",
    "student.epochs=8",
    "distillation.inner_epochs=3",
    "fedstill.inner_epochs=3",
)


@dataclass(frozen=True)
class Evaluated:
    """What a device counted: the student's version, and by clip id the class and its lead over the second one."""

    version: str
    decided: Mapping[str, str]
    margin: Mapping[str, float]

    @classmethod
    def of(cls, device: Path, name: str) -> Evaluated:
        kept = json.loads((device / "evaluations" / f"{name}.json").read_text())
        clips = kept["clip_ids"]
        decided, margin = (dict(zip(clips, kept[key], strict=True)) for key in ("decided", "margin"))
        return cls(kept["student"], decided, margin)

    def must_be(self, answer: Callable[[str], str]) -> None:
        """``answer`` names a clip's class: that which was counted, for every clip but a few with a tiny margin."""
        close = {clip for clip, margin in self.margin.items() if margin < CLOSE}
        assert len(close) <= len(self.decided) // 6, f"too many close decisions: {sorted(close)}"
        others = {}
        for clip, counted in self.decided.items():
            if (said := answer(clip)) != counted:
                others[clip] = f"{said}, counted {counted} by {self.margin[clip]}"
        assert set(others) <= close, f"{others}; close decisions: {sorted(close)}"


@dataclass(frozen=True)
class Deployed:
    """A finished run whose devices installed the student of ``arm``."""

    run_dir: Path
    clips: Path
    arm: str

    def device(self, number: int) -> Path:
        return self.run_dir / "devices" / str(number)

    def evaluated(self, number: int) -> Evaluated:
        return Evaluated.of(self.device(number), f"{SCENARIO}.{self.arm}.0")

    def agent(self, number: int, address: Address | None = None) -> Callable[[str], str]:
        """The class that the device's agent gives to a clip of this id."""
        current = answering(self.device(number), address)
        return lambda clip: str(current.classify(self.clips / clip)["class"])

    def checkpoint(self, number: int) -> Path:
        return personal_students(self.run_dir, 0) / student_name(SCENARIO, number, self.arm)


def trained_run(folder: Path, arms: list[str]) -> Path:
    """A run whose shared models exist, and nothing else; its clips lie in ``folder/clips``."""
    manifest = write_clip_files(folder / "clips")
    data = ["dataset.kind='manifest'", f"dataset.manifest='{manifest}'"]
    plan = [f"run.arms={arms}", "run.scenarios=['latency_insensitive']"]
    run_dir = prepared_run(folder, [*data, *plan, *LARGE_ENOUGH_TO_LEARN])
    run_it(run_dir)
    forget(run_dir)
    for device in DEVICES:
        shutil.rmtree(run_dir / "devices" / str(device) / "students")
    return run_dir


def copied(trained: Path, folder: Path, **changes: Any) -> Path:
    """That run in a folder of its own, with another plan."""
    run_dir = folder / "run"
    shutil.copytree(trained, run_dir)
    plan = read_plan(trained)
    places = {"work": str(run_dir), "public": str(run_dir / "public")}
    write_plan(replace(plan, **{**places, "teacher_reference": False, **changes}))
    return run_dir


def run_it(run_dir: Path) -> list[dict[str, Any]]:
    """The events. The compression levels are trained briefly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression_training, "EPOCHS", 10)
        run_inprocess(run_dir, len(DEVICES))
    events = list(read_events(run_dir))
    assert [event for event in events if event["event"] == "failure"] == []
    return events


def forget(run_dir: Path) -> None:
    """Let a finished run begin again; models and devices stay as they are."""
    for name in (METRICS_FILE, JOURNAL_FILE):
        (run_dir / name).unlink()


def answering(device: Path, address: Address | None = None) -> CurrentStudent:
    """The device as its agent runs it; with an address, the cloud answers every clip."""
    mode = "local" if address is None else "cloud"
    return CurrentStudent(device, loader(device), mode, 60_000.0, address)


@contextmanager
def cloud_of(run_dir: Path) -> Iterator[Address]:
    """The inference service over the heads of a run."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = made_server(run_dir / "heads", "127.0.0.1:0", None)
    try:
        port = asyncio.run_coroutine_threadsafe(server.start(), loop).result(60)
        yield Address(f"127.0.0.1:{port}", "device")
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()


def is_connected(current: Any, clip: Path) -> bool:
    """Whether clips travel uncompressed: the first ones find no connection, or measure it at the smallest level."""
    try:
        return bool(current.classify(clip)["rung"] == "1 fp32")
    except RuntimeError:  # NoAnswer: not connected yet
        return False


def level_answers(device: Path, address: Address) -> dict[tuple[float, Precision], dict[str, str]]:
    """By rate and precision: the cloud's class for each of the device's clips."""
    student, clips = ModelStore(device / SHELF_FOLDER).current(), open_store(device / "data")
    assert student is not None
    runtime = CompressedRuntime(
        loader(device)(student.state, student.spec, student.class_names, student.version),
        read_compressors(device / COMPRESSORS_FOLDER, student.version),
    )
    features = runtime.features(clips.audio, clips.frames)
    connection = CloudConnection(address, student.version, student.class_names)
    connection.start()
    answers: dict[tuple[float, Precision], dict[str, str]] = {}
    try:
        for level in compression_levels(features.audio.shape[1]):
            if level.precision not in TABLE_PRECISIONS:
                continue
            reduced, said = runtime.compress(features, level.rate), {}
            for clip, audio, visual in zip(clips.info, *reduced, strict=True):
                wait_until(lambda: not connection.hindrance())
                reply = connection.send(
                    level, encode_features(FeatureVectors(audio, visual), level.precision)
                ).wait(30)
                assert reply is not None
                assert reply.probabilities is not None, reply.refusal
                said[clip.clip_id] = student.class_names[int(reply.probabilities.argmax())]
            answers[level.rate, level.precision] = said
    finally:
        connection.close()
    return answers
