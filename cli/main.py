"""The ``fedstill`` command. A user's mistake ends with exit code 2 and one line that says what to type instead."""

from __future__ import annotations

import os

from fedstill.common.cores import usable_cores

os.environ.setdefault("KMP_BLOCKTIME", "0")  # idle OpenMP threads must not spin beside simulated devices
os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))

import signal
import sys
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fedstill.cli import elastic as elastic_command
from fedstill.cli import tasks as tasks_command
from fedstill.cli.agent import agent
from fedstill.cli.certs import certs
from fedstill.cli.console import FAILED, MISTAKE, console, errors, one_line_errors
from fedstill.cli.coordinator import coordinator
from fedstill.cli.export import export
from fedstill.cli.loadtest import loadtest
from fedstill.cli.missing_package import what_to_install
from fedstill.cli.privacy import privacy
from fedstill.cli.redteam import redteam
from fedstill.cli.serve import serve_
from fedstill.cli.status import status
from fedstill.cli.warmup import warmup
from fedstill.cli.warmup_study import warmup_study

app = typer.Typer(
    name="fedstill",
    help="Personal audio-visual models for edge devices by selective feature distillation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Prepare and check datasets.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(certs, name="certs")
app.add_typer(agent, name="agent")
app.command()(coordinator)
app.command()(status)
app.command()(redteam)
app.command()(export)
app.command()(privacy)
app.command()(loadtest)
app.command(name="serve")(serve_)
app.add_typer(tasks_command.app, name="tasks")
app.command()(elastic_command.elastic)
app.command()(warmup)
app.command(name="warmup-study")(warmup_study)
INTERRUPTED = 130
BAD_CLIPS_SHOWN = 20


class Engine(StrEnum):
    """What carries the messages between cloud and devices."""

    FLOWER = "flower"
    INPROCESS = "inprocess"


class RawDataset(StrEnum):
    """Datasets with an official layout to prepare."""

    CREMAD = "cremad"
    AVE = "ave"


@app.command()
def simulate(
    experiment: Annotated[str, typer.Argument(help="Shipped experiment or TOML file.")] = "quickstart",
    seeds: Annotated[int | None, typer.Option(help="Number of seeds.", min=1)] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override a key; repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory (default: runs/NAME-TIME).")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with an interrupted run directory.")] = None,
    engine: Annotated[
        Engine, typer.Option(help="flower: real runtime; inprocess: for debugging.")
    ] = Engine.FLOWER,
) -> None:
    """Watch a cloud teach personal students to simulated devices, and see what it was worth."""
    from fedstill.common.errors import ConfigError
    from fedstill.evaluation.federated.report import console_table
    from fedstill.evaluation.results import read_clips
    from fedstill.simulation.config import load_experiment
    from fedstill.simulation.launcher import load_run, require_new, simulate

    with one_line_errors():
        if resume is not None:
            if set_ or seeds or out:
                raise ConfigError("--resume continues a run as it was begun: drop --seeds, --set and --out")
            run_dir = resume.resolve()
            plan = load_run(run_dir)
        else:
            overrides = [*(set_ or []), *([f"run.seeds={seeds}"] if seeds else [])]
            plan = load_experiment(experiment, overrides)
            run_dir = (out or Path("runs") / f"{plan.name}-{datetime.now():%Y%m%d-%H%M%S}").resolve()
            require_new(run_dir)
        signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # also where a shell started us with it ignored
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            results = simulate(plan, run_dir, engine.value, console)
        except KeyboardInterrupt:
            begun = (run_dir / "plan.json").exists()
            hint = f"go on with: fedstill simulate --resume {run_dir}" if begun else "nothing was trained yet"
            errors.print(f"interrupted; {escape(hint)}", soft_wrap=True, highlight=False)
            raise typer.Exit(INTERRUPTED) from None
    console.print(console_table(results, read_clips(run_dir)))
    console.print(f"report: {run_dir / 'report.html'}", soft_wrap=True, highlight=False)


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="A finished run.")],
    markdown: Annotated[
        Path | None, typer.Option(help="Also write a Markdown page, its plots beside it.")
    ] = None,
) -> None:
    """Write report.html (of a load test: its tables) and the plots of a run again."""
    from fedstill.evaluation.federated.report import write_markdown, write_report
    from fedstill.evaluation.serving.results import is_load_test, read_serving_results

    with one_line_errors():
        if is_load_test(run_dir):
            from fedstill.evaluation.serving.plots import save_figures
            from fedstill.evaluation.serving.report import console_report, write_serving_markdown

            served = read_serving_results(run_dir)
            save_figures(served, run_dir / "plots")
            if markdown is not None:
                write_serving_markdown(served, markdown)
            console.print(console_report(served))
            return
        if markdown is not None:
            write_markdown(run_dir, markdown)
        console.print(f"report: {write_report(run_dir)}", soft_wrap=True, highlight=False)


@app.command()
def reproduce(
    target: Annotated[
        str,
        typer.Argument(
            help="table5.2, table5.3, table5.4, fig5.6, fig5.10, fig5.12 or fig5.13; "
            "of fedstill elastic: table3.1, table3.2, fig3.4a or fig3.4b; "
            "of a load test: fig3.10, fig3.11, fig3.14 or fig3.15; "
            "of fedstill warmup-study: fig4.3, fig4.4, fig4.7 to fig4.10, table4.1 or table4.2."
        ),
    ],
    run_dir: Annotated[Path, typer.Argument(help="A finished run.")],
) -> None:
    """Render a table or figure of the thesis from a run: its numbers beside ours."""
    from fedstill.evaluation.elastic.results import read_study
    from fedstill.evaluation.elastic.tables import ELASTIC_TARGETS, reproduce_elastic, sheet_grid
    from fedstill.evaluation.federated.reproduce import reproduce as render
    from fedstill.evaluation.plot_style import save
    from fedstill.evaluation.results import read_clips, read_results
    from fedstill.evaluation.serving.reproduce import TABLES, reproduce_serving
    from fedstill.evaluation.serving.results import is_load_test, read_serving_results
    from fedstill.evaluation.warmup.plots import WARMUP_FIGURES
    from fedstill.evaluation.warmup.results import STUDY_FILE, WarmupStudy, read_plain
    from fedstill.evaluation.warmup.tables import WARMUP_TARGETS, warmup_sheet

    with one_line_errors():
        if target in WARMUP_TARGETS:
            study = read_plain(WarmupStudy, run_dir / STUDY_FILE)
            console.print(sheet_grid(warmup_sheet(target, study)))
            if target in WARMUP_FIGURES:
                drawn = save(WARMUP_FIGURES[target](study), run_dir / "plots" / f"{target}.png")
                console.print(f"Picture: {drawn}", soft_wrap=True, highlight=False)
            return
        if target in ELASTIC_TARGETS:
            console.print(reproduce_elastic(target, read_study(run_dir)))
            return
        if target in TABLES or is_load_test(run_dir):
            served = read_serving_results(run_dir)
            console.print(reproduce_serving(target, served, run_dir / "plots"))
            return
        console.print(render(target, read_results(run_dir), read_clips(run_dir), figures=run_dir / "plots"))


@app.command()
def experiments() -> None:
    """List the shipped experiments."""
    from fedstill.simulation.config import load_experiment, shipped_experiments

    for name in shipped_experiments():
        console.print(f"{name:<16} {load_experiment(name).title}", highlight=False)


@data.command()
def prepare(
    dataset: Annotated[RawDataset, typer.Argument(help="Which dataset.")],
    root: Annotated[Path, typer.Option(help="Folder with the official layout.")],
    out: Annotated[Path | None, typer.Option(help="Where the arrays go (default: ROOT/prepared).")] = None,
    workers: Annotated[int, typer.Option(help="Decoding processes.", min=1)] = usable_cores(),
    size: Annotated[int, typer.Option(help="Frame side in pixels.", min=16)] = 224,
    split: Annotated[
        Path | None, typer.Option(help="cremad: clip_id,label,split (default: ROOT/split.csv).")
    ] = None,
    checksums: Annotated[
        Path | None, typer.Option(help="CSV of path,sha256,bytes to verify against.")
    ] = None,
) -> None:
    """Decode a raw dataset once into compact arrays; run it again to resume."""
    from rich.progress import Progress

    from fedstill.datasets.audiovisual.clip import DataError
    from fedstill.datasets.audiovisual.prepare import prepare_ave, prepare_cremad

    target = out or root / "prepared"
    with one_line_errors(), Progress(console=console) as bar:
        task = bar.add_task(f"decoding {dataset.value}", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        if dataset is RawDataset.CREMAD:
            outcome = prepare_cremad(
                root, target, split_csv=split, checksums=checksums, size=size, workers=workers, progress=show
            )
        elif split is not None:
            raise DataError("--split is for cremad; AVE's lists lie in its root folder")
        else:
            outcome = prepare_ave(
                root, target, checksums=checksums, size=size, workers=workers, progress=show
            )
    for clip in outcome.bad[:BAD_CLIPS_SHOWN]:
        console.print(
            f"{clip.clip_id}: {clip.outcome}, {clip.reason}", highlight=False, markup=False, soft_wrap=True
        )
    if len(outcome.bad) > BAD_CLIPS_SHOWN:
        console.print(f"... {len(outcome.bad) - BAD_CLIPS_SHOWN} more", highlight=False)
    counts = ", ".join(f"{count} {name}" for name, count in outcome.counts.items() if count)
    console.print(f"{counts}; full list: {target / 'report.json'}", highlight=False, soft_wrap=True)
    if len(outcome.bad) == len(outcome.clips):
        raise typer.Exit(FAILED)


@data.command()
def check(
    experiment: Annotated[str, typer.Argument(help="Experiment whose dataset is checked.")],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE")] = None,
) -> None:
    """Decode every clip of an experiment's dataset and list what is wrong with it."""
    from fedstill.datasets.audiovisual.prepare import check_dataset
    from fedstill.simulation.config import load_experiment
    from fedstill.simulation.sources import open_source

    with one_line_errors():
        source = open_source(load_experiment(experiment, set_ or []))
        problems = check_dataset(source)
    for problem in problems:
        console.print(problem, highlight=False, markup=False)
    console.print(f"{source.name}: {len(source.index)} clips, {len(problems)} problems", highlight=False)
    if problems:
        raise typer.Exit(FAILED)


def main() -> None:
    """Entry point. A command that lacks a package says which install brings it."""
    try:
        app()
    except ModuleNotFoundError as error:
        message = what_to_install("".join(sys.argv[1:2]), str(error.name))
        if message is None:
            raise
        errors.print(f"[red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
        sys.exit(MISTAKE)
