"""Which compression level a clip takes: the best one that the link carries in time, without rapid changes.

A level is (rate, precision). Without a measured accuracy table the order is: lower rate first, then more bits. A linear
layer that drops a third of the dimensions costs more accuracy than rounding to int8. So int8 at rate 1 (1032 bytes)
ranks above fp32 at rate 1.5 (2728 bytes), which is therefore never chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedstill.edge_client.inference.link import LinkEstimate
from fedstill.models.audiovisual.levels import RATES, Precision, compressed_payload_bytes

LOCAL = None
"""What :func:`choose` returns if no level is fast enough: the device's own head."""


@dataclass(frozen=True)
class CompressionLevel:
    """One way to send a clip's features; ``size`` is the bytes of the features."""

    rate: float
    precision: Precision
    size: int

    @property
    def name(self) -> str:
        """Such as ``1.5 int8``."""
        return f"{self.rate:g} {self.precision.value}"


def compression_levels(
    feature_width: int,
    rates: Sequence[float] = RATES,
    accuracy: Mapping[tuple[float, Precision], float] | None = None,
) -> tuple[CompressionLevel, ...]:
    """All levels of these rates, highest fidelity first.

    Args:
        feature_width: of one modality before compression.
        rates: those that the cloud has heads for.
        accuracy: measured per (rate, precision). If given, it decides, and of equals the smaller one is first. A level
            that is not in the table is left out.
    """
    levels = [
        CompressionLevel(rate, precision, compressed_payload_bytes(feature_width, rate, precision))
        for rate in sorted(rates)
        for precision in Precision  # most bits first
    ]
    if accuracy is None:
        return tuple(levels)
    known = (rung for rung in levels if (rung.rate, rung.precision) in accuracy)
    return tuple(sorted(known, key=lambda rung: (-accuracy[rung.rate, rung.precision], rung.size)))


def choose(
    levels: Sequence[CompressionLevel], estimate: LinkEstimate, objective_ms: float, margin: float = 1.0
) -> CompressionLevel | None:
    """The first of ``rungs`` whose time on a measured link is at most ``margin * objective_ms``, else LOCAL."""
    if not estimate.up:
        return LOCAL
    return next((rung for rung in levels if _milliseconds(rung, estimate) <= margin * objective_ms), LOCAL)


def smallest(levels: Sequence[CompressionLevel]) -> CompressionLevel:
    """The level with the fewest bytes."""
    return min(levels, key=lambda rung: rung.size)


@dataclass(frozen=True)
class Hysteresis:
    """When to leave a level. Margins are shares of the objective.

    A change needs ``dwell`` seconds since the last one, in both directions. If the present level becomes too slow
    before that, clips are answered locally for the rest of the time. So no trace of measurements can make more than one
    change per ``dwell``.
    """

    dwell: float = 5.0
    up_margin: float = 0.7
    down_margin: float = 0.9


@dataclass(frozen=True)
class Decision:
    """A level or LOCAL, and in words why it is not the cloud."""

    rung: CompressionLevel | None
    reason: str = ""


class LevelSwitch:
    """Remembers the present level. Pure: estimates and times are arguments."""

    def __init__(self, levels: Sequence[CompressionLevel], hysteresis: Hysteresis = Hysteresis()) -> None:
        self._levels = tuple(levels)
        self._hysteresis = hysteresis
        self._current: int | None = None
        self._changed_at = 0.0

    def decide(self, estimate: LinkEstimate, objective_ms: float, now: float) -> Decision:
        """Where the next clip goes.

        Args:
            estimate: of the link.
            objective_ms: what is left for the cloud's answer.
            now: seconds, of a steady clock.
        """
        if not estimate.up:
            return Decision(LOCAL, "link down")
        if estimate.seconds(0) is None:
            return self._measuring(now)
        if self._current is None:
            return self._switch(self._levels, estimate, objective_ms, now)
        present, rules = self._levels[self._current], self._hysteresis
        settled = now - self._changed_at >= rules.dwell
        if _milliseconds(present, estimate) > objective_ms:
            lower = self._levels[self._current + 1 :]
            if settled or choose(lower, estimate, objective_ms, rules.down_margin) is LOCAL:
                return self._switch(lower, estimate, objective_ms, now)
            return Decision(LOCAL, "link slower than a moment ago")
        better = choose(self._levels[: self._current], estimate, objective_ms, rules.up_margin)
        if settled and better is not LOCAL:
            self._move_to(better, now)
        return Decision(self._levels[self._current])

    def _measuring(self, now: float) -> Decision:
        """The smallest level measures a new link; after a reconnection this counts as a change like any other."""
        if not self._levels:
            return Decision(LOCAL, "the cloud offers no rung")
        probe = smallest(self._levels)
        if self._current is not None and self._levels[self._current] != probe:
            if now - self._changed_at < self._hysteresis.dwell:
                return Decision(LOCAL, "link not measured yet")
            self._move_to(probe, now)
        return Decision(probe)

    def _switch(
        self, levels: Sequence[CompressionLevel], estimate: LinkEstimate, objective_ms: float, now: float
    ) -> Decision:
        rung = choose(levels, estimate, objective_ms, self._hysteresis.down_margin)
        if rung is LOCAL:
            return Decision(LOCAL, "link too slow")
        self._move_to(rung, now)
        return Decision(rung)

    def _move_to(self, rung: CompressionLevel, now: float) -> None:
        self._current, self._changed_at = self._levels.index(rung), now


def _milliseconds(rung: CompressionLevel, estimate: LinkEstimate) -> float:
    seconds = estimate.seconds(rung.size)
    assert seconds is not None
    return 1000 * seconds
