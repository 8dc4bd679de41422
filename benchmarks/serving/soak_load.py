"""What clients do to the server of ``serving_soak.py``: requests of all kinds, and what becomes of each."""

from __future__ import annotations

import asyncio
import base64
import time
from collections import Counter
from dataclasses import dataclass, field
from io import BytesIO

import grpc
import httpx
import numpy as np
import numpy.typing as npt
from PIL import Image

from fedstill.protos import serving_pb2 as pb
from fedstill.protos.serving_pb2_grpc import ServingStub

TASKS = ("cats", "dogs")
GUESTS = "guests"
"""A task that comes and goes."""
BOMB_SIDE = 4095
PROBE_SECONDS = 5.0
"""Objective of a probe, which is worth more than any other query."""
BY_HTTP = 0.1
"""Share of the requests."""
VANISHING = 0.1
"""Share of the clients that leave before their answer."""


@dataclass
class Tally:
    """One entry for each request that was made: what it was, and how it ended."""

    made: Counter[str] = field(default_factory=Counter)
    ended: Counter[tuple[str, str]] = field(default_factory=Counter)
    slowest: dict[str, float] = field(default_factory=dict)

    def begin(self, kind: str) -> float:
        """Count a request; returns the moment."""
        self.made[kind] += 1
        return time.monotonic()

    def end(self, kind: str, how: str, began: float) -> None:
        """Count its end."""
        self.ended[kind, how] += 1
        self.slowest[kind] = max(self.slowest.get(kind, 0.0), time.monotonic() - began)


class Clients:
    """Of one server."""

    def __init__(self, stub: ServingStub, http: httpx.AsyncClient, rng: np.random.Generator) -> None:
        self._stub, self._http, self._rng, self.tally = stub, http, rng, Tally()
        self._images = [picture(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)) for _ in range(16)]
        self._bomb = picture(np.zeros((BOMB_SIDE, BOMB_SIDE, 3), np.uint8))

    async def query(self) -> None:
        """Mostly a valid one; now and then damaged, for a task that comes and goes, or with no time at all."""
        rng, kind = self._rng, "query"
        image = self._images[rng.integers(len(self._images))]
        if rng.random() < 0.02:
            image = image[: len(image) // 2]
        task = GUESTS if rng.random() < 0.1 else TASKS[rng.integers(len(TASKS))]
        latency = 0.0 if rng.random() < 0.02 else float(rng.choice((50, 200, 1000)))
        leaves_after = float(rng.random()) if rng.random() < VANISHING else None
        if rng.random() < BY_HTTP:
            await self._by_http([image], task, latency, leaves_after, "query over HTTP")
            return
        began = self.tally.begin(kind)
        call = self._stub.MakeQuery(
            pb.MakeQueryRequest(task=task, image=image, latency_ms=latency, utility=float(rng.random()))
        )
        if leaves_after is not None:
            await asyncio.sleep(leaves_after)
            call.cancel()
        self.tally.end(kind, (await call.code()).name, began)

    async def bombs(self, count: int) -> None:
        """One request of so many pictures that are small in bytes and large in pixels, inside every limit of size."""
        await self._by_http([self._bomb] * count, TASKS[0], 30_000, None, f"{count} bombs in one request")

    async def probe(self) -> bool:
        """Whether a valuable query with much time is answered in it."""
        began = self.tally.begin("probe")
        request = pb.MakeQueryRequest(
            task=TASKS[0], image=self._images[0], latency_ms=1000 * PROBE_SECONDS, utility=100.0
        )
        call = self._stub.MakeQuery(request, timeout=2 * PROBE_SECONDS)
        code = await call.code()
        self.tally.end("probe", code.name, began)
        return code is grpc.StatusCode.OK and time.monotonic() - began <= PROBE_SECONDS

    async def _by_http(
        self, images: list[bytes], task: str, latency: float, leaves_after: float | None, kind: str
    ) -> None:
        encoded = [base64.b64encode(image).decode() for image in images]
        body = {
            "parameters": {"latency_ms": latency},
            "inputs": [
                {
                    "name": "encoded",
                    "datatype": "BYTES",
                    "shape": [len(images)],
                    "data": encoded,
                }
            ],
        }
        began = self.tally.begin(kind)
        try:
            async with asyncio.timeout(leaves_after):
                answer = await self._http.post(f"/v2/models/{task}/infer", json=body)
            self.tally.end(kind, str(answer.status_code), began)
        except TimeoutError:
            self.tally.end(kind, "CANCELLED", began)
        except httpx.HTTPError as error:
            self.tally.end(kind, type(error).__name__, began)


def picture(pixels: npt.NDArray[np.uint8]) -> bytes:
    """As a PNG."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
