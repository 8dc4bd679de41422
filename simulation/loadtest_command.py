"""``fedstill loadtest``: policies against a load, in virtual time."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

STANDARD_POLICIES = "pets,infaas,tome5,tome10,tome15,tome20,vpt2,vpt4,vpt8,clipper,slackfit,faithful,fedstill"


def loadtest(
    virtual: Annotated[bool, typer.Option("--virtual", help="In virtual time, with a profile.")] = False,
    profile: Annotated[str, typer.Option(help="thesis, or a profile in JSON.")] = "thesis",
    trace: Annotated[str, typer.Option(help="synthetic, azure or CSV files; comma-separated.")] = "synthetic",
    policies: Annotated[str, typer.Option(help="Comma-separated.")] = STANDARD_POLICIES,
    load: Annotated[str, typer.Option(help="Factors on the standard rate, comma-separated.")] = "1.0",
    seeds: Annotated[int, typer.Option(help="Loads per trace.", min=1, max=100)] = 5,
    seconds: Annotated[float, typer.Option(help="Length of a load.")] = 1800.0,
    rate: Annotated[
        float | None,
        typer.Option(help="Mean queries per second of replayed traces (default: azure as in the thesis)."),
    ] = None,
    compress: Annotated[
        float, typer.Option(help="Play CSV files so many times as fast (the thesis' MAF: 120).")
    ] = 1.0,
    jitter: Annotated[float, typer.Option(help="Spread of the engine's times around the profile.")] = 0.0,
    load_seconds: Annotated[
        float | None, typer.Option(help="How long INFaaS' loading takes per model, instead of the profile's.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where results.json and plots go (default: runs/loadtest-TIME).")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Also write a Markdown page, its plots beside it.")
    ] = None,
) -> None:
    """Try serving policies on a load: utility, deadlines, schedules, against an upper bound."""
    from dataclasses import replace
    from datetime import datetime

    from fedstill.cloud_server.serving.profile import read_profile
    from fedstill.cloud_server.serving.thesis_profile import thesis_profile
    from fedstill.datasets.clip import DataError
    from fedstill.simulation.cli import console, one_line_errors
    from fedstill.simulation.loadtest import LoadTest, run_virtual
    from fedstill.simulation.results import RESULTS_FILE
    from fedstill.simulation.serving_plots import save_figures
    from fedstill.simulation.serving_report import console_report, write_serving_markdown
    from fedstill.simulation.serving_results import write_serving_results

    folder = out or Path("runs") / f"loadtest-{datetime.now():%Y%m%d-%H%M%S}"
    with one_line_errors():
        if not virtual:
            raise DataError("only virtual time is built in: add --virtual")
        if (folder / RESULTS_FILE).exists():
            raise DataError(f"{folder}: holds results already; choose another --out")
        known = thesis_profile() if profile == "thesis" else read_profile(Path(profile))
        if load_seconds is not None:
            known = replace(
                known, variants=tuple(replace(v, load_seconds=load_seconds) for v in known.variants)
            )
        test = LoadTest(
            traces=_names(trace),
            policies=_names(policies),
            loads=tuple(_number(text) for text in _names(load)),
            seeds=seeds,
            seconds=seconds,
            rate=rate,
            compress=compress,
            jitter=jitter,
        )
        data = os.environ.get("FEDSTILL_DATA")
        status = Console(stderr=True)
        with status.status("loadtest") as shown:
            command = " ".join(["fedstill", *map(shlex.quote, sys.argv[1:])])
            results = run_virtual(test, known, Path(data) if data else None, command, shown.update)
        write_serving_results(results, folder)
        save_figures(results, folder / "plots")
        if markdown is not None:
            write_serving_markdown(results, markdown)
    console.print(console_report(results))
    console.print(
        f"results: {folder / RESULTS_FILE}, plots: {folder / 'plots'}", soft_wrap=True, highlight=False
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _number(text: str) -> float:
    from fedstill.datasets.clip import DataError

    try:
        return float(text)
    except ValueError:
        raise DataError(f"--load: {text!r} is not a number; for instance --load 0.5,1,2") from None
