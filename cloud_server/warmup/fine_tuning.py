"""Fine-tunes a network with token reduction in its forward pass (thesis Section 4.4.2's ``Finetune``).

Trunk and head are trained together by AdamW with a cosine decay; the state after each epoch goes to disk, so a killed
process continues from the last finished epoch and ends with the same weights. Training stops early if accuracy on the
profiling images no longer improves, and the weights of the best epoch are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from fedstill.cloud_server.distillation.compute import Compute
from fedstill.cloud_server.warmup.fine_tuning_state import Training, load_training, save_training
from fedstill.cloud_server.warmup.reduced_nets import ReducedNet
from fedstill.common.errors import DataError
from fedstill.datasets.images.image_tasks import ImageSet
from fedstill.models.vit.preprocess import image_batch
from fedstill.models.vit.preprocess_settings import Preprocess

MEASURING_BATCH = 16

Prepared = Sequence[tuple[Tensor, Tensor]]
"""Batches of normalised images, float32 (n, 3, size, size), and int64 labels (n,)."""


@dataclass(frozen=True, slots=True)
class FineTuneSettings:
    """How a model is fine-tuned.

    Attributes:
        learning_rate: of the trunk. head_rate: the head's, as a multiple of it.
        patience: epochs in a row without a better profiling accuracy after which training ends.
        seed: of the order of images.
    """

    epochs: int = 3
    batch_size: int = 16
    learning_rate: float = 1e-4
    head_rate: float = 10.0
    weight_decay: float = 0.01
    patience: int = 2
    seed: int = 0
    compute: Compute = field(default_factory=Compute)

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.patience < 1:
            raise ValueError("fine-tuning: epochs, batch_size and patience must be at least 1")
        if not (self.learning_rate > 0 and self.head_rate >= 0 and self.weight_decay >= 0):
            raise ValueError(
                "fine-tuning: learning_rate must be positive, head_rate and weight_decay not negative"
            )


@dataclass(frozen=True, slots=True)
class FineTuned:
    """The course of a training: accuracy on the profiling images before training and after each epoch, and the seconds
    in training steps (measuring not counted)."""

    accuracies: tuple[float, ...]
    seconds: float

    @property
    def best(self) -> float:
        return max(self.accuracies)


def fine_tune(
    net: ReducedNet,
    train: ImageSet,
    profiling: Prepared,
    settings: FineTuneSettings,
    state: Path | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> FineTuned:
    """Train ``net`` in place; it ends with the weights of its best epoch.

    Args:
        profiling: decides which epoch is best and when to stop.
        state: file that is written after each epoch; if it exists, training continues from it.
        progress: called after each epoch with its number and the accuracy on the profiling images.

    Raises:
        DataError: the loss is not finite any more, or a state of other settings.
    """
    device = settings.compute.torch_device
    net.module.to(device).requires_grad_(True)
    training = _begin(net, len(train), settings)
    if state is not None and state.exists():
        load_training(state, training)
    else:
        training.accuracies.append(share_right(net, profiling, settings))
        training.keep_best()
    net.module.train()
    while len(training.accuracies) <= settings.epochs and not _stalled(training, settings.patience):
        started = perf_counter()
        _epoch(net, train, training, settings)
        training.seconds += perf_counter() - started
        training.accuracies.append(share_right(net, profiling, settings))
        if training.accuracies[-1] >= max(training.accuracies[:-1]):  # of equals, the one trained longer
            training.keep_best()
        if state is not None:
            save_training(state, training)
        if progress is not None:
            progress(len(training.accuracies) - 1, training.accuracies[-1])
    net.module.load_state_dict(training.best)
    net.module.eval().requires_grad_(False)
    return FineTuned(tuple(training.accuracies), training.seconds)


def step_seconds(net: ReducedNet, train: ImageSet, settings: FineTuneSettings, steps: int = 3) -> float:
    """Median time of a training step; the weights are put back. The first is a warm-up: ``steps`` is at least 2."""
    kept = {name: value.clone() for name, value in net.module.state_dict().items()}
    net.module.to(settings.compute.torch_device).requires_grad_(True)
    training = _begin(net, len(train), settings)
    chosen = np.arange(min(settings.batch_size, len(train)))
    seconds = []
    for _ in range(steps):
        started = perf_counter()
        _step(net, train, chosen, training, settings)
        seconds.append(perf_counter() - started)
    net.module.load_state_dict(kept)
    net.module.requires_grad_(False)
    return median(seconds[1:])


@torch.inference_mode()
def right_answers(net: ReducedNet, images: Prepared, settings: FineTuneSettings) -> str:
    """Which images are classified right, as digits 1 and 0, so that results stay paired by image."""
    device, digits = settings.compute.torch_device, ""
    was_training = net.module.training
    net.module.eval()
    for batch, labels in images:
        with settings.compute.autocast():
            answers = net.logits(batch.to(device)).argmax(dim=1).cpu()
        digits += "".join("1" if right else "0" for right in (answers == labels).tolist())
    net.module.train(was_training)
    return digits


def share_right(net: ReducedNet, images: Prepared, settings: FineTuneSettings) -> float:
    """Share of right answers."""
    digits = right_answers(net, images, settings)
    return digits.count("1") / len(digits)


def prepare_images(images: ImageSet, size: int, preprocess: Preprocess) -> Prepared:
    """Normalised batches, to be measured on many times."""
    starts = range(0, len(images), MEASURING_BATCH)
    return [
        (
            image_batch(images.images[start : start + MEASURING_BATCH], size, preprocess),
            torch.from_numpy(images.labels[start : start + MEASURING_BATCH]),
        )
        for start in starts
    ]


def _begin(net: ReducedNet, images: int, settings: FineTuneSettings) -> Training:
    head = list(net.head.parameters())  # a fixed order: a saved optimiser knows its parameters by position
    mine = {id(parameter) for parameter in head}
    body = [parameter for parameter in net.module.parameters() if id(parameter) not in mine]
    rate = settings.learning_rate
    optimiser = torch.optim.AdamW(
        [{"params": body, "lr": rate}, {"params": head, "lr": rate * settings.head_rate}],
        weight_decay=settings.weight_decay,
    )
    steps = settings.epochs * math.ceil(images / settings.batch_size)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch.Generator().manual_seed(settings.seed)
    return Training(net.module, optimiser, decay, generator)


def _epoch(net: ReducedNet, train: ImageSet, training: Training, settings: FineTuneSettings) -> None:
    order = torch.randperm(len(train), generator=training.generator).numpy()
    losses = [
        _step(net, train, order[start : start + settings.batch_size], training, settings)
        for start in range(0, len(train), settings.batch_size)
    ]
    if not math.isfinite(sum(losses)):
        raise DataError(
            f"fine-tuning diverged at learning rate {settings.learning_rate:g}: use a smaller one"
        )


def _step(
    net: ReducedNet, train: ImageSet, chosen: np.ndarray, training: Training, settings: FineTuneSettings
) -> float:
    device = settings.compute.torch_device
    images = image_batch([train.images[at] for at in chosen], net.image_size, net.preprocess).to(device)
    labels = torch.from_numpy(train.labels[chosen]).to(device)
    with settings.compute.autocast():
        loss = net.loss(images, labels)
    training.optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    training.optimiser.step()
    training.decay.step()
    return float(loss.detach())


def _stalled(training: Training, patience: int) -> bool:
    """Whether the last ``patience`` epochs were all worse than an earlier one."""
    accuracies = training.accuracies
    return len(accuracies) > patience and max(accuracies[-patience:]) < max(accuracies[:-patience])
