"""The pictures of the robustness study: accuracy over severity, and estimated against true accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedstill.cloud_server.distillation.arm_names import ARMS, REFERENCES
from fedstill.cloud_server.federation.seed_state import GENERIC
from fedstill.evaluation.plot_style import INK, OKABE_ITO, calm, percent_axis, save, shared_legend
from fedstill.evaluation.robustness.estimates import MANY_CLIPS, estimated
from fedstill.evaluation.robustness.pooling import Entry, accuracy, entries_of
from fedstill.evaluation.robustness.questions import FULL
from fedstill.evaluation.robustness.records import DataSet, Study
from fedstill.evaluation.robustness.tables import SCENARIO_TITLES, TITLES, arms_of, severity_cells

COLUMNS = 3
WIDTH, HEIGHT = 3.9, 3.1
"""Of a panel, in inches."""
MAIN_ARMS = (GENERIC, FULL)
OTHERS = tuple(arm for arm in (*ARMS, *REFERENCES) if arm not in MAIN_ARMS)
COLOURS = {GENERIC: INK, FULL: OKABE_ITO[0]} | {
    arm: OKABE_ITO[1 + place % (len(OKABE_ITO) - 2)] for place, arm in enumerate(OTHERS)
}
MARKERS = {arm: "osv^D"[place // (len(OKABE_ITO) - 2)] for place, arm in enumerate(OTHERS)}
SPREAD = 0.35
"""How far apart the arms of one severity are drawn."""


def save_figures(study: Study, folder: Path) -> list[Path]:
    """All pictures that the study has data for."""
    saved = []
    for data in study.sets:
        by_condition = {
            condition: severities
            for (experiment, condition), severities in severity_cells(study).items()
            if experiment == data.experiment
        }
        if by_condition:
            figure = accuracy_over_severity(data, by_condition, _as_public(study, data))
            saved.append(save(figure, folder / f"severity_{data.experiment}.png"))
    if estimated(study):
        saved.append(save(estimated_and_true(study), folder / "estimated_accuracy.png"))
    return saved


def accuracy_over_severity(
    data: DataSet, by_condition: Mapping[str, Mapping[int, Sequence[Entry]]], as_public: Sequence[Entry]
) -> Figure:
    """A panel with all conditions, then one for each.

    as_public: devices without a shift, which stand at severity 0.
    """
    severities = sorted({severity for cells in by_condition.values() for severity in cells})
    together = {
        severity: [entry for cells in by_condition.values() for entry in cells.get(severity, ())]
        for severity in severities
    }
    panels = {"all conditions": together, **by_condition}
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure(
        f"Accuracy over severity, {data.experiment} ({data.family} conditions)",
        columns * WIDTH,
        0.9 + rows * HEIGHT,
    )
    drawn = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for axes, (title, cells) in zip(drawn, panels.items(), strict=False):
        _severities(axes, {0: as_public, **cells} if as_public else dict(cells))
        calm(axes, title, grid="y")
        axes.set_xlabel("severity (0: as the public clips)")
        percent_axis(axes.yaxis)
    for axes in drawn[len(panels) :]:
        axes.set_visible(False)
    shared_legend(figure, *drawn[: len(panels)])
    return figure


def estimated_and_true(study: Study) -> Figure:
    """A point per device and seed, with the 90 % interval of the estimate; those with few test clips are pale."""
    figure = _figure("Accuracy estimated without labels, and true accuracy", 5.6, 5.6)
    axes = figure.subplots()
    found = estimated(study)
    for colour, scenario in zip(OKABE_ITO, SCENARIO_TITLES, strict=False):
        for many in (True, False):
            mine = [
                one
                for one in found
                if one.entry.device.scenario == scenario and (one.entry.clips >= MANY_CLIPS) is many
            ]
            errors = [
                [one.estimate - (one.estimate if one.low is None else one.low) for one in mine],
                [(one.estimate if one.high is None else one.high) - one.estimate for one in mine],
            ]
            if mine:
                axes.errorbar(
                    [one.true for one in mine],
                    [one.estimate for one in mine],
                    yerr=errors,
                    fmt="o",
                    ms=3,
                    lw=0.6,
                    color=colour,
                    alpha=0.9 if many else 0.35,
                    label=scenario if many else f"{scenario}, < {MANY_CLIPS} clips",
                )
    axes.axline((0.5, 0.5), slope=1, color=INK, lw=0.8, ls=":")
    axes.set_xlabel("true accuracy on the device's test clips")
    axes.set_ylabel("estimated accuracy")
    percent_axis(axes.xaxis)
    percent_axis(axes.yaxis)
    calm(axes, "", grid="both")
    shared_legend(figure, axes)
    return figure


def _severities(axes: Axes, cells: Mapping[int, Sequence[Entry]]) -> None:
    arms = arms_of([entry for entries in cells.values() for entry in entries])
    for place, arm in enumerate(arms):
        points = {at: figure for at, mine in cells.items() if (figure := accuracy(mine, arm))}
        shift = SPREAD * (place / max(1, len(arms) - 1) - 0.5)
        means = [figure.points / 100 for figure in points.values()]
        below = [(figure.points - figure.low) / 100 for figure in points.values()]
        above = [(figure.high - figure.points) / 100 for figure in points.values()]
        main = arm in MAIN_ARMS
        axes.errorbar(
            [at + shift for at in points],
            means,
            yerr=[[max(0.0, one) for one in below], [max(0.0, one) for one in above]],
            fmt="o-" if main else f"{MARKERS[arm]}--",
            ms=4 if main else 3,
            lw=1.6 if main else 0.8,
            elinewidth=0.8,
            color=COLOURS[arm],
            label=TITLES[arm],
            zorder=3 if main else 2,
        )
    axes.set_xticks(sorted(cells))


def _as_public(study: Study, data: DataSet) -> list[Entry]:
    return entries_of(study, lambda entry: entry.data is data and entry.device.scenario == "D")


def _figure(title: str, width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.set_facecolor("white")
    figure.suptitle(title, fontsize=11, color=INK)
    return figure
