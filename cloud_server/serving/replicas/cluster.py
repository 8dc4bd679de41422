"""The Ray cluster as the front sees it: join it, start the replicas or find them, ask them, take them away again.

This and what it imports are the only parts that need Ray; the packages come with the extra ``[ray]``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from typing import Any

from fedstill.cloud_server.grpc.listen import ServerError
from fedstill.cloud_server.serving.replicas.front import ReplicaFailed, ReplicaLost, Replicas
from fedstill.cloud_server.serving.replicas.passed_call import PassedCall, plain_call
from fedstill.cloud_server.serving.replicas.replica_plan import ReplicaPlan, plain_replica_plan
from fedstill.cloud_server.serving.scheduling.price import Offer
from fedstill.common.errors import ConfigError, first_line
from fedstill.common.option_values import address

LOG = logging.getLogger(__name__)

APPLICATION = "fedstill"
"""Its name in Ray Serve."""
NAMESPACE = "fedstill"
CONNECT_SECONDS = 5.0
HEAD_SECONDS = 20.0
"""For a head to say that it is one."""
MOST_FAILURES = 3
"""Looks at the cluster in a row, after which its replicas count as gone."""
ANY = "auto"
USABLE = ("DEPLOYING", "RUNNING")
LEFT_OVER = ("DEPLOY_FAILED", "DELETING")
"""States of an application, by Ray: one to join, and one that has to go before the next."""


def cluster_address(place: str) -> tuple[str, int]:
    """Of ``--ray``, other than ``auto``. Raises ConfigError."""
    if "://" in place:
        raise ConfigError(
            f"--ray {place}: write the head's HOST:PORT, such as 10.0.0.5:6379; Ray's clients cannot serve"
        )
    return address(place, "--ray")


def join_cluster(place: str) -> None:
    """Become a process of the cluster whose head is at ``HOST:PORT``; ``auto``: of the Ray node on this machine.

    Raises ConfigError for a missing package or another address, ServerError if nothing answers there.
    """
    # Ray asks each process; a cluster that was started with reports of its use goes on with them.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.serve
    except ImportError as error:
        raise ConfigError(
            f"--ray: {error.name or 'ray'} is not installed; install fedstill with the extra [ray]: "
            "pip install '.[ray]'"
        ) from None
    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # what concerns a front, it says itself
    if place != ANY:
        host, port = cluster_address(place)
        try:  # Ray itself tries for a minute, and may end the process then
            socket.create_connection((host, port), CONNECT_SECONDS).close()
        except OSError as error:
            raise ServerError(
                f"--ray {place}: nothing answers there ({error.strerror or error}); start a cluster with: "
                "ray start --head"
            ) from None
        _check_head(place)
    try:
        ray.init(
            address=place, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING,
            configure_logging=False,
        )  # fmt: skip
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ServerError(f"--ray {place}: {first_line(error)}") from None


def _check_head(place: str) -> None:
    """Raises ServerError for what answers but is no head: Ray itself would wait for it without end, also in its own
    check, so this runs in a process that can be ended."""
    # Ray refuses another version later, and says which.
    words = ("-m", "ray.scripts.scripts", "health-check", "--skip-version-check", "--address", place)
    try:
        subprocess.run([sys.executable, *words], capture_output=True, check=True, timeout=HEAD_SECONDS)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        raise ServerError(
            f"--ray {place}: what answers there is no head of a Ray cluster; its port is that of ray start --head, "
            "6379 by default"
        ) from None


def leave_cluster() -> None:
    """Stop being a process of it."""
    import ray

    ray.shutdown()


class RayReplicas(Replicas):
    """The application in the joined cluster: the one that runs there already, or a new one."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._mine = False
        self._failures = 0
        self.running = 0

    def find(self) -> bool:
        """Whether an application runs or starts there; then it is used as it is, whatever its plan. May block."""
        return self._state() in USABLE

    def open(self, plan: ReplicaPlan | None) -> None:
        """Start the application and wait until its replicas run, or use what runs there. plan: None for the latter.

        Raises ServerError with the reason of a replica that cannot start.
        """
        from ray import serve

        from fedstill.cloud_server.serving.replicas.application import DEPLOYMENT, application

        try:
            if plan is not None:
                serve.start(proxy_location="Disabled")
                self._clear()
                made = application(plain_replica_plan(plan))
                if self.find():
                    LOG.info("event=replicas_found hint='another front has started them in the meantime'")
                else:
                    self._mine = True
                    serve.run(made, name=APPLICATION, route_prefix=None)
            self._handle = serve.get_deployment_handle(DEPLOYMENT, APPLICATION)
        except ServerError:
            raise
        except Exception as error:  # Ray's own kinds are many
            raise ServerError(f"--ray: the replicas did not start: {self._reason(error)}") from None
        self.refresh()

    def _clear(self) -> None:
        """Take an application away whose start failed. Raises ServerError for one that Ray is mending."""
        from ray import serve

        state = self._state()
        if state == "UNHEALTHY":
            raise ServerError(
                "--ray: the replicas that are there are not healthy: start again once they are, or take them away"
            )
        if state in LEFT_OVER:
            LOG.warning("event=replicas_replaced state=%s", state)
            serve.delete(APPLICATION)

    def _state(self) -> str:
        """Of the application, in Ray's words; empty if there is none."""
        from ray import serve

        found = serve.status().applications.get(APPLICATION)
        return str(found.status.value) if found else ""

    def close(self) -> None:
        """Take the application away, if it was started here. May block."""
        if not self._mine:
            return
        from ray import serve

        try:
            serve.delete(APPLICATION)
        except Exception as error:  # the cluster may have gone before
            LOG.warning("event=replicas_not_removed reason=%r", first_line(error))

    def refresh(self) -> bool:
        from ray import serve

        before = self.running
        try:
            found = serve.status().applications.get(APPLICATION)
        except Exception as error:  # the cluster's head may be back the next time
            self._failures += 1
            if self._failures == MOST_FAILURES:
                LOG.error("event=cluster_lost reason=%r", first_line(error))
                self.running = 0
            return self.running != before
        self._failures = 0
        states = [one.replica_states for one in found.deployments.values()] if found else []
        self.running = sum(int(one.get("RUNNING", 0)) for one in states)
        if self.running != before:
            LOG.info("event=replicas running=%d before=%d", self.running, before)
        return self.running != before

    def offer(self, task: str) -> Offer | None:
        from fedstill.cloud_server.serving.replicas.request_router import PriceRouter

        return PriceRouter.latest.offer(task)

    async def send(self, call: PassedCall, content: bytes) -> dict[str, Any]:
        from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError
        from ray.serve.exceptions import RayServeException

        response = self._handle.answer.remote(plain_call(call), content)
        try:
            plain: dict[str, Any] = await response
            return plain
        except asyncio.CancelledError:
            response.cancel()
            raise
        except (ActorDiedError, RayActorError, RayServeException) as error:
            LOG.warning("event=replica_lost method=%s reason=%r", call.method, first_line(error))
            raise ReplicaLost from None
        except RayTaskError as error:
            LOG.error("event=replica_failed method=%s reason=%r", call.method, _last_line(error))
            raise ReplicaFailed from None
        except RayError as error:
            LOG.warning("event=replica_lost method=%s reason=%r", call.method, first_line(error))
            raise ReplicaLost from None

    def _reason(self, error: Exception) -> str:
        """What the replica's start said, which Ray keeps in the status of its deployment."""
        from ray import serve

        try:
            found = serve.status().applications.get(APPLICATION)
            texts = [one.message for one in found.deployments.values() if one.message] if found else []
        except Exception:
            texts = []
        return _last_line(texts[0] if texts else error)


def _last_line(error: object) -> str:
    """Of a traceback: what was raised."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    errors = [line for line in lines if "Error:" in line]
    return (errors or lines or [type(error).__name__])[-1]
