"""The cloud's models and data for one seed: public clips, teacher, public bank and the students shared by all devices.

Everything here is made once for each teacher and kept in the run directory; a resumed run finds it there.
"""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedstill.cloud_server.distillation.centres import public_centres
from fedstill.cloud_server.distillation.class_mix import FEWEST_SPEAKERS, ClassMixes
from fedstill.cloud_server.distillation.cross_fit import (
    CrossFit,
    open_cross_fit,
    save_cross_fit,
    speaker_folds,
)
from fedstill.cloud_server.distillation.generic_student import Report, distil_on, train_further
from fedstill.cloud_server.distillation.public_bank import (
    PublicBank,
    batches,
    compute_bank,
    open_bank,
    outputs_of,
    save_bank,
)
from fedstill.cloud_server.distillation.randomness import generator
from fedstill.cloud_server.distillation.run_plan import RunPlan
from fedstill.cloud_server.distillation.teacher import count_correct, new_teacher, train_teacher
from fedstill.cloud_server.export.graphs import graphs_of
from fedstill.cloud_server.journal.event_log import Metrics
from fedstill.cloud_server.pretrained.open_parts import open_parts
from fedstill.cloud_server.pretrained.parts import PretrainedParts
from fedstill.common.dataclass_codec import to_plain
from fedstill.common.run_layout import personal_students, seed_folder
from fedstill.datasets.audiovisual.capture.views import ClipViews, PlainViews, blind_views
from fedstill.datasets.audiovisual.specs import spec_values
from fedstill.datasets.audiovisual.store import ClipStore, open_store
from fedstill.models.audiovisual.network import AudioVisualNet, parameter_count
from fedstill.models.weights.checkpoint import (
    CheckpointMeta,
    checkpoint_exists,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from fedstill.models.weights.packing import pack
from fedstill.protos.messages import StudentGraphs

VIEWS_FOLDER = "public_views"
PRETRAINED_FOLDER = "pretrained"
"""Features of frozen encoders, in the run directory."""
GENERIC = "all_distill_equal_steps"
"""The arm whose student every device gets for which nothing better is shown."""
EQUAL_STEPS = (GENERIC, "fedstill_without_selection")


@dataclass
class SeedCloud:
    """The cloud side of one seed."""

    plan: RunPlan
    seed: int
    metrics: Metrics
    _nets: dict[str, AudioVisualNet] = field(default_factory=dict)
    _graphs: StudentGraphs | None = None
    _graphs_lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def directory(self) -> Path:
        return seed_folder(self.plan.models, self.seed)

    @cached_property
    def public(self) -> ClipStore:
        return open_store(Path(self.plan.public))

    @cached_property
    def views(self) -> ClipViews:
        """What students see of the public clips: recorded in many ways, as nothing is known of a device's."""
        folder = self.plan.models / VIEWS_FOLDER
        return blind_views(self.public, self.plan.capture.blind, folder, self.plan.seeds[0])

    @cached_property
    def split(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(training, held-out) public positions of the teacher; students are distilled on both."""
        return hold_out(self.public.speakers, self.plan.holdout, self.seed)

    @cached_property
    def teacher(self) -> AudioVisualNet:
        """Trained once per seed (Algorithm 6, lines 1-3)."""
        net = self._pretrained_teacher() or self._kept("teacher", self._train_teacher)
        return net.to(self.plan.compute.torch_device)

    @cached_property
    def pretrained(self) -> PretrainedParts:
        """The teacher's pretrained parts; a frozen encoder runs over the public clips once for all seeds."""
        folder, device = self.plan.models / PRETRAINED_FOLDER, self.plan.compute.torch_device
        return open_parts(self.plan.teacher.pretrained, self.public, folder, device)

    @cached_property
    def bank(self) -> PublicBank:
        """The teacher's outputs for all public clips (Algorithm 7, line 5), computed once."""
        version = hashlib.sha256(pack(self.teacher.state_dict()).tobytes()).hexdigest()[:16]
        folder = self.directory / "bank"
        bank = open_bank(folder, version)
        if bank is None:
            made = compute_bank(self.teacher, self.public, self.plan.compute, version, self.pretrained)
            save_bank(made, folder)
            bank = open_bank(folder, version)
            assert bank is not None
        return bank

    @cached_property
    def centres(self) -> npt.NDArray[np.float32]:
        """Public cells for private prototypes, once per seed; float32 (k, classes)."""
        settings = self.plan.prototypes
        class_probabilities = self.bank.probabilities(self.plan.selection.temperature)
        return public_centres(
            class_probabilities, settings.centres or class_probabilities.shape[1], self.seed
        )

    @cached_property
    def all_distill(self) -> AudioVisualNet:
        """The student distilled on all public clips (Algorithm 6, line 4), under the teacher's head."""
        return self._kept("all_distill", self._distil_on_all)

    def graphs(self) -> StudentGraphs:
        """By which a device without torch runs this plan's students; all of them are of one kind."""
        with self._graphs_lock:
            if self._graphs is None:
                self._graphs = graphs_of(copy.deepcopy(self.all_distill).cpu().eval(), self.public)
            return self._graphs

    @cached_property
    def folds(self) -> npt.NDArray[np.int64]:
        """The fold of each public clip, int64 (N,); whole speakers."""
        return speaker_folds(self.public.speakers, self.plan.guard.folds)

    def fold_start(self, fold: int) -> AudioVisualNet:
        """AllDistill without the speakers of one fold."""
        return self._kept(f"fold{fold}_start", lambda: self._fold_start(fold))

    def fold_generic(self, fold: int) -> AudioVisualNet:
        """The generic student without the speakers of one fold."""
        return self._kept(f"fold{fold}", lambda: self._fold_generic(fold))

    @cached_property
    def cross_fit(self) -> CrossFit | None:
        """What the generic student says of speakers that it never heard; None if the public clips name too few."""
        if len(set(self.public.speakers)) < FEWEST_SPEAKERS:
            return None
        folder = self.directory / "cross_fit"
        found = open_cross_fit(folder)
        if found is None:
            found = self.judged(PlainViews(self.public), np.arange(len(self.public)))
            save_cross_fit(found, folder)
        return found

    def judged(self, views: ClipViews, positions: npt.NDArray[np.int64]) -> CrossFit:
        """What the generic student says of public clips, each judged by one that never heard its speaker.

        Args:
            views: the clips as they are, or otherwise recorded.
        """
        logits = np.empty((len(positions), len(self.public.class_names)), np.float32)
        for fold in range(int(self.folds.max()) + 1):
            mine = self.folds[positions] == fold
            outputs = outputs_of(self.fold_generic(fold), views, positions[mine], self.plan.compute)
            for rows, (_, found) in zip(batches(np.flatnonzero(mine)), outputs, strict=True):
                logits[rows] = found.joint.cpu().numpy()
        _, speakers = np.unique(np.array(self.public.speakers)[positions], return_inverse=True)
        return CrossFit(logits, self.public.labels[positions], speakers.astype(np.int64))

    @cached_property
    def class_mixes(self) -> ClassMixes:
        """The judge of what devices say about their classes."""
        prior, threshold = self.bank.class_prior(), self.plan.selection.support
        return ClassMixes(self.cross_fit, prior, threshold, self.plan.guard.test)

    def shared(self, arm: str) -> AudioVisualNet:
        """The network of an arm that is the same for all devices, made on first use."""
        if arm == "teacher":
            return self.teacher
        if arm not in EQUAL_STEPS:
            return self.all_distill
        return self._kept(arm, lambda: self._train_on(arm))

    def save_student(self, name: str, net: AudioVisualNet) -> Path:
        """Keep a personal student beside the seed's other models; returns its weights' file."""
        stem = personal_students(Path(self.plan.work), self.seed) / name
        self._save(stem, net)
        return stem.with_name(f"{name}.safetensors")

    def keep(self, stem: Path, net: AudioVisualNet) -> None:
        """Keep a network at ``stem``, in place of another one."""
        self._save(stem, net)

    def _kept(self, name: str, make: Callable[[], AudioVisualNet]) -> AudioVisualNet:
        """The network ``name`` of this seed: from disk if an earlier run finished it, else made and kept."""
        if name in self._nets:
            return self._nets[name]
        net = self._nets[name] = self.at(self.directory / name, make)
        return net

    def at(self, stem: Path, make: Callable[[], AudioVisualNet]) -> AudioVisualNet:
        """The network at ``stem``: from disk if an earlier run finished it, else made and kept there."""
        if checkpoint_exists(stem):
            return load_checkpoint(stem)[0]
        net = make()
        self._save(stem, net)
        return net

    def _pretrained_teacher(self) -> AudioVisualNet | None:
        """The teacher if it has pretrained parts: its checkpoint is opened with these, and says what they are."""
        chosen, stem = self.plan.teacher.pretrained, self.directory / "teacher"
        if not chosen:
            return None
        if checkpoint_exists(stem):
            return load_weights(stem, new_teacher(self.public, self.plan.teacher, self.pretrained))
        net = self._train_teacher()
        size = parameter_count(net) + self.pretrained.frozen_parameters
        self.metrics.emit("pretrained_teacher", seed=self.seed, parameters=size)
        self._save(stem, net, {modality: to_plain(settings) for modality, settings in chosen.items()})
        return net

    def _train_teacher(self) -> AudioVisualNet:
        training, held_out = self.split
        settings = self.plan.teacher

        def report(epoch: int, loss: float) -> None:
            curve = f"teacher/seed{self.seed}"
            self.metrics.loss("teacher_epoch", curve, epoch, loss, seed=self.seed, epochs=settings.epochs)

        compute, pretrained, rng = self.plan.compute, self.pretrained, self._generator("teacher")
        net = train_teacher(self.public, training, settings, compute, rng, report, pretrained)
        if len(held_out):
            correct = count_correct(net, self.public, held_out, compute, pretrained)
            self.metrics.emit("teacher", seed=self.seed, correct=correct, total=len(held_out))
        return net

    def _distil_on_all(self) -> AudioVisualNet:
        epochs = self.plan.student.epochs

        def report(epoch: int, loss: float) -> None:
            curve = f"all_distill/seed{self.seed}"
            self.metrics.loss("all_distill_epoch", curve, epoch, loss, seed=self.seed, epochs=epochs)

        everything = np.arange(len(self.public))
        generators = self._generator("student"), self._generator("all_distill")
        return distil_on(
            everything, self.public, self.views, self.bank, self.plan, self.teacher.head, generators, report
        )

    def _train_on(self, arm: str) -> AudioVisualNet:
        """AllDistill trained further with as many steps as the other arms, on all public clips: no selection."""
        settings = self.plan.distillation if arm == GENERIC else self.plan.ours
        turns = settings.outer_epochs * settings.inner_epochs

        def report(turn: int, loss: float) -> None:
            self.metrics.emit(
                "equal_steps_epoch", seed=self.seed, arm=arm, epoch=turn, epochs=turns, loss=loss
            )

        everything, rng = np.arange(len(self.public)), np.random.default_rng(self.seed)
        return train_further(
            self.all_distill, everything, self.views, self.bank, self.plan, settings, self._generator(arm),
            rng, report,
        )  # fmt: skip

    def _fold_start(self, fold: int) -> AudioVisualNet:
        purpose = "cross_fit", fold
        generators = self._generator(*purpose, "student"), self._generator(*purpose, "all_distill")
        seen = np.flatnonzero(self.folds != fold)
        return distil_on(
            seen, self.public, self.views, self.bank, self.plan, self.teacher.head, generators,
            self._fold_report(fold, self.plan.student.epochs),
        )  # fmt: skip

    def _fold_report(self, fold: int, epochs: int) -> Report:
        folds = int(self.folds.max()) + 1

        def report(epoch: int, loss: float) -> None:
            self.metrics.progress(
                "fold_epoch",
                "shared",
                seed=self.seed,
                fold=fold,
                folds=folds,
                epoch=epoch,
                epochs=epochs,
                loss=loss,
            )

        return report

    def _fold_generic(self, fold: int) -> AudioVisualNet:
        settings = self.plan.distillation
        student = train_further(
            self.fold_start(fold), np.flatnonzero(self.folds != fold), self.views, self.bank, self.plan,
            settings, self._generator("cross_fit", fold, GENERIC), np.random.default_rng(self.seed),
            self._fold_report(fold, settings.outer_epochs * settings.inner_epochs),
        )  # fmt: skip
        self.metrics.emit("cross_fit", seed=self.seed, fold=fold, folds=int(self.folds.max()) + 1)
        return student

    def _save(self, stem: Path, net: AudioVisualNet, pretrained: dict[str, Any] | None = None) -> None:
        specs = spec_values(self.public.audio_spec), spec_values(self.public.frame_spec)
        meta = CheckpointMeta(net.spec, self.public.class_names, *specs, pretrained or {})
        save_checkpoint(stem, net, meta)

    def _generator(self, *purpose: object) -> torch.Generator:
        return generator(self.seed, *purpose)


def hold_out(
    speakers: tuple[str, ...], share: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(training, held-out) positions: whole speakers are held out until they make up ``share`` of the clips.

    A new device is a new speaker, so accuracy on known speakers would be too optimistic. At least one speaker stays in
    the training; if there is only one, nobody is held out.
    """
    names = np.array(speakers)
    held_out = np.zeros(len(names), dtype=bool)
    for speaker in np.random.default_rng(seed).permutation(np.unique(names))[:-1]:
        if held_out.mean() >= share:
            break
        held_out |= names == speaker
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
