"""How much utility a load could have earned at most, if queries were a fluid.

`window_reference` is the yardstick of the design: per second of the load, that second's queries fill that second of engine
time, without batch costs or deadlines. It is not a strict bound, since a real engine may carry work over into the next second.
`upper_bound` is one, for expected utility: work may move within each query's deadline, in pieces, every query costs at
least its share of a full batch, and any prices on the slices of time bound the best schedule from above (weak duality).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.serving.profile import Profile
from fedstill.cloud_server.serving.shadow_price import Demand, fluid_optimum, upper_hull
from fedstill.datasets.query_mix import Load

WINDOW = 1.0
SLICE = 0.1
SWEEPS = 300


def window_reference(load: Load, profile: Profile) -> float:
    """Most expected utility when each second serves its own arrivals."""
    hulls = [upper_hull(profile.useful, task, float("inf")) for task in range(len(profile.tasks))]
    kinds, members = _kinds(load)
    window = (load.arrival / WINDOW).astype(np.int64)
    counts = np.zeros((int(window.max()) + 1, len(kinds)))
    np.add.at(counts, (window, members), 1)
    return sum(
        fluid_optimum(
            [Demand(task, utility, count) for (task, utility, _), count in zip(kinds, row, strict=True)], hulls, WINDOW
        ).value
        for row in counts.tolist()
    )


def upper_bound(load: Load, profile: Profile) -> float:
    """No policy's expected utility exceeds this.

    For prices p >= 0 per slice of time: the sum over queries of max(0, max over schedules of utility * accuracy -
    seconds * cheapest price between arrival and deadline), plus what all slices cost. The prices are lowered and
    raised by subgradient steps; whatever they are, the value is a bound, and the least one found is returned.
    """
    kinds, members = _kinds(load)
    seconds = np.array([s.per_query_seconds + s.fixed_seconds / s.maximum_batch for s in profile.useful])
    accuracy = np.array([s.accuracy for s in profile.useful])
    slices = int(load.deadline.max() / SLICE) + 2
    arrival = (load.arrival / SLICE).astype(np.int64)
    counts = np.zeros((slices, len(kinds)))
    np.add.at(counts, (arrival, members), 1)
    # A query may use every slice that its arrival .. deadline touches: generous, so still a bound.
    spans = [int(np.ceil(latency / SLICE - 1e-9)) + 1 for _, _, latency in kinds]
    gains = np.array([[utility * row[task] for row in accuracy] for task, utility, _ in kinds])
    price = np.full(slices, float(np.median(gains.max(axis=1)) / seconds.mean()))
    best = np.inf
    step = float(price[0])
    for sweep in range(SWEEPS):
        bound, used = SLICE * float(price.sum()), np.zeros(slices)
        for kind, span in enumerate(spans):
            padded = np.concatenate([price, np.full(span - 1, np.inf)])
            reach = np.lib.stride_tricks.sliding_window_view(padded, span)
            cheapest, where = reach.min(axis=1), reach.argmin(axis=1) + np.arange(slices)
            net = gains[kind] - cheapest[:, None] * seconds
            choice = net.argmax(axis=1)
            served = net.max(axis=1) > 0
            bound += float((counts[:, kind] * np.maximum(0, net.max(axis=1))).sum())
            np.add.at(used, where[served], (counts[:, kind] * seconds[choice])[served])
        best = min(best, bound)
        price = np.maximum(0, price - step / np.sqrt(1 + sweep) * np.clip(1 - used / SLICE, -3, 1) * 0.3)
    return best


def _kinds(load: Load) -> tuple[list[tuple[int, float, float]], npt.NDArray[np.int64]]:
    """The distinct (task, utility, latency) of a load, and which of them each query is."""
    latency = np.round(load.deadline - load.arrival, 6)
    table, members = np.unique(np.stack([load.task, load.utility, latency], axis=1), axis=0, return_inverse=True)
    return [(int(task), float(utility), float(late)) for task, utility, late in table], members.ravel()
