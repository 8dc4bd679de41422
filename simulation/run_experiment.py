"""An experiment from a program: what ``fedstill simulate`` does, as one call that returns the results."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from fedstill.evaluation.results import Results
from fedstill.simulation.config import load_experiment
from fedstill.simulation.folded_run import simulate_folds, with_folds
from fedstill.simulation.launcher import Engine, require_new, simulate


def run_experiment(
    experiment: str | os.PathLike[str],
    out: str | os.PathLike[str],
    overrides: Iterable[str] = (),
    *,
    folds: int | None = None,
    engine: Engine = "flower",
    console: Console | None = None,
) -> Results:
    """Run an experiment and write its run directory: results, models, plots and a report.

    Args:
        experiment: name of a shipped experiment (``fedstill.shipped_experiments()``), or a TOML file.
        out: the run directory; it must not hold a run yet.
        overrides: ``table.key=value`` each, as after ``fedstill simulate --set``.
        folds: parts into which the speakers are divided, each in turn on the devices, 2 at least; None: the data's own
            division into public and private speakers.
        engine: ``flower`` starts Flower's runtime, as the command does; ``inprocess`` starts nothing, is easier to
            debug, and gives the same numbers.
        console: where progress is drawn; nowhere by default.

    Returns:
        All numbers of the run. ``fedstill.read_results(out)`` reads them again.

    Raises:
        UserError: the experiment, its data or ``out`` cannot be used; nothing has been trained.
        RunError: the run failed; what was finished stays, and ``fedstill simulate --resume`` goes on.
    """
    run_dir = Path(out).resolve()
    require_new(run_dir)
    plan = load_experiment(os.fspath(experiment), overrides)
    if folds is None:
        return simulate(plan, run_dir, engine, console or Console(file=io.StringIO()))
    return simulate_folds(with_folds(plan, folds), run_dir, engine, console or Console(file=io.StringIO()))
