"""A device's own student: public clips rendered to how it records, candidates trained on them, the best one chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from fedstill.cloud_server.distillation.arms import budget_of
from fedstill.cloud_server.distillation.candidates import (
    GENERIC_CANDIDATE,
    GENERIC_TRAINING,
    LEAST_GAIN,
    OWN_STATISTICS,
    Candidate,
    Choice,
    Estimate,
    Training,
    best_of,
    bias_of,
    candidates_for,
    class_weights,
    doubted,
)
from fedstill.cloud_server.distillation.class_mix import ClassMix, unknown_mix
from fedstill.cloud_server.distillation.generic_student import train_further
from fedstill.cloud_server.distillation.mixture_fit import best_temperature
from fedstill.cloud_server.distillation.randomness import generator, stream
from fedstill.cloud_server.distillation.run_plan import RunPlan
from fedstill.cloud_server.distillation.similar_clips import played_prototypes, select_similar
from fedstill.cloud_server.federation.cohorts import Cohort
from fedstill.cloud_server.federation.deployment import SimilarClips
from fedstill.cloud_server.federation.judging import Judging
from fedstill.cloud_server.federation.own_statistics import OwnStatistics
from fedstill.cloud_server.federation.seed_state import GENERIC, SeedCloud
from fedstill.cloud_server.federation.student_in_use import CHECK_FOLD, StudentInUse
from fedstill.cloud_server.federation.worlds import MOST_JUDGED, Belief, CardWorlds, World
from fedstill.cloud_server.journal.job_key import JobKey
from fedstill.datasets.audiovisual.capture.views import ClipViews, HedgedViews, PlainViews, RenderedViews
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.protos.messages import PrototypeUpload

Positions = npt.NDArray[np.int64]

AskPrototypes = Callable[[], npt.NDArray[np.float32] | None]
"""Asks the device for prototypes, float32 (k, classes), under the generic student; None if it gives none."""


@dataclass(frozen=True)
class Promise:
    """Mean confidences on rendered clips of speakers unknown to both students, from 0 to 1."""

    generic: float
    personal: float


@dataclass(frozen=True)
class PersonalStudent:
    """What a device gets.

    Attributes:
        net: without its class bias.
        bias: float32 (classes,).
        similar: for whatever is trained or tried afterwards.
        promised: how sure it should be of clips; None if it is the generic one.
        checked: the one of the same training without the judging speakers; None if it is generic, or a cohort's.
        kept: the version of the student in use, if it is that one, for no other is estimated better.
        own: what it may do with batch norm statistics of the device's own clips; None: nothing.
    """

    net: AudioVisualNet
    bias: npt.NDArray[np.float32]
    similar: SimilarClips
    mix: ClassMix
    choice: Choice
    promised: Promise | None
    checked: AudioVisualNet | None = None
    kept: str = ""
    own: OwnStatistics | None = None

    def in_use(self, version: str) -> StudentInUse | None:
        """What is to be known of it once a device uses it; None if it could not be judged again."""
        if self.promised is None:
            return StudentInUse(version, self.choice.chosen, None, None, self.bias)
        if self.checked is None:
            return None
        return StudentInUse(version, self.choice.chosen, self.net, self.checked, self.bias)


def generic_after_all(cloud: SeedCloud, choice: Choice, doubt: str) -> PersonalStudent:
    """Instead of a student that breaks its promise. Neither how the device records nor its class mix is known then: a
    microphone that nobody understands may look like other classes."""
    prior = cloud.bank.class_prior()
    return PersonalStudent(
        cloud.shared(GENERIC),
        np.zeros(len(prior), np.float32),
        SimilarClips(PlainViews(cloud.public), np.arange(len(cloud.bank.labels))),
        unknown_mix(prior, doubt),
        doubted(choice, doubt),
        promised=None,
    )


class PersonalStudents:
    """Makes the student of one job.

    Args:
        summary: the device's, of kind ``histogram``, or ``dp`` with a private card; that shows no class mix.
        ask: called only if a student of similar clips may pay; None: the device cannot be asked.
        cohort: whose trainings the device shares; None: it is on its own.
        in_use: what the device has now, which a new student must be better than; None: nothing to compare with.
    """

    def __init__(
        self,
        key: JobKey,
        cloud: SeedCloud,
        plan: RunPlan,
        summary: PrototypeUpload,
        ask: AskPrototypes | None = None,
        *,
        cohort: Cohort | None = None,
        in_use: StudentInUse | None = None,
    ) -> None:
        self._key, self._cloud, self._plan, self._summary = key, cloud, plan, summary
        self._ask = None if cohort else ask  # a student of similar clips is for one device alone
        self._cohort, self._in_use = cohort, in_use
        clips = int(summary.counts.sum())
        worlds = cohort.told(cloud) if cohort else CardWorlds(cloud, summary.card, clips, self._stream)
        self._belief = Belief(cloud, summary, worlds, self._stream("class_mix"))
        self._checked: dict[Training, npt.NDArray[np.float32]] = {}
        self._check_nets: dict[Training, AudioVisualNet] = {}

    def make(self) -> PersonalStudent:
        """Choose between the candidates, and train the chosen one."""
        mix, cloud = self.mix, self._cloud
        everything = np.arange(len(cloud.bank.labels))
        choice, candidate, bias = self._choose(mix, self._ask is not None)
        if kept := self._kept(choice, candidate, bias):
            return kept
        prototypes = self._ask() if self._ask and candidate.training.similar else None
        if prototypes is not None:
            choice = replace(choice, prototypes=len(prototypes))
        elif candidate.training.similar:
            choice, candidate, bias = self._choose(mix, False)
            if kept := self._kept(choice, candidate, bias):
                return kept
        positions = self._allowed(candidate.training, everything, prototypes)
        net, promised = cloud.shared(GENERIC), None
        if candidate.training != GENERIC_TRAINING:
            train = partial(
                self._train, cloud.all_distill, candidate.training, positions, len(everything), "final"
            )
            if self._cohort:
                choice = replace(choice, cohort=self._cohort.name)
                net = self._cohort.student(self.name_of(candidate.training), cloud, train)
            else:
                net = train()
            generic = self._confidence(GENERIC_TRAINING)
            promised = Promise(generic, self._confidence(candidate.training))
        checked = self._check_nets.get(candidate.training)
        generic = candidate.training == GENERIC_TRAINING
        own = self._own_statistics(cloud.fold_generic(CHECK_FOLD) if generic else checked)
        return self._made(net, bias, positions, choice, promised, checked, own=own)

    def _own_statistics(self, net: AudioVisualNet | None) -> OwnStatistics | None:
        """Of a student, if it may be on a device with all classes; a cohort's members cost no trials.

        net: the one without the judging speakers; None: it is a cohort's.
        """
        plan = self._plan
        wanted = plan.capture.own_statistics and plan.guard.test and self._cohort is None
        told = len(self._summary.confidence) and self.world.cross_fit is not None
        if net is None or not (wanted and told) or self.mix.supported:
            return None
        return self._judging.own_statistics(net, int(self._summary.counts.sum()))

    def _kept(
        self, choice: Choice, candidate: Candidate, bias: npt.NDArray[np.float32]
    ) -> PersonalStudent | None:
        """The student in use, unless the chosen one is better than it on the same clips, as the device is now.

        None also if both are the generic one with the same bias: it is no new student, and only what goes with it is
        made for how the device records now.
        """
        old = self._in_use
        if old is None or self.world.cross_fit is None:
            return None
        if old.net is None and candidate.training == GENERIC_TRAINING and np.array_equal(old.bias, bias):
            return None
        judging, cloud = self._judging, self._cloud
        logits = judging.logits_of(old.judged(cloud))
        found = judging.right(logits, old.bias)
        new = judging.right(self._check_logits(candidate.training), bias)
        better = judging.worth(candidate.name, new - found)
        chosen_here = candidate is not GENERIC_CANDIDATE  # as the best of several on these very clips
        if better.gain > max(LEAST_GAIN, better.error if chosen_here else 0.0):
            return None
        worth = judging.worth(old.name, found - judging.right(self._check_logits(GENERIC_TRAINING)))
        expected, low, high = judging.expected(worth)
        choice = replace(
            choice, chosen=old.name, estimate=expected, low=low, high=high,
            reason="no student is estimated better than the one in use; the best, "
            f"{candidate.name}, at {100 * better.gain:+.1f} points",
        )  # fmt: skip
        promised = None
        if old.net is not None:
            promised = Promise(self._confidence(GENERIC_TRAINING), judging.sureness(logits))
        made = old.network(cloud), old.bias, np.arange(len(cloud.bank.labels))
        base = old.name.removesuffix(f"+{OWN_STATISTICS}")
        if base != old.name:  # those are of clips of then, so it is installed again, with others or none
            own = self._own_statistics(old.judged(cloud))
            return self._made(*made, replace(choice, chosen=base), promised, old.checked, own=own)
        return self._made(*made, choice, promised, kept=old.version)

    def _made(
        self,
        net: AudioVisualNet,
        bias: npt.NDArray[np.float32],
        positions: Positions,
        choice: Choice,
        promised: Promise | None,
        checked: AudioVisualNet | None = None,
        kept: str = "",
        own: OwnStatistics | None = None,
    ) -> PersonalStudent:
        views = self.world.views
        if isinstance(views, RenderedViews):
            views.forget()  # the job now waits for its device, as many others do
        similar = SimilarClips(views, positions)
        return PersonalStudent(net, bias, similar, self.mix, choice, promised, checked, kept, own)

    def _confidence(self, training: Training) -> float:
        """Mean, of the judging speakers' clips with the device's classes."""
        return self._judging.sureness(self._check_logits(training))

    @cached_property
    def _judging(self) -> Judging:
        return Judging(self._cloud, self.world, self.mix, self._summary)

    @cached_property
    def world(self) -> World:
        """Of the public clips' world and the one that the card tells of, the one that explains the device better."""
        if self._cohort:
            return self._belief.believed(self._cohort.worlds(self._cloud, self._belief.founded))
        return self._belief.own()[0]

    @cached_property
    def mix(self) -> ClassMix:
        """The device's classes, as its summary shows them in that world."""
        return self._belief.mix_in(self.world)

    @cached_property
    def _classes(self) -> tuple[bool, ...] | None:
        """On these alone a student may be trained; None: the cohort has no such student for the device."""
        present = self.mix.present
        return self._cohort.classes(self.world.capture, present) if self._cohort else present

    def offered(self, prototypes: bool) -> tuple[Candidate, ...]:
        """The candidates for the device. In a cohort, only those of clips like its own, and of classes that are there.

        Args:
            prototypes: whether the device can be asked for some.
        """
        found = candidates_for(bool(self.world.capture), self.mix, prototypes=prototypes)
        if not self._cohort:
            return found
        return tuple(
            one
            for one in found
            if one.training == GENERIC_TRAINING
            or (
                (one.training.rendered or not self.world.capture)
                and (not one.training.selected or self._classes is not None)
            )
        )

    def name_of(self, training: Training) -> str:
        """Of a training within the cohort: in another world, or of other classes, it is another one."""
        parts = [*self.world.capture.split(" and "), Candidate(training).name]
        if training.selected:
            assert self._classes is not None
            parts.append("".join(str(int(one)) for one in self._classes))
        return "-".join(part for part in parts if part)

    def _choose(self, mix: ClassMix, prototypes: bool) -> tuple[Choice, Candidate, npt.NDArray[np.float32]]:
        """The choice, the chosen candidate, and its class bias."""
        world = self.world
        nothing = np.zeros(len(mix.shares), np.float32)
        if world.cross_fit is None:
            return Choice(reason=mix.reason), GENERIC_CANDIDATE, nothing
        judged = {one.name: (one, *self._judged(one)) for one in self.offered(prototypes)}
        estimates = tuple(estimate for _, estimate, _ in judged.values())
        best = best_of(estimates, self._plan.guard.test)
        expected, low, high = self._judging.expected(best)
        choice = Choice(
            candidates=estimates, estimate=expected, low=low, high=high, capture=world.capture,
            reason="nothing is surely better than the generic student" if estimates else mix.reason,
        )  # fmt: skip
        if best is None:
            return choice, GENERIC_CANDIDATE, nothing
        candidate, _, bias = judged[best.name]
        reason = f"{100 * best.gain:+.1f} points on public clips as the device would record them"
        return replace(choice, chosen=best.name, reason=reason), candidate, bias

    def _judged(self, candidate: Candidate) -> tuple[Estimate, npt.NDArray[np.float32]]:
        """What a candidate gains on speakers that it does not know, and the class bias that it gets."""
        judging, mix = self._judging, self.mix
        logits = self._check_logits(candidate.training)
        bias = np.zeros(len(mix.shares), np.float32)
        if candidate.prior:
            temperature = best_temperature(logits, judging.labels)
            bias = bias_of(mix, self._cloud.bank.class_prior(), temperature)
        gains = judging.right(logits, bias) - judging.right(self._check_logits(GENERIC_TRAINING))
        return judging.worth(candidate.name, gains), bias

    def _check_logits(self, training: Training) -> npt.NDArray[np.float32]:
        """What the student of this training, without the judging speakers, says of their clips."""
        if training not in self._checked:
            found = partial(self._found_logits, training)
            self._checked[training] = (
                self._cohort.check_logits(self.name_of(training), found) if self._cohort else found()
            )
        return self._checked[training]

    def _found_logits(self, training: Training) -> npt.NDArray[np.float32]:
        cloud = self._cloud
        net = cloud.fold_generic(CHECK_FOLD)
        if training != GENERIC_TRAINING:
            seen = np.flatnonzero(cloud.folds != CHECK_FOLD)
            allowed = self._allowed(training, seen, self._played_prototypes(training))
            net = self._train(cloud.fold_start(CHECK_FOLD), training, allowed, len(seen), "check")
            if not self._cohort:
                self._check_nets[training] = net
        return self._judging.logits_of(net)

    def _train(
        self, start: AudioVisualNet, training: Training, positions: Positions, clips: int, purpose: str
    ) -> AudioVisualNet:
        """As many steps as every other arm makes, on these clips."""
        plan, key, further = self._plan, self._key, ("similar",) if training.similar else ()
        parts: tuple[object, ...] = (
            key.scenario, key.arm, key.client, purpose, training.rendered, training.selected, *further
        )  # fmt: skip
        if self._cohort:
            parts = ("cohort", self._cohort.name, self.name_of(training), purpose)
        return train_further(
            start, positions, self._views_for(training), self._cloud.bank, plan, plan.ours,
            generator(self._key.seed, *parts), np.random.default_rng(stream(self._key.seed, *parts)),
            partial(self._report, Candidate(training).name, purpose), clips=clips,
        )  # fmt: skip

    def _report(self, candidate: str, purpose: str, epoch: int, loss: float) -> None:
        key, settings = self._key, self._plan.ours
        epochs = settings.outer_epochs * settings.inner_epochs
        self._cloud.metrics.progress(
            "student_epoch", key.client, seed=key.seed, client=key.client, visit=key.visit, candidate=candidate,
            purpose=purpose, epoch=epoch, epochs=epochs, loss=loss,
        )  # fmt: skip

    def _views_for(self, training: Training) -> ClipViews:
        views = self.world.views
        if training.rendered and isinstance(views, RenderedViews):
            return HedgedViews(views, self._cloud.views)
        return self._cloud.views

    def _allowed(
        self,
        training: Training,
        positions: Positions,
        prototypes: npt.NDArray[np.float32] | None,
    ) -> Positions:
        """Of these public clips, those that the training may use."""
        bank = self._cloud.bank
        if training.similar:
            assert prototypes is not None
            public = bank.probabilities(self._plan.selection.temperature)[positions]
            return np.sort(
                positions[select_similar(prototypes, public, budget_of(self._plan, len(positions)))]
            )
        if not training.selected:
            return positions
        return np.asarray(positions[np.array(self._classes)[bank.labels[positions]]])

    def _played_prototypes(self, training: Training) -> npt.NDArray[np.float32] | None:
        """What the judging speakers would upload, with the device's classes and as many clips as it has."""
        if not training.similar:
            return None
        rng = np.random.default_rng(self._stream("prototypes"))
        weights = class_weights(self._judging.labels, self.mix.shares)
        logits = self._check_logits(GENERIC_TRAINING) / self._plan.selection.temperature
        drawn = rng.choice(len(weights), min(int(self._summary.counts.sum()), MOST_JUDGED), p=weights)
        return played_prototypes(
            softmax(logits, axis=1)[drawn], self._plan.prototypes.samples_per_prototype, rng
        )

    def _stream(self, purpose: str) -> int:
        return stream(self._key.seed, purpose, self._key.scenario, self._key.client)
