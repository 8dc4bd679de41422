"""The aims for warm-up and their results: aim, measured, met or missed."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from fedstill.cloud_server.serving.policies.registry import LABELS
from fedstill.evaluation.elastic.tables import Sheet
from fedstill.evaluation.warmup.means import (
    bracketed,
    exhaustive_seconds,
    goodput_gain,
    loads,
    mean_over_reductions,
    p95_change,
    paired_difference,
)
from fedstill.evaluation.warmup.results import SYSTEMS, WarmupStudy

GAIN, BEHIND, COST, GOODPUT, P95 = 20.0, 2.0, 0.25, 20.0, 50.0
"""Points over vanilla, points behind Exhaustive, share of its cost, % over OTAS, % below Clipper."""

Row = tuple[str, str, str, str]


def aims(study: WarmupStudy) -> Sheet:
    """Both planners, one model per reduction; under load the thesis' rule and the policy ``fedstill``."""
    rows = [*_accuracy_rows(study), *_soup_rows(study), *_load_rows(study)]
    return Sheet(
        "What we aimed at",
        ("task", "aim", "measured", ""),
        tuple(rows),
        (
            "By means over seeds. Room: what a model would gain over vanilla that kept vanilla's unreduced accuracy at "
            "every reduction.",
        ),
    )


def _accuracy_rows(study: WarmupStudy) -> Iterator[Row]:
    for task in study.tasks:
        runs = study.of_task(task)
        vanilla, exhaustive = (
            [mean_over_reductions(study, run, name) for run in runs] for name in ("vanilla", "exhaustive")
        )
        room = 100 * fmean(
            run.system("vanilla").accuracy(0) - mean for run, mean in zip(runs, vanilla, strict=True)
        )
        for name in ("prodigy", "coverage"):
            mine = [mean_over_reductions(study, run, name) for run in runs]
            label = SYSTEMS[name]
            gain = paired_difference(mine, vanilla)
            said = f"{bracketed(gain, '')} (room: {room:+.1f})"
            aim = f"{label}: mean accuracy {GAIN:g} points over vanilla"
            yield task, aim, said, _verdict(gain.value >= GAIN)
            behind = paired_difference(mine, exhaustive)
            aim = f"{label}: at most {BEHIND:g} points behind Exhaustive"
            yield task, aim, bracketed(behind, ""), _verdict(behind.value >= -BEHIND)
            cost = fmean(
                run.seconds(run.system(name).models) / exhaustive_seconds(study, run) for run in runs
            )
            aim = f"{label}: at most {COST:g} of the cost of Exhaustive over all reductions"
            yield task, aim, f"{cost:.2f}", _verdict(cost <= COST)


def _soup_rows(study: WarmupStudy) -> Iterator[Row]:
    ratios = [row.soup_seconds / row.forward_seconds for row in study.soups]
    batch = study.soups[0].batch
    aim = f"a soup in less than a forward pass of {batch}"
    yield "all", aim, f"{min(ratios):.2f} to {max(ratios):.2f} of it", _verdict(max(ratios) < 1)


def _load_rows(study: WarmupStudy) -> Iterator[Row]:
    for task, trace in loads(study):
        for policy in ("prodigy", "fedstill"):
            label = f"{trace}, {LABELS[policy]}"
            gain = goodput_gain(study, task, trace, policy)
            aim = f"{label}: {GOODPUT:g} % more right in time than OTAS without warm-up"
            yield task, aim, bracketed(gain, " %"), _verdict(gain.value >= GOODPUT)
            change = p95_change(study, task, trace, policy)
            aim = f"{label}: latency p95 {P95:g} % below Clipper's"
            yield task, aim, bracketed(change, " %"), _verdict(change.value <= -P95)


def _verdict(met: bool) -> str:
    return "met" if met else "missed"
