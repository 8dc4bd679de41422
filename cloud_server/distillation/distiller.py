"""Feature distillation (Eq. 5.4): a student learns to produce the teacher's features of the public clips it is given.

The teacher's features come from the public bank, so a step costs only the student's forward and backward pass.
Beyond the thesis, and off in ``faithful`` mode: per-clip weights from the transport selection, a softened
logit loss on the student's own head, and augmented student views.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from fedstill.cloud_server.distillation.compute import Compute
from fedstill.cloud_server.distillation.optimisation import make_optimiser, make_schedule
from fedstill.cloud_server.distillation.public_bank import PublicBank
from fedstill.cloud_server.distillation.selection import Selection
from fedstill.cloud_server.distillation.settings import DistillationSettings, OptimiserSettings
from fedstill.datasets.audiovisual.augment import flip_and_shift, move_sound, spec_augment, vary_level
from fedstill.datasets.audiovisual.capture.views import ClipViews
from fedstill.models.audiovisual.network import AudioVisualNet, Features
from fedstill.models.vit.preprocess import to_tensors

LOGIT_TEMPERATURE = 2.0
SHIFT_SHARE = 12
"""Pictures move by up to 1/12 of their side."""
LEVEL_SPREAD = 0.2
"""Of ``vary_level``, in units of the normalised sound."""

FeatureSource = Callable[[np.ndarray, Tensor, Tensor], Features]
"""(positions, audio, frames) -> teacher features; the bank's, or a teacher run again as printed."""


@dataclass
class Distiller:
    """One student while it learns; optimiser and schedule continue over the outer rounds of Algorithm 7."""

    student: AudioVisualNet
    views: ClipViews
    bank: PublicBank
    settings: DistillationSettings
    batch_size: int
    compute: Compute
    generator: torch.Generator
    optimiser: torch.optim.Optimizer
    schedule: LRScheduler
    teacher_features: FeatureSource

    def run(self, selection: Selection, epochs: int) -> list[float]:
        """Train for ``epochs`` passes over the selection; returns each epoch's mean loss."""
        self.student.train()
        if self.settings.freeze_batch_norm:
            _freeze_batch_norm(self.student)
        return [self._epoch(selection) for _ in range(epochs)]

    def _epoch(self, selection: Selection) -> float:
        order = torch.randperm(len(selection.positions), generator=self.generator).numpy()
        losses = []
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            if len(rows) < 2 and len(order) > 1:
                break  # batch norm needs two clips
            losses.append(self._step(selection.positions[rows], selection.weights[rows]))
        return float(np.mean(losses))

    def _step(self, positions: np.ndarray, weights: np.ndarray) -> float:
        device = self.compute.torch_device
        audio, frames = to_tensors(*self.views.take(positions, self.generator))
        target = self.teacher_features(positions, audio, frames)
        if self.settings.augment:
            audio, frames = augment(audio, frames, self.generator)
        with self.compute.autocast():
            found = self.student.encoders(audio.to(device), frames.to(device))
        found = Features(found.audio.float(), found.visual.float())
        loss = self._loss(found, target, positions, torch.from_numpy(weights).to(device))
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.schedule.step()
        return loss.item()

    def _loss(self, found: Features, target: Features, positions: np.ndarray, weights: Tensor) -> Tensor:
        per_clip = feature_loss(found, target, self.bank.feature_variance)
        if self.settings.logit_weight > 0:
            wanted = torch.from_numpy(self.bank.logits[positions]).to(per_clip.device)
            per_clip = per_clip + self.settings.logit_weight * logit_loss(
                self.student.head(found).joint, wanted
            )
        return (per_clip * weights).mean()


def make_distiller(
    student: AudioVisualNet,
    views: ClipViews,
    bank: PublicBank,
    settings: DistillationSettings,
    optimiser: OptimiserSettings,
    compute: Compute,
    generator: torch.Generator,
    *,
    epochs: int,
    clips_per_epoch: int,
) -> Distiller:
    """A distiller whose schedule spans ``epochs`` passes over ``clips_per_epoch`` clips."""
    compute.to_train(student)
    student.head.requires_grad_(settings.logit_weight > 0)
    stepper = make_optimiser((p for p in student.parameters() if p.requires_grad), optimiser)
    steps = -(-clips_per_epoch // optimiser.batch_size)
    return Distiller(
        student,
        views,
        bank,
        settings,
        optimiser.batch_size,
        compute,
        generator,
        stepper,
        make_schedule(stepper, optimiser, epochs, steps),
        teacher_features=lambda positions, _audio, _frames: bank.features(positions),
    )


def feature_loss(found: Features, target: Features, variance: tuple[float, float]) -> Tensor:
    """Mean squared error per clip, each modality in units of the teacher's feature variance; (batch,)."""
    parts = (
        F.mse_loss(ours, theirs.to(ours.device), reduction="none").mean(dim=1) / scale
        for ours, theirs, scale in zip(found, target, variance, strict=True)
    )
    audio, visual = parts
    return audio + visual


def logit_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Kullback-Leibler divergence of softened predictions per clip (Hinton et al. 2015); (batch,)."""
    ours = F.log_softmax(found / LOGIT_TEMPERATURE, dim=1)
    theirs = F.log_softmax(wanted / LOGIT_TEMPERATURE, dim=1)
    divergence = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1)
    return LOGIT_TEMPERATURE**2 * divergence


def augment(audio: Tensor, frames: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Augmented versions of the same clips: sound moved, re-levelled and masked in bands, pictures mirrored and
    moved."""
    _, _, bins, steps = audio.shape
    moved = move_sound(audio.squeeze(1), generator, steps=steps // 5, bins=bins // 20)
    masked = spec_augment(vary_level(moved, generator, LEVEL_SPREAD), generator, bins // 6, steps // 6)
    return masked.unsqueeze(1), flip_and_shift(frames, generator, frames.shape[-1] // SHIFT_SHARE)


def _freeze_batch_norm(net: nn.Module) -> None:
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
