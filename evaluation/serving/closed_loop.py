"""What a server serves per second if it always has a full batch: clients that wait for their answer and ask again."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence

from fedstill.client.serving_client import ServingAddress
from fedstill.common.errors import DataError
from fedstill.evaluation.serving.live_loadtest import Target
from fedstill.evaluation.serving.served_process import ServedProcess
from fedstill.evaluation.serving.target import GrpcTarget
from fedstill.evaluation.serving.task_images import TaskImages

PLAIN = "pets"
"""The policy that never changes the number of tokens."""
CLIENTS = 16
"""Batches of eight while the next eight arrive."""
SECONDS = 10.0
WARM_UP = 2.0
PATIENT_MS = 60_000.0


async def closed_loop_rate(
    target: Target, pictures: Sequence[TaskImages], seconds: float = SECONDS, warm_up: float = WARM_UP
) -> float:
    """Answers per second to CLIENTS clients that wait.

    pictures: what they ask, the tasks in turn. Raises DataError if something else than answers comes.
    """
    end = time.monotonic() + warm_up + seconds
    begin = end - seconds
    answered = 0

    async def client(first: int) -> None:
        nonlocal answered
        for number in itertools.count(first, CLIENTS):
            sent = pictures[number % len(pictures)]
            got = await target.query(sent.task, sent.pictures[number % len(sent.pictures)], PATIENT_MS, 1.0)
            if got.kind != "answered":
                raise DataError(f"the server at its own pace: {got.kind} {got.detail}")
            now = time.monotonic()
            if now >= end:
                return
            answered += now >= begin

    await asyncio.gather(*(client(first) for first in range(CLIENTS)))
    return answered / seconds


def plain_rate(server: ServedProcess, pictures: Sequence[TaskImages], seconds: float = SECONDS) -> float:
    """The same of a server that runs PLAIN, over gRPC, per second."""

    async def ask() -> float:
        async with GrpcTarget(ServingAddress(server.target)) as target:
            return await closed_loop_rate(target, pictures, seconds)

    return asyncio.run(ask())
