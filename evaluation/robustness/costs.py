"""What arms cost and gain: bytes that a device uploads beyond the count of its evaluation, and points per kilobyte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

from fedstill.cloud_server.distillation.arm_names import ARMS
from fedstill.cloud_server.federation.seed_state import GENERIC
from fedstill.evaluation.robustness.pooling import Entry, Figure, difference, entries_of, with_arms
from fedstill.evaluation.robustness.questions import shifted
from fedstill.evaluation.robustness.records import Study


@dataclass(frozen=True, slots=True)
class CostLine:
    """One arm on shifted devices: what it uploads for its student, in bytes, and what it gains over the generic one."""

    arm: str
    up_bytes: float
    gain: Figure

    @property
    def points_per_kilobyte(self) -> float | None:
        """None for an arm that uploads nothing."""
        return 1000 * self.gain.points / self.up_bytes if self.up_bytes > 0 else None


def extra_bytes(entry: Entry, arm: str) -> int | None:
    """Uploaded for this arm's student: beyond what the generic one costs, whose only upload is its evaluation."""
    sent = entry.device.up_bytes
    return sent[arm] - sent[GENERIC] if {arm, GENERIC} <= sent.keys() else None


def summary_bytes(entry: Entry, arm: str) -> int | None:
    """Bytes of the largest answer of the device in one round; None if the arm asked for no summary."""
    return entry.device.largest_bytes.get(arm) if extra_bytes(entry, arm) else None


def cost_lines(study: Study) -> Iterator[CostLine]:
    """For every arm beside the generic one, in table order, over the shifted devices that have both."""
    for arm in ARMS:
        entries = with_arms(entries_of(study, shifted), arm, GENERIC)
        bytes_up = [size for entry in entries if (size := extra_bytes(entry, arm)) is not None]
        gain = difference(entries, arm, GENERIC)
        if arm != GENERIC and bytes_up and gain:
            yield CostLine(arm, fmean(bytes_up), gain)
