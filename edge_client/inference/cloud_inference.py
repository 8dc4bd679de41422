"""Edge inference (thesis 5.3.5, Figure 5.5): features on the device, the head where the link and the owner allow it.

In ``auto`` every clip gets an answer by its deadline: the cloud's if it comes in time, else the local head's. Both use
the same features. ``local`` never sends anything. ``cloud`` never uses the local head and fails instead.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from fedstill.edge_client.inference.cloud_connection import Ticket
from fedstill.edge_client.inference.cloud_stream import Description
from fedstill.edge_client.inference.level_switch import LevelSwitch
from fedstill.edge_client.inference.levels import CompressionLevel, compression_levels, smallest
from fedstill.edge_client.inference.link import LinkEstimate
from fedstill.edge_client.inference.route import Route
from fedstill.edge_client.students.runtime_api import FeatureArrays, Runtime
from fedstill.protos.features import FeatureError, FeatureVectors, encode_features

Mode = Literal["local", "cloud", "auto"]

LOCAL_RESERVE_MS = 10.0
"""Part of the objective that is reserved for the local head and for waking up."""
CLOUD_PATIENCE_MS = 10_000.0
"""How long ``cloud`` waits for an answer; it has no other way to get one."""
FIRST_TRIAL, LONGEST_TRIAL = 1.0, 8.0
"""Seconds between clips that are sent over a link that seems too slow, to notice when it is no longer."""


class NoAnswer(RuntimeError):
    """Mode ``cloud`` and the cloud does not answer; one line."""


@dataclass(frozen=True)
class Classification:
    """One clip's class probabilities and how they came about.

    Attributes:
        probabilities: float32 (classes,).
        route: where the clip was classified, and why there.
        bytes: feature bytes sent for this clip; counted also if the answer came too late to be used.
        milliseconds: from the clip to this answer, encoders included.
    """

    probabilities: npt.NDArray[np.float32]
    route: Route
    bytes: int
    milliseconds: float


class Connection(Protocol):
    """What inference needs of a connection. Implemented by ``CloudConnection``."""

    @property
    def estimate(self) -> LinkEstimate: ...

    @property
    def description(self) -> Description | None: ...

    def hindrance(self) -> str: ...

    def send(self, level: CompressionLevel, payload: bytes) -> Ticket: ...

    def gave_up(self, ticket: Ticket) -> None: ...


class EdgeInference:
    """Classifies clips, one at a time. A new student needs a new one.

    Args:
        runtime: the student.
        connection: started; None if there is no cloud, which is allowed in ``local`` only.
        mode: see the top of the file.
        objective_ms: from the clip to its answer.
        uploads_allowed: False if the privacy mode forbids that features of a clip leave the device, since they reveal
            more than prototypes do.
        clock: seconds, steady.

    Raises:
        ValueError: a combination that makes no sense.
    """

    def __init__(
        self,
        runtime: Runtime,
        connection: Connection | None,
        mode: Mode = "auto",
        objective_ms: float = 300.0,
        *,
        uploads_allowed: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if mode == "cloud" and not uploads_allowed:
            raise ValueError("infer: cloud needs uploads, which the privacy mode forbids: use --infer local")
        if mode != "local" and connection is None:
            raise ValueError(f"infer: {mode} needs a cloud: name one, or use --infer local")
        if not (math.isfinite(objective_ms) and objective_ms > 0):
            raise ValueError(f"objective_ms: {objective_ms} is not a time")
        self._runtime, self._connection, self._mode = runtime, connection, mode
        self._objective_ms = objective_ms
        self._uploads_allowed = uploads_allowed
        self._clock = clock
        self._known: Description | None = None
        self._levels: tuple[CompressionLevel, ...] = ()
        self._switch = LevelSwitch(())
        self._trial_pause = FIRST_TRIAL
        self._trial_at = 0.0
        self._trial: Ticket | None = None

    def classify(self, audio: npt.NDArray[np.float32], frames: npt.NDArray[np.uint8]) -> Classification:
        """Classify one clip.

        Args:
            audio: float32 (1, bins, steps).
            frames: uint8 (1, count, channels, size, size).

        Raises:
            NoAnswer: in mode ``cloud`` only.
        """
        started = self._clock()
        features = self._runtime.features(audio, frames)
        if self._mode == "local" or self._connection is None:
            return self._on_the_device(features, started, "local mode")
        if not self._uploads_allowed:
            return self._on_the_device(features, started, "privacy mode forbids uploads")
        hindrance = self._connection.hindrance() or self._learn_levels(self._connection, features)
        if hindrance:
            return self._on_the_device(features, started, hindrance)
        now = self._clock()
        left = self._objective_ms - 1000 * (now - started) - LOCAL_RESERVE_MS
        route = self._switch.decide(self._connection.estimate, left, now)
        if self._mode == "cloud":
            level, left = route.level or smallest(self._levels), CLOUD_PATIENCE_MS
            return self._in_the_cloud(self._connection, level, features, started, left)
        if route.level is None:
            sent = self._try_anyway(self._connection, features, now)
            return self._on_the_device(features, started, route.reason, sent)
        return self._in_the_cloud(self._connection, route.level, features, started, left)

    def _in_the_cloud(
        self,
        connection: Connection,
        level: CompressionLevel,
        features: FeatureArrays,
        started: float,
        left: float,
    ) -> Classification:
        """The cloud's answer; the local one if there is none within ``left`` milliseconds, or a refusal."""
        try:
            payload = self._payload(features, level)
        except FeatureError as error:
            return self._on_the_device(features, started, str(error))
        ticket = connection.send(level, payload)
        reply = ticket.wait(left / 1000)
        if reply is None:
            connection.gave_up(ticket)
            return self._on_the_device(features, started, "no answer in time", level.size)
        if reply.probabilities is None:
            return self._on_the_device(features, started, reply.refusal, level.size)
        self._trial_pause = FIRST_TRIAL
        spent = 1000 * (self._clock() - started)
        return Classification(reply.probabilities, Route.cloud(level), level.size, spent)

    def _on_the_device(
        self, features: FeatureArrays, started: float, reason: str, sent: int = 0
    ) -> Classification:
        """The local head's answer, ``sent`` bytes having gone to the cloud all the same."""
        if self._mode == "cloud":
            raise NoAnswer(f"no answer from the cloud: {reason}")
        logits = self._runtime.logits(features)[0]
        powers = np.exp(logits - logits.max())
        probabilities = (powers / powers.sum()).astype(np.float32)
        spent = 1000 * (self._clock() - started)
        return Classification(probabilities, Route.local(reason), sent, spent)

    def _try_anyway(self, connection: Connection, features: FeatureArrays, now: float) -> int:
        """Now and then send a clip over a link that seems too slow, without waiting for the answer; returns the bytes
        sent."""
        if self._trial is not None and self._trial.seconds is not None:
            if 1000 * self._trial.seconds <= self._objective_ms:  # it gets better: look again soon
                self._trial_pause = FIRST_TRIAL
                self._trial_at = min(self._trial_at, now + FIRST_TRIAL)
            self._trial = None
        if now < self._trial_at:
            return 0
        self._trial_at = now + self._trial_pause
        self._trial_pause = min(2 * self._trial_pause, LONGEST_TRIAL)
        level = smallest(self._levels)
        try:
            self._trial = connection.send(level, self._payload(features, level))
        except FeatureError:
            return 0  # the clip has a local answer, and the next one can measure the link
        return level.size

    def _payload(self, features: FeatureArrays, level: CompressionLevel) -> bytes:
        reduced = self._runtime.compress(features, level.rate)
        return encode_features(FeatureVectors(reduced.audio[0], reduced.visual[0]), level.precision)

    def _learn_levels(self, connection: Connection, features: FeatureArrays) -> str:
        """Learn which levels both sides understand, again when the cloud's description changes; returns why none, or
        empty."""
        description = connection.description
        if description is None:
            return "link down (not described yet)"
        width = features.audio.shape[1]
        if description.feature_width != width:
            return f"the cloud means {description.feature_width} features, this student has {width}"
        if description != self._known:
            rates = [rate for rate in description.rates if self._can_compress(features, rate)]
            self._known, self._levels = description, compression_levels(width, rates)
            self._switch = LevelSwitch(self._levels)
        return "" if self._levels else "no compression level that both sides know"

    def _can_compress(self, features: FeatureArrays, rate: float) -> bool:
        """A student may come without some compressors."""
        try:
            self._runtime.compress(features, rate)
        except ValueError:
            return False
        return True
