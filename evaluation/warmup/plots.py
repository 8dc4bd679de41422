"""Figures of ``fedstill warmup-study``: accuracy over reductions (Figure 4.7) and latency (Figure 4.10)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedstill.cloud_server.serving.policies.registry import LABELS
from fedstill.evaluation.plot_style import INK, OKABE_ITO, calm, percent_axis, save, shared_legend
from fedstill.evaluation.serving.plots import COLOURS
from fedstill.evaluation.warmup.results import SYSTEMS, WarmupStudy

PANEL = 3.6
"""Inches, each way."""
COLUMNS = 3


def accuracy_over_reductions(study: WarmupStudy) -> Figure:
    """Figure 4.7: mean over seeds on the test images, one panel per task."""
    grid = study.settings.grid
    figure, panels = _panels(study.tasks, "Accuracy by tokens merged per layer")
    for task, axes in zip(study.tasks, panels, strict=True):
        runs = study.of_task(task)
        for colour, (name, label) in zip(OKABE_ITO, SYSTEMS.items(), strict=False):
            values = [fmean(run.system(name).accuracy(r) for run in runs) for r in grid]
            axes.plot(range(len(grid)), values, color=colour, lw=1.5, label=label)
        axes.set_xticks(range(len(grid)), [str(r) for r in grid], fontsize=7)
        axes.set_xlabel("merged per layer at inference")
        percent_axis(axes.yaxis)
    shared_legend(figure, *panels)
    return figure


def latency(study: WarmupStudy) -> Figure:
    """Figure 4.10: share of all queries answered within a part of the objective."""
    places = list(dict.fromkeys((run.task, row.trace) for run in study.runs for row in run.served))
    figure, panels = _panels([f"{task}, {trace}" for task, trace in places], "Answered within")
    for (task, trace), axes in zip(places, panels, strict=True):
        rows = [row for run in study.of_task(task) for row in run.served if row.trace == trace]
        for policy in dict.fromkeys(row.policy for row in rows):
            mine = [row.within for row in rows if row.policy == policy]
            curve = [fmean(step) for step in zip(*mine, strict=True)]
            parts = [step / 10 for step in range(len(curve) + 1)]
            axes.plot(parts, [0.0, *curve], color=COLOURS[policy], lw=1.5, label=LABELS[policy])
        axes.axvline(1.0, color=INK, lw=0.8, ls=":")
        axes.set_xlim(0, 1.2)
        axes.set_xlabel("of the objective")
        percent_axis(axes.yaxis)
    shared_legend(figure, *panels)
    return figure


WARMUP_FIGURES: Mapping[str, Callable[[WarmupStudy], Figure]] = {
    "fig4.7": accuracy_over_reductions,
    "fig4.10": latency,
}


def save_warmup_figures(study: WarmupStudy, folder: Path) -> tuple[Path, ...]:
    """All of them as FOLDER/TARGET.png."""
    return tuple(save(draw(study), folder / f"{target}.png") for target, draw in WARMUP_FIGURES.items())


def _panels(titles: Sequence[str], title: str) -> tuple[Figure, tuple[Axes, ...]]:
    columns = min(COLUMNS, len(titles))
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(PANEL * columns, PANEL * rows), layout="constrained")
    figure.set_facecolor("white")
    figure.suptitle(title, fontsize=11, color=INK)
    panels = tuple(figure.add_subplot(rows, columns, place + 1) for place in range(len(titles)))
    for axes, name in zip(panels, titles, strict=True):
        calm(axes, name, "y")
    return figure, panels
