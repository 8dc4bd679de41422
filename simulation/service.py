"""What both services share on the command line: signals, logging, and one line for whatever stops them."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

errors = Console(stderr=True)
FAILED, MISTAKE = 1, 2
LARGEST_PORT = 65_535


@contextmanager
def serve() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set; a mistake ends with 2, a failure of the service with 1, in one line."""
    from sqlalchemy.exc import SQLAlchemyError

    from fedstill.cloud_server.coordinator import CoordinatorError
    from fedstill.cloud_server.flower_tools import FlowerError
    from fedstill.cloud_server.journal import JournalError
    from fedstill.datasets.clip import DataError
    from fedstill.edge_client.supernode import NodeRefused
    from fedstill.protos.child import FolderInUse
    from fedstill.protos.credentials import CredentialError
    from fedstill.simulation.config import ConfigError

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # one line per request otherwise
    try:
        yield stop
    except (ConfigError, DataError, CredentialError, FolderInUse) as error:
        _say("error", error)
        raise typer.Exit(MISTAKE) from None
    except (CoordinatorError, FlowerError, JournalError, NodeRefused, OSError, SQLAlchemyError) as error:
        _say("stopped", error)
        raise typer.Exit(FAILED) from None


def address(text: str, option: str) -> tuple[str, int]:
    """``HOST:PORT``. Raises ConfigError naming the option."""
    from fedstill.simulation.config import ConfigError

    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > LARGEST_PORT:
        raise ConfigError(f"{option}: {text!r} is no HOST:PORT, as in 0.0.0.0:9092")
    return host.strip("[]"), int(port)


def _say(what: str, error: BaseException) -> None:
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    errors.print(f"[red]{what}:[/] {escape(line)}", highlight=False, soft_wrap=True)
