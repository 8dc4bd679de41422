"""What Ray Serve takes from us, by its own classes but without a cluster: its interfaces are alpha and may change."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install '.[ray]'")

from ray.serve._private.common import DeploymentHandleSource, DeploymentID

from fedstill.cloud_server.serving.replicas.application import application
from fedstill.cloud_server.serving.replicas.autoscaling import BUSY, PRICE, PricePolicy
from fedstill.cloud_server.serving.replicas.passed_call import PassedCall, plain_call
from fedstill.cloud_server.serving.replicas.price import AskedQuery, Figures, Offer, plain_figures
from fedstill.cloud_server.serving.replicas.request_router import PriceRouter

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
