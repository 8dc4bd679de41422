"""The parts of a running server, put together: policy, queue, tasks, service, ports."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import cast

from fedstill.cloud_server.auth.authenticator import Authenticator
from fedstill.cloud_server.auth.authority import Authority
from fedstill.cloud_server.grpc.server_tls import TlsFiles
from fedstill.cloud_server.serving.app.build_info import build_info
from fedstill.cloud_server.serving.app.serve_plan import ServePlan
from fedstill.cloud_server.serving.app.served_models import OnProgress, ServedModels
from fedstill.cloud_server.serving.callers.rate_limits import Count, RateLimits
from fedstill.cloud_server.serving.endpoints.access_policy import AccessPolicy
from fedstill.cloud_server.serving.endpoints.serving_server import ListenAddress, Parts, ServingServer
from fedstill.cloud_server.serving.endpoints.serving_service import ServingService
from fedstill.cloud_server.serving.endpoints.starting import StartProgress
from fedstill.cloud_server.serving.endpoints.task_statistics import TaskStatistics
from fedstill.cloud_server.serving.monitoring.monitor import Monitor
from fedstill.cloud_server.serving.monitoring.trunk_metrics import TrunkMetrics
from fedstill.cloud_server.serving.monitoring.web import make_app
from fedstill.cloud_server.serving.policies.registry import make_policy
from fedstill.cloud_server.serving.server.decision_log import DecisionLog
from fedstill.cloud_server.serving.server.device_queues import DeviceQueues
from fedstill.cloud_server.serving.server.device_tasks import DeviceTasks
from fedstill.cloud_server.serving.server.dispatcher import Dispatcher
from fedstill.cloud_server.serving.server.events import Observer
from fedstill.cloud_server.serving.server.image_workers import ImageWorkers
from fedstill.cloud_server.serving.server.live_tasks import LiveTasks
from fedstill.cloud_server.serving.server.loading_dispatcher import LoadingDispatcher
from fedstill.cloud_server.serving.server.requests import QueryQueue
from fedstill.cloud_server.serving.server.served_tasks import ServedTasks
from fedstill.cloud_server.serving.server.serving_metrics import ServingMetrics
from fedstill.cloud_server.serving.server.traces import Traces

DECISIONS_FILE = "decisions.jsonl"


@dataclass(frozen=True)
class Assembly:
    """A server that is not started, and the function that makes what it serves; that one takes minutes."""

    server: ServingServer
    make: Callable[[], Parts]


@contextmanager
def assembled(
    plan: ServePlan,
    authority: Authority | None,
    tls: TlsFiles | None,
    prepare: Callable[[OnProgress], Sequence[ServedModels]],
) -> Iterator[Assembly]:
    """The server around the models that ``prepare`` makes, for each device; leaving closes what it writes and reads."""
    build, progress = build_info(), StartProgress()
    metrics = ServingMetrics(plan.policy, build=build)

    def ready() -> bool:
        return server.parts is not None and server.parts.service.ready

    monitor = Monitor(
        plan.policy, ready, lambda: progress.plain if server.parts is None else {}, version=build["version"]
    )
    # Without a page nobody asks what was a second ago.
    watching = (monitor.recorder,) if plan.web is not None else ()
    statistics = TaskStatistics((metrics.took, *(one.took for one in watching)))
    decisions = DecisionLog(plan.folder / DECISIONS_FILE)
    app = make_app(metrics, ready, lambda: progress.text if server.parts is None else "", monitor)
    server = ServingServer(progress, app, listen_address(plan, tls))
    with ExitStack() as opened:
        opened.callback(decisions.close)
        traces = Traces(plan.otlp) if plan.otlp else None
        if traces is not None:
            opened.callback(traces.close)
        preparing = opened.enter_context(ImageWorkers())

        def make() -> Parts:
            models = prepare(progress.tell)
            for one in models:
                opened.callback(one.close)
            told = (metrics.limited, decisions.limited, *(one.limited for one in watching))
            access = access_policy(plan, authority, told)
            observers = (metrics, decisions, statistics, *watching)
            queue = queue_of(plan, models, preparing, observers, metrics)
            metrics.queued, metrics.tasks = queue.queries.queued, lambda: tuple(queue.tasks.served)
            monitor.serve(queue.queries, queue.tasks)
            return parts_of(plan, models, queue, access, statistics, traces)

        yield Assembly(server, make)


@dataclass(frozen=True)
class ServedQueue:
    """Where queries wait, not started; the dispatchers behind it, one per device; and the tasks that they serve."""

    queries: QueryQueue
    dispatchers: Sequence[Dispatcher]
    tasks: ServedTasks


def queue_of(
    plan: ServePlan,
    models: Sequence[ServedModels],
    preparing: Executor,
    observers: Sequence[Observer],
    metrics: ServingMetrics | None = None,
) -> ServedQueue:
    """The queue in front of the models of each device. metrics: also tell which trunks are loaded, if a device's memory
    does not fit all."""
    if len(models) == 1:
        (only,) = models
        dispatcher = _dispatcher(plan, only, preparing, observers, metrics)
        return ServedQueue(dispatcher, (dispatcher,), only.tasks(dispatcher))
    lock = threading.Condition()
    dispatchers = [
        Dispatcher(
            make_policy(plan.policy, one.profile), one.infer, preparing, observers, plan.waiting,
            device=device, lock=lock,
        )
        for device, one in zip(plan.devices, models, strict=True)
    ]  # fmt: skip
    tasks = [one.tasks(dispatcher) for one, dispatcher in zip(models, dispatchers, strict=True)]
    live = cast(Sequence[LiveTasks], tasks)  # others, of warmed models, go with one device
    return ServedQueue(DeviceQueues(dispatchers), dispatchers, DeviceTasks(live))


def _dispatcher(
    plan: ServePlan,
    models: ServedModels,
    preparing: Executor,
    observers: Sequence[Observer],
    metrics: ServingMetrics | None,
) -> Dispatcher:
    policy, loading = make_policy(plan.policy, models.profile), models.loading
    if loading is None:
        return Dispatcher(policy, models.infer, preparing, observers, plan.waiting)
    dispatcher = LoadingDispatcher(
        policy, models.infer, preparing, observers, plan.waiting, loading.residency, loading.trunks
    )
    if metrics is not None:
        names, budget = tuple(loading.trunks), loading.residency.budget
        dispatcher.load_observers = (TrunkMetrics(metrics.registry, names, dispatcher.state, budget),)
    return dispatcher


def parts_of(
    plan: ServePlan,
    models: Sequence[ServedModels],
    queue: ServedQueue,
    access: AccessPolicy,
    statistics: TaskStatistics,
    traces: Traces | None,
) -> Parts:
    """What answers requests, around that queue."""
    service = ServingService(
        queue.queries, queue.tasks, access, statistics, models[0].image_size, plan.policy, traces
    )
    return Parts(service, queue.queries, queue.tasks)


def access_policy(plan: ServePlan, authority: Authority | None, told: Sequence[Count] = ()) -> AccessPolicy:
    """Who may ask, and how much. told: of every decision of a rate limit."""
    authenticator = Authenticator(authority) if authority else None
    return AccessPolicy(authenticator, plan.operators, RateLimits(plan.rates, told))


def listen_address(plan: ServePlan, tls: TlsFiles | None) -> ListenAddress:
    """Where the plan says to listen."""
    return ListenAddress(
        plan.listen, plan.web, plan.rest, tls, plan.lame_duck_seconds, plan.drain_seconds, 4 * plan.waiting
    )
