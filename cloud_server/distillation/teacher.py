"""The teacher: a large audio-visual network trained on the labelled public clips (Eq. 5.3, Algorithm 6).

``unimodal_weight`` 0 is the thesis' plain joint training. Above 0, each modality also has to classify on its own. This
keeps the easier one from dominating the other (balanced multimodal learning).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fedstill.cloud_server.distillation.compute import Compute, trained
from fedstill.cloud_server.distillation.distiller import augment
from fedstill.cloud_server.distillation.optimisation import make_optimiser, make_schedule
from fedstill.cloud_server.distillation.public_bank import outputs_of
from fedstill.cloud_server.distillation.settings import StudentSettings, TeacherSettings
from fedstill.cloud_server.pretrained.parts import NOTHING_PRETRAINED, PretrainedParts
from fedstill.datasets.audiovisual.capture.views import PlainViews
from fedstill.datasets.audiovisual.store import ClipStore
from fedstill.models.audiovisual.encoders import initialise
from fedstill.models.audiovisual.network import AudioVisualNet, Logits, NetworkSpec
from fedstill.models.audiovisual.pretrained import Adaptor
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
    pretrained: PretrainedParts = NOTHING_PRETRAINED,
) -> AudioVisualNet:
    """Train on the given public clips; what is not pretrained is first drawn from ``generator``."""
    net = compute.to_train(new_teacher(store, settings, pretrained, generator))
    optimiser = make_optimiser(_groups(net, settings, pretrained), settings.optimiser)
    batch = settings.optimiser.batch_size
    steps = max(1, len(positions) // batch)
    schedule = make_schedule(optimiser, settings.optimiser, settings.epochs, steps)
    for epoch in range(settings.epochs):
        net.train()
        order = torch.randperm(len(positions), generator=generator).numpy()
        losses = []
        for step in range(steps):
            rows = positions[order[step * batch : (step + 1) * batch]]
            loss = _loss(net, store, rows, settings, compute, generator, pretrained)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        report(epoch + 1, float(np.mean(losses)))
    return trained(net).to(compute.torch_device)


def new_teacher(
    store: ClipStore,
    settings: TeacherSettings,
    pretrained: PretrainedParts = NOTHING_PRETRAINED,
    generator: torch.Generator | None = None,
) -> AudioVisualNet:
    """The untrained teacher with its pretrained parts. The adaptors are drawn after all else."""
    net = AudioVisualNet(teacher_spec(store, settings), generator)
    pretrained.put_into(net)
    for part in net.modules():
        if isinstance(part, Adaptor):
            initialise(part, generator or torch.Generator().manual_seed(0))
    return net


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
    net: AudioVisualNet,
    store: ClipStore,
    positions: npt.NDArray[np.int64],
    compute: Compute,
    pretrained: PretrainedParts = NOTHING_PRETRAINED,
) -> int:
    """How many of these labelled public clips the fused head gets right."""
    guesses = [
        outputs.joint.argmax(dim=1).cpu()
        for _, outputs in outputs_of(net, PlainViews(store), positions, compute, pretrained)
    ]
    return int((torch.cat(guesses).numpy() == store.labels[positions]).sum())


def _groups(
    net: AudioVisualNet, settings: TeacherSettings, pretrained: PretrainedParts
) -> list[dict[str, Any]]:
    """Fine-tuned encoders step at a lower rate than what starts from nothing."""
    groups: list[dict[str, Any]] = [
        {"params": parameters, "lr": settings.optimiser.learning_rate * rate}
        for parameters, rate in pretrained.fine_tuned()
    ]
    slow = {id(one) for group in groups for one in group["params"]}
    rest = [one for one in net.parameters() if one.requires_grad and id(one) not in slow]
    return [{"params": rest}, *groups]


def _loss(
    net: AudioVisualNet,
    store: ClipStore,
    rows: npt.NDArray[np.int64],
    settings: TeacherSettings,
    compute: Compute,
    generator: torch.Generator,
    pretrained: PretrainedParts,
) -> Tensor:
    device = compute.torch_device
    audio, frames = to_tensors(store.audio[rows], store.frames[rows])
    if settings.augment and pretrained.reads_clips:
        audio, frames = augment(audio, frames, generator)
    audio, frames = pretrained.inputs(rows, audio, frames)
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
