"""The kinds of finished runs, by the command that makes them: their tables and figures of the thesis, their report.

One table for ``fedstill reproduce`` and ``fedstill report``. The code for reading and drawing is imported on use, so
that the table itself costs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedstill.common.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType

Parts = Sequence["RenderableType"]


@dataclass(frozen=True)
class RunKind:
    """One kind of run.

    command: makes such a run. noun: for messages. holds: whether a folder is one. targets: of the thesis, by name.
    reproduce: a target beside the thesis, to print; None where there is no target. report: writes the pages of a run
    again and returns what to print; None where ``command --render`` does that.
    """

    command: str
    noun: str
    holds: Callable[[Path], bool]
    targets: tuple[str, ...]
    reproduce: Callable[[str, Path], Parts] | None
    report: Callable[[Path, Path | None], Parts] | None = None


def reproduce(target: str, run_dir: Path) -> Parts:
    """A table or figure of the thesis beside the results of a run. Raises ConfigError, ResultsError."""
    kind = kind_of(run_dir) or TARGETS.get(target, SIMULATION)
    if target not in kind.targets or kind.reproduce is None:
        known = ", ".join(kind.targets) or "none"
        raise ConfigError(f"unknown target {target!r} for {kind.noun} (known: {known})")
    return kind.reproduce(target, run_dir)


def report(run_dir: Path, markdown: Path | None) -> Parts:
    """Write a run's pages and pictures again; returns the output to print. Raises ConfigError, ResultsError."""
    kind = kind_of(run_dir) or SIMULATION
    if kind.report is None:
        raise ConfigError(f"{run_dir}: is {kind.noun}; type: {kind.command} --render --out {run_dir}")
    return kind.report(run_dir, markdown)


def kind_of(run_dir: Path) -> RunKind | None:
    """The kind of run in a folder, or None if it holds no run."""
    return next((kind for kind in KINDS if kind.holds(run_dir)), None)


def targets_by_command() -> str:
    """All targets in one line of help."""
    return "; ".join(f"of {kind.command}: {', '.join(kind.targets)}" for kind in KINDS if kind.targets)


def _written_as(file: str, kind: str | None = None) -> Callable[[Path], bool]:
    """Whether a folder holds ``file``, and in it the ``kind`` that load tests put there."""

    def holds(folder: Path) -> bool:
        try:
            plain = json.loads((folder / file).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(plain, dict) and plain.get("kind") == kind

    return holds


def _simulation_target(target: str, run_dir: Path) -> Parts:
    from fedstill.evaluation.federated.reproduce import reproduce
    from fedstill.evaluation.results import read_clips, read_results

    return (reproduce(target, read_results(run_dir), read_clips(run_dir), figures=run_dir / "plots"),)


def _simulation_report(run_dir: Path, markdown: Path | None) -> Parts:
    from fedstill.evaluation.federated.report import write_markdown, write_report

    if markdown is not None:
        write_markdown(run_dir, markdown)
    return (f"report: {write_report(run_dir)}",)


def _load_test_target(target: str, run_dir: Path) -> Parts:
    from fedstill.evaluation.serving.reproduce import reproduce_serving
    from fedstill.evaluation.serving.results import read_serving_results

    return (reproduce_serving(target, read_serving_results(run_dir), run_dir / "plots"),)


def _load_test_report(run_dir: Path, markdown: Path | None) -> Parts:
    from fedstill.evaluation.serving.plots import save_figures
    from fedstill.evaluation.serving.report import console_report, write_serving_markdown
    from fedstill.evaluation.serving.results import read_serving_results

    served = read_serving_results(run_dir)
    save_figures(served, run_dir / "plots")
    if markdown is not None:
        write_serving_markdown(served, markdown)
    return (console_report(served),)


def _elastic_target(target: str, run_dir: Path) -> Parts:
    from fedstill.evaluation.elastic.results import read_study
    from fedstill.evaluation.elastic.tables import reproduce_elastic

    return (reproduce_elastic(target, read_study(run_dir)),)


def _warmup_target(target: str, run_dir: Path) -> Parts:
    from fedstill.evaluation.elastic.tables import sheet_grid
    from fedstill.evaluation.plot_style import save
    from fedstill.evaluation.warmup.plots import WARMUP_FIGURES
    from fedstill.evaluation.warmup.results import STUDY_FILE, WarmupStudy, read_plain
    from fedstill.evaluation.warmup.tables import warmup_sheet

    study = read_plain(WarmupStudy, run_dir / STUDY_FILE)
    sheet = sheet_grid(warmup_sheet(target, study))
    if target not in WARMUP_FIGURES:
        return (sheet,)
    return sheet, f"Picture: {save(WARMUP_FIGURES[target](study), run_dir / 'plots' / f'{target}.png')}"


SIMULATION = RunKind(
    "fedstill simulate",
    "a run of fedstill simulate",
    _written_as("results.json"),
    ("table5.2", "table5.3", "table5.4", "fig5.6", "fig5.10", "fig5.12", "fig5.13"),
    _simulation_target,
    _simulation_report,
)
LOAD_TEST = RunKind(
    "fedstill loadtest",
    "a load test",
    _written_as("results.json", "loadtest"),
    ("fig3.10", "fig3.11", "fig3.14", "fig3.15"),
    _load_test_target,
    _load_test_report,
)
ELASTIC = RunKind(
    "fedstill elastic",
    "a study of fedstill elastic",
    _written_as("elastic_vit.json"),
    ("table3.1", "table3.2", "fig3.4a", "fig3.4b"),
    _elastic_target,
)
WARMUP = RunKind(
    "fedstill warmup-study",
    "a study of fedstill warmup-study",
    _written_as("warmup.json"),
    ("fig4.3", "fig4.4", "table4.1", "fig4.7", "fig4.8", "table4.2", "fig4.9", "fig4.10"),
    _warmup_target,
)
ROBUSTNESS = RunKind(
    "fedstill robustness-study",
    "a study of fedstill robustness-study",
    _written_as("results.json", "robustness"),
    (),
    None,
)
KINDS = (SIMULATION, LOAD_TEST, ELASTIC, WARMUP, ROBUSTNESS)
TARGETS: Mapping[str, RunKind] = {target: kind for kind in KINDS for target in kind.targets}
