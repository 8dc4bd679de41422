"""One style for all figures: colours, panels, legends.

Drawn through matplotlib's object interface, so nothing global changes and reports can be drawn in parallel.
Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedstill.cloud_server.distillation.arm_names import ARMS, SCENARIOS
from fedstill.evaluation.results import Results
from fedstill.evaluation.summary import data_name

OKABE_ITO = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#7F7F7F",
    "#B8A800",
    "#7B3294",
    "#8C564B",
    "#17BECF",
    "#BCBD22",
    "#000000",
)
ARM_COLOURS = dict(zip(ARMS, OKABE_ITO, strict=True))
INK, GRID = "#333333", "#E4E4E4"
PANELS = 4  # clients drawn one by one; more are drawn together or left to the tables
DPI = 130


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG (makes the folder)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    return path


def new_figure(results: Results, title: str, width: float, height: float) -> Figure:
    """An empty white figure, sizes in inches, that says which data it shows."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.set_facecolor("white")
    figure.suptitle(f"{title} ({data_name(results)})", fontsize=11, color=INK)
    return figure


def client_grid(
    results: Results, title: str, cells: set[tuple[str, int]]
) -> tuple[Figure, dict[tuple[str, int], Axes]]:
    """A panel per scenario (row) and client (column); of many clients only the first are drawn."""
    scenarios = [name for name in SCENARIOS if any(scenario == name for scenario, _ in cells)]
    clients = sorted({client for _, client in cells})
    if len(clients) > PANELS:
        title = f"{title}, first {PANELS} of {len(clients)} clients"
        clients = clients[:PANELS]
    figure = new_figure(results, title, max(6.0, 3.9 * len(clients)), 1.2 + 2.7 * len(scenarios))
    drawn = figure.subplots(len(scenarios), len(clients), sharey="row", squeeze=False)
    panels = {}
    for row, scenario in enumerate(scenarios):
        for column, client in enumerate(clients):
            axes = drawn[row, column]
            calm(axes, f"client {client}, {SCENARIOS[scenario]}", grid="y")
            panels[scenario, client] = axes
    return figure, panels


def label_left(axes: Axes, text: str) -> None:
    """Panels of a row share their y axis, so only the leftmost is labelled."""
    place = axes.get_subplotspec()
    if place is not None and place.is_first_col():
        axes.set_ylabel(text)


def percent_axis(axis: Axis) -> None:
    """Show fractions as percentages, at round ones."""
    axis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %")


def calm(axes: Axes, title: str, grid: str) -> None:
    """Title, light grid ("x", "y" or "both"), readable sizes."""
    axes.set_title(title, fontsize=9.5, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=GRID, lw=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=INK)
    axes.xaxis.label.set(fontsize=8.5, color=INK)
    axes.yaxis.label.set(fontsize=8.5, color=INK)


def shared_legend(figure: Figure, *panels: Axes) -> None:
    """One legend under all panels."""
    named = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        named.update(dict(zip(labels, handles, strict=True)))
    if len(named) > 1:
        figure.legend(
            list(named.values()), list(named), loc="outside lower center", ncols=4, frameon=False, fontsize=8
        )
