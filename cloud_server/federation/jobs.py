"""One job: one device in one arm and scenario, for one seed. Personalise, send the student down, let the device count.

Every job stands alone: it has its own randomness, waits for its own device only, and leaves one record with all that
the report needs. A device that fails is reported and left out of that outer round; the job goes on. This file holds
the order of the steps. The requests to the device are in ``device_session.py``, the stored state is in
``job_progress.py``, and the installation of the student in ``deployment.py``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, replace

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.distillation.arms import (
    SHARED,
    arm_of,
    budget_of,
    distillation_of,
    may_ask_summary,
    select_rule,
    with_variant,
)
from fedstill.cloud_server.distillation.candidates import OWN_STATISTICS, Choice, keeps_promise
from fedstill.cloud_server.distillation.class_mix import ClassMix, unknown_mix
from fedstill.cloud_server.distillation.compute import trained
from fedstill.cloud_server.distillation.distiller import make_distiller
from fedstill.cloud_server.distillation.generic_student import train_further
from fedstill.cloud_server.distillation.randomness import generator, stream
from fedstill.cloud_server.distillation.rounds import (
    DeviceFailure,
    PrototypeSource,
    nothing_asked,
    personalise,
)
from fedstill.cloud_server.federation.cohorts import Cohorts
from fedstill.cloud_server.federation.deployment import (
    SimilarClips,
    deploy,
    is_deployed,
    keep_student,
    levels_of,
)
from fedstill.cloud_server.federation.device_line import DeviceLine
from fedstill.cloud_server.federation.device_prototypes import DevicePrototypes
from fedstill.cloud_server.federation.device_session import NO_COMPRESSOR, DeviceSession
from fedstill.cloud_server.federation.downlink import Downlink
from fedstill.cloud_server.federation.exchange import DeviceLost
from fedstill.cloud_server.federation.job_progress import JobProgress, JobRecord
from fedstill.cloud_server.federation.own_statistics import OwnStatistics
from fedstill.cloud_server.federation.personal_student import (
    PersonalStudent,
    PersonalStudents,
    generic_after_all,
)
from fedstill.cloud_server.federation.seed_state import GENERIC, SeedCloud
from fedstill.cloud_server.federation.slots import ComputeSlots
from fedstill.cloud_server.federation.student_in_use import keep_in_use, open_in_use
from fedstill.cloud_server.federation.training_state import TrainingState
from fedstill.cloud_server.journal.job_key import JobKey
from fedstill.cloud_server.journal.journal import Journal
from fedstill.common.run_layout import PERSONAL_ARM
from fedstill.datasets.audiovisual.capture.effects import with_babble
from fedstill.datasets.audiovisual.capture.talkers import babble_of
from fedstill.datasets.audiovisual.capture.true_capture import TrueCapture
from fedstill.datasets.audiovisual.capture.views import RenderedViews
from fedstill.models.audiovisual.class_bias import with_class_bias
from fedstill.models.audiovisual.confidence import mean_confidence
from fedstill.models.audiovisual.levels import RATES, Precision
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.models.weights.packing import pack
from fedstill.protos.messages import PrototypeUpload

TABLE_PRECISIONS = (Precision.FP32, Precision.INT8)
"""The precisions of Table 5.3's report; fp16 exists for inference."""
SUMMARY, PROMISE, PROTOTYPES, OWN = 0, 1, 2, 3
"""The outer round that an upload of a personal student's job belongs to."""


class PersonalisationJob:
    """Runs one job against one device."""

    def __init__(
        self,
        key: JobKey,
        cloud: SeedCloud,
        line: DeviceLine,
        journal: Journal,
        slots: ComputeSlots,
        cohorts: Cohorts,
    ) -> None:
        self.key, self.cloud, self.journal, self.slots = key, cloud, journal, slots
        self._cohorts = cohorts
        self.arm = arm_of(key.arm, cloud.plan)
        swept = key.sweep in ("cluster_samples", "uploaded_samples")
        self.plan = with_variant(cloud.plan, key.sweep, int(key.value)) if swept else cloud.plan
        self.settings = distillation_of(self.arm, self.plan)
        precision = (
            "exact" if key.arm == "teacher" else cloud.plan.downlink.precision
        )  # not the student of an arm
        downlink = Downlink(precision, cloud.public.class_names)
        self.session = DeviceSession(key, line, downlink, journal, slots, cloud.graphs)
        self.progress = JobProgress(key, cloud, journal)
        self.bias = np.zeros(len(cloud.public.class_names), np.float32)
        self._similar: SimilarClips | None = None
        self._personal: PersonalStudent | None = None

    def run(self) -> JobRecord:
        """Personalise and evaluate; steps at which the device fails are reported and left out."""
        self.journal.forget_failures(self.key)
        with self.slots.held():
            student = self._student()
            if self.key.sweep == "compression":
                self._evaluate_levels(student)
            elif not self.plan.service:  # a service's devices have no labels
                self._evaluate(student)
            if self.plan.service and self.progress.failures and self._may_have_better():
                return self.progress.record
            if self._personal is not None and self._personal.kept:
                return self._keeps(self._personal)
            deployed = is_deployed(self.key, self.plan)
            if deployed:
                self._deploy(student)
            if (self.key.arm == "fedstill" or deployed) and not self.key.sweep:
                keep_student(self.key, self.session.downlink.received(student), self.cloud, self.journal)
            if self.plan.service and self.progress.failures:
                return self.progress.record  # not finished: the visit is repeated, with the same uploads
            return self.progress.finish()

    def _keeps(self, personal: PersonalStudent) -> JobRecord:
        """The device goes on with the student in use: nothing is sent."""
        reason = personal.choice.reason
        self.progress.record.install = {
            "installed": False, "kept": True, "reason": reason, "current": personal.kept
        }  # fmt: skip
        return self.progress.finish()

    def _may_have_better(self) -> bool:
        """Whether a device that could not be asked all has a student, or is away, so that nobody knows."""
        hello = self.session.line.hello
        return hello is None or bool(hello.student)

    def failed(self, outer_epoch: int, reason: str) -> None:
        """Report a device that is left out of an outer round."""
        self.progress.failed(outer_epoch, reason)

    def _student(self) -> AudioVisualNet:
        """The network that the device is to have, with its class bias if it gets one."""
        if self.arm.personal:
            return self._personal_student()
        if self.arm.class_mix:
            return self._for_class_mix()
        if self.key.arm == "oracle_capture":
            return self._truly_rendered()
        if self.key.arm in SHARED:
            return self.cloud.shared(self.key.arm)
        return self._personalised(DevicePrototypes(self.arm, self.plan, self.cloud, self.session))

    def _personal_student(self) -> AudioVisualNet:
        """The best of several candidates for this device, or the generic student."""
        generic = self.cloud.shared(GENERIC)
        summary = self._summary(generic)
        if not isinstance(summary, PrototypeUpload):
            self.progress.record.class_mix = self._unknown_mix(summary)
            self.progress.record.choice = Choice(reason=summary)
            return generic
        if self.key.arm == "other_card":
            summary = replace(summary, card=np.array(self.plan.other_cards[self.key.client], np.uint8))
        ask = None if self.plan.prototypes.kind == "dp" else self._prototypes
        cohort = None
        if self.key.arm == PERSONAL_ARM:
            cohort = self._cohorts.of(self.key, summary.card, int(summary.counts.sum()))
        in_use = None if cohort else open_in_use(self.cloud, self.key, self.session.line.hello)
        found = PersonalStudents(
            self.key, self.cloud, self.plan, summary, ask, cohort=cohort, in_use=in_use
        ).make()
        doubt, sure = self._doubt(found, summary)
        if doubt:  # nor is it known then what the student in use is worth
            found = generic_after_all(self.cloud, found.choice, doubt)
        elif found.own is not None and not self.session.older:
            found = self._with_own_statistics(found, found.own, sure)
        self.progress.record.choice, mix, self._personal = found.choice, found.mix, found
        if mix.supported and not found.bias.any():
            mix = replace(mix, supported=False, reason=found.choice.reason)
        self.progress.record.class_mix = mix
        self.bias, self._similar = found.bias, found.similar
        return with_class_bias(found.net, found.bias) if found.bias.any() else found.net

    def _prototypes(self) -> npt.NDArray[np.float32] | None:
        """Of the device's clips under the generic student, for a selection of similar clips."""
        arm = replace(self.arm, upload="prototypes", personal=False)
        source = DevicePrototypes(arm, self.plan, self.cloud, self.session, coarse=True)
        try:
            upload = source(self.cloud.shared(GENERIC), PROTOTYPES)
        except DeviceFailure as failure:
            if isinstance(failure, DeviceLost) or not self.plan.service:
                self.failed(PROTOTYPES, str(failure))
            else:  # its owner may not allow them, and the next best student needs none
                self.cloud.metrics.emit("no_prototypes", client=self.key.client, reason=str(failure))
            return None
        assert upload is not None
        return upload.probabilities

    def _doubt(self, personal: PersonalStudent, before: PrototypeUpload) -> tuple[str, float]:
        """Why the device should not have this student after all; empty if it does there what was promised. And how
        sure it is of the device's clips."""
        sure = mean_confidence(before.confidence) if len(before.confidence) else 0.0
        there = personal.promised
        if not self.plan.guard.test or there is None:
            return "", sure
        try:
            after = self._sureness(personal.net, PROMISE)
        except DeviceFailure as failure:
            self.failed(PROMISE, str(failure))
            return str(failure), sure
        found, promised = after - sure, there.personal - there.generic
        if keeps_promise(promised, found, (1 - sure) / max(1 - there.generic, 1e-12)):
            return "", after
        reason = (
            "not as much surer of the device's clips as of those rendered for it "
            f"({found:+.2f}, not {promised:+.2f})"
        )
        return reason, after

    def _sureness(self, net: AudioVisualNet, asked: int) -> float:
        """The mean confidence of a student on the device's clips. Raises DeviceFailure."""
        upload = DevicePrototypes(self.arm, self.plan, self.cloud, self.session)(net, asked)
        assert upload is not None
        return mean_confidence(upload.confidence)

    def _with_own_statistics(
        self, personal: PersonalStudent, own: OwnStatistics, sure: float
    ) -> PersonalStudent:
        """With batch norm statistics of the device's own clips, if they make it there what they make of others.

        sure: how sure the student is of the device's clips without them.
        """
        downlink = self.session.downlink
        downlink.own_statistics, downlink.least_share = own.weight, own.least_share
        try:
            found = self._sureness(personal.net, OWN) - sure
        except DeviceFailure as failure:
            downlink.own_statistics = downlink.least_share = 0.0
            if isinstance(failure, DeviceLost) or not self.plan.service:
                self.failed(OWN, str(failure))
            return personal
        declined = found == 0  # it saw too little of a class: the student is what it was
        if declined or not keeps_promise(own.surer, found):
            downlink.own_statistics = downlink.least_share = 0.0
            return personal
        chosen = f"{personal.choice.chosen}+{OWN_STATISTICS}"
        return replace(personal, choice=replace(personal.choice, chosen=chosen))

    def _truly_rendered(self) -> AudioVisualNet:
        """A student of public clips as the device really records them, which only a simulation knows."""
        cloud, key = self.cloud, self.key
        capture = self.plan.oracle_conditions[key.client]
        if capture is None:
            return cloud.shared(GENERIC)
        effects = with_babble(babble_of(cloud.public))
        truth = TrueCapture(capture, cloud.public.audio_spec.sample_rate, effects)
        purpose = (key.scenario, key.arm, key.client)
        views = RenderedViews(
            cloud.public, truth, stream(key.seed, "views", *purpose), self.plan.capture.versions
        )
        return train_further(
            cloud.all_distill, np.arange(len(cloud.public)), views, cloud.bank, self.plan, self.settings,
            generator(key.seed, *purpose), np.random.default_rng(stream(key.seed, *purpose)),
        )  # fmt: skip

    def _for_class_mix(self) -> AudioVisualNet:
        """The generic student, unless the device's classes are shown to be mixed otherwise than the public ones."""
        generic = self.cloud.shared(GENERIC)
        mix = self.progress.record.class_mix = self._class_mix(generic)
        if not mix.supported:
            return generic
        if self.key.arm == "prior_corrected":  # the device has the generic student, so only the bias travels
            net = self.session.downlink.received(generic)
        else:
            net = self._personalised(nothing_asked, mix)
        self.bias = mix.bias
        return with_class_bias(net, mix.bias)

    def _class_mix(self, generic: AudioVisualNet) -> ClassMix:
        summary = self._summary(generic)
        if not isinstance(summary, PrototypeUpload):
            return self._unknown_mix(summary)
        rng = np.random.default_rng(stream(self.key.seed, "class_mix", self.key.scenario, self.key.client))
        return self.cloud.class_mixes.judge(summary, rng)

    def _summary(self, generic: AudioVisualNet) -> PrototypeUpload | str:
        """What the device says of its clips under the generic student, or why nothing can follow from that."""
        if not may_ask_summary(self.arm, self.plan):
            return "a private histogram does not show how the device records, so none is asked for"
        if lacking := self.cloud.class_mixes.lacking:
            return lacking
        try:
            summary = DevicePrototypes(self.arm, self.plan, self.cloud, self.session)(generic, SUMMARY)
        except DeviceFailure as failure:
            self.failed(SUMMARY, str(failure))
            return str(failure)
        assert summary is not None
        return summary

    def _unknown_mix(self, reason: str) -> ClassMix:
        return unknown_mix(self.cloud.bank.class_prior(), reason)

    def _similar_clips(self) -> SimilarClips:
        """The public clips that resemble the device's: those rendered for it, else the last selection, else all."""
        if self._similar is not None:
            return self._similar
        last = self.progress.last_selection
        positions = np.arange(len(self.cloud.bank.labels)) if last is None else last.positions
        return SimilarClips(self.cloud.views, positions)

    def _personalised(self, source: PrototypeSource, mix: ClassMix | None = None) -> AudioVisualNet:
        """Algorithm 7, from the outer round in which this job was interrupted, if it was."""
        key, bank, settings = self.key, self.cloud.bank, self.settings
        purpose = (key.scenario, key.arm, key.client)
        distiller = make_distiller(
            copy.deepcopy(self.cloud.all_distill),
            self.cloud.views,
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
            source,
            select_rule(self.arm, self.plan, bank, key.client, rng, mix),
            self.progress,
            outer_epochs=settings.outer_epochs,
            inner_epochs=settings.inner_epochs,
            done=self.progress.resume(TrainingState(distiller, rng)),
        )
        return trained(student)

    def _evaluate_levels(self, student: AudioVisualNet) -> None:
        """Table 5.3: every rate in both precisions, on the clips that the last outer round selected."""
        if self.progress.last_selection is None and self._similar is None:
            self.failed(0, "no selection to train the compression levels on: every outer epoch was left out")
            return
        levels = levels_of(student, self.bias, self.cloud, self.session, self._similar_clips())
        for rate in RATES:
            packed = pack(levels[rate].state_dict()) if rate in levels else NO_COMPRESSOR
            for precision in TABLE_PRECISIONS:
                self._evaluate(student, packed, {"rate": rate, "precision": precision.value})

    def _evaluate(
        self,
        student: AudioVisualNet,
        compressor: npt.NDArray[np.uint8] = NO_COMPRESSOR,
        level: Mapping[str, object] | None = None,
    ) -> None:
        """Send the student down and keep the two counts that come back."""
        try:
            result = self.session.evaluate(
                student,
                self.settings.outer_epochs,
                compressor=compressor,
                level=json.dumps(level) if level else "",
            )
        except DeviceFailure as failure:
            self.failed(self.settings.outer_epochs, str(failure))
            return
        counts = {name: getattr(result, name) for name in ("correct", "total", "seconds", "bytes_per_clip")}
        self.progress.record.evaluations.append({**(level or {}), **counts})

    def _deploy(self, student: AudioVisualNet) -> None:
        """The device installs the student; whether it did is an event and part of the record."""
        final = self.settings.outer_epochs
        try:
            choice = self.progress.record.choice
            expected = choice.interval if choice else None
            outcome = deploy(
                student, self.bias, self.cloud, self.session, self._similar_clips(), final, expected
            )
        except DeviceFailure as failure:
            self.failed(final, str(failure))
            outcome = {"installed": False, "reason": str(failure)}
        self.progress.record.install = outcome
        if self._personal is not None and self.plan.service and outcome["installed"]:
            keep_in_use(self.cloud, self.key, self._personal.in_use(str(outcome["current"])))
        self.cloud.metrics.emit("install", **asdict(self.key), **outcome)
