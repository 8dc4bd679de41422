"""A device's own student: public clips rendered to how it records, candidates trained on them, the best one chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import softmax

from fedstill.cloud_server.distillation.arms import budget_of
from fedstill.cloud_server.distillation.candidates import (
    GENERIC_CANDIDATE,
    GENERIC_TRAINING,
    Candidate,
    Choice,
    Estimate,
    Training,
    best_of,
    bias_of,
    candidates_for,
    class_weights,
    estimated,
    expected_accuracy,
    right,
)
from fedstill.cloud_server.distillation.class_mix import ClassMix, ClassMixes
from fedstill.cloud_server.distillation.cross_fit import CrossFit
from fedstill.cloud_server.distillation.generic_student import train_further
from fedstill.cloud_server.distillation.mixture_fit import best_temperature
from fedstill.cloud_server.distillation.public_bank import outputs_of
from fedstill.cloud_server.distillation.randomness import generator, stream
from fedstill.cloud_server.distillation.run_plan import RunPlan
from fedstill.cloud_server.distillation.similar_clips import played_prototypes, select_similar
from fedstill.cloud_server.federation.deployment import SimilarClips
from fedstill.cloud_server.federation.job_key import JobKey
from fedstill.cloud_server.federation.seed_state import GENERIC, SeedCloud
from fedstill.datasets.audiovisual.capture.rendering import fit_rendering
from fedstill.datasets.audiovisual.capture.views import ClipViews, PlainViews, RenderedViews
from fedstill.datasets.audiovisual.capture_card import from_bytes
from fedstill.models.audiovisual.confidence import CONFIDENCE_BINS, confidence_bins, mean_confidence
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.protos.messages import PrototypeUpload

Positions = npt.NDArray[np.int64]

Parts = tuple[bool, bool]
"""(sound, pictures)"""
WORLDS: tuple[Parts, ...] = ((True, True), (True, False), (False, True))
CHECK_FOLD = 0
"""The speakers of this fold judge the candidates."""
MOST_JUDGED = 1000
"""Public clips that are rendered to see what a device's summary should look like."""

AskPrototypes = Callable[[], npt.NDArray[np.float32] | None]
"""Asks the device for prototypes, float32 (k, classes), under the generic student; None if it gives none."""


@dataclass(frozen=True)
class World:
    """One way in which clips may be recorded, and what is known about the generic student there.

    Attributes:
        views: the public clips in it.
        cross_fit: what the student says there of speakers that it never heard; None if too few are known.
        mixes: the judge of devices' class mixes there.
        parts: in which it differs from the public clips' own.
    """

    views: ClipViews
    cross_fit: CrossFit | None
    mixes: ClassMixes
    parts: Parts = (False, False)

    @property
    def capture(self) -> str:
        """The parts in words; empty for the public clips' own world."""
        return " and ".join(
            name for name, differs in zip(("sound", "pictures"), self.parts, strict=True) if differs
        )


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
    """

    net: AudioVisualNet
    bias: npt.NDArray[np.float32]
    similar: SimilarClips
    mix: ClassMix
    choice: Choice
    promised: Promise | None


class PersonalStudents:
    """Makes the student of one job.

    Args:
        summary: the device's, of kind ``histogram``, or ``dp`` with a private card; that shows no class mix.
        ask: called only if a student of similar clips may pay; None: the device cannot be asked.
        trained: False: only students that need no training come into question.
    """

    def __init__(
        self,
        key: JobKey,
        cloud: SeedCloud,
        plan: RunPlan,
        summary: PrototypeUpload,
        ask: AskPrototypes | None = None,
        *,
        trained: bool = True,
    ) -> None:
        self._key, self._cloud, self._plan, self._summary, self._ask = key, cloud, plan, summary, ask
        self._trained = trained
        self._purpose = (key.scenario, key.arm, key.client)
        self._checked: dict[Training, npt.NDArray[np.float32]] = {}

    def make(self) -> PersonalStudent:
        """Choose between the candidates, and train the chosen one."""
        world, cloud = self._world, self._cloud
        everything = np.arange(len(cloud.bank.labels))
        mix = self._mix_in(world)
        choice, candidate, bias = self._choose(mix, self._ask is not None)
        prototypes = self._ask() if self._ask and candidate.training.similar else None
        if prototypes is not None:
            choice = replace(choice, prototypes=len(prototypes))
        elif candidate.training.similar:
            choice, candidate, bias = self._choose(mix, False)
        positions = self._allowed(candidate.training, mix, everything, prototypes)
        net, promised = cloud.shared(GENERIC), None
        if candidate.training != GENERIC_TRAINING:
            net = self._train(cloud.all_distill, candidate.training, positions, len(everything), "final")
            generic = self._confidence(GENERIC_TRAINING, mix)
            promised = Promise(generic, self._confidence(candidate.training, mix))
        if isinstance(world.views, RenderedViews):
            world.views.forget()  # the job now waits for its device, as many others do
        return PersonalStudent(net, bias, SimilarClips(world.views, positions), mix, choice, promised)

    def _confidence(self, training: Training, mix: ClassMix) -> float:
        """Mean, of the judging speakers' clips with the device's classes."""
        return self._sureness(self._check_logits(training, mix), self._cloud.bank.labels[self._held], mix)

    def _sureness(self, logits: npt.NDArray[np.float32], labels: Positions, mix: ClassMix) -> float:
        """Mean confidence, with the classes as the device has them."""
        confident = softmax(logits / self._cloud.class_mixes.temperature, axis=1)
        bins = np.eye(CONFIDENCE_BINS)[confidence_bins(confident)]
        return mean_confidence(class_weights(labels, mix.shares) @ bins)

    def _surer_than(self, fit: CrossFit, mix: ClassMix) -> float:
        """How much surer the generic student is of the device's clips than of public speakers', in accuracy."""
        if not len(self._summary.confidence):
            return 0.0
        surer = mean_confidence(self._summary.confidence) - self._sureness(fit.logits, fit.labels, mix)
        return surer * (1 - 1 / len(mix.shares))

    @cached_property
    def _world(self) -> World:
        """Of the public clips' world and the one that the card tells of, the one that explains the device better."""
        plain = World(PlainViews(self._cloud.public), self._cloud.cross_fit, self._cloud.class_mixes)
        told = self._told_worlds(self._cloud.bank.class_prior(), WORLDS)
        near = min(told, key=self._distance, default=plain)
        if near is plain or (self._plan.guard.test and self._distance(near) >= self._distance(plain)):
            return plain
        mix = self._mix_in(near)
        again = self._told_worlds(np.array(mix.shares), (near.parts,)) if mix.supported else ()
        return next(iter(again), near)

    def _distance(self, world: World) -> float:
        """How far the device's summary is from what public speakers say in this world."""
        found = world.mixes.distance(self._summary)
        return np.inf if found is None else found

    def _mix_in(self, world: World) -> ClassMix:
        return world.mixes.judge(self._summary, np.random.default_rng(self._stream("class_mix")))

    def _told_worlds(self, shares: npt.NDArray[np.floating], wanted: tuple[Parts, ...]) -> tuple[World, ...]:
        """The public clips with these parts as the device's card says; none if it says nothing of them."""
        cloud, summary = self._cloud, self._summary
        if not len(summary.card) or cloud.class_mixes.lacking:
            return ()
        card = from_bytes(summary.card, int(summary.counts.sum()))
        rendering = fit_rendering(card, cloud.public, shares, self._stream("rendering"))
        views = RenderedViews(cloud.public, rendering, self._stream("views"), self._plan.capture.versions)
        has = rendering.sound is not None, rendering.pictures is not None
        worlds = [
            self._rendered_world(views.only(sound=sound, pictures=pictures), (sound, pictures))
            for sound, pictures in wanted
            if sound <= has[0] and pictures <= has[1]
        ]
        return tuple(one for one in worlds if not one.mixes.lacking)

    def _rendered_world(self, views: RenderedViews, parts: Parts) -> World:
        cloud = self._cloud
        judged = np.random.default_rng(self._key.seed).permutation(len(cloud.public))[:MOST_JUDGED]
        found = cloud.judged(views, np.sort(judged))
        mixes = ClassMixes(
            found, cloud.bank.class_prior(), self._plan.selection.support, self._plan.guard.test,
            cloud.class_mixes.temperature,
        )  # fmt: skip
        return World(views, found, mixes, parts)

    def _choose(self, mix: ClassMix, prototypes: bool) -> tuple[Choice, Candidate, npt.NDArray[np.float32]]:
        """The choice, the chosen candidate, and its class bias."""
        world = self._world
        nothing = np.zeros(len(mix.shares), np.float32)
        if world.cross_fit is None:
            return Choice(reason=mix.reason), GENERIC_CANDIDATE, nothing
        judged = {
            one.name: (one, *self._judged(one, mix))
            for one in candidates_for(bool(world.capture), mix, prototypes=prototypes, trained=self._trained)
        }
        estimates = tuple(estimate for _, estimate, _ in judged.values())
        best = best_of(estimates, self._plan.guard.test)
        gain, error = (best.gain, best.error) if best else (0.0, 0.0)
        fit = world.cross_fit
        expected, low, high = expected_accuracy(
            right(fit.logits, nothing, fit.labels), fit.labels, fit.speakers, mix.shares, gain, error,
            self._surer_than(fit, mix),
        )  # fmt: skip
        choice = Choice(
            candidates=estimates, estimate=expected, low=low, high=high, capture=world.capture,
            reason="nothing is surely better than the generic student" if estimates else mix.reason,
        )  # fmt: skip
        if best is None:
            return choice, GENERIC_CANDIDATE, nothing
        candidate, _, bias = judged[best.name]
        reason = f"{100 * best.gain:+.1f} points on public clips as the device would record them"
        return replace(choice, chosen=best.name, reason=reason), candidate, bias

    def _judged(self, candidate: Candidate, mix: ClassMix) -> tuple[Estimate, npt.NDArray[np.float32]]:
        """What a candidate gains on speakers that it does not know, and the class bias that it gets."""
        cloud = self._cloud
        held, labels = self._held, cloud.bank.labels[self._held]
        logits = self._check_logits(candidate.training, mix)
        bias = np.zeros(len(mix.shares), np.float32)
        if candidate.prior:
            bias = bias_of(mix, cloud.bank.class_prior(), best_temperature(logits, labels))
        generic = right(self._check_logits(GENERIC_TRAINING, mix), np.zeros_like(bias), labels)
        gains = right(logits, bias, labels) - generic
        recordings = np.unique(np.array(cloud.public.recordings)[held], return_inverse=True)[1]
        return estimated(candidate.name, gains, labels, recordings, mix.shares), bias

    @cached_property
    def _held(self) -> Positions:
        """Clips of the speakers who judge."""
        found = np.flatnonzero(self._cloud.folds == CHECK_FOLD)
        return np.sort(np.random.default_rng(self._key.seed).permutation(found)[:MOST_JUDGED])

    def _check_logits(self, training: Training, mix: ClassMix) -> npt.NDArray[np.float32]:
        """What the student of this training, without the judging speakers, says of their clips."""
        if training not in self._checked:
            cloud = self._cloud
            net = cloud.fold_generic(CHECK_FOLD)
            if training != GENERIC_TRAINING:
                seen = np.flatnonzero(cloud.folds != CHECK_FOLD)
                allowed = self._allowed(training, mix, seen, self._played_prototypes(training, mix))
                net = self._train(cloud.fold_start(CHECK_FOLD), training, allowed, len(seen), "check")
            outputs = outputs_of(net, self._world.views, self._held, self._plan.compute)
            self._checked[training] = torch.cat([found.joint.cpu() for _, found in outputs]).numpy()
        return self._checked[training]

    def _train(
        self, start: AudioVisualNet, training: Training, positions: Positions, clips: int, purpose: str
    ) -> AudioVisualNet:
        """As many steps as every other arm makes, on these clips."""
        plan, further = self._plan, ("similar",) if training.similar else ()
        parts = (*self._purpose, purpose, training.rendered, training.selected, *further)
        return train_further(
            start, positions, self._views_for(training), self._cloud.bank, plan, plan.ours,
            generator(self._key.seed, *parts), np.random.default_rng(stream(self._key.seed, *parts)), clips=clips,
        )  # fmt: skip

    def _views_for(self, training: Training) -> ClipViews:
        return self._world.views if training.rendered else self._cloud.views

    def _allowed(
        self,
        training: Training,
        mix: ClassMix,
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
        return np.asarray(positions[np.array(mix.present)[bank.labels[positions]]])

    def _played_prototypes(self, training: Training, mix: ClassMix) -> npt.NDArray[np.float32] | None:
        """What the judging speakers would upload, with the device's classes and as many clips as it has."""
        if not training.similar:
            return None
        rng = np.random.default_rng(self._stream("prototypes"))
        weights = class_weights(self._cloud.bank.labels[self._held], mix.shares)
        logits = self._check_logits(GENERIC_TRAINING, mix) / self._plan.selection.temperature
        drawn = rng.choice(len(weights), min(int(self._summary.counts.sum()), MOST_JUDGED), p=weights)
        return played_prototypes(
            softmax(logits, axis=1)[drawn], self._plan.prototypes.samples_per_prototype, rng
        )

    def _stream(self, purpose: str) -> int:
        return stream(self._key.seed, purpose, self._key.scenario, self._key.client)
