"""``fedstill loadtest live``: send a load to a running server and check its answers against true labels."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedstill.cli.loadtest.options import (
    Compress,
    Equal,
    Load,
    Markdown,
    Out,
    Rate,
    Seconds,
    Seeds,
    Trace,
    data_folder,
    find_profile,
    load_factors,
    names,
    run_and_save,
)
from fedstill.cli.shared.console import typed_command
from fedstill.cli.shared.progress import step_bar

if TYPE_CHECKING:
    from fedstill.client.serving_client import ServingAddress
    from fedstill.evaluation.serving.live_loadtest import LiveSettings
    from fedstill.evaluation.serving.results import ServingResults
    from fedstill.evaluation.serving.task_images import TaskImages
    from fedstill.evaluation.serving.virtual import LoadTest


def live(
    target: Annotated[str, typer.Option(help="The running server, HOST:PORT.")],
    insecure: Annotated[bool, typer.Option("--insecure", help="Without TLS and token.")] = False,
    ca: Annotated[Path | None, typer.Option(help="Certificate authority to trust, PEM.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the client's token (`fedstill certs issue`).")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="The server's profile in JSON (or thesis), for upper references.")
    ] = None,
    tasks: Annotated[
        str, typer.Option(help="Tasks to query, in the order of the query mix, with commas.")
    ] = "cifar10,tinyimagenet100,mnist",
    images: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="Images of a task of your own; repeatable."),
    ] = None,
    drawn: Annotated[
        bool,
        typer.Option("--drawn", help="Noise for all of the server's tasks; right answers are then chance."),
    ] = False,
    pictures: Annotated[int, typer.Option(help="Test images per task, at most.", min=1)] = 1000,
    trace: Trace = "synthetic",
    load: Load = "1.0",
    seeds: Seeds = 5,
    seconds: Seconds = 30.0,
    rate: Rate = None,
    compress: Compress = 1.0,
    equal: Equal = False,
    latency_scale: Annotated[float, typer.Option(help="Factor on the mix's latency objectives.")] = 1.0,
    allowance_ms: Annotated[
        float,
        typer.Option(help="Subtracted from the time limit sent to the server, for the network both ways."),
    ] = 5.0,
    outstanding: Annotated[
        int, typer.Option(help="Most queries that wait at once; more are counted as not sent.", min=1)
    ] = 20_000,
    out: Out = None,
    markdown: Markdown = None,
) -> None:
    """Send a load to a live server."""

    def run() -> ServingResults:
        from fedstill.evaluation.serving.live_loadtest import LiveSettings
        from fedstill.evaluation.serving.target import address_of
        from fedstill.evaluation.serving.virtual import LoadTest

        told_by_server = ("",)
        factors = load_factors(load)
        test = LoadTest(names(trace), told_by_server, factors, seeds, seconds, rate, compress, equal=equal)
        settings = LiveSettings(latency_scale, outstanding, allowance_ms)
        address = address_of(target, insecure=insecure, authority=ca, token_file=token_file)
        sent = None if drawn else _task_images(names(tasks), images or (), pictures)
        return _measure(test, settings, address, sent, profile)

    run_and_save(run, out, markdown)


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


def _measure(
    test: LoadTest,
    settings: LiveSettings,
    address: ServingAddress,
    pictures: Sequence[TaskImages] | None,
    profile: str | None,
) -> ServingResults:
    import asyncio

    from fedstill.common.cores import usable_cores
    from fedstill.evaluation.serving.live_server import measure_server

    known = None if profile is None else find_profile(profile)
    machine = f"{address.target}, client on {platform.machine()} with {usable_cores()} cores"
    with step_bar("loadtest", test.loads_in_all) as begin:
        measuring = measure_server(
            test,
            settings,
            address,
            pictures,
            data_dir=data_folder(),
            profile=known,
            measured_on=machine,
            command=typed_command(),
            progress=begin,
        )
        return asyncio.run(measuring)
