"""Code of long-lived commands: signals, logging, and one line for every reason to stop."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fedstill.cli.shared.console import one_line_errors


@contextmanager
def serve(
    *failures: type[Exception], formatter: logging.Formatter | None = None
) -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set. A mistake of the user's ends with 2, one of ``failures`` with 1.

    Either says why in one line. formatter: of the log; by default text for people.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    handler = logging.StreamHandler()
    handler.setFormatter(formatter or logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)  # one line per request otherwise
    logging.getLogger("alembic").setLevel(logging.WARNING)  # the upgrade of a schema logs its own result
    with one_line_errors(*failures, OSError):
        yield stop
