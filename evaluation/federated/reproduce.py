"""The tables and figures of thesis chapter 5 beside the results of a run (``fedstill reproduce TARGET``).

Both sides get the same intervals, and our arms are compared on the same clips. Every difference between the two sides
(another data set, clean mode, synthetic clips) is named under the table.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from fedstill.cloud_server.distillation.arm_names import ARMS, SCENARIOS, THESIS_ARMS
from fedstill.evaluation import thesis
from fedstill.evaluation.clusters import unit_of
from fedstill.evaluation.federated import plots
from fedstill.evaluation.paired_tests import p_label, paired_t
from fedstill.evaluation.plot_style import save
from fedstill.evaluation.results import SWEEPS, ClipRow, Results, ResultsError, SweepRow
from fedstill.evaluation.statistics import (
    SEEDS_FOR_TEST,
    Accuracy,
    arm_accuracy,
    compare,
    distinct_recordings,
    pooled_accuracy,
    signed,
    wilson,
)
from fedstill.evaluation.summary import BASELINE, data_name, narrow

NONE = "-"
SELECTING = THESIS_ARMS[1:]


def reproduce(
    target: str, results: Results, clips: Sequence[ClipRow] = (), figures: Path | None = None
) -> RenderableType:
    """A table or figure of the thesis beside ours, to print with rich.

    target: one of TARGETS. clips: per-clip correctness for the paired tests. figures: folder in which a
    figure target also saves its picture, as TARGET.png. Raises ResultsError for an unknown target and
    for a run that holds no data for it, saying which setting makes some.
    """
    known = TARGETS.get(target)
    if known is None:
        raise ResultsError(f"unknown target {target!r} (known: {', '.join(TARGETS)})")
    return known(results, clips, figures)


def _accuracy_table(number: str, dataset: str, results: Results, clips: Sequence[ClipRow]) -> RenderableType:
    """Tables 5.2 and 5.4: every scenario and client of the thesis."""
    if not any(row.arm in THESIS_ARMS for row in results.rows):
        raise _no_data(f"Table {number}", "run.arms", THESIS_ARMS)
    headings = ("arm", "thesis", "vs AllDistill", "ours", "vs AllDistill")
    grid = _grid(f"Table {number}: accuracy on {dataset}", *headings)
    reasons: list[str] = []
    for scenario, client in thesis.ACCURACY[dataset]:
        _section(grid, scenario, client)
        for arm in THESIS_ARMS:
            rows = [r for r in results.rows if (r.scenario, r.client, r.arm) == (scenario, client, arm)]
            printed = thesis.accuracy(dataset, scenario, client, arm)
            base = thesis.accuracy(dataset, scenario, client, BASELINE)
            ours = arm_accuracy(rows, clips) if rows else None
            change = (
                compare(clips, arm, BASELINE, scenario=scenario, client=client) if arm != BASELINE else None
            )
            reasons += [change.label] if change and change.label != change.short_label else []
            grid.add_row(
                ARMS[arm],
                _printed(printed),
                NONE if arm == BASELINE else _unpaired(printed, base),
                "not run" if ours is None else narrow(str(ours)),
                NONE if change is None else narrow(str(replace(change, label=change.short_label))),
            )
    notes = [
        "Thesis: one run, no per-clip results, so differences by Fisher's exact test, unpaired.",
        f"Ours: paired on the same clips, tested by {unit_of(clips)}; "
        f"{_seeds_note(results, f'the {unit_of(clips)}s alone decide')}.",
        *(f"Ours, {reason}." for reason in dict.fromkeys(reasons)),
    ]
    grid.caption = _caption(results, dataset, notes)
    return grid


def _compression_table(results: Results, clips: Sequence[ClipRow]) -> RenderableType:
    """Table 5.3: accuracy per compression ratio, ours also with int8 and in bytes per clip."""
    rows = _sweep_rows(results, "compression", "Table 5.3")
    dataset = "AVE" if _plain(results.dataset) == "ave" else "CREMA-D"
    headings = ("ratio", "thesis", "vs 1", "bytes", "ours", "vs 1 fp32")
    grid = _grid(f"Table 5.3: compression ratios on {dataset}", *headings)
    for scenario, client in _places(rows):
        _section(grid, scenario, client)
        mine = [row for row in rows if (row.scenario, row.client) == (scenario, client)]
        reference = [row for row in mine if (row.value, row.precision) == (1.0, "fp32")]
        for precision, rate in sorted({(row.precision, row.value) for row in mine}):
            some = [row for row in mine if (row.precision, row.value) == (precision, rate)]
            comparable = precision == "fp32" and scenario == "latency_sensitive"
            printed = thesis.compression(dataset, client, rate) if comparable else None
            base = thesis.compression(dataset, client, 1.0) if comparable else None
            sizes = sorted({row.bytes_per_clip for row in some if row.bytes_per_clip})
            grid.add_row(
                f"{rate:g} {precision}",
                _printed(printed),
                NONE if rate == 1.0 else _unpaired(printed, base),
                ", ".join(str(size) for size in sizes) or NONE,
                narrow(str(pooled_accuracy(some, distinct_recordings(clips, scenario)))),
                _over_seeds(some, reference),
            )
    notes = [
        "Thesis: Fisher's exact test, unpaired.",
        f"Ours: paired t-test over seeds; {_seeds_note(results, 'too few to test')}.",
    ]
    grid.caption = _caption(results, dataset, notes + [thesis.AVE_REPLICATE] * (dataset == "AVE"))
    return grid


def _sweep_figure(
    target: str, sweep: str, results: Results, clips: Sequence[ClipRow], figures: Path | None
) -> RenderableType:
    """Figs 5.12 and 5.13: accuracy at each value of a sweep, against its smallest value."""
    rows = _sweep_rows(results, sweep, f"Figure {target[3:]}")
    grid = _grid(f"Figure {target[3:]}: accuracy by {SWEEPS[sweep]}", SWEEPS[sweep], "ours", "vs smallest")
    for scenario, client in _places(rows):
        _section(grid, scenario, client)
        mine = [row for row in rows if (row.scenario, row.client) == (scenario, client)]
        values = sorted({row.value for row in mine})
        for value in values:
            some = [row for row in mine if row.value == value]
            accuracy = pooled_accuracy(some, distinct_recordings(clips, scenario))
            grid.add_row(
                f"{value:g}",
                narrow(str(accuracy)),
                _over_seeds(some, [r for r in mine if r.value == values[0]]),
            )
    notes = [f"Differences: paired t-test over seeds; {_seeds_note(results, 'too few to test')}."]
    return _figure(target, grid, results, notes, figures, lambda: plots.sweep(results, sweep, clips))


def _loss_figure(results: Results, figures: Path | None) -> RenderableType:
    """Figs 5.6 to 5.9: first and last loss of each arm."""
    curves: dict[tuple[str, int, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in results.losses:
        if row.loss is not None:
            curves[row.scenario, row.client, row.arm][row.epoch].append(row.loss)
    if not curves:
        raise _no_data("Figure 5.6", "run.arms", SELECTING)
    grid = _grid("Figures 5.6 to 5.9: loss per epoch", "arm", "first epoch", "last epoch")
    for scenario, client in sorted({key[:2] for key in curves}):
        _section(grid, scenario, client)
        for arm in ARMS:
            if (scenario, client, arm) in curves:
                epochs = curves[scenario, client, arm]
                first, last = np.mean(epochs[min(epochs)]), np.mean(epochs[max(epochs)])
                grid.add_row(ARMS[arm], f"{first:.4g} ({min(epochs)})", f"{last:.4g} ({max(epochs)})")
    notes = ["Losses are means over seeds, with the epoch in brackets."]
    return _figure("fig5.6", grid, results, notes, figures, lambda: plots.loss_per_epoch(results))


def _selection_figure(results: Results, figures: Path | None) -> RenderableType:
    """Figs 5.10 and 5.11: the share of the selected clips that are of the client's own classes."""
    if not results.selection:
        raise _no_data("Figure 5.10", "run.arms", SELECTING)
    own = {holder.client: set(holder.classes) for holder in results.clients}
    counts: dict[tuple[str, int, str], NDArray[np.int64]] = {}
    for row in results.selection:
        key = (row.scenario, row.client, row.arm)
        counts[key] = np.array(row.class_counts, dtype=np.int64) + counts.get(key, np.int64(0))
    grid = _grid("Figures 5.10 and 5.11: selected clips of the client's own classes", "arm", "own classes")
    for scenario, client in sorted({key[:2] for key in counts}):
        _section(grid, scenario, client)
        mask = np.array([name in own.get(client, set()) for name in results.class_names])
        for arm in ARMS:
            if (scenario, client, arm) in counts:
                selected = counts[scenario, client, arm]
                share = selected[mask].sum() / selected.sum() if selected.sum() else 0.0
                grid.add_row(ARMS[arm], f"{100 * share:.1f} %")
    return _figure("fig5.10", grid, results, [], figures, lambda: plots.selected_classes(results))


def _figure(
    target: str,
    grid: Table,
    results: Results,
    notes: Sequence[str],
    figures: Path | None,
    draw: Callable[[], Figure],
) -> RenderableType:
    """Our numbers, the thesis' words about its figure, and the path of the picture."""
    grid.caption = _caption(results, "CREMA-D", notes)
    words = f"Thesis, in words (its figure comes without numbers): {thesis.OBSERVATIONS[target]}"
    parts: list[RenderableType] = [grid, words]
    if figures is not None:
        parts.append(escape(f"Picture: {save(draw(), figures / f'{target}.png')}"))
    return Group(*parts)


def _grid(title: str, *headings: str) -> Table:
    grid = Table(title=title, title_style="bold", caption_justify="left", box=SIMPLE_HEAD)
    for place, heading in enumerate(headings):
        grid.add_column(heading, justify="right" if place else "left", overflow="fold")
    return grid


def _section(grid: Table, scenario: str, client: int) -> None:
    grid.add_section()
    grid.add_row(f"[bold]{SCENARIOS[scenario]}, client {client}[/bold]")


def _caption(results: Results, dataset: str, notes: Sequence[str]) -> str:
    """The differences between the two sides, then how the numbers were computed."""
    unlike = []
    if results.synthetic or _plain(results.dataset) != _plain(dataset):
        unlike.append(f"Ours: {data_name(results)}, not {dataset}.")
    if results.mode != "faithful":
        unlike.append(f"Ours: {results.mode} mode, not the thesis' own choices.")
    if len(results.clients) != 2:
        unlike.append(f"Ours: {len(results.clients)} clients, the thesis has 2.")
    legend = "Clients 0 and 1: the thesis' Clients 1 and 2. Brackets: 95 % intervals. Differences: points."
    return escape("\n".join([*unlike, *notes, legend]))


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _printed(cell: tuple[int, int] | None) -> str:
    """The thesis' percentage with the interval of its clip count."""
    if cell is None:
        return NONE
    correct, total = cell
    return narrow(str(Accuracy(correct / total, *wilson(correct, total), recordings=total, seeds=1)))


def _unpaired(cell: tuple[int, int] | None, base: tuple[int, int] | None) -> str:
    """Difference of two thesis cells in points, by Fisher's exact test."""
    if cell is None or base is None:
        return NONE
    (right, total), (base_right, base_total) = cell, base
    table = [[right, total - right], [base_right, base_total - base_right]]
    points = 100 * (right / total - base_right / base_total)
    from scipy import stats  # takes a second, and only this command counts so few runs

    return f"{signed(points)}, {p_label(float(stats.fisher_exact(table).pvalue))}"


def _over_seeds(rows: Sequence[SweepRow], reference: Sequence[SweepRow]) -> str:
    """Mean difference in points over the seeds that both hold, by a paired t-test over seeds."""
    base = {row.seed: row.correct / row.total for row in reference}
    gains = [100 * (row.correct / row.total - base[row.seed]) for row in rows if row.seed in base]
    if not gains or list(rows) == list(reference):
        return NONE
    p = paired_t(gains)
    label = "n.s." if p is None or len(gains) < SEEDS_FOR_TEST else p_label(p)
    return f"{signed(float(np.mean(gains)))}, {label}"


def _seeds_note(results: Results, when_few: str) -> str:
    seeds = len(results.seeds)
    return f"{seeds} seeds" if seeds >= SEEDS_FOR_TEST else f"seeds: {seeds}, {when_few}"


def _sweep_rows(results: Results, sweep: str, name: str) -> list[SweepRow]:
    rows = [row for row in results.sweeps if row.sweep == sweep]
    if not rows:
        raise _no_data(name, "run.sweeps", [sweep])
    return rows


def _places(rows: Sequence[SweepRow]) -> list[tuple[str, int]]:
    return sorted({(row.scenario, row.client) for row in rows})


def _no_data(name: str, setting: str, values: Sequence[str]) -> ResultsError:
    wanted = f"{setting}={json.dumps(list(values))}"
    return ResultsError(f"this run holds no data for {name}: run the experiment with --set '{wanted}'")


TARGETS: Mapping[str, Callable[[Results, Sequence[ClipRow], Path | None], RenderableType]] = {
    "table5.2": lambda results, clips, _: _accuracy_table("5.2", "CREMA-D", results, clips),
    "table5.3": lambda results, clips, _: _compression_table(results, clips),
    "table5.4": lambda results, clips, _: _accuracy_table("5.4", "AVE", results, clips),
    "fig5.6": lambda results, _, figures: _loss_figure(results, figures),
    "fig5.10": lambda results, _, figures: _selection_figure(results, figures),
    "fig5.12": lambda results, clips, figures: _sweep_figure(
        "fig5.12", "cluster_samples", results, clips, figures
    ),
    "fig5.13": lambda results, clips, figures: _sweep_figure(
        "fig5.13", "uploaded_samples", results, clips, figures
    ),
}
