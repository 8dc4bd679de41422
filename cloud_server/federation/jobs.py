"""One job: one device in one arm and scenario, for one seed. Personalise, send the student down, let the device count.

Every job stands alone: it has its own randomness, waits for its own device only, and leaves one record with all that
the report needs. A device that fails is reported and left out of that outer round; the job goes on. Each step is in the
journal before the job goes on, so an interrupted job continues in the outer round that it was in.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from fedstill.cloud_server.distillation.arms import (
    SHARED,
    arm_of,
    budget_of,
    distillation_of,
    select_rule,
    upload_kind,
    with_variant,
)
from fedstill.cloud_server.distillation.centres import one_cell
from fedstill.cloud_server.distillation.compression_training import pack_compressors, train_levels
from fedstill.cloud_server.distillation.distiller import make_distiller
from fedstill.cloud_server.distillation.randomness import generator, stream
from fedstill.cloud_server.distillation.rounds import DeviceFailure, personalise
from fedstill.cloud_server.distillation.run_plan import Plan
from fedstill.cloud_server.distillation.selection import Selection
from fedstill.cloud_server.edge_inference.heads import HEADS_FOLDER, save_heads
from fedstill.cloud_server.federation.device_line import DeviceLine
from fedstill.cloud_server.federation.downlink import Downlink
from fedstill.cloud_server.federation.exchange import Answer, DeviceLacks
from fedstill.cloud_server.federation.installation import install
from fedstill.cloud_server.federation.job_key import JobKey
from fedstill.cloud_server.federation.journal import Journal, PrivacyGuarantee
from fedstill.cloud_server.federation.seed_state import SeedCloud
from fedstill.cloud_server.federation.slots import ComputeSlots
from fedstill.cloud_server.federation.training_state import Progress, load_progress, save_progress
from fedstill.common.run_layout import student_name
from fedstill.models.audiovisual.compression import CompressionNet, Precision
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.models.weights.packing import load_arrays, pack
from fedstill.protos.messages import (
    EvaluationRequest,
    EvaluationResult,
    InstallRequest,
    InstallResult,
    PrototypeRequest,
    PrototypeUpload,
    Student,
)

Reply = TypeVar("Reply", PrototypeUpload, EvaluationResult, InstallResult)

TABLE_PRECISIONS = (Precision.FP32, Precision.INT8)
"""The precisions of Table 5.3's report; fp16 exists for inference."""
STUDENTS_FOLDER = "students"
NOTHING = np.empty(0, np.uint8)
NO_PRIOR = np.empty(0, np.float32)
NO_CENTRES = np.empty((0, 0), np.float32)


@dataclass
class JobRecord:
    """Everything that a finished job leaves behind."""

    key: JobKey
    evaluations: list[dict[str, object]] = field(default_factory=list)
    traffic: list[dict[str, int]] = field(default_factory=list)
    selection: list[dict[str, object]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    install: dict[str, object] = field(default_factory=dict)

    def as_event(self) -> dict[str, object]:
        """Flat, ready for the event log."""
        values = asdict(self)
        return {**values.pop("key"), **values}


class PersonalisationJob:
    """Runs one job against one device."""

    def __init__(
        self, key: JobKey, cloud: SeedCloud, line: DeviceLine, journal: Journal, slots: ComputeSlots
    ) -> None:
        self.key, self.cloud, self.line, self.journal, self.slots = key, cloud, line, journal, slots
        self.arm = arm_of(key.arm, cloud.plan)
        self.plan: Plan = cloud.plan
        self.first_upload: PrototypeUpload | None = None
        self.progress: Progress | None = None
        if key.sweep in ("cluster_samples", "uploaded_samples"):
            self.plan = with_variant(cloud.plan, key.sweep, int(key.value))
        precision = (
            "exact" if key.arm == "teacher" else cloud.plan.downlink.precision
        )  # it is not the student of an arm
        self.downlink = Downlink(precision, cloud.public.class_names)
        self.record = JobRecord(key)
        self.last_selection: Selection | None = None

    def run(self) -> JobRecord:
        """Personalise and evaluate; steps at which the device fails are reported and left out."""
        self.journal.forget_failures(self.key)
        with self.slots.held():
            return self._run()

    def _run(self) -> JobRecord:
        student = self._student()
        if self.key.sweep == "compression":
            self._evaluate_ladder(student)
        else:
            self._evaluate(student)
        if self._installs():
            self._install(student)
        if (self.key.arm == "fedstill" or self._installs()) and not self.key.sweep:
            self._keep(student)
        self.record.traffic = self.journal.traffic(self.key)
        self.journal.finish_job(self.key, self.record.as_event())
        shutil.rmtree(self._progress_folder, ignore_errors=True)
        return self.record

    def _keep(self, student: AudioVisualNet) -> None:
        """The checkpoint under its readable name, and its weights once more under their content's (a link)."""
        name = student_name(self.key.scenario, self.key.client, self.key.arm)
        file = self.cloud.save_student(name, student)
        version = hashlib.sha256(file.read_bytes()).hexdigest()
        kept = Path(self.plan.work) / STUDENTS_FOLDER / f"{version}.safetensors"
        kept.parent.mkdir(exist_ok=True)
        if not kept.exists():
            kept.hardlink_to(file)
        size = file.stat().st_size
        self.journal.keep_student(self.key, version, str(kept.relative_to(self.plan.work)), size)

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
        self.progress = Progress(distiller, rng)
        done = self._continue(self.progress)
        student = personalise(
            distiller,
            self._prototypes,
            select_rule(self.arm, self.plan, bank, key.client, rng),
            self,
            outer_epochs=settings.outer_epochs,
            inner_epochs=settings.inner_epochs,
            done=done,
        )
        return student.cpu().eval()

    def _continue(self, progress: Progress) -> int:
        """Resume an interrupted job; returns how many outer rounds are finished."""
        rounds = self.journal.rounds(self.key)
        for one in rounds:
            self.record.selection.append({"round": one.round, "class_counts": one.class_counts})
            self.record.losses += one.losses
        if self.arm.upload_once:
            epochs = distillation_of(self.arm, self.plan).outer_epochs
            kept = (self.journal.upload(self.key, outer_epoch) for outer_epoch in range(epochs))
            self.first_upload = next((upload for upload in kept if upload is not None), None)
        if not rounds:
            return 0
        self.last_selection = self.journal.selection(self.key, rounds[-1].round)
        load_progress(self._progress_folder / rounds[-1].state_file, progress)
        return rounds[-1].round + 1

    @property
    def _progress_folder(self) -> Path:
        return self.cloud.directory / "progress" / self.key.text.replace("/", "-")

    def _prototypes(self, student: AudioVisualNet, outer_epoch: int) -> PrototypeUpload | None:
        """Lines 2-4 of Algorithm 7 happen on the device; None if the arm asks nothing of it."""
        if self.arm.upload is None or (self.arm.upload_once and self.first_upload is not None):
            return self.first_upload
        accepted = self.journal.upload(self.key, outer_epoch)
        if accepted is not None:
            return accepted
        settings = self.plan.prototypes
        kind = upload_kind(self.arm, settings)
        private = kind == "dp"
        guarantee = (
            PrivacyGuarantee(kind, settings.epsilon, settings.delta) if private else PrivacyGuarantee(kind)
        )
        histogram = self.arm.upload == "histogram"

        def request(shown: Student) -> PrototypeRequest:
            return PrototypeRequest(
                self.key.at(outer_epoch),
                shown,
                kind,
                settings.samples_per_prototype,
                settings.min_size,
                settings.upload_limit,
                1.0 if histogram or self.arm.calibrated else self.plan.selection.temperature,
                self.cloud.bank.class_prior() if self.arm.calibrated and not private else NO_PRIOR,
                guarantee.epsilon,
                guarantee.delta,
                self._centres(histogram) if private else NO_CENTRES,
            )

        upload = self._ask("query.prototypes", student, request, PrototypeUpload, outer_epoch)
        if upload.class_names != self.cloud.public.class_names:
            raise DeviceFailure(f"means other classes: {list(upload.class_names)}")
        upload = self.journal.accept_upload(self.key, outer_epoch, upload, guarantee)
        self.first_upload = self.first_upload or upload
        return upload

    def _centres(self, histogram: bool) -> np.ndarray:
        return one_cell(len(self.cloud.public.class_names)) if histogram else self.cloud.centres

    def trained(self, outer_epoch: int, selection: Selection, losses: list[float]) -> None:
        """Keep the selection of one outer round, its losses, and the state to continue from."""
        self.last_selection = selection
        classes = len(self.cloud.public.class_names)
        counts = np.bincount(self.cloud.bank.labels[selection.positions], minlength=classes).tolist()
        self.record.selection.append({"round": outer_epoch, "class_counts": counts})
        self.record.losses += losses
        self.journal.select(self.key, outer_epoch, selection)
        assert self.progress is not None
        state = self._progress_folder / f"round{outer_epoch}.safetensors"
        save_progress(state, self.progress)
        self.journal.finish_round(self.key, outer_epoch, losses, counts, state.name)
        for older in set(self._progress_folder.glob("*.safetensors")) - {state}:
            older.unlink()

    def _evaluate(self, student: AudioVisualNet) -> None:
        self._count(student, NOTHING, "", {})

    def _evaluate_ladder(self, student: AudioVisualNet) -> None:
        """Table 5.3: every rate in both precisions, on the clips that the last outer round selected."""
        if self.last_selection is None:
            self.failed(0, "no selection to train the compression ladder on: every outer epoch was left out")
            return
        positions = self.last_selection.positions
        levels = train_levels(student, self.cloud.public, positions, self.plan.compute, self.key.seed)
        for rate, net in levels.items():
            for precision in TABLE_PRECISIONS:
                rung = {"rate": rate, "precision": precision.value}
                self._count(student, pack(net.state_dict()), json.dumps(rung), rung)

    def _count(
        self, student: AudioVisualNet, compressor: np.ndarray, rung: str, about: Mapping[str, object]
    ) -> None:
        """Send the student down and keep the two counts that come back."""
        final = distillation_of(self.arm, self.plan).outer_epochs

        def request(shown: Student) -> EvaluationRequest:
            prior = self.cloud.bank.class_prior()
            return EvaluationRequest(
                self.key.at(final), shown, self.arm.prior_correction, prior, compressor, rung
            )

        try:
            result = self._ask("evaluate.student", student, request, EvaluationResult, final)
        except DeviceFailure as failure:
            self.failed(final, str(failure))
            return
        counts = {name: getattr(result, name) for name in ("correct", "total", "seconds", "bytes_per_clip")}
        self.record.evaluations.append({**about, **counts})

    def _installs(self) -> bool:
        """One student per device and run: that of the plan's arm, first scenario and first seed."""
        first = (self.plan.downlink.install, self.plan.scenarios[0], self.plan.seeds[0])
        return (self.key.arm, self.key.scenario, self.key.seed) == first and not self.key.sweep

    def _install(self, student: AudioVisualNet) -> None:
        """The device installs the student; whether it did is an event and part of the record."""
        final = distillation_of(self.arm, self.plan).outer_epochs
        everything = np.arange(len(self.cloud.bank.labels))
        seen = everything if self.last_selection is None else np.unique(self.last_selection.positions)
        levels = train_levels(student, self.cloud.public, seen, self.plan.compute, self.key.seed)

        def ask(request: Callable[[Student], InstallRequest]) -> InstallResult:
            return self._ask("train.install", student, request, InstallResult, final)

        self._offer_heads(student, levels)  # first: the device may ask as soon as it has the student
        try:
            result = install(self.cloud, seen, self.key.at(final), pack_compressors(levels), ask)
        except DeviceFailure as failure:
            self.failed(final, str(failure))
            self.record.install = {"installed": False, "reason": str(failure)}
        else:
            names = ("installed", "agreement", "reason", "current")
            self.record.install = {name: getattr(result, name) for name in names}
        self.cloud.metrics.emit("install", **asdict(self.key), **self.record.install)

    def _offer_heads(self, student: AudioVisualNet, levels: Mapping[float, CompressionNet]) -> None:
        """Give the inference service the student's heads, with the rounded weights that the device will have."""
        has = self.downlink.reaches(student)
        net = AudioVisualNet(student.spec)
        load_arrays(net, has.state)
        folder = Path(self.plan.work) / HEADS_FOLDER
        save_heads(folder, has.version, net, levels, self.cloud.public.class_names)

    def _ask(
        self,
        action: str,
        student: AudioVisualNet,
        request: Callable[[Student], PrototypeRequest | EvaluationRequest | InstallRequest],
        expect: type[Reply],
        outer_epoch: int,
    ) -> Reply:
        """One request of this job, about a student, to the device; the bytes of usable answers are counted."""

        def ask(shown: Student) -> Reply:
            question = request(shown)
            try:
                with self.slots.given_up():
                    reply, answer = self.line.ask(action, question, expect)
            except DeviceLacks as lack:
                self._spend(outer_epoch, action, lack.spent)
                raise
            if reply.job != question.job:
                raise DeviceFailure("answers another question than it was asked")
            self._spend(outer_epoch, action, answer)
            return reply

        return self.downlink.ask(student, ask)

    def _spend(self, outer_epoch: int, action: str, answer: Answer) -> None:
        self.journal.spend(self.key, outer_epoch, action, answer.up_bytes, answer.down_bytes)

    def failed(self, outer_epoch: int, reason: str) -> None:
        """Report a device that is left out of an outer round."""
        record = {**asdict(self.key), "round": outer_epoch, "reason": reason}
        self.journal.fail(self.key, outer_epoch, record)
        self.cloud.metrics.emit("failure", **record)
