"""The numbers behind the tables of a warm-up study: means over reductions, and differences paired by seed."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from fedstill.cloud_server.warmup.reductions import spread
from fedstill.evaluation.serving.summary import Mean
from fedstill.evaluation.statistics import signed
from fedstill.evaluation.warmup.results import ServedRow, TaskRun, WarmupStudy


def mean_over_reductions(study: WarmupStudy, run: TaskRun, system: str) -> float:
    """Eq. (4.1) on the test images: the mean over all allowed reductions, lines between the measured ones."""
    row = run.system(system)
    measured = {reduction: row.accuracy(reduction) for reduction in study.settings.grid}
    return fmean(spread(measured, study.settings.reductions).values())


def exhaustive_seconds(study: WarmupStudy, run: TaskRun) -> float:
    """Training seconds of a model at every allowed reduction: measured on the grid, lines between."""
    measured = {row.reduction: row.seconds for row in run.models}
    return sum(spread(measured, study.settings.reductions).values())


def served_rows(study: WarmupStudy, task: str, trace: str, policy: str) -> list[ServedRow]:
    """A policy's rows of one load, by seed."""
    return [
        row for run in study.of_task(task) for row in run.served if (row.trace, row.policy) == (trace, policy)
    ]


def loads(study: WarmupStudy) -> list[tuple[str, str]]:
    """Every (task, trace)."""
    return list(dict.fromkeys((run.task, row.trace) for run in study.runs for row in run.served))


def goodput_gain(study: WarmupStudy, task: str, trace: str, policy: str) -> Mean:
    """Right answers in time over those of OTAS without warm-up, in %."""
    mine, base = (served_rows(study, task, trace, name) for name in (policy, "vanilla"))
    return Mean.of([100 * (m.goodput / v.goodput - 1) for m, v in zip(mine, base, strict=True)])


def p95_change(study: WarmupStudy, task: str, trace: str, policy: str) -> Mean:
    """95th percentile of latency against Clipper's, in %."""
    mine, base = (served_rows(study, task, trace, name) for name in (policy, "clipper"))
    return Mean.of(
        [100 * (m.latency_ms["p95"] / c.latency_ms["p95"] - 1) for m, c in zip(mine, base, strict=True)]
    )


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Mean:
    """In points."""
    return Mean.of([100 * (value - base) for value, base in zip(values, baseline, strict=True)])


def paired_points(values: Sequence[float], baseline: Sequence[float]) -> str:
    """Paired difference in points, empty where both are the same."""
    return "" if list(values) == list(baseline) else bracketed(paired_difference(values, baseline), "")


def bracketed(mean: Mean, unit: str) -> str:
    """With sign and interval."""
    return f"{signed(mean.value)}{unit} [{signed(mean.low)}, {signed(mean.high)}]"
