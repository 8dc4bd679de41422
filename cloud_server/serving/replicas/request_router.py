"""Ray Serve's interface for routers, which is alpha: how our prices choose among its replicas. All of it is in
``scheduling/price.py``.

Ray makes a router in the process of every front, with the figures that replicas publish (``record_routing_stats``) in
what it knows of each.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, ClassVar

from ray.serve.request_router import (
    FIFOMixin,
    PendingRequest,
    ReplicaID,
    ReplicaResult,
    RequestRouter,
    RunningReplica,
)

from fedstill.cloud_server.serving.replicas.passed_call import read_query
from fedstill.cloud_server.serving.scheduling.price import AskedQuery, Standings

PAUSE_SECONDS = 0.005


class PriceRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]  # Ray has no types
    """Sends a query to the replica where it earns most.

    A task of Ray's that has found a replica gives it to the query that it asked for, or, if that one has left, to the
    one that has waited longest. Without the mixin the latter would wait without end: of two tasks, Ray ends any one
    if one query has left, also that of the query that still waits.
    """

    latest: ClassVar[Standings] = Standings()
    """Of the router that Ray has made last in this process, for the front, which has no other way to it."""

    def initialize_state(self, **arguments: Any) -> None:
        """Called by Ray once."""
        self._standings = PriceRouter.latest = Standings()

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Ray knows other replicas, or their figures changed."""
        super().update_replicas(replicas)
        now = time.monotonic()
        self._standings.forget_others({str(one.replica_id) for one in replicas})
        for one in replicas:
            self._standings.hear(str(one.replica_id), one.routing_stats, now)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The best one first; Ray takes the next if that one has too many requests already."""
        if pending_request is None:
            # A task of Ray's found its query taken by another, and asks again at once until that one has a replica:
            # without a pause nobody else in this event loop would get on.
            await asyncio.sleep(PAUSE_SECONDS)
        else:
            # The same, if a replica is slow to say how many requests it has.
            pending_request.routing_context.should_backoff = True
        by_name = {str(one.replica_id): one for one in candidate_replicas}
        ordered = self._standings.order(list(by_name), _query(pending_request), time.monotonic())
        return [[by_name[name]] for name in ordered]

    def _get_pending_request_matching_metadata(self, request_metadata: Any = None) -> PendingRequest | None:
        """The mixin's hook: who is served before the one that has waited longest."""
        return self._get_pending_request_matching_internal_request_id(request_metadata)

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult
    ) -> None:
        """Called by Ray when the replica has taken it."""
        self._standings.sent(str(replica_id), _query(pending_request))


def _query(pending: PendingRequest | None) -> AskedQuery | None:
    return read_query(pending.args[0]) if pending is not None else None
