"""The model behind Ray Serve with its dynamic batching; ``serving_baselines.py`` starts it.

Arguments: state folder, weights, how many queries may wait (-1: any number), port, token schedule, backend.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from fedstill.evaluation.serving.plain_model import BATCH, BATCH_SECONDS, PlainModel


class Deployment:
    """JSON in, JSON out."""

    def __init__(self, state: str, weights: str, *form: Any) -> None:
        self._model = PlainModel(Path(state), Path(weights), *form)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=BATCH_SECONDS)  # type: ignore[untyped-decorator]
    async def answer(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One answer each."""
        return self._model.answer(requests)

    async def __call__(self, request: Request) -> Any:
        return await self.answer(await request.json())


if __name__ == "__main__":
    threads = {"OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"]}
    ray.init(num_cpus=1, include_dashboard=False, runtime_env={"env_vars": threads})
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[4])})
    served: Any = serve.deployment(
        max_ongoing_requests=2 * BATCH, max_queued_requests=int(float(sys.argv[3]))
    )(Deployment)
    serve.run(
        served.bind(sys.argv[1], sys.argv[2], sys.argv[5], sys.argv[6]),
        route_prefix="/predict",
        blocking=True,
    )
