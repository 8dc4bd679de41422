"""The mix of queries: task, urgency and value of each query (Table 3.5), as arrays of one load.

Whether an answer is right must not depend on randomness that differs between policies. So every query carries one
uniform random number: its answer is right if that number lies below the accuracy of the schedule that served it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedstill.datasets.loads.arrivals import Times


@dataclass(frozen=True, slots=True)
class QueryKind:
    """A row of Table 3.5: task by name, latency objective in seconds, utility of a right answer in time."""

    task: str
    latency: float
    utility: float


TABLE_3_5 = (
    QueryKind("CIFAR10", 0.6, 0.3),
    QueryKind("CIFAR10", 1.0, 0.01),
    QueryKind("CIFAR100", 0.6, 1.0),
    QueryKind("CIFAR100", 1.0, 0.2),
    QueryKind("EuroSAT", 0.6, 0.3),
    QueryKind("EuroSAT", 1.0, 0.01),
)


@dataclass(frozen=True, slots=True)
class Load:
    """One load, sorted by arrival; all arrays have shape (queries,).

    arrival, deadline: float64 seconds. task: int64 index of a profile's task. utility: float64. draw: float64 in
    [0, 1), below which the accuracy of the serving schedule must not fall for the answer to be right.
    """

    arrival: Times
    deadline: Times
    task: npt.NDArray[np.int64]
    utility: npt.NDArray[np.float64]
    draw: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.arrival)


def draw_load(
    arrival: Times,
    tasks: Sequence[str],
    generator: np.random.Generator,
    kinds: Sequence[QueryKind] = TABLE_3_5,
) -> Load:
    """Give every arrival one of the kinds, all equally likely (thesis 3.6).

    tasks: the profile's, in order. If a profile's tasks differ from the kinds', they are matched by position (the n-th
    distinct task of the kinds becomes the profile's n-th, modulo their number), so that the mix works everywhere.
    """
    distinct = list(dict.fromkeys(kind.task for kind in kinds))
    known = all(task in tasks for task in distinct)
    place = {
        task: list(tasks).index(task) if known else position % len(tasks)
        for position, task in enumerate(distinct)
    }
    chosen = generator.integers(len(kinds), size=len(arrival))
    return Load(
        arrival=arrival,
        deadline=arrival + np.array([kind.latency for kind in kinds])[chosen],
        task=np.array([place[kind.task] for kind in kinds])[chosen],
        utility=np.array([kind.utility for kind in kinds])[chosen],
        draw=generator.random(len(arrival)),
    )
