"""Training of a task on the frozen trunk: a head by linear probe, then prompts, few first and more from those.

The head is fitted once on plain features and then frozen, so that one head serves every token schedule; prompts
move the features towards it. Thesis Section 3.4.1; its batch size and learning rate are those of Section 3.6. It names
no optimiser: AdamW here. "Iteratively optimizing the remaining two" leaves open whether the copied prompts still move:
``copied_rate`` decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.preprocess import image_batch
from fedstill.models.vit.prompts import grow_prompts, new_prompts
from fedstill.models.vit.schedules import TokenSchedule, constant_schedule

Images = Sequence[npt.NDArray[np.uint8]]
"""uint8 RGB (height, width, 3) each."""

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Weight penalties of the probe to choose from on the validation images."""

PROBE_STEPS = 200
FEATURE_BATCH = 16


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """How prompts are trained.

    Attributes:
        counts: prompts per layer of each stage, growing; each stage begins with the prompts of the one before.
        epochs: per stage.
        copied_rate: learning rate of copied prompts relative to new ones; 0 freezes them.
    """

    counts: tuple[int, ...] = (2, 4)
    epochs: int = 50
    batch_size: int = 32
    learning_rate: float = 0.002
    copied_rate: float = 0.1

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip((0, *self.counts), self.counts, strict=False))
        if not self.counts or not ascending:
            raise ValueError(f"counts: {self.counts} must grow from at least 1")
        if self.epochs < 1 or self.batch_size < 1 or self.learning_rate <= 0 or self.copied_rate < 0:
            raise ValueError("prompt settings: epochs, batch_size and learning_rate must be positive")


@torch.inference_mode()
def extract_features(
    net: ElasticViT,
    images: Images,
    schedule: TokenSchedule | None = None,
    prompts: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Pooled features of many images, float32 (images, width) on the CPU.

    prompts: (layers, schedule.prompts, width), the same for all. progress: called with images done and total.
    """
    reference = net.trunk.pos_embed
    parts = []
    for start in range(0, len(images), FEATURE_BATCH):
        batch = image_batch(images[start : start + FEATURE_BATCH], net.image_size, net.preprocess).to(
            reference
        )
        repeated = None if prompts is None else prompts.to(reference).expand(len(batch), -1, -1, -1)
        parts.append(net.features(batch, schedule, repeated).float().cpu())
        if progress is not None:
            progress(min(start + FEATURE_BATCH, len(images)), len(images))
    return torch.cat(parts)


def linear_probe(
    features: Tensor, labels: npt.NDArray[np.int64], classes: int, penalty: float
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression on standardised features, by L-BFGS from zero; deterministic.

    Args:
        features: float32 (images, width).
        penalty: of the squared weights.

    Returns:
        weight (classes, width) and bias (classes,), for features as they come.
    """
    mean, spread = features.mean(0), features.std(0, correction=0).clamp_min(1e-6)
    inputs, targets = (features - mean) / spread, torch.from_numpy(labels)
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    solver = torch.optim.LBFGS((weight, bias), max_iter=PROBE_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(inputs @ weight.T + bias, targets) + penalty * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    solver.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        scaled = weight / spread
        return scaled.detach(), (bias - scaled @ mean).detach()


def fit_head(
    train: tuple[Tensor, npt.NDArray[np.int64]], val: tuple[Tensor, npt.NDArray[np.int64]], classes: int
) -> tuple[Tensor, Tensor, float]:
    """The probe with the penalty that is best on the validation features, and its accuracy there.

    train, val: features (images, width) and labels (images,).
    """
    best: tuple[Tensor, Tensor, float] | None = None
    for penalty in sorted(PENALTIES, reverse=True):  # of equals, the stronger penalty
        weight, bias = linear_probe(*train, classes, penalty)
        right = float(((val[0] @ weight.T + bias).argmax(1).numpy() == val[1]).mean())
        if best is None or right > best[2]:
            best = (weight, bias, right)
    assert best is not None
    return best


def train_prompts(
    net: ElasticViT,
    head: tuple[Tensor, Tensor],
    images: Images,
    labels: npt.NDArray[np.int64],
    settings: PromptSettings,
    generator: torch.Generator,
    progress: Callable[[int, float], None] | None = None,
) -> dict[int, Tensor]:
    """Iterative prompt learning: one set per count, each grown from the one before. One count is "from scratch".

    Args:
        net: the trunk, whose weights stay as they are.
        head: weight (classes, width) and bias (classes,), which stay too.
        labels: int64 (images,).
        generator: draws new prompts and the order of images.
        progress: called after each epoch with the number of prompts and the mean loss.

    Returns:
        By count, float32 (layers, count, width).

    Raises:
        FloatingPointError: the loss is not finite any more; a smaller learning rate helps.
    """
    patch_inputs = math.prod(net.trunk.patch_embed.proj.weight.shape[1:])
    sets: dict[int, Tensor] = {}
    trained: Tensor | None = None
    for count in settings.counts:
        fresh = new_prompts(net.layers, count, net.width, patch_inputs, generator)
        start = fresh if trained is None else grow_prompts(trained, fresh)
        copied = 0 if trained is None else trained.shape[1]
        trained = _train_stage(net, head, images, labels, start, copied, settings, generator, progress)
        sets[count] = trained
    return sets


def _train_stage(
    net: ElasticViT,
    head: tuple[Tensor, Tensor],
    images: Images,
    labels: npt.NDArray[np.int64],
    start: Tensor,
    copied: int,
    settings: PromptSettings,
    generator: torch.Generator,
    progress: Callable[[int, float], None] | None,
) -> Tensor:
    reference = net.trunk.pos_embed
    old, new = (nn.Parameter(part.clone().to(reference)) for part in (start[:, :copied], start[:, copied:]))
    schedule = constant_schedule(start.shape[1], net.layers)
    weight, bias = (part.to(reference) for part in head)
    rates = {new: settings.learning_rate, old: settings.learning_rate * settings.copied_rate}
    groups: list[dict[str, Any]] = [{"params": [part], "lr": rate} for part, rate in rates.items()]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
    steps = settings.epochs * math.ceil(len(images) / settings.batch_size)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(settings.epochs):
        losses = []
        for chosen in _batches(len(images), settings.batch_size, generator):
            batch = image_batch([images[i] for i in chosen], net.image_size, net.preprocess).to(reference)
            prompts = torch.cat((old, new), dim=1).expand(len(chosen), -1, -1, -1)
            features = net.features(batch, schedule, prompts)
            targets = torch.from_numpy(labels[chosen]).to(features.device)
            loss = F.cross_entropy(F.linear(features, weight, bias).float(), targets)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            decay.step()
            losses.append(float(loss.detach()))
        if not math.isfinite(sum(losses)):
            raise FloatingPointError("prompt training diverged: lower learning_rate")
        if progress is not None:
            progress(start.shape[1], float(np.mean(losses)))
    return torch.cat((old, new), dim=1).detach().float().cpu()


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[npt.NDArray[np.int64]]:
    order = torch.randperm(count, generator=generator).numpy()
    for start in range(0, count, size):
        yield order[start : start + size]
