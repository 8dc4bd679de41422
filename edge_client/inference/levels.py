"""The compression levels that a clip's features can take to the cloud, and which of them a link carries in time.

A level is (rate, precision). Without a measured accuracy table the order is: lower rate first, then more bits. A linear
layer that drops a third of the dimensions costs more accuracy than rounding to int8. So int8 at rate 1 (1032 bytes)
ranks above fp32 at rate 1.5 (2728 bytes), which is therefore never chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedstill.edge_client.inference.link import LinkEstimate
from fedstill.models.audiovisual.levels import RATES, Precision, compressed_payload_bytes


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

    def milliseconds(self, estimate: LinkEstimate) -> float:
        """Expected time until the answer to a clip at this level, over a measured link."""
        seconds = estimate.seconds(self.size)
        assert seconds is not None
        return 1000 * seconds


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
    known = (level for level in levels if (level.rate, level.precision) in accuracy)
    return tuple(sorted(known, key=lambda level: (-accuracy[level.rate, level.precision], level.size)))


def choose(
    levels: Sequence[CompressionLevel], estimate: LinkEstimate, objective_ms: float, margin: float = 1.0
) -> CompressionLevel | None:
    """The first of ``levels`` whose time on a measured link is at most ``margin * objective_ms``; None: none is."""
    if not estimate.up:
        return None
    return next((level for level in levels if level.milliseconds(estimate) <= margin * objective_ms), None)


def smallest(levels: Sequence[CompressionLevel]) -> CompressionLevel:
    """The level with the fewest bytes."""
    return min(levels, key=lambda level: level.size)
