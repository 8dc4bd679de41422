"""``fedstill serve``: the elastic ViT as a service, for any client of the Open Inference Protocol."""

from __future__ import annotations

import logging
import os
import sys
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fedstill.cli.shared.config_file import ConfigFile, configuration
from fedstill.cli.shared.options import DEFAULT_REGISTRY, Backend, BackendChoice, Database
from fedstill.cli.shared.service import serve
from fedstill.common.option_values import address, as_mistake, read_size, whole_range
from fedstill.common.paths import VIT_WEIGHTS

LOG = logging.getLogger(__name__)

DEFAULT_WEIGHTS = [VIT_WEIGHTS]


class LogFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


def serve_(
    context: typer.Context,
    config: ConfigFile = None,
    state: Annotated[
        Path, typer.Option(help="Folder of the task registry (fedstill tasks --registry).")
    ] = DEFAULT_REGISTRY,
    warmed: Annotated[
        Path | None,
        typer.Option(
            help="Serve the models in this folder from fedstill warmup instead of a registry's tasks."
        ),
    ] = None,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="gRPC; port 0 is any.")] = "0.0.0.0:8001",
    rest: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="The same over HTTP (REST), with the same TLS; empty: none."),
    ] = "",
    web: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="Metrics and dashboard, without authentication; empty: none."),
    ] = "",
    policy: Annotated[
        str, typer.Option(help="Who decides: fedstill, otas, slackfit, pets, ...")
    ] = "fedstill",
    authority: Annotated[
        Path | None, typer.Option(help="Folder from fedstill certs init: TLS, and the tokens of its nodes.")
    ] = None,
    tls_certificate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="PEM, with the chain up to its authority, instead of --authority's own."
        ),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its key: PEM, without a passphrase.")
    ] = None,
    client_ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Ask gRPC and REST clients for a certificate, too, of these authorities (PEM).",
        ),
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="No TLS, no authentication.")] = False,
    operator: Annotated[
        list[str] | None,
        typer.Option(metavar="NODE", help="Node whose token may register and delete tasks; repeatable."),
    ] = None,
    rate_limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODE=QUERIES_PER_SECOND[:BURST]",
            help="How much the token of a node may ask, *: of each other node; an image is a query; repeatable.",
        ),
    ] = None,
    weights: Annotated[
        list[str],
        typer.Option(
            metavar="FILE",
            help="timm ViT weights, safetensors; looked up like dataset paths; repeatable: several share the device.",
        ),
    ] = DEFAULT_WEIGHTS,
    architecture: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[WEIGHTS=]NAME",
            help="timm model name (default: of imported weights, their card's; else from the file's name); repeatable.",
        ),
    ] = None,
    memory_budget: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="Memory of all loaded trunks together, such as 4GB: the others are loaded when they are asked for. "
            "Empty: all stay in memory.",
        ),
    ] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or several: cuda:0,cuda:1.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    backend: Backend = BackendChoice.AUTO,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[WEIGHTS=]FILE",
            help="Use this profile (from fedstill tasks profile) instead of measuring one; repeatable.",
        ),
    ] = None,
    schedules: Annotated[
        str | None, typer.Option(help="Token schedules, such as 0,-10,+4 (default: as tasks profile).")
    ] = None,
    batches: Annotated[
        str, typer.Option(help="Batch sizes to warm up; the last is the largest.")
    ] = "1,2,4,8,16,32",
    images: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="Images to measure a task with; repeatable."),
    ] = None,
    val_images: Annotated[int, typer.Option(help="Per task, to measure with.", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="The same as at `tasks add`.")] = 0,
    waiting: Annotated[int, typer.Option(help="Queries that may wait at once.", min=1)] = 1024,
    lame_duck: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="After SIGTERM or Ctrl-C: not ready, but still answering, until balancers have noticed; a second "
            "signal ends it.",
            min=0,
        ),
    ] = 5.0,
    log_format: Annotated[
        LogFormat, typer.Option(help="json: an object per line, with the request id of its call.")
    ] = LogFormat.TEXT,
    otlp: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="Send OpenTelemetry traces to this collector, by OTLP over gRPC: http://127.0.0.1:4317; needs [otlp].",
        ),
    ] = "",
    drain_seconds: Annotated[
        float, typer.Option(help="Seconds for the last answers, at the end.", min=0)
    ] = 10.0,
    database: Database = "",
    ray: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="Answer with replicas on the Ray cluster with this head (auto: this machine's Ray node); needs [ray].",
        ),
    ] = "",
    replicas: Annotated[
        str, typer.Option(metavar="LEAST[:MOST]", help="With --ray: how many; by the price of engine time.")
    ] = "1",
    replica_cpus: Annotated[float, typer.Option(help="With --ray: CPU cores of each replica.")] = 1.0,
    replica_cost: Annotated[
        float,
        typer.Option(
            help="With --ray: another replica starts when a second of engine time earns more utility than this."
        ),
    ] = 0.0,
) -> None:
    """Serve a registry's tasks: one Vision Transformer, as fast or as accurate as the load allows."""
    from fedstill.cloud_server.grpc.listen import ServerError
    from fedstill.cloud_server.serving.app.serve_plan import ServePlan
    from fedstill.cloud_server.serving.app.serve_process import own_models, run_serving
    from fedstill.cloud_server.serving.app.trunk_options import trunk_options
    from fedstill.cloud_server.serving.callers.call import log_fields
    from fedstill.cloud_server.serving.callers.rate_limits import parse_rates
    from fedstill.cloud_server.serving.engine.environment import missing_settings, serving_environment
    from fedstill.cloud_server.serving.policies.registry import policy_id
    from fedstill.common.errors import ConfigError
    from fedstill.common.json_logs import JsonFormatter

    formatter = JsonFormatter(log_fields) if log_format is LogFormat.JSON else None
    with serve(ServerError, formatter=formatter) as stop:
        if insecure and authority is not None:
            raise ConfigError(
                "--insecure and --authority: one of them; each may stand in the --config file, too"
            )
        if not insecure and authority is None:
            raise ConfigError(
                "--authority: needs a folder of fedstill certs init, or --insecure on a trusted network"
            )
        rates = parse_rates(rate_limit or ())
        if insecure and rates:
            raise ConfigError("--rate-limit: --insecure knows no tokens; drop one of the two")
        if insecure and operator:
            raise ConfigError("--operator: --insecure allows everybody everything; drop one of the two")
        if (tls_certificate is None) != (tls_key is None):
            raise ConfigError("--tls-certificate and --tls-key: give both")
        if insecure and (tls_certificate is not None or client_ca is not None):
            raise ConfigError(
                "--insecure: there is no TLS then; drop it, or --tls-certificate and --client-ca"
            )
        if profile and schedules is not None:
            raise ConfigError("--schedules: the profile names them; drop --schedules or --profile")
        if warmed is not None and (profile or schedules is not None or images or operator):
            raise ConfigError(
                "--warmed: its folder defines what is served; drop --profile, --schedules, --images and --operator"
            )
        with as_mistake("--memory-budget"):
            budget = read_size(memory_budget) if memory_budget else None
        first, *others = trunk_options(weights, architecture or (), profile or ())
        plan = ServePlan(
            state=state,
            warmed=warmed,
            listen=address(listen, "--listen"),
            web=address(web, "--web") if web else None,
            rest=address(rest, "--rest") if rest else None,
            policy=policy_id(policy),
            authority=authority,
            operators=frozenset(operator or ()),
            weights=first.weights,
            architecture=first.architecture,
            device=device,
            precision=precision,
            backend=backend.value,
            profile=first.profile,
            schedules=schedules,
            batches=batches,
            images=tuple(images or ()),
            val_images=val_images,
            seed=seed,
            waiting=waiting,
            lame_duck_seconds=lame_duck,
            drain_seconds=drain_seconds,
            tls_certificate=tls_certificate,
            tls_key=tls_key,
            client_ca=client_ca,
            rates=rates,
            otlp=otlp,
            others=tuple(others),
            memory_budget=budget,
            database=database,
        )
        assemble = own_models
        if ray:
            from fedstill.cloud_server.serving.replicas.cluster import ANY, cluster_address
            from fedstill.cloud_server.serving.replicas.front_process import front_assembled
            from fedstill.cloud_server.serving.replicas.replica_plan import replica_plan

            if budget is not None:
                raise ConfigError("--memory-budget: not with --ray: replicas load all that they are given")
            if len(plan.devices) > 1:
                raise ConfigError(
                    f"--device {device}: one device with --ray; each replica has its own: use --replicas"
                )
            if ray != ANY:
                cluster_address(ray)
            least, most = whole_range("--replicas", replicas)
            wanted = replica_plan(plan, least, most, replica_cpus, replica_cost)
            assemble = partial(front_assembled, place=ray, replica_plan=wanted)
        else:
            if (replicas, replica_cpus, replica_cost) != ("1", 1.0, 0.0):
                raise ConfigError("--replicas, --replica-cpus and --replica-cost: need --ray")
            plan.check()
        if missing_settings(os.environ):
            # Allocator and oneDNN read these before any of our code runs: restart with them, in the same process.
            os.execve(sys.executable, sys.orig_argv, serving_environment(os.environ))
        if not stop.is_set():  # by a signal while all this was imported
            LOG.info("event=configuration file=%s %s", config or "none", configuration(context))
            run_serving(plan, assemble)
