"""The application that Ray Serve runs: replicas, their router, their autoscaling. A RayService's manifest names it, too
(``import_path: fedstill.cloud_server.serving.replicas.application:application``, deploy/ray/)."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from fedstill.cloud_server.serving.engine.environment import CPU_SETTINGS
from fedstill.cloud_server.serving.replicas.autoscaling import PricePolicy
from fedstill.cloud_server.serving.replicas.replica import Replica, ScaledReplica
from fedstill.cloud_server.serving.replicas.replica_plan import plain_replica_plan, read_replica_plan
from fedstill.cloud_server.serving.replicas.request_router import PriceRouter

DEPLOYMENT = "replica"
FIGURES_SECONDS = 0.5
"""Between two publications of a replica's figures."""
HEALTH_SECONDS, HEALTH_TIMEOUT_SECONDS = 2.0, 10.0
"""Between two looks of Ray at a replica, and after which one that says nothing is replaced."""
START_ATTEMPTS = 3
"""Of a replica; then the application has failed, and the last reason is told."""
QUEUES = 4
"""Requests at a replica, per query that may wait there: its dispatcher refuses before Ray holds any back."""


def application(arguments: dict[str, Any]) -> serve.Application:
    """arguments: a ``ReplicaPlan`` as plain values. Raises ConfigError."""
    plan = read_replica_plan(arguments)
    scaled: dict[str, Any] = {"num_replicas": plan.least}
    if plan.most > plan.least:
        policy = AutoscalingPolicy(policy_function=PricePolicy, policy_kwargs={"cost": plan.cost})
        scaled = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=plan.least, max_replicas=plan.most, policy=policy
            )
        }
    threads = {"OMP_NUM_THREADS": str(max(1, round(plan.cpus)))}
    deployment = serve.deployment(
        ScaledReplica if plan.most > plan.least else Replica,
        name=DEPLOYMENT,
        max_ongoing_requests=QUEUES * plan.waiting,
        ray_actor_options={
            "num_cpus": plan.cpus,
            "num_gpus": plan.gpus,
            "runtime_env": {"env_vars": {**CPU_SETTINGS, **threads}},
        },
        health_check_period_s=HEALTH_SECONDS,
        health_check_timeout_s=HEALTH_TIMEOUT_SECONDS,
        max_constructor_retry_count=START_ATTEMPTS,
        request_router_config=RequestRouterConfig(
            request_router_class=PriceRouter,
            request_routing_stats_period_s=FIGURES_SECONDS,
            request_routing_stats_timeout_s=HEALTH_TIMEOUT_SECONDS,
        ),
        **scaled,
    )
    return deployment.bind(plain_replica_plan(plan))
