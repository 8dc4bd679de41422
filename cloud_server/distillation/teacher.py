"""The teacher: a large audio-visual network trained on the labelled public clips (Eq. 5.3, Algorithm 6).

``unimodal_weight`` 0 is the thesis' plain joint training. Above 0, each modality also has to classify on its own. This
keeps the easier one from dominating the other (balanced multimodal learning).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fedstill.cloud_server.distillation.compute import Compute
from fedstill.cloud_server.distillation.distiller import augment
from fedstill.cloud_server.distillation.optimisation import make_optimiser, make_schedule
from fedstill.cloud_server.distillation.public_bank import outputs_of
from fedstill.cloud_server.distillation.settings import StudentSettings, TeacherSettings
from fedstill.datasets.audiovisual.capture.views import PlainViews
from fedstill.datasets.audiovisual.store import ClipStore
from fedstill.models.audiovisual.network import AudioVisualNet, Logits, NetworkSpec
from fedstill.models.vit.preprocess import to_tensors

EpochReport = Callable[[int, float], None]
"""(epochs done, mean loss)"""


def train_teacher(
    store: ClipStore,
    positions: npt.NDArray[np.int64],
    settings: TeacherSettings,
    compute: Compute,
    generator: torch.Generator,
    report: EpochReport,
) -> AudioVisualNet:
    """Train on the given public clips from a fresh initialisation drawn from ``generator``."""
    net = AudioVisualNet(teacher_spec(store, settings), generator).to(compute.torch_device)
    optimiser = make_optimiser(net.parameters(), settings.optimiser)
    batch = settings.optimiser.batch_size
    steps = max(1, len(positions) // batch)
    schedule = make_schedule(optimiser, settings.optimiser, settings.epochs, steps)
    for epoch in range(settings.epochs):
        net.train()
        order = torch.randperm(len(positions), generator=generator).numpy()
        losses = []
        for step in range(steps):
            rows = positions[order[step * batch : (step + 1) * batch]]
            loss = _loss(net, store, rows, settings, compute, generator)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        report(epoch + 1, float(np.mean(losses)))
    return net.eval()


def teacher_spec(store: ClipStore, settings: TeacherSettings) -> NetworkSpec:
    """The network for these settings and this store's classes and frames."""
    return NetworkSpec(
        settings.encoder,
        settings.feature_width,
        len(store.class_names),
        settings.fusion,
        store.frame_spec.channels,
    )


def student_spec(store: ClipStore, teacher: TeacherSettings, student: StudentSettings) -> NetworkSpec:
    """The student's network: its own encoders, everything else as the teacher's, so that features meet in one space."""
    return replace(teacher_spec(store, teacher), encoder=student.encoder)


def count_correct(
    net: AudioVisualNet, store: ClipStore, positions: npt.NDArray[np.int64], compute: Compute
) -> int:
    """How many of these labelled public clips the fused head gets right."""
    guesses = [
        outputs.joint.argmax(dim=1).cpu()
        for _, outputs in outputs_of(net, PlainViews(store), positions, compute)
    ]
    return int((torch.cat(guesses).numpy() == store.labels[positions]).sum())


def _loss(
    net: AudioVisualNet,
    store: ClipStore,
    rows: npt.NDArray[np.int64],
    settings: TeacherSettings,
    compute: Compute,
    generator: torch.Generator,
) -> Tensor:
    device = compute.torch_device
    audio, frames = to_tensors(store.audio[rows], store.frames[rows])
    if settings.augment:
        audio, frames = augment(audio, frames, generator)
    with compute.autocast():
        outputs: Logits = net(audio.to(device), frames.to(device))
    labels = torch.from_numpy(store.labels[rows]).to(device)

    def against_labels(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels, label_smoothing=settings.label_smoothing)

    loss = against_labels(outputs.joint)
    if settings.unimodal_weight > 0:
        alone = against_labels(outputs.audio) + against_labels(outputs.visual)
        loss = loss + settings.unimodal_weight * alone / 2
    return loss
