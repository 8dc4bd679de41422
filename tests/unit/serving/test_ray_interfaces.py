"""What Ray Serve takes from us, by its own classes but without a cluster: its interfaces are alpha and may change."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install '.[ray]'")

from ray import serve
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, RequestMetadata
from ray.serve.request_router import PendingRequest
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, ServeStatus

from fedstill.cloud_server.grpc.listen import ServerError
from fedstill.cloud_server.serving.replicas.application import application
from fedstill.cloud_server.serving.replicas.autoscaling import BUSY, PRICE, PricePolicy
from fedstill.cloud_server.serving.replicas.cluster import APPLICATION, RayReplicas
from fedstill.cloud_server.serving.replicas.passed_call import PassedCall, plain_call
from fedstill.cloud_server.serving.replicas.replica_plan import read_replica_plan
from fedstill.cloud_server.serving.replicas.request_router import PriceRouter
from fedstill.cloud_server.serving.scheduling.price import AskedQuery, Figures, Offer, plain_figures

PLAN = {"state": "/tasks", "weights": [{"weights": "/vit.safetensors"}], "cpus": 2.0}


def config_of(plan: dict[str, Any]) -> Any:
    return application(plan)._bound_deployment._deployment_config


def test_the_application_has_our_router_and_lets_the_dispatcher_refuse() -> None:
    found = config_of(PLAN | {"least": 2, "most": 2, "waiting": 64})
    assert found.num_replicas == 2
    assert found.autoscaling_config is None
    assert found.max_ongoing_requests > 64
    router = found.request_router_config.get_request_router_class()  # as Ray unpacks it in a front
    assert router.__name__ == "PriceRouter"
    assert not hasattr(application(PLAN)._bound_deployment.func_or_class, "record_autoscaling_stats")


def test_the_number_of_replicas_follows_our_policy_between_the_bounds() -> None:
    plan = PLAN | {"least": 1, "most": 4, "cost": 2.0}
    found = config_of(plan).autoscaling_config
    assert (found.min_replicas, found.max_replicas) == (1, 4)
    policy = found.policy.get_policy()(**found.policy.policy_kwargs)
    told = {PRICE: {"a": 5.0, "b": 3.0}, BUSY: {"a": 1.0, "b": 1.0}}
    assert policy(SimpleNamespace(aggregated_metrics=told, current_num_replicas=2))[0] == 3
    assert PricePolicy(9.0)(SimpleNamespace(aggregated_metrics=told, current_num_replicas=2))[0] == 2
    assert PricePolicy()(SimpleNamespace(aggregated_metrics=None, current_num_replicas=2))[0] == 2
    assert hasattr(application(plan)._bound_deployment.func_or_class, "record_autoscaling_stats")


def test_the_router_prefers_the_cheaper_replica_and_lets_others_get_on() -> None:
    router = PriceRouter(DeploymentID("replica"), DeploymentHandleSource.UNKNOWN)
    router.initialize_state()
    offers = {"cats": Offer(1.0, 500.0, ((0.01, 0.6),))}
    replicas: Any = [
        SimpleNamespace(
            replica_id=name, routing_stats=plain_figures(Figures(1, price, 0.0, 0.0, offers)),
            max_ongoing_requests=100,
        )
        for name, price in (("a", 30.0), ("b", 1.0))
    ]  # fmt: skip
    for one in replicas:
        router._standings.hear(one.replica_id, one.routing_stats, time.monotonic())
    call = plain_call(PassedCall(False, "ModelInfer", query=AskedQuery("cats")))
    pending: Any = SimpleNamespace(args=[call, b""], routing_context=SimpleNamespace(should_backoff=False))

    async def look() -> tuple[list[str], list[str], int]:
        first = await router.choose_replicas(replicas, pending)
        others = 0

        async def count() -> None:
            nonlocal others
            while True:
                await asyncio.sleep(0)
                others += 1

        counting = asyncio.create_task(count())
        without = await router.choose_replicas(replicas, None)
        counting.cancel()
        return [one.replica_id for (one,) in first], [one.replica_id for (one,) in without], others

    chosen, without, others = asyncio.run(look())
    assert chosen == ["b", "a"]
    assert pending.routing_context.should_backoff
    assert without == ["a", "b"]
    assert others > 0


def test_a_query_whose_routing_task_is_ended_for_another_that_left_is_served() -> None:
    """Ray ends a task when there are more of them than queries; it may be that of the query that still waits."""

    async def route() -> str:
        loop, looks = asyncio.get_running_loop(), list[asyncio.Future[int]]()

        async def look(deadline_s: float) -> int:
            looks.append(loop.create_future())
            return await looks[-1]

        router = PriceRouter(DeploymentID("replica"), DeploymentHandleSource.UNKNOWN)
        router.initialize_state()
        router.queue_len_response_deadline_s = router.max_queue_len_response_deadline_s = 60.0
        router.update_replicas(
            [SimpleNamespace(replica_id="a", routing_stats={}, max_ongoing_requests=9, get_queue_len=look)]
        )

        async def ask(number: int) -> Any:
            call = plain_call(PassedCall(False, "ModelInfer", query=AskedQuery("cats")))
            name = f"request-{number}"
            pending = PendingRequest([call, b""], {}, RequestMetadata(name, name))
            return await router._choose_replica_for_request(pending)

        async def looked(count: int) -> None:
            while len(looks) < count:
                await asyncio.sleep(0)

        await looked(1)
        looks[0].set_result(0)  # Ray's own look at a new replica
        leaving, staying = asyncio.create_task(ask(1)), asyncio.create_task(ask(2))
        await looked(3)
        leaving.cancel()
        await asyncio.sleep(0.01)
        looks[2].set_exception(
            OSError("no answer")
        )  # the task of the one that stays looks round, and is ended
        await asyncio.sleep(0.05)
        looks[1].set_result(0)
        return str((await asyncio.wait_for(staying, 5)).replica_id)

    assert asyncio.run(route()) == "a"


class Cluster:
    """What Ray Serve was told to do, and the state of the application, which the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, state: str = "") -> None:
        self.state, self.done = state, list[str]()
        self.started_by_another = False
        calls = {
            "status": self.status, "start": self.start, "run": self.run, "delete": self.delete,
            "get_deployment_handle": lambda *names: "handle",
        }  # fmt: skip
        for name, call in calls.items():
            monkeypatch.setattr(serve, name, call)

    def status(self) -> ServeStatus:
        if not self.state:
            return ServeStatus()
        found = ApplicationStatusOverview(ApplicationStatus(self.state), "", 0.0, {})
        return ServeStatus(applications={APPLICATION: found})

    def start(self, **options: Any) -> None:
        if self.started_by_another:
            self.state = "DEPLOYING"

    def run(self, made: Any, **options: Any) -> None:
        self.state = "RUNNING"
        self.done.append("run")

    def delete(self, name: str) -> None:
        self.state = ""
        self.done.append("delete")


@pytest.mark.parametrize(("state", "joined"), [
    ("", False), ("DEPLOYING", True), ("RUNNING", True), ("DEPLOY_FAILED", False), ("DELETING", False),
    ("UNHEALTHY", False),
])  # fmt: skip
def test_only_an_application_that_runs_or_starts_is_joined(
    monkeypatch: pytest.MonkeyPatch, state: str, joined: bool
) -> None:
    Cluster(monkeypatch, state)
    assert RayReplicas().find() is joined


@pytest.mark.parametrize(("state", "done"), [
    ("", ["run"]), ("DEPLOY_FAILED", ["delete", "run"]), ("DELETING", ["delete", "run"]),
])  # fmt: skip
def test_what_is_left_of_a_failed_start_is_replaced(
    monkeypatch: pytest.MonkeyPatch, state: str, done: list[str]
) -> None:
    cluster, replicas = Cluster(monkeypatch, state), RayReplicas()
    replicas.open(read_replica_plan(PLAN))
    assert cluster.done == done
    replicas.close()
    assert cluster.done == [*done, "delete"]


def test_replicas_that_another_front_starts_meanwhile_are_joined_and_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster, replicas = Cluster(monkeypatch), RayReplicas()
    assert not replicas.find()
    cluster.started_by_another = True
    replicas.open(read_replica_plan(PLAN))
    replicas.close()
    assert cluster.done == []


def test_replicas_that_ray_is_mending_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, replicas = Cluster(monkeypatch, "UNHEALTHY"), RayReplicas()
    with pytest.raises(ServerError, match="not healthy"):
        replicas.open(read_replica_plan(PLAN))
    replicas.close()
    assert cluster.done == []
