"""A replica as Ray Serve runs it: a thin wrapper around ``Answering``. What comes in and goes out are plain values.

Ray itself moves them between its processes with pickle; whoever can reach a Ray cluster's ports can run code there,
with or without fedstill (docs/decisions/059-replicas-on-ray.md).
"""

from __future__ import annotations

import logging
import os
from typing import Any

from ray import serve

from fedstill.cloud_server.serving.engine.environment import keep_what_exists
from fedstill.cloud_server.serving.replicas.answering import Answering
from fedstill.cloud_server.serving.replicas.autoscaling import BUSY, PRICE
from fedstill.cloud_server.serving.replicas.passed_call import read_call
from fedstill.cloud_server.serving.replicas.replica_plan import read_replica_plan
from fedstill.cloud_server.serving.scheduling.price import plain_figures

LOG = logging.getLogger(__name__)


class Replica:
    """plan: a ``ReplicaPlan`` as plain values."""

    def __init__(self, plan: dict[str, Any]) -> None:
        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True
        )
        name = serve.get_replica_context().replica_id.unique_id
        LOG.info("event=replica_starting replica=%s pid=%d", name, os.getpid())
        self._answering = Answering(read_replica_plan(plan), name)
        keep_what_exists()
        LOG.info("event=replica_ready replica=%s", name)

    async def answer(self, call: dict[str, Any], content: bytes) -> dict[str, Any]:
        """Of a call from a front: both are what ``passed_call.py`` makes of it."""
        return await self._answering.answer(read_call(call), content)

    async def record_routing_stats(self) -> dict[str, Any]:
        """Asked by Ray, for the routers."""
        self._answering.watch()
        return plain_figures(self._answering.figures())

    def __del__(self) -> None:
        """Called by Ray when the replica has answered its last request."""
        answering = getattr(self, "_answering", None)  # there is none if the start failed
        if answering is not None:
            answering.close()


class ScaledReplica(Replica):
    """Of a changing number. Ray fails if a replica of a fixed number has this method."""

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Asked by Ray, for the autoscaling policy."""
        figures = self._answering.figures()
        return {PRICE: figures.price, BUSY: figures.busy}
