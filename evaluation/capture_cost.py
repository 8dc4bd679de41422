"""What it costs a device to record otherwise than the public clips, and what its own student gets back.

A simulation can tell, since several devices hold the same clips, each recorded by its own microphone and camera. The
device that records as the public clips were recorded shows what the others lose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedstill.evaluation.results import ClipRow, Results
from fedstill.evaluation.statistics import Accuracy, Comparison, arm_accuracy, compare, paired, signed
from fedstill.evaluation.summary import EQUAL_STEPS, OURS

AS_PUBLIC = "as the public clips"
NOTE = (
    "Generic: the student that everybody has at least. Lost: its clips right, less those of the device that records "
    "the same clips as the public ones were recorded. Back: what fedstill's student adds, on the same clips."
)


@dataclass(frozen=True, slots=True)
class CaptureCost:
    """One device in one scenario.

    Attributes:
        capture: how it records, in words.
        generic: accuracy of the generic student on its clips.
        lost: against the same clips as the public ones were recorded; None for such a device, and if no device holds
            the same clips so.
        personal: accuracy of the student that the device gets.
        back: of that one against the generic one; None without paired clips.
    """

    scenario: str
    client: int
    capture: str
    generic: Accuracy
    lost: Comparison | None
    personal: Accuracy
    back: Comparison | None


def capture_costs(results: Results, clips: Sequence[ClipRow]) -> tuple[CaptureCost, ...]:
    """One per scenario and device; none if no device records otherwise, or an arm is missing."""
    found = []
    for scenario in results.scenarios():
        for client, capture in enumerate(results.captures if any(results.captures) else ()):
            rows = [row for row in results.rows if (row.scenario, row.client) == (scenario, client)]
            generic = [row for row in rows if row.arm == EQUAL_STEPS]
            personal = [row for row in rows if row.arm == OURS]
            if generic and personal:
                found.append(
                    CaptureCost(
                        scenario, client, capture or AS_PUBLIC, arm_accuracy(generic, clips),
                        _lost(results.captures, clips, scenario, client), arm_accuracy(personal, clips),
                        compare(clips, OURS, EQUAL_STEPS, scenario=scenario, client=client),
                    )
                )  # fmt: skip
    return tuple(found)


def lesson(costs: Sequence[CaptureCost]) -> str:
    """The table in two sentences; empty if nothing is known to be lost."""
    shifted = [one for one in costs if one.lost and one.back]
    if not shifted:
        return ""
    lost = float(np.mean([one.lost.difference_points for one in shifted if one.lost]))
    back = float(np.mean([one.back.difference_points for one in shifted if one.back]))
    text = (
        f"Another microphone and camera: {signed(lost)} points on average with the generic student, {signed(back)} "
        "back with fedstill."
    )
    others = [one.back.difference_points for one in costs if one.capture == AS_PUBLIC and one.back]
    return (
        f"{text} {AS_PUBLIC.capitalize()}: {signed(float(np.mean(others)))} with fedstill."
        if others
        else text
    )


def _lost(captures: Sequence[str], clips: Sequence[ClipRow], scenario: str, client: int) -> Comparison | None:
    """Of the generic student, against a device that records the same clips as the public ones were recorded."""
    if not captures[client]:
        return None
    plain = {
        (row.seed, row.clip_ids): row.correct[EQUAL_STEPS]
        for row in clips
        if row.scenario == scenario and not captures[row.client] and EQUAL_STEPS in row.correct
    }
    pairs = [
        (row, [int(here) - int(there) for here, there in zip(row.correct[EQUAL_STEPS], other, strict=True)])
        for row in clips
        if (row.scenario, row.client) == (scenario, client) and EQUAL_STEPS in row.correct
        if (other := plain.get((row.seed, row.clip_ids)))
    ]
    return paired(pairs)
