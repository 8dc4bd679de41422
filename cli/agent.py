"""``fedstill agent``: a device owner's command. By itself it joins a fleet; ``infer`` classifies clips once."""

from __future__ import annotations

import logging
import sys
import threading
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedstill.cli.missing_package import EDGE, require
from fedstill.cli.shared.options import AllowOutside
from fedstill.cli.shared.service import serve
from fedstill.common.option_values import address, as_mistake

if TYPE_CHECKING:
    from fedstill.edge_client.inference.cloud_stream import Address
    from fedstill.edge_client.inference.current_student import CurrentStudent
    from fedstill.edge_client.node.agent import Task
    from fedstill.edge_client.node.supernode import Link

agent = typer.Typer(
    help="Run a device: a coordinator personalises its student; it classifies clips by itself.",
    no_args_is_help=True,
)


WARN_SECONDS = 86_400.0
LONGEST_PAUSE = 1440
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")


class Infer(StrEnum):
    """Where the head runs."""

    LOCAL = "local"
    CLOUD = "cloud"
    AUTO = "auto"


class Allow(StrEnum):
    """What may leave the device beside means over all of its clips."""

    PROTOTYPES = "prototypes"
    SAMPLES = "samples"


State = Annotated[Path | None, typer.Option(help="This agent's own folder; kept over restarts.")]
Credentials = Annotated[Path | None, typer.Option(help="This device's folder from fedstill certs issue.")]
Inference = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="Address of the coordinator's inference service.")
]
Mode = Annotated[Infer, typer.Option(help="auto: the cloud if the link allows it, else this device.")]
Objective = Annotated[float, typer.Option(help="Milliseconds from a clip to its answer.", min=1)]
Insecure = Annotated[bool, typer.Option("--insecure", help="No TLS, no authentication.")]
Client = Annotated[int, typer.Option(help="This device's client number; with --insecure only.", min=-1)]


@dataclass(frozen=True)
class _Identity:
    name: str
    client: int
    link: Link
    inference: Address | None


@agent.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    coordinator: Annotated[str, typer.Option(metavar="HOST:PORT", help="Address of the coordinator.")] = "",
    data: Annotated[
        Path | None,
        typer.Option(help="This device's clips: a manifest.csv, its folder, or a prepared folder."),
    ] = None,
    allow_outside: AllowOutside = False,
    state: State = None,
    credentials: Credentials = None,
    inference: Inference = "",
    watch: Annotated[Path | None, typer.Option(help="Classify every new clip in this folder.")] = None,
    archive: Annotated[
        Path | None, typer.Option(help="Move the files of every answered clip of --watch into this folder.")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete every answered clip of --watch.")] = False,
    infer: Mode = Infer.AUTO,
    objective: Objective = 300.0,
    upload_hours: Annotated[
        str,
        typer.Option(
            help="Local time in which it may send, such as 22-6 or 12:30-13,22-6; otherwise it answers clips by "
            "itself. Empty: always."
        ),
    ] = "",
    contact_every: Annotated[
        float,
        typer.Option(
            help="Minutes between two contacts with the coordinator while there is nothing to do; 0: stay connected.",
            min=0,
        ),
    ] = 0.0,
    allow: Annotated[
        Allow | None,
        typer.Option(
            help="What the cloud may have beside means over all clips: those of groups, or single clips' "
            "probabilities, too."
        ),
    ] = None,
    new_clips: Annotated[
        float, typer.Option(help="Ask for a new student when so many clips are new, as a share.", min=0.01)
    ] = 0.25,
    insecure: Insecure = False,
    client: Client = -1,
    patience: Annotated[float, typer.Option(help="Seconds of refusals before it gives up.", min=1)] = 180.0,
    health: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="Serve gRPC health on loopback: is it in the fleet?"),
    ] = "",
    metrics: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Serve metrics for Prometheus, without TLS; empty: none.")
    ] = "",
) -> None:
    """Join the fleet and stay in it until SIGTERM; results of --watch go to stdout as JSON lines."""
    if context.invoked_subcommand is not None:
        return
    require(EDGE)
    from contextlib import ExitStack

    from fedstill.common.errors import ConfigError
    from fedstill.common.folder_lock import sole_user
    from fedstill.common.grpc_health import health_serving
    from fedstill.common.metrics_server import metrics_serving
    from fedstill.edge_client.node.agent import AgentSettings, run_agent
    from fedstill.edge_client.node.agent_data import use_clips
    from fedstill.edge_client.node.agent_metrics import AgentCollector
    from fedstill.edge_client.node.change_watch import ChangeWatch
    from fedstill.edge_client.node.upload_gate import UploadGate, read_hours
    from fedstill.edge_client.privacy.privacy_policy import allow as allow_uploads

    with serve(*_failures()) as stop, ExitStack() as stack:
        if not coordinator:
            raise ConfigError("--coordinator: needed to join a fleet, as in cloud.example.org:9092")
        address(coordinator, "--coordinator")
        if health and address(health, "--health")[0] not in LOOPBACK:
            raise ConfigError(f"--health: {health} is not on loopback, as in 127.0.0.1:9094")
        if metrics:
            address(metrics, "--metrics")
        with as_mistake("--upload-hours"):
            hours = read_hours(upload_hours) if upload_hours else None
        if not new_clips <= 1:  # also if it is no number at all
            raise ConfigError(f"--new-clips {new_clips:g}: a share of the clips is at most 1")
        if not contact_every <= LONGEST_PAUSE:
            raise ConfigError(f"--contact-every {contact_every:g}: at most {LONGEST_PAUSE} minutes, a day")
        if data is None or state is None:
            raise ConfigError("--data and --state: needed to join a fleet; see fedstill agent --help")
        who = _identity(coordinator, inference, credentials, insecure, client)
        folder = state.resolve()
        with sole_user(folder):  # a second start by mistake changes nothing for the agent that runs
            allow_uploads(folder, allow.value if allow else "")
            use_clips(data, folder, allow_outside=allow_outside)
        _say_what_leaves(folder)
        if ((archive or delete) and watch is None) or (archive and delete):
            raise ConfigError("--archive and --delete: one of them, and only with --watch")
        tasks: list[Task] = [] if credentials is None else [_warning(credentials)]
        tasks += [ChangeWatch(folder, new_clips)]
        listeners = [stack.enter_context(health_serving(health, "agent"))] if health else []
        if watch is not None:
            student = _student(folder, who, infer, objective)
            student.closed = lambda: UploadGate(folder, hours).closed
            stack.callback(student.close)
            tasks += [_watching(student, watch, folder, archive, delete)]
            listeners.append(lambda _: student.tend())
        settings = AgentSettings(folder, who.link, who.client, who.name, patience, hours, 60 * contact_every)
        if metrics:
            collector = AgentCollector(folder)
            stack.enter_context(metrics_serving(metrics, collector))
            listeners.append(collector.tell)
        run_agent(settings, tasks, stop, listeners)


@agent.command("infer")
def infer_once(
    clips: Annotated[list[Path], typer.Argument(help="Videos, or sound files with pictures beside them.")],
    state: Annotated[Path, typer.Option(help="The agent's folder.")],
    credentials: Credentials = None,
    inference: Inference = "",
    infer: Mode = Infer.LOCAL,
    objective: Objective = 300.0,
    insecure: Insecure = False,
    client: Client = -1,
) -> None:
    """Classify clips with the student that this device has: one JSON line each."""
    require(EDGE)
    from fedstill.edge_client.inference.watch import infer_files

    with serve(*_failures()):
        who = None
        if infer is not Infer.LOCAL:
            who = _identity("", inference, credentials, insecure, client)
        student = _student(state.resolve(), who, infer, objective)
        try:
            fine = infer_files(student.classify, clips, sys.stdout)
        finally:
            student.close()
    if not fine:
        raise typer.Exit(1)


@agent.command()
def wipe(
    state: Annotated[Path, typer.Option(help="The agent's folder.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete all that an agent keeps: clips, students, logs, the record of spent privacy. Nothing else."""
    from fedstill.cli.shared.console import console, one_line_errors
    from fedstill.edge_client.node.wipe import what_is_kept, wipe_folder

    with one_line_errors():
        kept = what_is_kept(state)
        if not yes:
            typer.confirm(f"Delete {kept.files} files, {kept.bytes / 1e6:.1f} MB, in {state}?", abort=True)
        left = wipe_folder(state)
    stays = f"; not the agent's, and still there: {', '.join(left)}" if left else ""
    console.print(f"{state}: deleted{stays}", highlight=False, markup=False, soft_wrap=True)


def _identity(
    coordinator: str, inference: str, credentials: Path | None, insecure: bool, client: int
) -> _Identity:
    from fedstill.common.credentials import read_node_bundle
    from fedstill.common.errors import ConfigError
    from fedstill.edge_client.inference.cloud_stream import Address
    from fedstill.edge_client.node.supernode import Link

    if insecure == (credentials is not None):
        raise ConfigError("--credentials: needs a folder from fedstill certs issue, or --insecure")
    if inference:
        address(inference, "--inference")
    if credentials is None:
        if client < 0:
            raise ConfigError("--client: needed with --insecure, because no credentials name it")
        name = f"device{client}"
        where = Address(inference, name) if inference else None
        return _Identity(name, client, Link(coordinator, None, None), where)
    bundle = read_node_bundle(credentials)
    name = bundle.identity.name
    where = Address(inference, name, bundle.token, bundle.ca_file.read_bytes()) if inference else None
    return _Identity(name, bundle.identity.client, Link(coordinator, bundle.ca_file, bundle.key_file), where)


def _student(folder: Path, who: _Identity | None, infer: Infer, objective: float) -> CurrentStudent:
    from fedstill.common.errors import ConfigError
    from fedstill.edge_client.inference.current_student import CurrentStudent
    from fedstill.edge_client.node.loading import late_loader
    from fedstill.edge_client.privacy.privacy_policy import read_policy

    reachable = who.inference if who else None
    if infer is Infer.CLOUD and reachable is None:
        raise ConfigError("--inference: needed with --infer cloud")
    mode = Infer.LOCAL if reachable is None else infer
    return CurrentStudent(
        folder,
        late_loader(folder),
        mode.value,
        objective,
        reachable,
        uploads_allowed=read_policy(folder).features,
    )


def _say_what_leaves(folder: Path) -> None:
    from fedstill.edge_client.privacy.privacy_policy import read_policy
    from fedstill.edge_client.privacy.prototypes import DeviceError

    try:
        most = read_policy(folder).in_words
    except DeviceError as error:  # then nothing is uploaded, and the device answers clips by itself
        most = str(error)
    logging.getLogger(__name__).info('event=privacy most="%s"', most)


def _watching(student: CurrentStudent, watch: Path, folder: Path, archive: Path | None, delete: bool) -> Task:
    from fedstill.edge_client.inference import watch as watching
    from fedstill.edge_client.inference.watch_log import WatchError

    if not watch.is_dir():
        raise WatchError(f"{watch}: is not a folder: make it, or watch another one")
    if archive is not None and archive.resolve() == watch.resolve():
        raise WatchError(f"{archive}: is watched itself: archive elsewhere")
    finish = watching.archiving(archive) if archive else watching.delete if delete else None

    def task(stop: threading.Event) -> None:
        student.wait(stop)
        watching.run_watch(student.classify, watch, folder, sys.stdout, stop, finish=finish)

    return task


def _warning(credentials: Path) -> Task:
    """Says once a day what is wrong with the credentials, and what expires soon."""
    from fedstill.common.credentials import CredentialError, read_node_bundle

    def task(stop: threading.Event) -> None:
        while True:
            try:
                found = read_node_bundle(credentials).warnings
            except CredentialError as error:  # a renewal may be under way; without one the link will tell
                found = (str(error),)
            for warning in found:
                logging.getLogger(__name__).warning('event=credentials reason="%s"', warning)
            if stop.wait(WARN_SECONDS):
                return

    return task


def _failures() -> tuple[type[Exception], ...]:
    """Failures of an agent that end it with one line and are not mistakes on the command line."""
    from fedstill.edge_client.inference.watch_log import WatchError
    from fedstill.edge_client.node.supernode import NodeRefused
    from fedstill.edge_client.privacy.prototypes import DeviceError

    return NodeRefused, DeviceError, WatchError
