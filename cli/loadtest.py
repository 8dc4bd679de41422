"""``fedstill loadtest``: policies against a load in virtual time, or a live server against a load."""

from __future__ import annotations

import asyncio
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from fedstill.client.serving_client import ServingAddress
    from fedstill.cloud_server.serving.scheduling.profile import Profile
    from fedstill.evaluation.serving.live_loadtest import LiveSettings
    from fedstill.evaluation.serving.results import ServingResults
    from fedstill.evaluation.serving.task_images import TaskImages
    from fedstill.evaluation.serving.virtual import LoadTest

STANDARD_POLICIES = "pets,infaas,tome5,tome10,tome15,tome20,vpt2,vpt4,vpt8,clipper,slackfit,faithful,fedstill"
DRAWN_PICTURES = 64  # per task


def loadtest(
    virtual: Annotated[bool, typer.Option("--virtual", help="In virtual time, with a profile.")] = False,
    target: Annotated[str | None, typer.Option(help="A running server, HOST:PORT, instead.")] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="thesis (default in virtual time), or a profile in JSON; live: for upper references."
        ),
    ] = None,
    trace: Annotated[
        str,
        typer.Option(help="synthetic, poisson, gamma, mmpp, step, azure or CSV files; comma-separated."),
    ] = "synthetic",
    policies: Annotated[str, typer.Option(help="Virtual: comma-separated.")] = STANDARD_POLICIES,
    load: Annotated[str, typer.Option(help="Factors on the standard rate, comma-separated.")] = "1.0",
    seeds: Annotated[int, typer.Option(help="Loads per trace.", min=1, max=100)] = 5,
    seconds: Annotated[
        float | None, typer.Option(help="Length of a load (default: virtual 1800, live 30).")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Mean queries per second at load 1 (default: as in the thesis).")
    ] = None,
    compress: Annotated[
        float, typer.Option(help="Play CSV files so many times as fast (the thesis' MAF: 120).")
    ] = 1.0,
    jitter: Annotated[float, typer.Option(help="Virtual: spread of the engine's times.")] = 0.0,
    load_seconds: Annotated[
        float | None,
        typer.Option(help="Virtual: how long INFaaS' loading takes per model, instead of the profile's."),
    ] = None,
    tasks: Annotated[
        str, typer.Option(help="Live: what to ask for, in the order of the query mix; comma-separated.")
    ] = "cifar10,tinyimagenet100,mnist",
    images: Annotated[
        list[str] | None, typer.Option(help="Live: NAME=PATH, images of a task of your own; repeatable.")
    ] = None,
    drawn: Annotated[
        bool, typer.Option("--drawn", help="Live: noise for all of the server's tasks.")
    ] = False,
    pictures: Annotated[int, typer.Option(help="Live: test images per task, at most.", min=1)] = 1000,
    latency_scale: Annotated[float, typer.Option(help="Live: factor on the mix's latency objectives.")] = 1.0,
    allowance_ms: Annotated[
        float, typer.Option(help="Live: taken off what the server is told, for the way there and back.")
    ] = 5.0,
    outstanding: Annotated[int, typer.Option(help="Live: most queries waiting at once.", min=1)] = 20_000,
    insecure: Annotated[bool, typer.Option("--insecure", help="Live: without TLS and token.")] = False,
    ca: Annotated[Path | None, typer.Option(help="Live: certificate authority to trust, PEM.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="Live: file with the client's token.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where results.json and plots go (default: runs/loadtest-TIME).")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Also write a Markdown page, its plots beside it.")
    ] = None,
) -> None:
    """Try serving policies on a load: utility, deadlines, schedules, against an upper bound."""
    from datetime import datetime

    from fedstill.cli.console import console, one_line_errors
    from fedstill.datasets.audiovisual.clip import DataError
    from fedstill.evaluation.results import RESULTS_FILE
    from fedstill.evaluation.serving.live_loadtest import LiveSettings
    from fedstill.evaluation.serving.plots import save_figures
    from fedstill.evaluation.serving.report import console_report, write_serving_markdown
    from fedstill.evaluation.serving.results import write_serving_results
    from fedstill.evaluation.serving.target import address_of
    from fedstill.evaluation.serving.virtual import LoadTest

    folder = out or Path("runs") / f"loadtest-{datetime.now():%Y%m%d-%H%M%S}"
    with one_line_errors():
        if virtual == (target is not None):
            raise DataError("give --virtual, or --target HOST:PORT of a running server")
        if (folder / RESULTS_FILE).exists():
            raise DataError(f"{folder}: holds results already; choose another --out")
        test = LoadTest(
            traces=_names(trace),
            policies=_names(policies),
            loads=tuple(_number(text) for text in _names(load)),
            seeds=seeds,
            seconds=seconds if seconds is not None else 1800.0 if target is None else 30.0,
            rate=rate,
            compress=compress,
            jitter=jitter,
        )
        if target is None:
            results = _virtual(test, profile, load_seconds)
        else:
            settings = LiveSettings(latency_scale, outstanding, allowance_ms)
            address = address_of(target, insecure=insecure, authority=ca, token_file=token_file)
            sent = None if drawn else _task_images(_names(tasks), images or (), pictures)
            results = _live(test, settings, address, sent, profile)
        write_serving_results(results, folder)
        save_figures(results, folder / "plots")
        if markdown is not None:
            write_serving_markdown(results, markdown)
    console.print(console_report(results))
    console.print(
        f"results: {folder / RESULTS_FILE}, plots: {folder / 'plots'}", soft_wrap=True, highlight=False
    )


def _virtual(test: LoadTest, profile: str | None, load_seconds: float | None) -> ServingResults:
    from dataclasses import replace

    from fedstill.cloud_server.serving.scheduling.thesis_profile import thesis_profile
    from fedstill.evaluation.serving.virtual import run_virtual

    known = _profile(profile) or thesis_profile()
    if load_seconds is not None:
        known = replace(known, variants=tuple(replace(v, load_seconds=load_seconds) for v in known.variants))
    with Console(stderr=True).status("loadtest") as shown:
        return run_virtual(test, known, _data(), _command(), shown.update)


def _live(
    test: LoadTest,
    settings: LiveSettings,
    address: ServingAddress,
    pictures: Sequence[TaskImages] | None,
    profile: str | None,
) -> ServingResults:
    """pictures: None for noise, for all tasks of the server."""
    import numpy as np

    from fedstill.common.cores import usable_cores
    from fedstill.evaluation.serving.live_loadtest import run_live
    from fedstill.evaluation.serving.target import GrpcTarget
    from fedstill.evaluation.serving.task_images import drawn_images

    known = _profile(profile)
    machine = f"{address.target}, client on {platform.machine()} with {usable_cores()} cores"

    async def run() -> ServingResults:
        async with GrpcTarget(address) as target:
            sent = pictures
            if sent is None:
                generator = np.random.default_rng(0)
                served = (await target.describe()).tasks
                sent = [
                    drawn_images(name, served[name], DRAWN_PICTURES, generator) for name in sorted(served)
                ]
            with Console(stderr=True).status("loadtest") as shown:
                return await run_live(
                    test,
                    settings,
                    target,
                    sent,
                    data_dir=_data(),
                    profile=known,
                    measured_on=machine,
                    command=_command(),
                    progress=shown.update,
                )

    return asyncio.run(run())


def _task_images(tasks: Sequence[str], images: Sequence[str], limit: int) -> list[TaskImages]:
    """The test images of tasks, from the data folder or from where NAME=PATH says."""
    from fedstill.common.errors import ConfigError
    from fedstill.common.option_values import pair
    from fedstill.datasets.images.image_tasks import find_images
    from fedstill.evaluation.serving.task_images import held_out_images

    places = dict(pair(text) for text in images)
    strange = sorted(set(places) - set(tasks))
    if strange or not tasks:
        raise ConfigError(
            f"--images {strange[0]}: is not among --tasks" if strange else "--tasks names nothing"
        )
    return [held_out_images(find_images(name, places.get(name)), limit) for name in tasks]


def _profile(name: str | None) -> Profile | None:
    from fedstill.cloud_server.serving.scheduling.profile import read_profile
    from fedstill.cloud_server.serving.scheduling.thesis_profile import thesis_profile

    if name is None:
        return None
    return thesis_profile() if name == "thesis" else read_profile(Path(name))


def _data() -> Path | None:
    folder = os.environ.get("FEDSTILL_DATA")
    return Path(folder) if folder else None


def _command() -> str:
    return " ".join(["fedstill", *map(shlex.quote, sys.argv[1:])])


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _number(text: str) -> float:
    from fedstill.datasets.audiovisual.clip import DataError

    try:
        return float(text)
    except ValueError:
        raise DataError(f"--load: {text!r} is not a number; for instance --load 0.5,1,2") from None
