"""Batches on the engine: their times, and whether it fails. There is no torch here: the engine is a callable."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.cloud_server.serving.scheduling.queries import Rejection

LOG = logging.getLogger(__name__)

SHORTEST_SECONDS = 1e-9
"""No batch takes no time, whatever the clock's resolution."""
FIRST_REST, LONGEST_REST = 1.0, 60.0
"""Seconds for which an engine that has failed counts as failing, doubled with every further failure in a row."""

Infer = Callable[[Sequence[Any], Sequence[str], str], Sequence[Prediction | Rejection]]
"""Ready images, the task of each, a schedule's name in the policy's profile -> an answer or a refusal per image."""


class EngineRuns:
    """One engine, used by one thread at a time; `failing` may be read from any.

    Args:
        clock: seconds, never falling.
        device: the engine's, for the log; empty if there is only one.
    """

    def __init__(self, infer: Infer, clock: Callable[[], float], device: str = "") -> None:
        self._infer, self._clock, self._device = infer, clock, device
        self._failures, self._failing_until = 0, 0.0

    @property
    def failing(self) -> bool:
        """Whether the engine has failed lately and not answered since."""
        return self._failures > 0 and self._clock() < self._failing_until

    def run(
        self, images: Sequence[Any], tasks: Sequence[str], schedule: str
    ) -> tuple[float, Sequence[Prediction | Rejection] | None]:
        """Seconds of the engine, and its results; None if there was nothing to run or it failed."""
        started = self._clock()
        if not images:
            return self._since(started), None
        try:
            results = self._infer(images, tasks, schedule)
        except Exception:
            LOG.exception(
                "event=engine_failed schedule=%s size=%d device=%s",
                schedule,
                len(images),
                self._device or "only",
            )
            rest = min(LONGEST_REST, FIRST_REST * 2.0 ** min(self._failures, 10))
            self._failures, self._failing_until = self._failures + 1, self._clock() + rest
            return self._since(started), None
        self._failures = 0
        return self._since(started), results

    def _since(self, started: float) -> float:
        return max(self._clock() - started, SHORTEST_SECONDS)
