"""``fedstill agent``: a device owner's command. By itself it joins a fleet; ``infer`` classifies clips once."""

from __future__ import annotations

import logging
import threading
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedstill.cli.agent.folder import status, wipe
from fedstill.cli.agent.infer import infer_once
from fedstill.cli.agent.parts import (
    Client,
    Credentials,
    Infer,
    Inference,
    Insecure,
    Mode,
    Objective,
    counted,
    failures,
    identity_of,
    student_of,
)
from fedstill.cli.shared.missing_package import EDGE, require
from fedstill.cli.shared.options import AllowOutside
from fedstill.cli.shared.service import serve
from fedstill.common.option_values import address, as_mistake, read_size

if TYPE_CHECKING:
    from fedstill.edge_client.inbox.learned_clips import ClipKeeper, Kept
    from fedstill.edge_client.inference.current_student import CurrentStudent
    from fedstill.edge_client.node.agent import Task

agent = typer.Typer(
    help="Run a device: a coordinator personalises its student; it classifies clips by itself.",
    no_args_is_help=True,
)


WARN_SECONDS = 86_400.0
LONGEST_PAUSE = 1440
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")


class Allow(StrEnum):
    """What may leave the device beside means over all of its clips."""

    PROTOTYPES = "prototypes"
    SAMPLES = "samples"


class LearnFrom(StrEnum):
    """Which clips join the device's own."""

    INBOX = "inbox"


State = Annotated[Path | None, typer.Option(help="This agent's own folder; kept over restarts.")]


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
    learn_from: Annotated[
        LearnFrom | None,
        typer.Option(
            help="Answered clips of --watch join this device's clips, as its student sees them, until the next start "
            "without this."
        ),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="Write the lines about clips of --watch into this file, put aside at 10 MB."),
    ] = None,
    infer: Mode = Infer.AUTO,
    objective: Objective = 300.0,
    upload_hours: Annotated[
        str,
        typer.Option(
            help="Local time in which it may send, such as 22-6 or 12:30-13,22-6; otherwise it answers clips by "
            "itself. Empty: always."
        ),
    ] = "",
    monthly_bytes: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="Bytes that it may move in a calendar month, such as 50MB; then it answers clips by itself until the "
            "next one. Empty: any number.",
        ),
    ] = "",
    contact_every: Annotated[
        float,
        typer.Option(
            help="Minutes between two contacts while idle, a fifth more or less; 0: stay connected.",
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
    patience: Annotated[
        float,
        typer.Option(
            help="Seconds of refusals before it gives up; with --watch it answers on, and tries less often.",
            min=1,
        ),
    ] = 180.0,
    health: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="Serve gRPC health on loopback: is it in the fleet?"),
    ] = "",
    metrics: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Serve metrics for Prometheus, without TLS; empty: none.")
    ] = "",
) -> None:
    """Join the fleet and stay in it until SIGTERM; results of --watch are JSON lines, on stdout or in --results."""
    if context.invoked_subcommand is not None:
        return
    require(EDGE)
    from contextlib import ExitStack

    from fedstill.common.errors import ConfigError
    from fedstill.common.folder_lock import sole_user
    from fedstill.common.grpc_health import health_serving
    from fedstill.common.metrics_server import metrics_serving
    from fedstill.edge_client.inbox.learned_clips import ClipKeeper, learn
    from fedstill.edge_client.inference.credentials_visits import CredentialsVisits
    from fedstill.edge_client.link.monthly_bytes import MonthlyBytes
    from fedstill.edge_client.node.agent import AgentSettings, run_agent
    from fedstill.edge_client.node.agent_data import use_clips
    from fedstill.edge_client.node.change_watch import ChangeWatch
    from fedstill.edge_client.node.upload_gate import UploadGate, read_hours
    from fedstill.edge_client.owner.agent_metrics import AgentCollector
    from fedstill.edge_client.privacy.privacy_policy import allow as allow_uploads

    with serve(*failures()) as stop, ExitStack() as stack:
        if not coordinator:
            raise ConfigError("--coordinator: needed to join a fleet, as in cloud.example.org:9092")
        address(coordinator, "--coordinator")
        if health and address(health, "--health")[0] not in LOOPBACK:
            raise ConfigError(f"--health: {health} is not on loopback, as in 127.0.0.1:9094")
        if metrics:
            address(metrics, "--metrics")
        with as_mistake("--upload-hours"):
            hours = read_hours(upload_hours) if upload_hours else None
        with as_mistake("--monthly-bytes"):
            most = read_size(monthly_bytes) if monthly_bytes else 0
        if not new_clips <= 1:  # also if it is no number at all
            raise ConfigError(f"--new-clips {new_clips:g}: a share of the clips is at most 1")
        if not contact_every <= LONGEST_PAUSE:
            raise ConfigError(f"--contact-every {contact_every:g}: at most {LONGEST_PAUSE} minutes, a day")
        if ((archive or delete) and watch is None) or (archive and delete):
            raise ConfigError("--archive and --delete: one of them, and only with --watch")
        if results and watch is None:
            raise ConfigError("--results: only with --watch, whose clips it is about")
        if learn_from and watch is None:
            raise ConfigError(
                "--learn-from inbox: only with --watch, the folder whose clips are learned from"
            )
        if data is None or state is None:
            raise ConfigError("--data and --state: needed to join a fleet; see fedstill agent --help")
        folder = state.resolve()
        who = identity_of(coordinator, inference, credentials, insecure, client, folder)
        with sole_user(folder):  # a second start by mistake changes nothing for the agent that runs
            allow_uploads(folder, allow.value if allow else "")
            use_clips(data, folder, allow_outside=allow_outside)
            learned = learn(folder, bool(learn_from))
        budget = MonthlyBytes(folder, most, monthly_bytes) if most else None
        if budget is not None:
            who = stack.enter_context(counted(who, budget))
        _say_what_leaves(folder)
        _say_what_is_learned(learned, bool(learn_from))
        tasks: list[Task] = [] if credentials is None else [_warning(credentials, folder)]
        tasks += [ChangeWatch(folder, new_clips)]
        if who.inference is not None:
            tasks += [
                CredentialsVisits(
                    folder, who.inference, lambda: UploadGate(folder, hours, budget=budget).closed
                )
            ]
        listeners = [stack.enter_context(health_serving(health, "agent"))] if health else []
        if watch is not None:
            student = student_of(folder, who, infer, objective)
            student.closed = lambda: UploadGate(folder, hours, budget=budget).closed
            stack.callback(student.close)
            keeper = ClipKeeper(folder) if learn_from else None
            tasks += [_watching(student, watch, folder, archive, delete, results, keeper)]
            listeners.append(lambda _: student.tend())
        settings = AgentSettings(
            folder, who.link, who.client, who.name, patience, hours, 60 * contact_every, budget,
            stays=watch is not None,
        )  # fmt: skip
        if metrics:
            collector = AgentCollector(folder)
            stack.enter_context(metrics_serving(metrics, collector))
            listeners.append(collector.tell)
        run_agent(settings, tasks, stop, listeners)


def _say_what_leaves(folder: Path) -> None:
    from fedstill.edge_client.privacy.privacy_policy import read_policy
    from fedstill.edge_client.privacy.prototypes import DeviceError

    try:
        most = read_policy(folder).in_words
    except DeviceError as error:  # then nothing is uploaded, and the device answers clips by itself
        most = str(error)
    logging.getLogger(__name__).info('event=privacy most="%s"', most)


def _say_what_is_learned(learned: Kept | None, wanted: bool) -> None:
    """In one line, what becomes of the clips of the watched folder; nothing if they never counted."""
    if learned is None:
        return
    told = "learning from=inbox kept" if wanted else "inbox_forgotten clips"
    logging.getLogger(__name__).info("event=%s=%d bytes=%d", told, learned.clips, learned.bytes)


def _watching(
    student: CurrentStudent,
    watch: Path,
    folder: Path,
    archive: Path | None,
    delete: bool,
    results: Path | None,
    keeper: ClipKeeper | None,
) -> Task:
    from fedstill.edge_client.inference.finished_clips import archiving
    from fedstill.edge_client.inference.finished_clips import delete as remove
    from fedstill.edge_client.inference.results_file import ResultsFile
    from fedstill.edge_client.inference.stdout_lines import StdoutLines
    from fedstill.edge_client.inference.watch import run_watch
    from fedstill.edge_client.inference.watch_log import WatchError

    if not watch.is_dir():
        raise WatchError(f"{watch}: is not a folder: make it, or watch another one")
    if archive is not None and archive.resolve().is_relative_to(watch.resolve()):
        raise WatchError(f"{archive}: lies in the watched folder: archive elsewhere")
    if results is not None and results.resolve().is_relative_to(watch.resolve()):
        raise WatchError(f"{results}: lies in the watched folder: write the results elsewhere")
    if results is not None and results.resolve().is_relative_to(folder):
        raise WatchError(f"{results}: lies in the agent's own folder: write the results elsewhere")
    finish = archiving(archive) if archive else remove if delete else None
    out = ResultsFile(results) if results else StdoutLines()
    if keeper is not None:
        student.classified = keeper.classified
    counts = keeper.answered if keeper is not None else None

    def task(stop: threading.Event) -> None:
        student.wait(stop)
        run_watch(student.classify, watch, folder, out, stop, finish=finish, answered_well=counts)

    return task


def _warning(credentials: Path, folder: Path) -> Task:
    """Says once a day what is wrong with the credentials, and what expires soon."""
    from fedstill.common.credentials import CredentialError, read_node_bundle
    from fedstill.edge_client.folder import ROOTS_FILE, TOKEN_FILE

    def task(stop: threading.Event) -> None:
        while True:
            try:
                kept, roots = folder / TOKEN_FILE, folder / ROOTS_FILE
                found = read_node_bundle(credentials, kept=kept, kept_roots=roots).warnings
            except CredentialError as error:  # a renewal may be under way; without one the link will tell
                found = (str(error),)
            for warning in found:
                logging.getLogger(__name__).warning('event=credentials reason="%s"', warning)
            if stop.wait(WARN_SECONDS):
                return

    return task


agent.command("infer")(infer_once)
agent.command()(status)
agent.command()(wipe)
