"""Every row to one cluster, at the least total cost, while every cluster gets a number of rows within two bounds.

A transport problem, solved by successive shortest paths (Ahuja, Magnanti and Orlin 1993, "Network Flows", 9.7): every
row first goes where it costs least, and then rows move, along the cheapest chains, from clusters that have too many to
those that have too few. A chain leads through clusters only, so a search looks at pairs of clusters, not at rows. One
more node, the open rest, stands for the rows that the bounds leave to any cluster.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

Costs = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

ROUNDING = 1e-12
"""Of the largest cost: a chain that is cheaper by less is not cheaper."""


def assign(costs: Costs, low: int, high: int, prices: Costs | None = None) -> tuple[Labels, Costs]:
    """The cluster of each row, int64 (rows,), and what a place in each cluster is worth, (clusters,).

    Args:
        costs: of each row in each cluster, finite, (rows, clusters).
        low, high: the fewest and the most rows of a cluster.
        prices: the second result for similar costs: there is less to move then. The total cost is the same.

    Raises:
        ValueError: so many rows cannot be so shared out.
    """
    rows, clusters = costs.shape
    if not low * clusters <= rows <= high * clusters:
        raise ValueError(f"{rows} rows: {clusters} clusters of {low} to {high} rows cannot hold them")
    prices = np.zeros(clusters) if prices is None else prices
    labels = (costs + prices).argmin(axis=1)
    sizes = np.bincount(labels, minlength=clusters)
    wanted = np.where(prices > 0, high, np.where(prices < 0, low, np.clip(sizes, low, high)))
    if (sizes == wanted).all():
        return labels, prices
    moves = _Moves(costs, labels, wanted, low, high)
    surplus = np.append(sizes - wanted, wanted.sum() - rows)
    rounding = ROUNDING * float(np.abs(costs).max())
    while (surplus > 0).any():
        for chain in _cheapest_chains(moves.costs, surplus, rounding):
            moves.make(chain)
            surplus[chain[0]] -= 1
            surplus[chain[-1]] += 1
    reached, _ = _shortest_paths(moves.costs, np.zeros(clusters + 1), rounding)
    found = reached[-1] - reached[:-1]
    return labels, np.where(np.abs(found) > rounding, found, 0.0)


class _Moves:
    """What it costs to move a row from each cluster to each other; the last node is the open rest.

    ``wanted`` is the number of rows that each cluster is to have. A step to or from the open rest changes it.
    """

    def __init__(self, costs: Costs, labels: Labels, wanted: Labels, low: int, high: int) -> None:
        self._row_costs, self._labels, self._wanted, self._low, self._high = costs, labels, wanted, low, high
        self._rest = costs.shape[1]
        self.costs = np.full((self._rest + 1, self._rest + 1), np.inf)
        self._rows = np.zeros((self._rest, self._rest), np.int64)
        for cluster in range(self._rest):
            self._look(cluster)

    def make(self, chain: list[int]) -> None:
        """Take every step of it with one row."""
        for here, there in pairwise(chain):
            if there == self._rest:
                self._wanted[here] += 1
            elif here == self._rest:
                self._wanted[there] -= 1
            else:
                self._labels[self._rows[here, there]] = there
        for cluster in chain:
            if cluster != self._rest:
                self._look(cluster)

    def _look(self, cluster: int) -> None:
        members = np.flatnonzero(self._labels == cluster)
        if len(members):
            steps = self._row_costs[members] - self._row_costs[members, cluster, None]
            best = steps.argmin(axis=0)
            self._rows[cluster] = members[best]
            self.costs[cluster, :-1] = steps[best, np.arange(self._rest)]
        else:
            self.costs[cluster, :-1] = np.inf
        self.costs[cluster, -1] = 0.0 if self._wanted[cluster] < self._high else np.inf
        self.costs[-1, cluster] = 0.0 if self._wanted[cluster] > self._low else np.inf


def _cheapest_chains(costs: Costs, surplus: Labels, rounding: float) -> list[list[int]]:
    """From nodes with a surplus to nodes with a lack, none through the same node as another.

    All are of one tree of shortest paths. So what they move together is still the cheapest: by the distances as
    prices, nobody would move back.
    """
    reached, before = _shortest_paths(costs, np.where(surplus > 0, 0.0, np.inf), rounding)
    chains: list[list[int]] = []
    used: set[int] = set()
    lacking = np.flatnonzero((surplus < 0) & np.isfinite(reached))
    for end in lacking[np.argsort(reached[lacking], kind="stable")]:
        chain = [int(end)]
        while before[chain[-1]] >= 0:
            chain.append(int(before[chain[-1]]))
        if used.isdisjoint(chain):
            chains.append(chain[::-1])
            used.update(chain)
    return chains


def _shortest_paths(costs: Costs, reached: Costs, rounding: float) -> tuple[Costs, Labels]:
    """The distances that begin as ``reached``, and the node before each, -1 at a start (Bellman and Ford)."""
    before = np.full(len(reached), -1)
    everyone = np.arange(len(reached))
    for _ in everyone:
        over = reached[:, None] + costs
        best = over.argmin(axis=0)
        least = over[best, everyone]
        cheaper = least < reached - rounding
        if not cheaper.any():
            break
        reached = np.where(cheaper, least, reached)
        before = np.where(cheaper, best, before)
    return reached, before
