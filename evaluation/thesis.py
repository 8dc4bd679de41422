"""The printed results of thesis chapter 5 as exact fractions: the percentages decoded over the class counts.

Source: Tables 5.2, 5.3 and 5.4. The published splits say how many test clips each client has, and so a printed
percentage stands for one count of right clips. Figures 5.6 to 5.13 come without numbers, so only what the author
says of them is kept. The thesis' "Client 1" and "Client 2" are clients 0 and 1 here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedstill.cloud_server.distillation.arm_names import THESIS_ARMS

RATES = (1.0, 1.5, 2.0, 3.0)


@dataclass(frozen=True, slots=True)
class Counts:
    """Correct clips of `total`, in the order of THESIS_ARMS (Tables 5.2, 5.4) or of RATES (Table 5.3)."""

    correct: tuple[int, int, int, int]
    total: int


ACCURACY: Mapping[str, Mapping[tuple[str, int], Counts]] = {
    "CREMA-D": {  # Table 5.2
        ("latency_insensitive", 0): Counts((250, 238, 259, 256), 377),
        ("latency_insensitive", 1): Counts((204, 217, 225, 224), 367),
        ("latency_sensitive", 0): Counts((132, 129, 136, 137), 189),
        ("latency_sensitive", 1): Counts((106, 116, 118, 114), 185),
    },
    "AVE": {  # Table 5.4
        ("latency_insensitive", 0): Counts((125, 136, 138, 138), 223),
        ("latency_insensitive", 1): Counts((100, 110, 111, 114), 179),
        ("latency_sensitive", 0): Counts((63, 67, 70, 72), 115),
        ("latency_sensitive", 1): Counts((51, 55, 53, 59), 91),
    },
}

COMPRESSION: Mapping[str, Mapping[int, Counts]] = {  # Table 5.3, latency-sensitive
    "CREMA-D": {0: Counts((137, 131, 130, 136), 189), 1: Counts((114, 115, 117, 111), 185)},
    "AVE": {0: Counts((69, 62, 67, 65), 115), 1: Counts((54, 60, 49, 56), 91)},
}

AVE_REPLICATE = (
    "Thesis: ratio 1 on AVE is 69/115 and 54/91 here but 72/115 and 59/91 in Table 5.4 (select+cluster); "
    "if both are the same setting, its run-to-run spread is 2.6 and 5.5 points."
)

OBSERVATIONS: Mapping[str, str] = {
    "fig5.6": "both selecting arms start with a higher loss that falls sharply and settles, random stays low "
    "throughout, and select+cluster ends slightly above select.",
    "fig5.10": "the selected clips are mostly of the client's own classes; some of the others come along, "
    "for client 1 nearly as many of class 3 as of class 1.",
    "fig5.12": "from 3 to 12 samples per cluster there is little influence on accuracy; in some cases larger "
    "clusters do better because outliers weigh less.",
    "fig5.13": "accuracy fluctuates between 60 % and 75 % as fewer samples are uploaded.",
}


def accuracy(dataset: str, scenario: str, client: int, arm: str) -> tuple[int, int] | None:
    """(correct, total) of one cell of Table 5.2 or 5.4; None if the thesis has no such cell."""
    counts = ACCURACY[dataset].get((scenario, client))
    if counts is None or arm not in THESIS_ARMS:
        return None
    return counts.correct[THESIS_ARMS.index(arm)], counts.total


def compression(dataset: str, client: int, rate: float) -> tuple[int, int] | None:
    """(correct, total) of one cell of Table 5.3; None if the thesis has no such cell."""
    counts = COMPRESSION[dataset].get(client)
    if counts is None or rate not in RATES:
        return None
    return counts.correct[RATES.index(rate)], counts.total
