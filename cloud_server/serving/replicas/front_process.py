"""``fedstill serve --ray``: the process in front of the replicas, put together; it starts and ends as any server."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from fedstill.cloud_server.auth.authority import Authority
from fedstill.cloud_server.grpc.server_tls import TlsFiles
from fedstill.cloud_server.serving.app.assembly import Assembly, access_policy, listen_address
from fedstill.cloud_server.serving.app.serve_plan import ServePlan
from fedstill.cloud_server.serving.endpoints.serving_server import Parts, ServingServer
from fedstill.cloud_server.serving.endpoints.starting import StartProgress
from fedstill.cloud_server.serving.replicas.cluster import RayReplicas, join_cluster, leave_cluster
from fedstill.cloud_server.serving.replicas.front import FrontService
from fedstill.cloud_server.serving.replicas.front_metrics import FrontMetrics
from fedstill.cloud_server.serving.replicas.replica_plan import ReplicaPlan

LOG = logging.getLogger(__name__)


@contextmanager
def front_assembled(
    plan: ServePlan, authority: Authority | None, tls: TlsFiles | None, place: str, replica_plan: ReplicaPlan
) -> Iterator[Assembly]:
    """The server around the replicas in the cluster at ``place``. Those that run there already are used as they are and
    stay; else they are started, and end with the server. Raises ConfigError, DataError, ServerError."""
    join_cluster(place)
    replicas, progress = RayReplicas(), StartProgress()
    try:
        there = replicas.find()
        if there:
            LOG.info("event=replicas_found hint='they serve what they were started with'")
        else:
            plan.check()
        service = FrontService(replicas, access_policy(plan, authority))
        metrics = FrontMetrics(
            lambda: replicas.running, service.queued, lambda: service.admission.limit, version("fedstill")
        )
        service.told = metrics.answered

        def make() -> Parts:
            progress.tell("finding the replicas" if there else "starting the replicas")
            replicas.open(None if there else replica_plan)
            return Parts(service, service, replicas)

        app = metrics.app(
            lambda: server.parts is not None and service.ready,
            lambda: progress.text if server.parts is None else "",
        )
        server = ServingServer(progress, app, listen_address(plan, tls))
        yield Assembly(server, make)
    finally:
        replicas.close()
        leave_cluster()
