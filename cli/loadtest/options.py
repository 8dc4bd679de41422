"""Options and steps that ``loadtest virtual`` and ``loadtest live`` share."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedstill.cli.shared.console import console, one_line_errors
from fedstill.common.errors import ConfigError

if TYPE_CHECKING:
    from fedstill.cloud_server.serving.scheduling.profile import Profile
    from fedstill.evaluation.serving.results import ServingResults

Trace = Annotated[
    str,
    typer.Option(help="synthetic, poisson, gamma, mmpp, step, azure or CSV files of arrivals, with commas."),
]
Load = Annotated[str, typer.Option(help="Factors on the standard rate, with commas.")]
Seeds = Annotated[int, typer.Option(help="Loads per trace.", min=1, max=100)]
Seconds = Annotated[float, typer.Option(help="Length of a load.")]
Rate = Annotated[
    float | None,
    typer.Option(
        help="Mean queries per second at load 1; of step, outside of its burst "
        "(default: as in the thesis, a file as recorded)."
    ),
]
Compress = Annotated[
    float, typer.Option(help="Replay CSV files so many times as fast (the thesis: MAF 120 times).")
]
Equal = Annotated[bool, typer.Option("--equal", help="Every query is worth 1, instead of as in the mix.")]
Out = Annotated[
    Path | None, typer.Option(help="Folder for results.json and plots (default: runs/loadtest-TIME).")
]
Markdown = Annotated[
    Path | None, typer.Option(help="Also write a Markdown page, with its plots in a folder beside it.")
]


def run_and_save(run: Callable[[], ServingResults], out: Path | None, markdown: Path | None) -> None:
    """Run a load test; write results, plots and page; print the table. A mistake ends the command in one line."""
    from fedstill.evaluation.results import RESULTS_FILE
    from fedstill.evaluation.serving.plots import save_figures
    from fedstill.evaluation.serving.report import console_report, write_serving_markdown
    from fedstill.evaluation.serving.results import write_serving_results

    folder = out or Path("runs") / f"loadtest-{datetime.now():%Y%m%d-%H%M%S}"
    with one_line_errors():
        if (folder / RESULTS_FILE).exists():
            raise ConfigError(f"{folder}: holds results already; choose another --out")
        results = run()
        write_serving_results(results, folder)
        save_figures(results, folder / "plots")
        if markdown is not None:
            write_serving_markdown(results, markdown)
    console.print(console_report(results))
    unsent = sum(sum(run.client.failed.values()) for run in results.runs if run.client is not None)
    console.print(f"{len(results.runs)} runs, {unsent} queries skipped or without an answer", highlight=False)
    console.print(
        f"results: {folder / RESULTS_FILE}, plots: {folder / 'plots'}", soft_wrap=True, highlight=False
    )


def find_profile(name: str) -> Profile:
    """The thesis' engine by name, or a profile's file. Raises DataError."""
    from fedstill.cloud_server.serving.scheduling.profile import read_profile
    from fedstill.cloud_server.serving.scheduling.thesis_profile import thesis_profile

    return thesis_profile() if name == "thesis" else read_profile(Path(name))


def data_folder() -> Path | None:
    """The folder of the traces, if the environment names it."""
    folder = os.environ.get("FEDSTILL_DATA")
    return Path(folder) if folder else None


def names(text: str) -> tuple[str, ...]:
    """The values between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def load_factors(text: str) -> tuple[float, ...]:
    """The values of ``--load``. Raises ConfigError for anything that is not a number."""
    return tuple(_number(part) for part in names(text))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--load: {text!r} is not a number; for instance --load 0.5,1,2") from None
