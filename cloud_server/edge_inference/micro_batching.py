"""Clips of many devices in one matrix product: a short wait, then one product per student version and rate.

The queue is bounded. A clip that finds it full is refused at once with a hint when to come back, because an answer
after the device's deadline is worth nothing.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fedstill.cloud_server.edge_inference.heads import Heads
from fedstill.protos.features import FeatureVectors

Probabilities = npt.NDArray[np.float32]


class QueueFull(Exception):
    """No room for one more clip; ``retry_milliseconds`` says when there should be."""

    def __init__(self, retry_milliseconds: int) -> None:
        super().__init__(f"try again in {retry_milliseconds} ms")
        self.retry_milliseconds = retry_milliseconds


@dataclass(frozen=True)
class Batching:
    """How long to collect, how many clips per product, and how many may wait."""

    window_seconds: float = 0.002
    largest: int = 256
    waiting: int = 1024


@dataclass(frozen=True)
class _Clip:
    heads: Heads
    rate: float
    features: FeatureVectors
    result: asyncio.Future[Probabilities]


def classify_group(heads: Heads, rate: float, clips: Sequence[FeatureVectors]) -> Probabilities:
    """float32 (clips, classes) of clips that share a student version and a rate: one product for all."""
    audio = torch.from_numpy(np.stack([clip.audio for clip in clips]))
    visual = torch.from_numpy(np.stack([clip.visual for clip in clips]))
    found: Probabilities = heads.probabilities(rate, audio, visual).numpy()
    return found


class MicroBatcher:
    """Collects clips and classifies them together. Start and stop it in the event loop that uses it."""

    def __init__(self, batching: Batching = Batching()) -> None:
        self._batching = batching
        self._queue: asyncio.Queue[_Clip] = asyncio.Queue(batching.waiting)
        self._worker: asyncio.Task[None] | None = None
        self._batch_seconds = 2 * batching.window_seconds
        self.batches = 0
        self.products = 0

    def start(self) -> None:
        """Begin to work on submitted clips."""
        self._worker = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """End the worker. Waiting clips are cancelled; drain the streams first."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
            self._worker = None
        while not self._queue.empty():
            self._queue.get_nowait().result.cancel()

    async def classify(self, heads: Heads, rate: float, features: FeatureVectors) -> Probabilities:
        """float32 (classes,) of one clip. Raises QueueFull at once if too many wait already."""
        result: asyncio.Future[Probabilities] = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait(_Clip(heads, rate, features, result))
        except asyncio.QueueFull:
            batches_ahead = math.ceil(self._batching.waiting / self._batching.largest)
            raise QueueFull(max(1, math.ceil(1000 * batches_ahead * self._batch_seconds))) from None
        return await result

    async def _work(self) -> None:
        while True:
            batch = [await self._queue.get()]
            started = time.perf_counter()
            if self._batching.window_seconds:
                await asyncio.sleep(self._batching.window_seconds)
            while len(batch) < self._batching.largest and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            await self._answer(batch)
            self.batches += 1
            self._batch_seconds += 0.2 * (time.perf_counter() - started - self._batch_seconds)

    async def _answer(self, batch: list[_Clip]) -> None:
        groups: defaultdict[tuple[int, float], list[_Clip]] = defaultdict(list)
        for clip in batch:
            groups[id(clip.heads), clip.rate].append(clip)
        for clips in groups.values():
            self.products += 1
            vectors = [clip.features for clip in clips]
            try:
                rows = await asyncio.to_thread(classify_group, clips[0].heads, clips[0].rate, vectors)
            except Exception as error:  # belongs to these clips' streams, which report it; the others go on
                for clip in clips:
                    if not clip.result.done():
                        clip.result.set_exception(error)
                continue
            for clip, row in zip(clips, rows, strict=True):
                if not clip.result.done():  # the device may have left
                    clip.result.set_result(row)
