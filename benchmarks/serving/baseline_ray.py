"""The model behind Ray Serve with its dynamic batching; ``serving_baselines.py`` and ``ray_replicas.py`` start it.

Arguments: state folder, weights, how many queries may wait (-1: any number), port, token schedule, backend; for
replicas on a cluster that runs also its HOST:PORT, how many, how many queries each takes at a time beside those that
wait, and a file that is written once all of them answer.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from fedstill.cloud_server.serving.engine.environment import CPU_SETTINGS
from fedstill.evaluation.serving.plain_model import BATCH, BATCH_SECONDS, PlainModel


class Deployment:
    """JSON in, JSON out. batch: queries in one, at most."""

    def __init__(self, batch: int, state: str, weights: str, *form: Any) -> None:
        self._model = PlainModel(Path(state), Path(weights), *form)
        self.answer.set_max_batch_size(batch)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=BATCH_SECONDS)  # type: ignore[untyped-decorator]
    async def answer(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One answer each."""
        return self._model.answer(requests)

    async def __call__(self, request: Request) -> Any:
        return await self.answer(await request.json())


if __name__ == "__main__":
    state, weights, waiting, port, *form = sys.argv[1:7]
    cluster = sys.argv[7:]
    replicas, taken = map(int, cluster[1:3]) if cluster else (1, 2 * BATCH)
    told = {name: os.environ[name] for name in (*CPU_SETTINGS, "OMP_NUM_THREADS") if name in os.environ}
    where: dict[str, Any] = (
        {"address": cluster[0]} if cluster else {"num_cpus": 1, "include_dashboard": False}
    )
    ray.init(**where, runtime_env={"env_vars": told})
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": int(port)})
    served: Any = serve.deployment(
        num_replicas=replicas, max_ongoing_requests=taken, max_queued_requests=int(float(waiting))
    )(Deployment)
    serve.run(
        served.bind(min(BATCH, taken), state, weights, *form), route_prefix="/predict"
    )  # until all of them answer
    if cluster:
        Path(cluster[3]).touch()
    signal.pause()
