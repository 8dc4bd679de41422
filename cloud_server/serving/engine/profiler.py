"""The profile that a planner needs before it serves: accuracy and time of every token schedule on this machine.

Time is affine in the batch size, t = a + b n, per schedule (tasks share the trunk); accuracy is per schedule and
task, measured through the engine itself on images that nothing was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import numpy.typing as npt
import torch

from fedstill.cloud_server.serving.engine.engine import Engine
from fedstill.cloud_server.serving.engine.nearest import nearest_right
from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.cloud_server.serving.engine.variants import QUANTILE
from fedstill.cloud_server.serving.scheduling.latency_model import SMALLEST_SLOPE
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.preprocess import image_batch
from fedstill.models.vit.schedules import TokenSchedule, effective_merges, first_patches, token_counts

Images = Sequence[npt.NDArray[np.uint8]]

LOOKS = 3
"""How often timings that do not fit together are repeated."""
MISFIT = 0.25
"""Relative error of the line, above which a schedule is timed again."""
SLOWER = 1.05
"""Times a schedule with more tokens, above which both are timed again."""


@dataclass(frozen=True, slots=True)
class AffineTime:
    """t(n) = fixed + per_query x n seconds for a batch of n, and the largest relative error on the measured sizes."""

    fixed_seconds: float
    per_query_seconds: float
    worst_error: float

    def seconds(self, size: int) -> float:
        return self.fixed_seconds + self.per_query_seconds * size


@dataclass(frozen=True, slots=True)
class ScheduleProfile:
    """One schedule as measured: accuracy is a share of right answers per task, in the order of the tasks.

    patches: of the weights, see ``token_delta``.
    """

    schedule: TokenSchedule
    time: AffineTime
    accuracy: tuple[float, ...]
    maximum_batch: int
    patches: int

    @property
    def planned(self) -> Schedule:
        """The part that a planner needs."""
        return Schedule(
            name=self.schedule.name,
            token_delta=token_delta(self.schedule, self.patches),
            fixed_seconds=self.time.fixed_seconds,
            per_query_seconds=self.time.per_query_seconds,
            accuracy=self.accuracy,
            maximum_batch=self.maximum_batch,
        )


def profile_engine(
    engine: Engine,
    validation: Mapping[str, tuple[Images, npt.NDArray[np.int64]]],
    *,
    rounds: int = 7,
    memory_limit: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[ScheduleProfile, ...]:
    """Measure every schedule of the engine that all tasks have prompts for.

    Args:
        validation: images and labels by task; the tasks of the profile, in this order.
        rounds: timings per schedule and batch size.
        memory_limit: bytes that the activations of a batch may take (thesis Eq. 3.2c); no limit by default.

    Raises:
        ValueError: no schedule that all tasks can run.
    """
    tasks = tuple(validation)
    schedules = [s for s in engine.settings.schedules if not engine.bank.lacking(tasks, s.prompts)]
    if not schedules:
        raise ValueError(f"no schedule of the engine suits all of the tasks {', '.join(tasks)}")
    times = measure_times(engine, schedules, rounds, progress=progress)
    profiles = []
    plainest = min(schedules, key=lambda schedule: abs(token_delta(schedule, engine.net.patches)))
    galleries = {
        task: predicted(engine, plainest, task, images)
        for task, (images, _) in validation.items()
        if engine.bank.tasks[task].output == "embedding"
    }
    count = len(schedules) * len(validation)
    for place, schedule in enumerate(schedules):
        shares = []
        for task, (images, labels) in validation.items():
            if task in galleries:
                right = nearest_right(predicted(engine, schedule, task, images), galleries[task], labels)
            else:
                right = measure_right(engine, schedule, task, images, labels)
            shares.append(float(right.mean()))
            if progress is not None:
                done = place * len(validation) + len(shares)
                right_share = f"{100 * shares[-1]:.1f} % right"
                progress(f"measured schedule {schedule.name} on {task}: {right_share}, {done} of {count}")
        batch = engine.maximum_batch
        if memory_limit is not None:
            per_image = activation_bytes(engine.net, schedule, engine.dtype.itemsize)
            batch = max(1, min(batch, memory_limit // per_image))
        profiles.append(ScheduleProfile(schedule, times[schedule], tuple(shares), batch, engine.net.patches))
    return tuple(profiles)


def measure_times(
    engine: Engine,
    schedules: Sequence[TokenSchedule],
    rounds: int = 7,
    sizes: Sequence[int] = (),
    looks: int = LOOKS,
    progress: Callable[[str], None] | None = None,
) -> dict[TokenSchedule, AffineTime]:
    """Affine times from low quantiles; schedules and sizes take turns in every round.

    What does not fit together is timed again: a schedule off its own line, or slower than one with more tokens.

    Args:
        rounds: timings per schedule and batch size.
        sizes: of the batches; by default the engine's buckets.
        looks: how often at most a schedule is timed.
        progress: called with a line for a person before each round.
    """
    sizes = sizes or engine.settings.batch_buckets
    seconds: dict[tuple[TokenSchedule, int], list[float]] = {
        (schedule, size): [] for schedule in schedules for size in sizes
    }
    times: dict[TokenSchedule, AffineTime] = {}
    again = list(schedules)
    for look in range(looks):

        def on_round(turn: int, count: int = len(again), again: str = " again" if look else "") -> None:
            if progress is not None:
                progress(f"timing {count} schedules{again}, round {turn} of {rounds + 1}")

        _time_batches(engine, again, sizes, rounds, seconds, on_round)
        for schedule in again:
            typical = [float(np.quantile(seconds[schedule, size], QUANTILE)) for size in sizes]
            times[schedule] = fit_affine(sizes, typical)
        again = doubtful(times, sizes[-1], engine.net.patches)
        if not again:
            break
    return times


def doubtful(times: Mapping[TokenSchedule, AffineTime], size: int, patches: int) -> list[TokenSchedule]:
    """The schedules that are off their own line, or out of order with one that has more tokens or fewer.

    Args:
        size: of the batches by which they are put in order.
        patches: of the weights.
    """
    found = {schedule for schedule, time in times.items() if time.worst_error > MISFIT}
    for fewer, time in times.items():
        for more, other in times.items():
            alike = fewer.int8 == more.int8
            ordered = alike and token_delta(fewer, patches) < token_delta(more, patches)
            if ordered and time.seconds(size) > SLOWER * other.seconds(size):
                found |= {fewer, more}
    return [schedule for schedule in times if schedule in found]


def _time_batches(
    engine: Engine,
    schedules: Sequence[TokenSchedule],
    sizes: Sequence[int],
    rounds: int,
    seconds: dict[tuple[TokenSchedule, int], list[float]],
    on_round: Callable[[int], None],
) -> None:
    """Add ``rounds`` timings of each schedule and size."""
    task, side = engine.bank.names[0], engine.net.image_size
    batches = {size: torch.randn(size, 3, side, side, generator=_seeded()) for size in sizes}
    for turn in range(rounds + 1):
        on_round(turn + 1)
        for schedule in schedules:
            for size, images in batches.items():
                started = perf_counter()
                engine.infer(images, [task] * size, schedule)
                if turn:  # the first is warm-up
                    seconds[schedule, size].append(perf_counter() - started)


def fit_affine(sizes: Sequence[int], seconds: Sequence[float]) -> AffineTime:
    """Least squares of relative errors; the fixed part is not negative, the part per query above 0.

    Relative, because a planner errs by the same share at a batch of 1 as at a batch of 32. A slope of 0 would mean that
    a batch of any size is free, which is impossible (``Schedule`` refuses it). Raises ValueError for times that are not
    positive.
    """
    n, t = np.asarray(sizes, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    if not len(n) or len(n) != len(t) or not (t > 0).all():
        raise ValueError(f"times: {list(seconds)} for sizes {list(sizes)}: need one positive time per size")
    design = np.stack((1 / t, n / t), axis=1)
    fixed, slope = np.linalg.lstsq(design, np.ones(len(n)), rcond=None)[0]
    if len(set(sizes)) == 1 or fixed < 0:  # through the origin
        fixed, slope = 0.0, float((n / t).sum() / ((n / t) ** 2).sum())
    elif slope < SMALLEST_SLOPE:
        fixed, slope = float((1 / t).sum() / ((1 / t) ** 2).sum()), SMALLEST_SLOPE
    errors = np.abs(fixed + slope * n - t) / t
    return AffineTime(float(fixed), float(slope), float(errors.max()))


def measure_right(
    engine: Engine, schedule: TokenSchedule, task: str, images: Images, labels: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Which images the engine classifies right, by the largest logit, bool (images,). A refused row counts as wrong."""
    best = predicted(engine, schedule, task, images)
    known = np.isfinite(best[:, 0])
    chosen = np.where(known[:, None], best, 0).argmax(axis=1)
    right: npt.NDArray[np.bool_] = np.equal(chosen, labels) & known
    return right


def predicted(engine: Engine, schedule: TokenSchedule, task: str, images: Images) -> npt.NDArray[np.float32]:
    """The engine's logits or embeddings, float32 (images, classes or width); NaN in a refused row."""
    step, preprocess = engine.maximum_batch, engine.bank.tasks[task].preprocess
    made: list[npt.NDArray[np.float32] | None] = []
    for start in range(0, len(images), step):
        batch = image_batch(images[start : start + step], engine.net.image_size, preprocess)
        answers = engine.infer(batch, [task] * len(batch), schedule)
        made += [answer.logits if isinstance(answer, Prediction) else None for answer in answers]
    widest = max((len(row) for row in made if row is not None), default=1)
    nothing = np.full(widest, np.nan, np.float32)
    return np.stack([nothing if row is None else row for row in made])


def activation_bytes(net: ElasticViT, schedule: TokenSchedule, item_bytes: int) -> int:
    """Upper estimate of what one image of a batch needs at once: residual stream, its norm, and the widest of a layer.

    Attention holds queries, keys, values and, unfused, its scores; the MLP its hidden values.
    """
    counts = token_counts(schedule, net.patches, net.protected)
    merged = effective_merges(schedule, net.patches)
    widest = 0
    for count, gone in zip(counts[:-1], merged, strict=True):
        attention = 3 * count * net.width + net.heads * count**2
        widest = max(widest, 2 * count * net.width + max(attention, (count - gone) * net.hidden))
    return widest * item_bytes


def make_profile(
    name: str,
    source: str,
    tasks: Sequence[str],
    measured: Sequence[ScheduleProfile],
    trunk: str = "",
    engine: str = "",
) -> Profile:
    """The planner's profile of everything that was measured, dominated schedules too."""
    schedules = tuple(one.planned for one in measured)
    return Profile(name, source, tuple(tasks), schedules, trunk=trunk, engine=engine)


def time_ratios(
    engine: Engine, profile: Profile, rounds: int = 7, sizes: Sequence[int] = (), looks: int = LOOKS
) -> dict[str, float]:
    """What a batch takes now over what the profile says, by schedule: the mean of the smallest and the largest batch.

    Args:
        rounds, sizes, looks: see ``measure_times``.

    Raises:
        ValueError: the engine has none of the profile's schedules.
    """
    known = {schedule.name: schedule for schedule in engine.settings.schedules}
    stored = [one for one in profile.schedules if one.name in known]
    if not stored:
        raise ValueError(f"the engine has none of the schedules of profile {profile.name!r}")
    now = measure_times(engine, [known[one.name] for one in stored], rounds, sizes, looks)
    ratios = {}
    for one in stored:
        ends = (sizes[0], sizes[-1]) if sizes else (1, min(engine.maximum_batch, one.maximum_batch))
        ratios[one.name] = float(np.mean([now[known[one.name]].seconds(n) / one.seconds(n) for n in ends]))
    return ratios


def token_delta(schedule: TokenSchedule, patches: int) -> int:
    """The thesis' gamma; of a layer-wise schedule, its mean over the layers, rounded.

    A grid takes its tokens away before the first layer: it counts as the constant merging that takes as many away in
    the mean over the layers. patches: of the weights.
    """
    layers = len(schedule.merges)
    never = patches - first_patches(schedule, patches)
    return schedule.prompts - round(sum(schedule.merges) / layers + 2 * never / (layers + 1))


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
