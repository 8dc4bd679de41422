"""From the operator's settings to a running server.

Nothing listens before everything is measured and warm, so a client that can connect is served.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from fedstill.cloud_server.auth.authenticator import Authenticator
from fedstill.cloud_server.auth.authority import read_authority
from fedstill.cloud_server.grpc.until_signalled import run_until_signalled
from fedstill.cloud_server.serving.app.serve_plan import ServePlan
from fedstill.cloud_server.serving.app.serve_registry import registry_models
from fedstill.cloud_server.serving.app.serve_warmed import warmed_models
from fedstill.cloud_server.serving.policies.registry import make_policy
from fedstill.cloud_server.serving.server.decision_log import DecisionLog
from fedstill.cloud_server.serving.server.dispatcher import Dispatcher
from fedstill.cloud_server.serving.server.serving_metrics import ServingMetrics
from fedstill.cloud_server.serving.server.serving_server import Ports, ServingAddress, ServingServer
from fedstill.cloud_server.serving.server.serving_service import AccessPolicy, ServingService
from fedstill.cloud_server.serving.server.web import make_app
from fedstill.common.atomic_files import replace_text
from fedstill.common.child_process import sole_user

LOG = logging.getLogger(__name__)

SERVER_FILE = "server.json"
DECISIONS_FILE = "decisions.jsonl"
PREPARING_THREADS = 2
SWITCH_SECONDS = 2e-5
"""How long a thread may keep the interpreter while another waits for it. Every operator of a batch takes it again, so
at Python's 5 ms a busy event loop makes a batch tens of times slower (benchmarks/serving_switching.py)."""


def run_serving(plan: ServePlan) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigError, DataError, CredentialError, FolderInUse, ServerError."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # nobody is served yet, so there is nothing to drain
    sys.setswitchinterval(SWITCH_SECONDS)
    authority = read_authority(plan.authority) if plan.authority is not None else None
    for warning in authority.warnings if authority else ():
        LOG.warning("event=unwise reason=%r", warning)
    with sole_user(plan.folder):
        models = registry_models(plan) if plan.warmed is None else warmed_models(plan, plan.warmed)
        metrics = ServingMetrics(plan.policy)
        decisions = DecisionLog(plan.folder / DECISIONS_FILE)
        with ThreadPoolExecutor(PREPARING_THREADS, thread_name_prefix="images") as preparing:
            policy = make_policy(plan.policy, models.profile)
            dispatcher = Dispatcher(policy, models.infer, preparing, (metrics, decisions), plan.waiting)
            tasks = models.tasks(dispatcher)
            metrics.queued, metrics.tasks = dispatcher.queued, lambda: tuple(tasks.served)
            access = AccessPolicy(Authenticator(authority) if authority else None, plan.operators)
            service = ServingService(dispatcher, tasks, access, models.image_size, plan.policy)
            server = ServingServer(
                service,
                dispatcher,
                tasks,
                make_app(metrics, lambda: service.ready),
                ServingAddress(
                    plan.listen,
                    plan.web,
                    authority.tls if authority else None,
                    plan.drain_seconds,
                    4 * plan.waiting,
                ),
            )
            try:
                run_until_signalled(server, partial(_announce, plan))
            finally:
                (plan.folder / SERVER_FILE).unlink(missing_ok=True)
        decisions.close()
        models.close()


def _announce(plan: ServePlan, ports: Ports) -> None:
    """Report the addresses, in the log and in a file for the process that started the server."""
    content = {"pid": os.getpid(), "port": ports.grpc, "web_port": ports.web, "policy": plan.policy}
    replace_text(plan.folder / SERVER_FILE, json.dumps(content))
    LOG.info(
        "event=serving listen=%s port=%d web_port=%s policy=%s tls=%s",
        plan.listen[0], ports.grpc, ports.web, plan.policy, plan.authority is not None,
    )  # fmt: skip
