"""The page of ``reductions.py``: accuracy, recovered share of the loss, McNemar's p, and time, per task and cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedstill.evaluation.paired_tests import mcnemar

BUDGETS = ("-15", "-20", "-30")
"""The constant schedules whose cost all others have."""
FAMILIES = ("merging", "layer-wise merging", "with larger patches")
"""The first is the constant schedule itself; the last may be any schedule of the one before, too."""
TASKS = ("cifar10", "tinyimagenet100", "mnist")
LOSS, SHARE, LEVEL, SLOWER = 6.0, 0.5, 0.01, 1.03
"""From which loss, in points, how much of it is to be recovered; how small p, and how long it may take."""


def page(kept: Mapping[str, Any], chosen: Mapping[str, str], commit: str) -> str:
    """Markdown. kept: the content of answers.json; chosen: schedule names by "task budget family", as of ``commit``."""
    right: Mapping[str, str] = kept["right"]
    parts = [
        "# Reductions that lose less",
        f"`python benchmarks/serving/reductions.py --split test`: ViT-Tiny, {kept['backend']} in fp32, one thread, "
        f"{kept['cpu']}, torch {kept['torch']}. Heads: linear probes from 800 training images. Schedules: chosen "
        f"with `--split val` on 400 validation images per task at most, committed as {commit} before any test image "
        "was looked at. Times: batches of 8 that take turns, median of the ratios within a round; the machine was "
        "shared with other work. One network, one seed, nothing trained for a schedule.",
        "Each schedule costs at most as many multiply-accumulates as the constant one in its row. **merging**: the "
        "same number in every layer (ToMe). **layer-wise merging**: ToMe with numbers per layer, searched. **with "
        "larger patches**: the same search, and the number of patches is searched, too.",
        "**These tasks are small pictures** (28 to 64 pixels), enlarged to 224: larger patches lose little of them. "
        "Pictures with finer detail will lose more; `fedstill tasks profile --schedules` measures yours.",
        "## Accuracy",
        _accuracy_table(right),
        "## What is recovered of the loss",
        "Against merging at the same cost, constant (first) and layer-wise (second): points gained, the share of what "
        "merging loses against no reduction at all, and McNemar's exact p. Time: over that of the constant schedule.",
        _recovery_table(kept),
        _verdicts(kept),
        "## Which schedules",
        _chosen_table(chosen),
    ]
    return "\n\n".join(parts) + "\n"


def measured(right: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The (task, budget) of which every schedule was run."""
    rows = [(task, budget) for task in TASKS for budget in BUDGETS]
    return tuple(
        (task, budget)
        for task, budget in rows
        if all(f"{task} {key}" in right for key in ("0", *(f"{budget} {family}" for family in FAMILIES)))
    )


def _accuracy_table(right: Mapping[str, str]) -> str:
    lines = [f"| task (images) | cost of | none | {' | '.join(FAMILIES)} |", "|---|---|---|---|---|---|"]
    for task, budget in measured(right):
        cells = [f"{_percent(right[f'{task} {budget} {family}']):.1f}" for family in FAMILIES]
        plain = right[f"{task} 0"]
        lines.append(f"| {task} ({len(plain)}) | {budget} | {_percent(plain):.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _recovery_table(kept: Mapping[str, Any]) -> str:
    lines = [
        "| task | cost of | merging loses | recovered | p | layer-wise merging loses | recovered | p | time |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task, budget in measured(kept["right"]):
        cells = []
        for family in FAMILIES[:2]:
            loss, gain, p = _against(kept["right"], task, budget, family)
            share = f" ({100 * gain / loss:.0f} %)" if loss > 0 else ""
            cells += [f"{loss:.1f}", f"{gain:+.1f}{share}", f"{p:.2g}"]
        ratio = kept.get("ratios", {}).get(f"{task} {budget} {FAMILIES[2]}")
        said = "not measured" if ratio is None else f"{ratio:.2f}"
        lines.append(f"| {task} | {budget} | {' | '.join(cells)} | {said} |")
    return "\n".join(lines)


def _verdicts(kept: Mapping[str, Any]) -> str:
    """The aim, and each place where it is missed."""
    found = []
    for family in FAMILIES[:2]:
        missed = []
        for task, budget in measured(kept["right"]):
            loss, gain, p = _against(kept["right"], task, budget, family)
            ratio = kept.get("ratios", {}).get(f"{task} {budget} {FAMILIES[2]}", 1.0)
            if loss >= LOSS and (gain < SHARE * loss or p >= LEVEL):
                missed.append(f"{task} at {budget} ({100 * gain / loss:.0f} % recovered, p = {p:.2g})")
            if loss < LOSS and gain < 0:
                missed.append(f"{task} at {budget} ({gain:+.1f} points, p = {p:.2g})")
            if ratio > SLOWER:
                missed.append(f"{task} at {budget} (time {ratio:.2f})")
        total = len(measured(kept["right"]))
        said = f"missed: {'; '.join(missed)}" if missed else f"met in all {total} rows"
        found.append(f"- against {family}: {said}.")
    rows = [(task, budget) for task in TASKS for budget in BUDGETS]
    lacking = [" at ".join(row) for row in rows if row not in measured(kept["right"])]
    lacking += [] if "ratios" in kept else ["times"]
    found += [f"- not measured: {', '.join(lacking)}."] if lacking else []
    return (
        f"The aim: half of the loss recovered wherever merging loses {LOSS:g} points or more, with p < {LEVEL:g}, "
        f"elsewhere not below it, in the same time (at most {SLOWER:.2f}).\n\n" + "\n".join(found)
    )


def _chosen_table(chosen: Mapping[str, str]) -> str:
    lines = [f"| task | cost of | {' | '.join(FAMILIES[1:])} |", "|---|---|---|---|"]
    for task in TASKS:
        for budget in BUDGETS:
            names = [f"`{chosen[f'{task} {budget} {family}']}`" for family in FAMILIES[1:]]
            lines.append(f"| {task} | {budget} | {' | '.join(names)} |")
    return "\n".join(lines)


def _against(right: Mapping[str, str], task: str, budget: str, family: str) -> tuple[float, float, float]:
    """Points that the family loses against no reduction, points that larger patches gain over it, and p."""
    theirs, ours = (right[f"{task} {budget} {one}"] for one in (family, FAMILIES[2]))
    gained = sum(a < b for a, b in zip(theirs, ours, strict=True))
    lost = sum(a > b for a, b in zip(theirs, ours, strict=True))
    loss = _percent(right[f"{task} 0"]) - _percent(theirs)
    return loss, 100 * (gained - lost) / len(ours), mcnemar(gained, lost)


def _percent(digits: str) -> float:
    return 100 * digits.count("1") / len(digits)
