"""``fedstill coordinator``: the cloud's side of a fleet, for its operator."""

from __future__ import annotations

from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedstill.cli.shared.service import serve
from fedstill.common.option_values import address


class Precision(StrEnum):
    """Of the weights in a student's update."""

    EXACT = "exact"
    FP16 = "fp16"
    INT8 = "int8"


def coordinator(
    state: Annotated[Path, typer.Option(help="This coordinator's own folder; kept over restarts.")],
    experiment: Annotated[str, typer.Option(help="Shipped experiment or TOML file.")] = "quickstart",
    certs: Annotated[Path | None, typer.Option(help="Folder from fedstill certs init.")] = None,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Address for devices.")] = "0.0.0.0:9092",
    inference_listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Address of the inference service; empty: none.")
    ] = "0.0.0.0:9093",
    downlink: Annotated[Precision, typer.Option(help="Precision of students' updates.")] = Precision.INT8,
    cohorts: Annotated[
        float,
        typer.Option(
            help="Devices whose capture cards are so close share students, such as 2.5; 0: none do.", min=0
        ),
    ] = 0.0,
    arms: Annotated[
        str,
        typer.Option(
            help="Compare these on every device, with commas, as a study that ends; empty: serve for ever."
        ),
    ] = "",
    every_days: Annotated[
        float,
        typer.Option(
            help="Give every device a new student after so many days; 0: only if it needs one.", min=0
        ),
    ] = 0.0,
    journal: Annotated[str, typer.Option(help="SQLAlchemy URL (default: SQLite in --state).")] = "",
    join_timeout: Annotated[
        float, typer.Option(help="Seconds that a study waits for an absent device.", min=1)
    ] = 600.0,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override a key; repeatable.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="No TLS, no authentication.")] = False,
    clients: Annotated[int, typer.Option(help="Number of devices, with --insecure only.", min=0)] = 0,
    metrics: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Serve metrics for Prometheus, without TLS; empty: none.")
    ] = "",
    once: Annotated[bool, typer.Option("--once", help="End when every device is served.")] = False,
) -> None:
    """Serve a fleet: distil a student for each device, through Flower, with TLS."""
    from rich.console import Console
    from sqlalchemy.exc import SQLAlchemyError

    from fedstill.cloud_server.coordinator.coordinator import (
        CoordinatorError,
        CoordinatorSettings,
        run_coordinator,
    )
    from fedstill.cloud_server.coordinator.fleet_metrics import FleetCollector
    from fedstill.cloud_server.grpc.listen import ServerError
    from fedstill.cloud_server.journal.journal import JournalError
    from fedstill.common.errors import ConfigError
    from fedstill.common.flower_cli import FlowerError
    from fedstill.common.metrics_server import metrics_serving
    from fedstill.simulation.config import load_experiment
    from fedstill.simulation.deployment import prepare_deployment
    from fedstill.simulation.flower_engine import bundle

    failures = CoordinatorError, FlowerError, JournalError, ServerError, SQLAlchemyError
    with serve(*failures) as stop:
        host, port = address(listen, "--listen")
        if metrics:
            address(metrics, "--metrics")
        if inference_listen:
            address(inference_listen, "--inference-listen")
        if insecure == (certs is not None):
            raise ConfigError(
                "--certs: needs a folder from fedstill certs init, or --insecure on a trusted network"
            )
        if insecure and not clients:
            raise ConfigError("--clients: needed with --insecure, because no credentials are issued")
        folder = state.resolve()
        prepare_deployment(
            load_experiment(experiment, set_ or []),
            folder,
            Console(stderr=True),
            arms=tuple(arms.split(",")) if arms else None,
            clients=clients,
            journal=journal,
            join_timeout=join_timeout,
            downlink=downlink.value,
            cohorts=cohorts,
            every=86_400 * every_days,
        )
        settings = CoordinatorSettings(folder, bundle(), host, port, certs, inference_listen, once)
        with metrics_serving(metrics, FleetCollector(folder, certs)) if metrics else nullcontext():
            run_coordinator(settings, stop)
