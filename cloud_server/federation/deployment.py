"""The last steps of a personalisation: the student is kept, and its device installs it.

The device tries it first on a few public clips (canaries). If student and teacher disagree on them, it keeps its
previous student. What is installed is what was measured: the student as the device has it, and levels trained on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fedstill.cloud_server.distillation.compression_training import pack_compressors, train_levels
from fedstill.cloud_server.distillation.run_plan import RunPlan
from fedstill.cloud_server.edge_inference.heads import HEADS_FOLDER, save_heads
from fedstill.cloud_server.federation.device_session import DeviceSession
from fedstill.cloud_server.federation.seed_state import SeedCloud
from fedstill.cloud_server.journal.job_key import JobKey
from fedstill.cloud_server.journal.journal import Journal
from fedstill.common.run_layout import student_name
from fedstill.datasets.audiovisual.capture.views import ClipViews
from fedstill.models.audiovisual.class_bias import Bias, levels_with_class_bias
from fedstill.models.audiovisual.compression import CompressionNet
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.models.weights.canaries import Canaries

STUDENTS_FOLDER = "students"


@dataclass(frozen=True)
class SimilarClips:
    """The public clips that resemble a device's: which, and how they are recorded."""

    views: ClipViews
    positions: npt.NDArray[np.int64]


def is_deployed(key: JobKey, plan: RunPlan) -> bool:
    """A service deploys every student; a study one per device: of the plan's arm, first scenario and first seed."""
    if plan.service:
        return True
    first = (plan.downlink.install, plan.scenarios[0], plan.seeds[0])
    return (key.arm, key.scenario, key.seed) == first and not key.sweep


def deploy(
    student: AudioVisualNet,
    bias: Bias,
    cloud: SeedCloud,
    session: DeviceSession,
    similar: SimilarClips,
    outer_epoch: int,
    expected: tuple[float, float, float] | None = None,
) -> dict[str, object]:
    """Offer the student's heads to the inference service, then have the device install it.

    Args:
        student: with its class bias.
        bias: that class bias, which the heads of the compression levels get, too.
        similar: on these, levels are trained and canaries are chosen.
        expected: as ``DeviceSession.install`` has it.

    Returns:
        ``installed`` and the device's reply about it, for the job's record.

    Raises:
        DeviceFailure: as ``DeviceSession.install`` does.
    """
    levels = levels_of(student, bias, cloud, session, similar)
    _offer_heads(student, levels, cloud, session)  # first: the device may ask as soon as it has the student
    result = session.install(
        student,
        outer_epoch,
        _canaries(cloud, similar, bias),
        pack_compressors(levels),
        cloud.plan.downlink.minimum_agreement,
        expected,
    )
    return {name: getattr(result, name) for name in ("installed", "agreement", "reason", "current")}


def levels_of(
    student: AudioVisualNet,
    bias: Bias,
    cloud: SeedCloud,
    session: DeviceSession,
    similar: SimilarClips,
) -> dict[float, CompressionNet]:
    """The student's compression levels by rate, for measuring and for installing alike; arguments as ``deploy``.

    They are trained on features of the student that the device has, with the rounded weights of the downlink.
    """
    received = session.downlink.received(student)
    trained = train_levels(
        received, similar.views, cloud.bank, similar.positions, cloud.plan.compute, session.key.seed
    )
    return levels_with_class_bias(trained, bias)


def keep_student(key: JobKey, student: AudioVisualNet, cloud: SeedCloud, journal: Journal) -> None:
    """The checkpoint under its readable name, and its weights once more under their content's (a link).

    Args:
        student: as the device has it, so that what is exported from here is what was evaluated there.
    """
    file = cloud.save_student(student_name(key.scenario, key.client, key.arm), student)
    version = hashlib.sha256(file.read_bytes()).hexdigest()
    kept = Path(cloud.plan.work) / STUDENTS_FOLDER / f"{version}.safetensors"
    kept.parent.mkdir(exist_ok=True)
    if not kept.exists():
        kept.hardlink_to(file)
    journal.keep_student(key, version, str(kept.relative_to(cloud.plan.work)), file.stat().st_size)


def _offer_heads(
    student: AudioVisualNet, levels: Mapping[float, CompressionNet], cloud: SeedCloud, session: DeviceSession
) -> None:
    """Give the inference service the student's heads, with the rounded weights that the device will have."""
    has = session.downlink.shipment(student).reached
    folder = Path(cloud.plan.work) / HEADS_FOLDER
    save_heads(folder, has.version, has.network(student.spec), levels, cloud.public.class_names)


def _canaries(cloud: SeedCloud, similar: SimilarClips, bias: Bias) -> Canaries:
    """The teacher's answers get the student's class bias: on a device without a class neither may answer it."""
    class_probabilities = (torch.from_numpy(cloud.bank.logits + bias)).softmax(dim=1).numpy()
    positions = np.unique(similar.positions)
    chosen = canary_positions(class_probabilities, positions, cloud.plan.downlink.canaries)
    audio, frames = similar.views.fixed(chosen)
    return Canaries(np.ascontiguousarray(audio), np.ascontiguousarray(frames), class_probabilities[chosen])


def canary_positions(
    teacher: npt.NDArray[np.float32], positions: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.int64]:
    """Up to ``count`` of ``positions``: those that the teacher is surest of, taken from its predicted classes in turn.

    Sure clips, because on these an intact student agrees with the teacher and a broken one does not.

    Args:
        teacher: float32 (N, classes), its probabilities of all public clips.
    """
    class_probabilities = teacher[positions]
    decided, surest_first = (
        class_probabilities.argmax(axis=1),
        np.argsort(-class_probabilities.max(axis=1), kind="stable"),
    )
    turn = np.empty(len(positions), np.int64)
    for label in np.unique(decided):
        members = surest_first[decided[surest_first] == label]
        turn[members] = np.arange(len(members))
    order = np.lexsort((-class_probabilities.max(axis=1), turn))
    return np.sort(positions[order[:count]])
