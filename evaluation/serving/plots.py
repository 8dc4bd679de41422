"""The figures of a load test, one function each, after Figures 3.9-3.18 of the thesis.

Each takes the results of a load test and one load factor, and draws a panel per trace. Curves over time show the first
seed; everything else is pooled or averaged over seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedstill.cloud_server.serving.policies.registry import LABELS
from fedstill.evaluation.plot_style import INK, OKABE_ITO, calm, percent_axis, save, shared_legend
from fedstill.evaluation.serving.results import RunRow, SeriesRow, ServingResults
from fedstill.evaluation.serving.summary import Mean

COLOURS = {
    "pets": OKABE_ITO[1],
    "infaas": OKABE_ITO[3],
    "tome5": "#B7E0C5",
    "tome10": "#7CC49A",
    "tome15": OKABE_ITO[2],
    "tome20": "#00563F",
    "int8": "#F3C77C",
    "tome15q": "#5FAFA0",
    "tome20q": "#2B6F77",
    "vpt2": "#E5B5D3",
    "vpt4": OKABE_ITO[5],
    "vpt8": "#8C3F6B",
    "clipper": OKABE_ITO[6],
    "slackfit": OKABE_ITO[7],
    "faithful": OKABE_ITO[4],
    "vanilla": "#A9D8F0",
    "maxprune": "#B08060",
    "prodigy": OKABE_ITO[8],
    "fedstill": OKABE_ITO[0],
}
ADAPTIVE = ("faithful", "fedstill")
SYSTEMS = ("pets", "infaas", "clipper", "slackfit", "faithful", "fedstill")
TYPES = (
    ("right in time", OKABE_ITO[2]),
    ("wrong in time", OKABE_ITO[1]),
    ("late", OKABE_ITO[3]),
    ("not served", "#BBBBBB"),
)


def load_over_time(results: ServingResults, load: float) -> Figure:
    """Fig. 3.9: queries per second."""
    figure, panels = _panels(results, load, "Queries per second, first seconds of the first seed")
    for trace, axes in panels.items():
        series = [row for row in results.series if (row.trace, row.load) == (trace, load)]
        axes.plot(series[0].incoming, color=INK, lw=1)
        axes.set_xlabel("second")
        axes.set_ylabel("queries")
    return figure


def cumulative_utility(results: ServingResults, load: float) -> Figure:
    """Fig. 3.10: utility earned so far, mean over seeds, of whole systems."""
    figure, panels = _panels(results, load, "Utility earned so far")
    for trace, axes in panels.items():
        for policy, rows in _of(results, trace, load, SYSTEMS):
            earned = np.mean([np.cumsum(row.earned_per_window) for row in rows], axis=0)
            minutes = rows[0].window_seconds * np.arange(1, len(earned) + 1) / 60
            axes.plot(minutes, earned, color=COLOURS[policy], lw=1.8, label=LABELS[policy])
        axes.set_xlabel("minute")
        axes.set_ylabel("utility")
    shared_legend(figure, *panels.values())
    return figure


def utility_by_policy(results: ServingResults, load: float) -> Figure:
    """Fig. 3.11: share of the offered utility with its interval over seeds; lines are the upper references."""
    figure, panels = _panels(
        results, load, "Utility earned of offered", height=1.4 + 0.3 * len(results.policies())
    )
    for trace, axes in panels.items():
        policies = results.policies()
        for place, (policy, rows) in enumerate(_of(results, trace, load, policies)):
            mean = Mean.of([row.share for row in rows])
            axes.barh(place, mean.value, color=COLOURS[policy], height=0.7)
            axes.plot([mean.low, mean.high], [place, place], color=INK, lw=1.4)
            axes.text(1.02, place, f"{100 * mean.value:.1f}", va="center", fontsize=7.5, color=INK)
        references = results.reference(trace, load)
        for values, style, name in (
            ([r.window / r.utility_offered for r in references], ":", "fluid, one-second windows"),
            ([r.bound / r.utility_offered for r in references], "--", "strict upper bound"),
        ):
            if values:
                axes.axvline(float(np.mean(values)), color=INK, ls=style, lw=1.1, label=name)
        axes.set_yticks(range(len(policies)), [LABELS[policy] for policy in policies])
        axes.set_ylim(len(policies) - 0.4, -0.6)
        axes.set_xlim(0, 1.1)
        percent_axis(axes.xaxis)
    shared_legend(figure, *panels.values())
    return figure


def batch_accuracy(results: ServingResults, load: float) -> Figure:
    """Fig. 3.12: the accuracy of batches."""

    def curve(row: RunRow) -> tuple[Sequence[float], Sequence[int]]:
        steps = len(row.batch_accuracy)
        return [(place + 1) / steps for place in range(steps)], row.batch_accuracy

    return _distribution(results, load, "Accuracy of batches", "share of right answers in a batch", curve)


def batch_size(results: ServingResults, load: float) -> Figure:
    """Fig. 3.13: the size of batches."""

    def curve(row: RunRow) -> tuple[Sequence[float], Sequence[int]]:
        return range(1, len(row.batch_sizes) + 1), row.batch_sizes

    return _distribution(results, load, "Batch sizes", "queries in a batch", curve)


def schedule_choice(results: ServingResults, load: float) -> Figure:
    """Fig. 3.14: which schedule served how many of the served queries."""
    figure, panels = _panels(results, load, "Token delta of the served queries")
    for trace, axes in panels.items():
        chosen = _of(results, trace, load, ADAPTIVE)
        names = [
            n for n in results.schedules if any(row.schedules.get(n) for _, rows in chosen for row in rows)
        ]
        for place, (policy, rows) in enumerate(chosen):
            shares = [
                np.mean([row.schedules.get(name, 0) / max(1, sum(row.schedules.values())) for row in rows])
                for name in names
            ]
            at = np.arange(len(names)) + 0.4 * (place - (len(chosen) - 1) / 2)
            axes.bar(at, shares, width=0.38, color=COLOURS[policy], label=LABELS[policy])
        axes.set_xticks(range(len(names)), names)
        axes.set_xlabel("tokens added or removed per layer")
        percent_axis(axes.yaxis)
    shared_legend(figure, *panels.values())
    return figure


def query_types(results: ServingResults, load: float) -> Figure:
    """Fig. 3.15: the outcomes of queries."""
    figure, panels = _panels(
        results, load, "What became of the queries", height=1.4 + 0.3 * len(results.policies())
    )
    for trace, axes in panels.items():
        policies = results.policies()
        for place, (_, rows) in enumerate(_of(results, trace, load, policies)):
            left = 0.0
            counts = [[row.type1, row.type2, row.type3, row.type4] for row in rows]
            shares = np.mean([np.array(c) / sum(c) for c in counts], axis=0)
            for share, (name, colour) in zip(shares.tolist(), TYPES, strict=True):
                axes.barh(
                    place, share, left=left, color=colour, height=0.7, label=name if place == 0 else None
                )
                left += share
        axes.set_yticks(range(len(policies)), [LABELS[policy] for policy in policies])
        axes.set_ylim(len(policies) - 0.4, -0.6)
        percent_axis(axes.xaxis)
    shared_legend(figure, *panels.values())
    return figure


def choice_over_time(results: ServingResults, load: float) -> Figure:
    """Fig. 3.16: mean token delta per second above the queries per second."""
    figure, panels = _panels(results, load, "Token delta over time (lines), queries per second (grey)")
    for trace, axes in panels.items():
        behind = axes.twinx()
        for series in _series(results, trace, load, ADAPTIVE):
            values = [np.nan if value is None else value for value in series.token_delta]
            axes.plot(values, color=COLOURS[series.policy], lw=1.2, label=LABELS[series.policy])
            behind.fill_between(range(len(series.incoming)), series.incoming, color="#DDDDDD", lw=0)
        behind.tick_params(labelsize=8, colors="#999999")
        behind.spines[["top", "left"]].set_visible(False)
        axes.set_zorder(behind.get_zorder() + 1)
        axes.patch.set_visible(False)
        axes.set_xlabel("second")
        axes.set_ylabel("mean token delta")
    shared_legend(figure, *panels.values())
    return figure


def served_over_time(results: ServingResults, load: float) -> Figure:
    """Fig. 3.17: queries that arrived and queries served in time, per second."""
    figure, panels = _panels(results, load, "Queries coming (grey) and served in time, per second")
    for trace, axes in panels.items():
        for series in _series(results, trace, load, ADAPTIVE):
            if series.policy == ADAPTIVE[0]:
                axes.fill_between(range(len(series.incoming)), series.incoming, color="#DDDDDD", lw=0)
            axes.plot(series.served, color=COLOURS[series.policy], lw=1.2, label=LABELS[series.policy])
        axes.set_xlabel("second")
        axes.set_ylabel("queries")
    shared_legend(figure, *panels.values())
    return figure


def waiting_and_inference(results: ServingResults, load: float) -> Figure:
    """Fig. 3.18: percentiles of waiting (served queries) and inference (batches)."""
    figure, panels = _panels(results, load, "Waiting (full) and inference (dashed)")
    for trace, axes in panels.items():
        for policy, rows in _of(results, trace, load, ADAPTIVE):
            for style, field in (("-", "waiting_ms"), ("--", "inference_ms")):
                percentiles = [getattr(row, field) for row in rows]
                names = list(percentiles[0])
                values = [float(np.mean([one[name] for one in percentiles])) for name in names]
                label = LABELS[policy] if style == "-" else None
                axes.plot(
                    values, [int(name[1:]) / 100 for name in names], style, color=COLOURS[policy], label=label
                )
        axes.set_xlabel("milliseconds")
        percent_axis(axes.yaxis)
    shared_legend(figure, *panels.values())
    return figure


def utility_over_load(results: ServingResults) -> Figure:
    """Share of the offered utility against the load factor."""
    traces = list(dict.fromkeys(trace for trace, _ in results.places()))
    figure, panels = _grid(traces, "Utility earned of offered, by load", 3.2)
    for trace, axes in panels.items():
        loads = sorted({load for name, load in results.places() if name == trace})
        for policy in results.policies():
            shares = [np.mean([row.share for row in results.rows(policy, trace, load)]) for load in loads]
            axes.plot(loads, shares, "o-", color=COLOURS[policy], ms=3.5, lw=1.6, label=LABELS[policy])
        if results.references:
            bounds = [
                np.mean([r.bound / r.utility_offered for r in results.reference(trace, load)])
                for load in loads
            ]
            axes.plot(loads, bounds, "--", color=INK, lw=1.1, label="strict upper bound")
        axes.set_xlabel("load (1: the standard rate)")
        percent_axis(axes.yaxis)
    shared_legend(figure, *panels.values())
    return figure


FIGURES: Mapping[str, Callable[[ServingResults, float], Figure]] = {
    "fig3.9": load_over_time,
    "fig3.10": cumulative_utility,
    "fig3.11": utility_by_policy,
    "fig3.12": batch_accuracy,
    "fig3.13": batch_size,
    "fig3.14": schedule_choice,
    "fig3.15": query_types,
    "fig3.16": choice_over_time,
    "fig3.17": served_over_time,
    "fig3.18": waiting_and_inference,
}


def save_figures(results: ServingResults, folder: Path) -> tuple[Path, ...]:
    """Draw everything as PNG files in `folder`, at the load nearest to 1; returns their paths."""
    load = standard_load(results)
    paths = [save(draw(results, load), folder / f"{name}.png") for name, draw in FIGURES.items()]
    if len({factor for _, factor in results.places()}) > 1:
        paths.append(save(utility_over_load(results), folder / "utility_over_load.png"))
    return tuple(paths)


def standard_load(results: ServingResults) -> float:
    """The load factor that the figures show: the one nearest to 1."""
    return min({load for _, load in results.places()}, key=lambda load: abs(load - 1))


def _distribution(
    results: ServingResults,
    load: float,
    title: str,
    label: str,
    curve: Callable[[RunRow], tuple[Sequence[float], Sequence[int]]],
) -> Figure:
    """Cumulative share of batches, pooled over seeds."""
    figure, panels = _panels(results, load, title)
    for trace, axes in panels.items():
        for policy, rows in _of(results, trace, load, SYSTEMS):
            longest = max((curve(row) for row in rows), key=lambda xy: len(xy[0]))[0]
            counts = np.zeros(len(longest))
            for row in rows:
                values = curve(row)[1]
                counts[: len(values)] += values
            share = np.cumsum(counts) / max(1.0, counts.sum())
            axes.step(longest, share, where="post", color=COLOURS[policy], lw=1.5, label=LABELS[policy])
        axes.set_xlabel(label)
        percent_axis(axes.yaxis)
    shared_legend(figure, *panels.values())
    return figure


def _of(
    results: ServingResults, trace: str, load: float, wanted: Sequence[str]
) -> list[tuple[str, list[RunRow]]]:
    present = results.policies()
    return [(policy, results.rows(policy, trace, load)) for policy in wanted if policy in present]


def _series(results: ServingResults, trace: str, load: float, wanted: Sequence[str]) -> list[SeriesRow]:
    return [row for row in results.series if (row.trace, row.load) == (trace, load) and row.policy in wanted]


def _panels(
    results: ServingResults, load: float, title: str, height: float = 3.2
) -> tuple[Figure, dict[str, Axes]]:
    return _grid([trace for trace, factor in results.places() if factor == load], title, height)


def _grid(traces: Sequence[str], title: str, height: float) -> tuple[Figure, dict[str, Axes]]:
    figure = Figure(figsize=(max(6.0, 4.6 * len(traces)), height + 0.4), layout="constrained")
    figure.set_facecolor("white")
    figure.suptitle(title, fontsize=11, color=INK)
    drawn = figure.subplots(1, len(traces), squeeze=False)[0]
    panels = dict(zip(traces, drawn, strict=True))
    for trace, axes in panels.items():
        calm(axes, trace, grid="both")
    return figure, panels
