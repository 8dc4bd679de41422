"""One job = one device, in one arm and scenario, for one seed: personalise, send down, let the device count.

Every job stands alone: it has its own randomness, waits for nobody else's device, and leaves one ``job`` event
with all that the report needs. A device that fails is reported and left out of that round; the job goes on.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TypeVar

import numpy as np
import torch

from fedstill.cloud_server.arms import (
    SHARED,
    arm_of,
    budget_of,
    distillation_of,
    select_rule,
    upload_kind,
    with_variant,
)
from fedstill.cloud_server.cloud import SeedCloud, generator, stream
from fedstill.cloud_server.compression_training import train_rung
from fedstill.cloud_server.distillation import make_distiller
from fedstill.cloud_server.exchange import DeviceFailure, Exchange
from fedstill.cloud_server.plan import Plan
from fedstill.cloud_server.public_bank import teacher_outputs
from fedstill.cloud_server.rounds import personalise
from fedstill.cloud_server.selection import Selection
from fedstill.models.audiovisual import AudioVisualNet, Features
from fedstill.models.compression import RATES, Precision
from fedstill.models.packing import pack
from fedstill.protos.messages import (
    EvaluationRequest,
    EvaluationResult,
    Job,
    PrototypeRequest,
    PrototypeUpload,
)

Reply = TypeVar("Reply", PrototypeUpload, EvaluationResult)

TABLE_PRECISIONS = (Precision.FP32, Precision.INT8)
"""Those of Table 5.3's report; fp16 exists for inference."""
NOTHING = np.empty(0, np.uint8)
NO_PRIOR = np.empty(0, np.float32)


@dataclass(frozen=True)
class JobKey:
    """What makes a job; ``sweep`` and ``value`` name a variant (Figures 5.12, 5.13, Table 5.3), empty otherwise."""

    scenario: str
    arm: str
    client: int
    seed: int
    sweep: str = ""
    value: float = 0.0


@dataclass
class JobRecord:
    """Everything that a finished job leaves behind."""

    key: JobKey
    evaluations: list[dict[str, object]] = field(default_factory=list)
    traffic: list[dict[str, int]] = field(default_factory=list)
    selection: list[dict[str, object]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def as_event(self) -> dict[str, object]:
        """Flat, ready for the diary."""
        values = asdict(self)
        return {**values.pop("key"), **values}


class PersonalisationJob:
    """Runs one job against one device."""

    def __init__(self, key: JobKey, cloud: SeedCloud, exchange: Exchange, node: int) -> None:
        self.key, self.cloud, self.exchange, self.node = key, cloud, exchange, node
        self.arm = arm_of(key.arm, cloud.plan)
        self.plan: Plan = cloud.plan
        self.first_upload: PrototypeUpload | None = None
        if key.sweep in ("cluster_samples", "uploaded_samples"):
            self.plan = with_variant(cloud.plan, key.sweep, int(key.value))
        self.record = JobRecord(key)
        self.last_selection: Selection | None = None

    def run(self) -> JobRecord:
        """Personalise and evaluate; what the device fails at is reported and left out."""
        student = self._student()
        if self.key.sweep == "compression":
            self._evaluate_ladder(student)
        else:
            self._evaluate(student)
        if self.key.arm == "fedstill" and not self.key.sweep:
            stem = f"{self.key.scenario}-client{self.key.client}"
            self.cloud.save_student(stem, student)
        return self.record

    def _student(self) -> AudioVisualNet:
        if self.key.arm in SHARED:
            return self.cloud.shared(self.key.arm)
        key, bank = self.key, self.cloud.bank
        settings = distillation_of(self.arm, self.plan)
        purpose = (key.scenario, key.arm, key.client)
        distiller = make_distiller(
            copy.deepcopy(self.cloud.all_distill),
            self.cloud.public,
            bank,
            settings,
            settings.optimiser,
            self.plan.compute,
            generator(key.seed, *purpose),
            epochs=settings.outer_epochs * settings.inner_epochs,
            clips_per_epoch=budget_of(self.plan, len(bank.labels)),
        )
        rng = np.random.default_rng(stream(key.seed, *purpose))
        student = personalise(
            distiller,
            self._prototypes,
            select_rule(self.arm, self.plan, bank, key.client, rng),
            self,
            outer_epochs=settings.outer_epochs,
            inner_epochs=settings.inner_epochs,
        )
        return student.cpu().eval()

    def _prototypes(self, student: AudioVisualNet, outer_epoch: int) -> PrototypeUpload | None:
        """Lines 2-4 of Algorithm 7 happen on the device; None where the arm asks nothing of it."""
        if self.arm.upload is None or (self.arm.upload_once and self.first_upload is not None):
            return self.first_upload
        settings = self.plan.prototypes
        histogram = self.arm.upload == "histogram"
        request = PrototypeRequest(
            self._job(outer_epoch),
            self.cloud.wire(student),
            upload_kind(self.arm, settings),
            settings.samples_per_prototype,
            settings.min_size,
            settings.upload_limit,
            1.0 if histogram or self.arm.calibrated else self.plan.selection.temperature,
            self.cloud.bank.class_prior() if self.arm.calibrated else NO_PRIOR,
        )
        upload = self._ask("query.prototypes", request, PrototypeUpload, outer_epoch)
        if upload.class_names != self.cloud.public.class_names:
            raise DeviceFailure(f"means other classes: {list(upload.class_names)}")
        self.first_upload = self.first_upload or upload
        return upload

    def trained(self, outer_epoch: int, selection: Selection, losses: list[float]) -> None:
        """Keep what one outer epoch selected and how its losses went."""
        self.last_selection = selection
        classes = len(self.cloud.public.class_names)
        counts = np.bincount(self.cloud.bank.labels[selection.positions], minlength=classes)
        self.record.selection.append({"round": outer_epoch, "class_counts": counts.tolist()})
        self.record.losses += losses

    def _evaluate(self, student: AudioVisualNet) -> None:
        self._count(student, NOTHING, "", {})

    def _evaluate_ladder(self, student: AudioVisualNet) -> None:
        """Table 5.3: every rate in both precisions, on the clips that the last outer epoch selected."""
        if self.last_selection is None:
            self.failed(0, "no selection to train the compression ladder on: every outer epoch was left out")
            return
        positions = self.last_selection.positions
        outputs = teacher_outputs(student, self.cloud.public, positions, self.plan.compute)
        parts = [found for found, _ in outputs]
        found = Features(*(torch.cat(column).cpu().clone() for column in zip(*parts, strict=True)))
        labels = torch.from_numpy(self.cloud.bank.labels[positions])
        for rate in RATES:
            net = train_rung(
                found,
                labels,
                rate,
                len(self.cloud.public.class_names),
                generator(self.key.seed, "rung", rate),
            )
            for precision in TABLE_PRECISIONS:
                rung = {"rate": rate, "precision": precision.value}
                self._count(student, pack(net.state_dict()), json.dumps(rung), rung)

    def _count(
        self, student: AudioVisualNet, compressor: np.ndarray, rung: str, about: Mapping[str, object]
    ) -> None:
        """Send the student down and keep the two counts that come back."""
        final = distillation_of(self.arm, self.plan).outer_epochs
        request = EvaluationRequest(
            self._job(final),
            self.cloud.wire(student),
            self.arm.prior_correction,
            self.cloud.bank.class_prior(),
            compressor,
            rung,
        )
        try:
            result = self._ask("evaluate.student", request, EvaluationResult, final)
        except DeviceFailure as failure:
            self.failed(final, str(failure))
            return
        counts = {name: getattr(result, name) for name in ("correct", "total", "seconds", "bytes_per_clip")}
        self.record.evaluations.append({**about, **counts})

    def _ask(
        self,
        action: str,
        request: PrototypeRequest | EvaluationRequest,
        expect: type[Reply],
        outer_epoch: int,
    ) -> Reply:
        """One question of this job to the device; the bytes of a usable answer are counted."""
        reply, answer = self.exchange.ask(self.node, action, request, expect)
        if reply.job != request.job:
            raise DeviceFailure("answers another question than it was asked")
        self.record.traffic.append({"round": outer_epoch, **asdict(answer)})
        return reply

    def _job(self, outer_epoch: int) -> Job:
        variant = f".{self.key.sweep}.{self.key.value:g}" if self.key.sweep else ""
        return Job(self.key.scenario, self.key.arm + variant, self.key.seed, outer_epoch)

    def failed(self, outer_epoch: int, reason: str) -> None:
        """Report a device that is left out of a round."""
        self.cloud.metrics.emit("failure", **asdict(self.key), round=outer_epoch, reason=reason)
