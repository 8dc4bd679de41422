"""How much utility a load could have earned at most, if queries were a fluid.

`window_reference` is a yardstick: per second of the load, that second's queries fill that second of engine time,
without batch costs or deadlines. It is not a strict bound, since a real engine may carry work into the next second.
`upper_bound` is one, for expected utility. It assumes a planner that knows all arrivals beforehand, may cut work into
pieces, and pays only the share of a full batch for each query. Even that planner cannot earn more. The gap between a
policy and the bound is chance or cannot be closed.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import linprog

from fedstill.cloud_server.serving.scheduling.profile import Profile
from fedstill.cloud_server.serving.scheduling.shadow_price import Demand, HullStep, fluid_optimum, upper_hull
from fedstill.datasets.loads.query_mix import Load

WINDOW = 1.0
SLICE = 0.2
CHUNK = 150  # slices per linear programme: time grows faster than its size

Kind = tuple[int, float, float]
"""(task, utility, latency objective in seconds)."""


def window_reference(load: Load, profile: Profile) -> float:
    """Most expected utility when each second serves its own arrivals."""
    hulls = [upper_hull(profile.useful, task, math.inf) for task in range(len(profile.tasks))]
    kinds, counts = _counts(load, WINDOW)
    return sum(
        fluid_optimum(
            [Demand(task, utility, count) for (task, utility, _), count in zip(kinds, row, strict=True)],
            hulls,
            WINDOW,
        ).value
        for row in counts.tolist()
    )


def upper_bound(load: Load, profile: Profile) -> float:
    """Expected utility that no policy exceeds, by linear programmes over slices of 0.2 s.

    A query may be served in every slice that its time from arrival to deadline touches. The load is solved in chunks;
    each may use its last queries' slices of the next chunk as if they were free, so the sum stays a bound.
    """
    batch_sizes = [schedule.maximum_batch for schedule in profile.useful]
    hulls = [upper_hull(profile.useful, task, max(batch_sizes)) for task in range(len(profile.tasks))]
    kinds, counts = _counts(load, SLICE)
    return sum(
        _chunk_bound(kinds, counts[start : start + CHUNK], hulls) for start in range(0, len(counts), CHUNK)
    )


def _chunk_bound(
    kinds: list[Kind], counts: npt.NDArray[np.float64], hulls: list[tuple[HullStep, ...]]
) -> float:
    """Maximise the value of seconds bought on the hulls; the seconds of a cell (slice, kind) flow to slices."""
    cells = np.argwhere(counts)
    spans = [math.ceil(latency / SLICE - 1e-9) + 1 for _, _, latency in kinds]
    slices = len(counts) + max(spans)
    value: list[float] = []
    most: list[float] = []
    entries: list[tuple[int, int, float]] = []  # row, column, coefficient
    for cell, (start, kind) in enumerate(cells.tolist()):
        task, utility, _ = kinds[kind]
        for step in hulls[task]:
            entries.append((cell, len(value), 1.0))
            value.append(utility * step.accuracy / step.seconds)
            most.append(counts[start, kind] * step.seconds)
        for place in range(start, start + spans[kind]):
            entries += [(cell, len(value), -1.0), (len(cells) + place, len(value), 1.0)]
            value.append(0.0)
            most.append(math.inf)
    if not value:
        return 0.0
    rows, columns, coefficients = zip(*entries, strict=True)
    matrix = sparse.csr_matrix((coefficients, (rows, columns)), shape=(len(cells) + slices, len(value)))
    solved = linprog(
        -np.array(value),
        A_eq=matrix[: len(cells)],
        b_eq=np.zeros(len(cells)),
        A_ub=matrix[len(cells) :],
        b_ub=np.full(slices, SLICE),
        bounds=np.column_stack([np.zeros(len(most)), most]),
        method="highs",
    )
    if solved.status != 0:
        raise RuntimeError(f"no upper bound: {solved.message}")
    return -float(solved.fun)


def _counts(load: Load, width: float) -> tuple[list[Kind], npt.NDArray[np.float64]]:
    """The distinct kinds of a load, and how many of each arrive per slice: float (slices, kinds)."""
    latency = np.round(load.deadline - load.arrival, 6)
    table, members = np.unique(
        np.stack([load.task, load.utility, latency], axis=1), axis=0, return_inverse=True
    )
    slices = (load.arrival / width).astype(np.int64)
    counts = np.zeros((int(slices.max()) + 1, len(table)))
    np.add.at(counts, (slices, members.ravel()), 1)
    return [(int(task), float(utility), float(late)) for task, utility, late in table], counts
