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
def serve(*failures: type[Exception]) -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set. A mistake of the user's ends with 2, one of ``failures`` with 1.

    Either says why in one line.
    """
    from fedstill.datasets.clip import DataError
    from fedstill.protos.child import FolderInUse
    from fedstill.protos.credentials import CredentialError
    from fedstill.protos.health import HealthError
    from fedstill.simulation.config import ConfigError

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # one line per request otherwise
    stopping: tuple[type[Exception], ...] = (*failures, OSError)
    try:
        yield stop
    except (ConfigError, DataError, CredentialError, FolderInUse, HealthError) as error:
        _say("error", error)
        raise typer.Exit(MISTAKE) from None
    except stopping as error:
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
