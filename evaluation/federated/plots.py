"""The figures of a run, one function each, after Figs 5.6-5.13 and Table 5.3 of the thesis.

Each takes the records of a run and returns a figure; ``save_all`` draws every figure that the run has data for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedstill.cloud_server.distillation.arm_names import ARMS, SCENARIOS, THESIS_ARMS
from fedstill.evaluation.plot_style import (
    ARM_COLOURS,
    INK,
    OKABE_ITO,
    PANELS,
    calm,
    client_grid,
    label_left,
    new_figure,
    percent_axis,
    save,
    shared_legend,
)
from fedstill.evaluation.results import SWEEPS, ClipRow, Results, SweepRow
from fedstill.evaluation.statistics import Accuracy, distinct_recordings, pooled_accuracy
from fedstill.evaluation.summary import OURS, scenario_tables, traffic_totals

BARS = 4  # arms side by side in one group of bars, two if there are many classes
MANY_CLASSES = 10


def accuracy_by_arm(results: Results, clips: Sequence[ClipRow] = ()) -> Figure:
    """Accuracy with Wilson intervals, arms from top to bottom, clients in colour, one panel per scenario."""
    tables = scenario_tables(results, clips)
    arms = results.arms()
    figure = new_figure(results, "Accuracy by arm", 4.2 * len(tables) + 1.8, 1.6 + 0.48 * len(arms))
    panels = figure.subplots(1, len(tables), sharex=True, sharey=True, squeeze=False)[0]
    for axes, table in zip(panels, tables, strict=True):
        several = len(table.clients) > PANELS
        groups = ["all clients"] if several else [f"client {client}" for client in table.clients]
        for place, name in enumerate(groups):
            shift = 0.36 * (place - (len(groups) - 1) / 2) / max(1, len(groups) - 1)
            points = [
                (arms.index(line.arm) + shift, line.pooled if several else line.clients[place])
                for line in table.lines
            ]
            _intervals(axes, points, OKABE_ITO[place], name)
        if several:
            spread = [
                (arms.index(line.arm), some.fraction) for line in table.lines for some in line.clients if some
            ]
            heights, shares = zip(*spread, strict=True)
            axes.plot(
                shares, heights, "o", color=INK, alpha=0.25, markersize=3, label="each client", zorder=1
            )
        axes.set_yticks(range(len(arms)), [ARMS[arm] for arm in arms])
        axes.set_ylim(len(arms) - 0.5, -0.5)
        calm(axes, SCENARIOS[table.scenario], grid="x")
        percent_axis(axes.xaxis)
        axes.set_xlabel("clips answered correctly")
    shared_legend(figure, panels[0])
    return figure


def _intervals(axes: Axes, points: Sequence[tuple[float, Accuracy | None]], colour: str, name: str) -> None:
    known = [(height, accuracy) for height, accuracy in points if accuracy is not None]
    if not known:
        return
    heights = [height for height, _ in known]
    shares = [accuracy.fraction for _, accuracy in known]
    reach = [
        [accuracy.fraction - accuracy.low for _, accuracy in known],
        [accuracy.high - accuracy.fraction for _, accuracy in known],
    ]
    axes.errorbar(shares, heights, xerr=reach, fmt="o", color=colour, markersize=5, lw=1.6, label=name)


def loss_per_epoch(results: Results) -> Figure:
    """Mean loss over seeds with its range (Figs 5.6-5.9); a row per scenario, a column per client."""
    series: dict[tuple[str, int, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in results.losses:
        if row.loss is not None:
            series[row.scenario, row.client, row.arm][row.epoch].append(row.loss)
    figure, panels = client_grid(results, "Loss per epoch", {key[:2] for key in series})
    for (scenario, client, arm), epochs in sorted(
        series.items(), key=lambda item: tuple(ARMS).index(item[0][2])
    ):
        if (scenario, client) not in panels:
            continue
        axes, at = panels[scenario, client], sorted(epochs)
        means = [float(np.mean(epochs[epoch])) for epoch in at]
        low, high = [min(epochs[epoch]) for epoch in at], [max(epochs[epoch]) for epoch in at]
        style = "-" if arm in THESIS_ARMS or arm == OURS else "--"
        axes.plot(at, means, style, color=ARM_COLOURS[arm], lw=1.5, label=ARMS[arm])
        axes.fill_between(at, low, high, color=ARM_COLOURS[arm], alpha=0.15, lw=0)
        axes.set_xlabel("epoch")
        label_left(axes, "loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    shared_legend(figure, *panels.values())
    return figure


def selected_classes(results: Results) -> Figure:
    """Selected public clips per class, mean over outer rounds and seeds (Figs 5.10-5.11); own classes shaded."""
    counts: dict[tuple[str, int, str], list[tuple[int, ...]]] = defaultdict(list)
    for row in results.selection:
        counts[row.scenario, row.client, row.arm].append(row.class_counts)
    present = [arm for arm in ARMS if any(arm == one for _, _, one in counts)]
    telling = [arm for arm in present if arm in (*THESIS_ARMS, OURS)] or present
    arms = telling[-(BARS if len(results.class_names) <= MANY_CLASSES else 2) :]
    figure, panels = client_grid(
        results, "Selected public clips per class, own classes shaded", {(s, c) for s, c, _ in counts}
    )
    own = {holder.client: holder.classes for holder in results.clients}
    names = results.class_names
    for (scenario, client), axes in panels.items():
        for place, name in enumerate(names):
            if name in own.get(client, {}):
                axes.axvspan(place - 0.5, place + 0.5, color="#F3EBD3", lw=0, zorder=0)
        for index, arm in enumerate(arms):
            if (scenario, client, arm) in counts:
                means = np.mean(counts[scenario, client, arm], axis=0)
                width = 0.8 / len(arms)
                at = np.arange(len(names)) + (index - (len(arms) - 1) / 2) * width
                axes.bar(at, means, width * 0.9, color=ARM_COLOURS[arm], label=ARMS[arm], zorder=2)
        crowded = len(names) > MANY_CLASSES
        axes.set_xticks(range(len(names)), names, rotation=60 if crowded else 25, ha="right")
        axes.tick_params(axis="x", labelsize=6.5 if crowded else 8)
        label_left(axes, "clips per round")
    shared_legend(figure, *panels.values())
    return figure


def sweep(results: Results, name: str, clips: Sequence[ClipRow] = ()) -> Figure:
    """Accuracy against a swept quantity, "cluster_samples" (Fig 5.12) or "uploaded_samples" (Fig 5.13)."""
    return _swept(results, name, clips, SWEEPS[name], lambda row: row.value)


def compression_ladder(results: Results, clips: Sequence[ClipRow] = ()) -> Figure:
    """Accuracy against bytes per clip on the wire (Table 5.3), each point with its compression ratio."""
    figure = _swept(
        results, "compression", clips, "bytes per clip (log scale)", lambda row: row.bytes_per_clip
    )
    ratios = {row.bytes_per_clip: row.value for row in results.sweeps if row.bytes_per_clip}
    for axes in figure.axes:
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(ratios), [f"{size}\n×{ratios[size]:g}" for size in sorted(ratios)], fontsize=7)
        axes.minorticks_off()
    return figure


def _swept(
    results: Results,
    name: str,
    clips: Sequence[ClipRow],
    label: str,
    position: Callable[[SweepRow], float | None],
) -> Figure:
    lines: dict[tuple[str, int, str], dict[float, list[SweepRow]]] = defaultdict(lambda: defaultdict(list))
    for row in results.sweeps:
        at = position(row)
        if row.sweep == name and at is not None:
            lines[row.scenario, row.client, row.precision][at].append(row)
    figure, panels = client_grid(results, f"Accuracy and {SWEEPS[name]}", {(s, c) for s, c, _ in lines})
    for (scenario, client, precision), points in lines.items():
        if (scenario, client) not in panels:
            continue
        axes, places = panels[scenario, client], sorted(points)
        found = [pooled_accuracy(points[at], distinct_recordings(clips, scenario)) for at in places]
        reach = [[one.fraction - one.low for one in found], [one.high - one.fraction for one in found]]
        shares = [one.fraction for one in found]
        colour, mark = (OKABE_ITO[0], "o-") if precision == "fp32" else (OKABE_ITO[3], "s--")
        axes.errorbar(
            places, shares, yerr=reach, fmt=mark, color=colour, markersize=5, lw=1.4, label=precision
        )
        axes.set_xlabel(label)
        label_left(axes, "clips answered correctly")
        axes.set_xticks(places, [f"{place:g}" for place in places])
        percent_axis(axes.yaxis)
    shared_legend(figure, *panels.values())
    return figure


def traffic(results: Results) -> Figure:
    """MB that one client uploads and downloads in a run, per arm, on a log scale."""
    totals = traffic_totals(results)
    scenarios = [name for name in SCENARIOS if any(one.scenario == name for one in totals)]
    arms = [arm for arm in ARMS if any(one.arm == arm for one in totals)]
    title = "Traffic of one client in a whole run"
    figure = new_figure(results, title, 4.2 * len(scenarios) + 1.8, 1.6 + 0.36 * len(arms))
    panels = figure.subplots(1, len(scenarios), sharey=True, sharex=True, squeeze=False)[0]
    for axes, scenario in zip(panels, scenarios, strict=True):
        mine = [one for one in totals if one.scenario == scenario]
        heights = [arms.index(one.arm) for one in mine]
        for name, colour, mark, sizes in (
            ("upload", OKABE_ITO[0], "^", [one.up_mb for one in mine]),
            ("download", OKABE_ITO[3], "v", [one.down_mb for one in mine]),
        ):
            moved = [(size, height) for size, height in zip(sizes, heights, strict=True) if size > 0]
            axes.plot(
                [s for s, _ in moved], [h for _, h in moved], mark, color=colour, markersize=7, label=name
            )
        axes.set_xscale("log")
        axes.set_yticks(range(len(arms)), [ARMS[arm] for arm in arms])
        axes.set_ylim(len(arms) - 0.5, -0.5)
        calm(axes, SCENARIOS[scenario], grid="both")
        axes.set_xlabel("MB (log scale; nothing moved: no mark)")
    shared_legend(figure, panels[0])
    return figure


def save_all(results: Results, folder: Path, clips: Sequence[ClipRow] = ()) -> tuple[Path, ...]:
    """Draw every figure that the run has data for as PNG files in `folder` (made if needed); returns their paths."""
    swept = {row.sweep for row in results.sweeps}
    figures: list[tuple[str, bool, Callable[[], Figure]]] = [
        ("accuracy_by_arm", bool(results.rows), lambda: accuracy_by_arm(results, clips)),
        (
            "loss_per_epoch",
            any(row.loss is not None for row in results.losses),
            lambda: loss_per_epoch(results),
        ),
        ("selected_classes", bool(results.selection), lambda: selected_classes(results)),
        ("cluster_samples", "cluster_samples" in swept, lambda: sweep(results, "cluster_samples", clips)),
        ("uploaded_samples", "uploaded_samples" in swept, lambda: sweep(results, "uploaded_samples", clips)),
        (
            "compression_ladder",
            any(row.bytes_per_clip for row in results.sweeps if row.sweep == "compression"),
            lambda: compression_ladder(results, clips),
        ),
        ("traffic", bool(results.traffic), lambda: traffic(results)),
    ]
    return tuple(save(draw(), folder / f"{name}.png") for name, has_data, draw in figures if has_data)
