"""The parts of a running server, put together: policy, queue, tasks, service, ports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fedstill.cloud_server.auth.authenticator import Authenticator
from fedstill.cloud_server.auth.authority import Authority
from fedstill.cloud_server.serving.app.serve_plan import ServePlan
from fedstill.cloud_server.serving.app.served_models import ServedModels
from fedstill.cloud_server.serving.policies.registry import make_policy
from fedstill.cloud_server.serving.server.decision_log import DecisionLog
from fedstill.cloud_server.serving.server.dispatcher import Dispatcher
from fedstill.cloud_server.serving.server.image_workers import ImageWorkers
from fedstill.cloud_server.serving.server.serving_metrics import ServingMetrics
from fedstill.cloud_server.serving.server.serving_server import ListenAddress, ServingServer
from fedstill.cloud_server.serving.server.serving_service import AccessPolicy, ServingService
from fedstill.cloud_server.serving.server.web import make_app

DECISIONS_FILE = "decisions.jsonl"


@contextmanager
def assembled(plan: ServePlan, authority: Authority | None, models: ServedModels) -> Iterator[ServingServer]:
    """The server around ``models``, not started; leaving closes what it writes and reads."""
    metrics = ServingMetrics(plan.policy)
    decisions = DecisionLog(plan.folder / DECISIONS_FILE)
    with ImageWorkers() as preparing:
        policy = make_policy(plan.policy, models.profile)
        dispatcher = Dispatcher(policy, models.infer, preparing, (metrics, decisions), plan.waiting)
        tasks = models.tasks(dispatcher)
        metrics.queued, metrics.tasks = dispatcher.queued, lambda: tuple(tasks.served)
        access = AccessPolicy(Authenticator(authority) if authority else None, plan.operators)
        service = ServingService(dispatcher, tasks, access, models.image_size, plan.policy)
        app = make_app(metrics, lambda: service.ready)
        yield ServingServer(service, dispatcher, tasks, app, _address(plan, authority))
    decisions.close()
    models.close()


def _address(plan: ServePlan, authority: Authority | None) -> ListenAddress:
    tls = authority.tls if authority else None
    return ListenAddress(plan.listen, plan.web, tls, plan.drain_seconds, 4 * plan.waiting)
