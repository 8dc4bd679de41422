"""From the operator's settings to a running server.

Nothing listens before everything is measured and warm, so a client that can connect is served.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from functools import partial

from fedstill.cloud_server.auth.authority import Authority, read_authority
from fedstill.cloud_server.grpc.until_signalled import run_until_signalled
from fedstill.cloud_server.serving.app.assembly import assembled
from fedstill.cloud_server.serving.app.serve_plan import ServePlan
from fedstill.cloud_server.serving.app.serve_registry import registry_models
from fedstill.cloud_server.serving.app.serve_warmed import warmed_models
from fedstill.cloud_server.serving.server.serving_server import Ports
from fedstill.common.atomic_files import replace_text
from fedstill.common.folder_lock import sole_user

LOG = logging.getLogger(__name__)

SERVER_FILE = "server.json"
SWITCH_SECONDS = 2e-5
"""How long a thread may keep the interpreter while another waits for it. Every operator of a batch takes it again, so
at Python's 5 ms a busy event loop makes a batch tens of times slower (benchmarks/serving/serving_switching.py)."""


def run_serving(plan: ServePlan) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigError, DataError, CredentialError, FolderInUse, ServerError."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # nobody is served yet, so there is nothing to drain
    sys.setswitchinterval(SWITCH_SECONDS)
    authority = _authority(plan)
    with sole_user(plan.folder):
        models = registry_models(plan) if plan.warmed is None else warmed_models(plan, plan.warmed)
        with assembled(plan, authority, models) as server:
            try:
                run_until_signalled(server, partial(_announce, plan))
            finally:
                (plan.folder / SERVER_FILE).unlink(missing_ok=True)


def _authority(plan: ServePlan) -> Authority | None:
    authority = read_authority(plan.authority) if plan.authority is not None else None
    for warning in authority.warnings if authority else ():
        LOG.warning("event=unwise reason=%r", warning)
    return authority


def _announce(plan: ServePlan, ports: Ports) -> None:
    """Report the addresses, in the log and in a file for the process that started the server."""
    content = {"pid": os.getpid(), "port": ports.grpc, "web_port": ports.web, "policy": plan.policy}
    replace_text(plan.folder / SERVER_FILE, json.dumps(content))
    LOG.info(
        "event=serving listen=%s port=%d web_port=%s policy=%s tls=%s",
        plan.listen[0], ports.grpc, ports.web, plan.policy, plan.authority is not None,
    )  # fmt: skip
