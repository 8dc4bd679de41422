"""k-means with numpy alone, plain or with bounds on the size of a cluster (Bradley, Bennett and Demiriz 2000).

A device installs neither scikit-learn nor a solver of flows for it: with what they need, they were a third of its
install. The plain form starts from the random choices that scikit-learn makes, and so finds its clusters.

The bounded form is better than Lloyd's iterations alone. These stop where no row is nearer to another centre, although
centres move with their rows. Hartigan's criterion counts that (Telgarsky and Vattani 2010, "Hartigan's method"), which
matters if a cluster holds eight rows.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fedstill.edge_client.privacy.bounded_assignment import Costs, Labels, assign

MOST_ITERATIONS = 300
TOLERANCE = 1e-4
"""Of the mean variance of a column: centres that move by less, squared and summed, have arrived."""
MOST_STARTS, ROWS_OF_ALL_STARTS = 8, 2000
"""Of the bounded form; the best end counts. Of many rows fewer starts: they take longer and differ less."""
GAIN = 1e-9
"""Of the sum of squares: less is rounding."""


def kmeans(rows: npt.NDArray[np.floating], clusters: int, seed: int) -> Labels:
    """The cluster of each row, int64 (rows,).

    Args:
        rows: (rows, columns), finite.
        clusters: at most the number of different rows.
        seed: of the start.
    """
    places = _centred(rows)
    return _lloyd(places, _start(places, clusters, np.random.RandomState(seed)), 1, len(places))


def bounded_kmeans(rows: npt.NDArray[np.floating], clusters: int, low: int, high: int, seed: int) -> Labels:
    """As ``kmeans``, with ``low`` to ``high`` rows in each cluster; rows may be alike.

    Raises:
        ValueError: so many rows cannot be so shared out.
    """
    places, random = _centred(rows), np.random.RandomState(seed)
    found = [
        _hartigan(places, _lloyd(places, _start(places, clusters, random), low, high), clusters, low, high)
        for _ in range(max(1, min(MOST_STARTS, ROWS_OF_ALL_STARTS // len(places))))
    ]
    return min(found, key=lambda labels: sum_of_squares(places, labels))


def sum_of_squares(rows: npt.NDArray[np.floating], labels: Labels) -> float:
    """Of the distances of all rows to the means of their clusters, of which none is empty."""
    places = rows.astype(np.float64)
    return float(np.square(places - _means(places, labels, int(labels.max()) + 1)[labels]).sum())


def _centred(rows: npt.NDArray[np.floating]) -> Costs:
    places: Costs = rows.astype(np.float64)
    places -= places.mean(axis=0)
    return places


def _start(rows: Costs, clusters: int, random: np.random.RandomState) -> Costs:
    """Rows as first centres: each the best of a few that were drawn by their squared distance to those before.

    Greedy k-means++ (Arthur and Vassilvitskii 2007).
    """
    trials = 2 + int(math.log(clusters))
    chosen = [int(random.choice(len(rows), p=np.full(len(rows), 1 / len(rows))))]
    nearest = _squared_distances(rows, rows[chosen])[:, 0]
    while len(chosen) < clusters:
        drawn = np.searchsorted(np.cumsum(nearest), random.uniform(size=trials) * nearest.sum())
        drawn = np.minimum(drawn, len(rows) - 1)
        candidates = np.minimum(nearest, _squared_distances(rows, rows[drawn]).T)
        best = int(candidates.sum(axis=1).argmin())
        chosen.append(int(drawn[best]))
        nearest = candidates[best]
    return rows[chosen]


def _lloyd(rows: Costs, centres: Costs, low: int, high: int) -> Labels:
    tolerance = TOLERANCE * rows.var(axis=0).mean()
    labels, prices = np.full(len(rows), -1), None
    for _ in range(MOST_ITERATIONS):
        found, prices = assign(_squared_distances(rows, centres), low, high, prices)
        if np.array_equal(found, labels):
            return labels
        labels, former = found, centres
        centres = _means(rows, labels, len(centres))
        if np.square(centres - former).sum() <= tolerance:
            break
    return assign(_squared_distances(rows, centres), low, high, prices)[0]


def _hartigan(rows: Costs, labels: Labels, clusters: int, low: int, high: int) -> Labels:
    """What a row costs by what its move changes: its own centre follows it, and another one comes to meet it."""
    least, prices = sum_of_squares(rows, labels), None
    everyone = np.arange(len(rows))
    for _ in range(MOST_ITERATIONS):
        distances = _squared_distances(rows, _means(rows, labels, clusters))
        sizes = np.bincount(labels, minlength=clusters)
        costs = distances * (sizes / (sizes + 1))
        costs[everyone, labels] = distances[everyone, labels] * (sizes / np.maximum(sizes - 1, 1))[labels]
        moved, prices = assign(costs, low, high, prices)
        reached = sum_of_squares(rows, moved)  # all move at once, so it may grow
        if reached >= least * (1 - GAIN):
            break
        labels, least = moved, reached
    return labels


def _means(rows: Costs, labels: Labels, clusters: int) -> Costs:
    sums = np.zeros((clusters, rows.shape[1]))
    np.add.at(sums, labels, rows)
    return sums / np.bincount(labels, minlength=clusters)[:, None]


def _squared_distances(rows: Costs, centres: Costs) -> Costs:
    """(rows, clusters)."""
    lengths = np.square(rows).sum(axis=1)[:, None] + np.square(centres).sum(axis=1)
    distances: Costs = np.maximum(lengths - 2 * rows @ centres.T, 0.0)
    return distances
