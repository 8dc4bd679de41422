"""The choice of the public clips that a device's student is distilled on.

``select_nearest`` is ``SelectData`` of the thesis' Algorithm 7 (lines 12-18): each prototype in turn takes its n most
similar public clips that are not taken yet. Similarity is the cosine of prediction probabilities (Eq. 5.5). It gives
exactly what the row-by-row loop gives, but scans the public set once per group of prototypes in bounded memory.
``select_by_shares`` is the same for a device with more prototypes than clips may be chosen.
``select_by_transport`` is the alternative in which every prototype counts: entropic optimal transport assigns public
clips to all prototypes at once, weighted by the clips behind them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Positions = npt.NDArray[np.int64]

GROUP = 32
"""Prototypes that share one scan of the public set."""
BLOCK = 1 << 17
"""Public clips per matrix product: 32 x 131072 float32 similarities are 16 MiB."""
SAMPLE = 16_384
"""Public clips sampled to estimate a similarity that enough clips exceed."""
QUOTA_ROUNDING = 1e-9
"""More than the rounding error of a sum of shares."""
ULP = 2.0**-23
"""A float32 dot product of c values of unit vectors errs by less than (c + 2) of these."""


class SelectionError(ValueError):
    """The public set or the budget does not allow this selection; one line."""


@dataclass(frozen=True)
class Selection:
    """Public positions (int64; ``select_by_prior`` may repeat some) and a weight each (float32, mean 1)."""

    positions: Positions
    weights: npt.NDArray[np.float32]

    @classmethod
    def uniform(cls, positions: Positions) -> Selection:
        return cls(positions, np.ones(len(positions), np.float32))


def per_prototype(budget: int, prototypes: int) -> Positions:
    """The thesis' n for each prototype, int64 (prototypes,): as equal as can be, ``budget`` in all, the first ones
    get the remainder.

    Raises:
        SelectionError: more prototypes than clips to choose, so that some would get none.
    """
    if prototypes > budget:
        raise SelectionError(
            f"{prototypes} prototypes for {budget} clips: raise selection.budget or upload fewer"
        )
    n, remainder = divmod(budget, prototypes)
    return np.full(prototypes, n, np.int64) + (np.arange(prototypes) < remainder)


def select_nearest(prototypes: Floats, public: Floats, n: int | Positions) -> Positions:
    """Algorithm 7's SelectData: rows in order, each the n most similar clips not chosen before.

    Args:
        prototypes: (k, classes) probabilities.
        public: (N, classes) probabilities of the public clips.
        n: clips per prototype, one number or int64 (k,).

    Returns:
        positions: row 0's clips, best first, then row 1's, ... Equal similarities go to the lower position.

    Raises:
        SelectionError: if fewer than ``sum(n)`` public clips exist, or an n is below 1.
    """
    takes = np.broadcast_to(np.asarray(n, np.int64), len(prototypes))
    if (takes < 1).any():
        raise SelectionError("every prototype takes at least one clip")
    if takes.sum() > len(public):
        raise SelectionError(f"{takes.sum()} clips asked of {len(public)} public ones: lower the budget")
    rows, columns = unit_rows(prototypes), unit_rows(public)
    columns32 = columns.astype(np.float32)
    free = np.ones(len(public), dtype=bool)
    chosen: list[Positions] = []
    for start in range(0, len(rows), GROUP):
        group = slice(start, start + GROUP)
        bounds, candidates = _scan(rows[group], columns32, free, int(takes[group].sum()))
        for row, bound, near, take in zip(rows[group], bounds, candidates, takes[group], strict=True):
            best = _best_free(row, columns, free, near, bound, int(take))
            free[best] = False
            chosen.append(best)
    return np.concatenate(chosen)


def select_by_shares(prototypes: Floats, public: Floats, budget: int) -> Selection:
    """SelectData for more prototypes than clips: each takes ``budget`` / k of a clip instead of whole ones.

    Rows in order, each fills up the most similar clips that have room left; a clip has room for one whole share of the
    budget. The ``budget`` clips that are fullest are chosen, and what other clips hold goes to the chosen one that is
    most similar to its prototype. So every prototype counts alike, and as many clips are trained on as in every arm.
    With k = ``budget`` these are the clips of ``select_nearest``, and all weights are 1. Memory grows with k + N.

    Args:
        prototypes: (k, classes) probabilities, k >= ``budget``.
        public: (N, classes) probabilities of the public clips; equal similarities go to the lower position.
        budget: clips to choose, at most N.
    """
    rows, columns = unit_rows(prototypes), unit_rows(public)
    room = np.full(len(columns), len(rows), np.int64)  # in k-ths of a clip, so that all is exact
    held: list[tuple[int, int, int]] = []
    for number, row in enumerate(rows):
        need, similarity = budget, (columns * row).sum(axis=1)
        while need:
            best = int(np.where(room > 0, similarity, -np.inf).argmax())
            part = min(need, int(room[best]))
            room[best] -= part
            need -= part
            held.append((number, best, part))
    taken = len(rows) - room
    chosen = np.sort(np.argsort(-taken, kind="stable")[:budget])
    kept = np.zeros(len(columns), bool)
    kept[chosen] = True
    for number, clip, part in held:
        if not kept[clip]:
            taken[chosen[(columns[chosen] * rows[number]).sum(axis=1).argmax()]] += part
    return Selection(chosen.astype(np.int64), (taken[chosen] / len(rows)).astype(np.float32))


def select_random(public: int, budget: int, rng: np.random.Generator) -> Positions:
    """``budget`` different public clips, uniformly (the thesis' AllDistill+random)."""
    return rng.choice(public, size=min(budget, public), replace=False)


def select_by_prior(
    labels: npt.NDArray[np.int64], prior: Floats, budget: int, rng: np.random.Generator
) -> Positions:
    """Public clips sampled by label so that classes appear as in ``prior``: the best that a K-number histogram allows.

    Args:
        labels: (N,) public labels.
        prior: (classes,) target class shares; classes without public clips are skipped.
        budget: clips to sample. If a class has too few clips for its share, they are repeated, each once before any a
            second time, so that every arm trains on the same number.
    """
    supply = np.bincount(labels, minlength=len(prior))
    wanted = np.where(supply > 0, np.asarray(prior, np.float64), 0.0)
    if not wanted.sum() > 0:
        raise SelectionError("no public clip has one of the requested classes")
    ends = np.rint(np.cumsum(wanted) / wanted.sum() * budget).astype(np.int64)
    takes = np.diff(ends, prepend=0)
    drawn = [
        np.resize(rng.permutation(np.flatnonzero(labels == label)), take)
        for label, take in enumerate(takes)
        if take
    ]
    return np.concatenate(drawn).astype(np.int64)


def select_by_transport(
    prototypes: Floats,
    counts: npt.NDArray[np.int64],
    public: Floats,
    budget: int,
    *,
    sharpness: float = 10.0,
    iterations: int = 50,
) -> Selection:
    """Entropic optimal transport from count-weighted prototypes to public clips of capacity 1 / ``budget``.

    Each prototype has mass counts / sum(counts); each public clip can take at most 1 / ``budget`` in all, so
    the mass spreads over at least ``budget`` clips: Sinkhorn scaling with a capped second marginal (Benamou et
    al. 2015, partial transport). The plan is rounded to whole clips: every prototype gets its share of the
    budget, the strongest plan entries first, no clip twice. A prototype's mass is shared among its clips as
    the plan shares it, which gives their weights.

    Args:
        prototypes: (k, classes); counts: (k,); public: (N, classes) probabilities.
        budget: clips to select, at most N.
        sharpness: inverse temperature of exp(sharpness * cosine); larger is closer to nearest-neighbour.
    """
    budget = min(budget, len(public))
    mass = np.asarray(counts, np.float64) / np.sum(counts)
    kernel = np.exp(sharpness * (unit_rows(prototypes) @ unit_rows(public).T - 1.0))
    capacity = 1.0 / budget
    column = np.ones(len(public))
    for _ in range(iterations):
        row = mass / (kernel @ column)
        column = np.minimum(1.0, capacity / (row @ kernel))
    plan = (mass / (kernel @ column))[:, None] * kernel * column
    positions = np.sort(_round_plan(plan, mass * budget))
    kept = plan[:, positions]
    weights = (kept * (mass / kept.sum(axis=1))[:, None]).sum(axis=0)
    return Selection(positions, (weights / weights.mean()).astype(np.float32))


def _round_plan(plan: npt.NDArray[np.float64], quotas: npt.NDArray[np.float64]) -> Positions:
    """Distinct positions for the rows' quotas: whole parts first, then the remainders; strongest entries first."""
    entries = np.argsort(-plan, axis=None, kind="stable")
    free = np.ones(plan.shape[1], dtype=bool)
    whole = np.floor(quotas + QUOTA_ROUNDING)
    missing = round(quotas.sum() - whole.sum())
    chosen: list[int] = []
    for left, limit in ((whole, plan.shape[1]), (np.ceil(quotas - whole - QUOTA_ROUNDING), missing)):
        for entry in entries:
            if limit == 0:
                break
            row, position = divmod(int(entry), plan.shape[1])
            if left[row] > 0 and free[position]:
                left[row] -= 1
                limit -= 1
                free[position] = False
                chosen.append(position)
    return np.array(chosen, np.int64)


def unit_rows(values: Floats) -> npt.NDArray[np.float64]:
    """Rows scaled to length 1, float64; a zero row stays zero."""
    exact = np.asarray(values, np.float64)
    length = np.sqrt((exact * exact).sum(axis=1, keepdims=True))
    result = np.zeros_like(exact)
    np.divide(exact, length, out=result, where=length > 0)
    return result


def _scan(
    rows: npt.NDArray[np.float64],
    columns32: npt.NDArray[np.float32],
    free: npt.NDArray[np.bool_],
    wanted: int,
) -> tuple[npt.NDArray[np.float32], list[Positions]]:
    """A similarity bound per row, and every free column that may reach it, in ascending order.

    The rows may all compete for the same columns, so the bound should admit twice their total.
    """
    rows32 = rows.astype(np.float32)
    bounds = _similarity_bounds(rows32, columns32, free, 2 * wanted)
    floor = bounds[:, None] - np.float32((rows.shape[1] + 2) * ULP)
    found: list[list[Positions]] = [[] for _ in rows]
    for start in range(0, len(columns32), BLOCK):
        near = rows32 @ columns32[start : start + BLOCK].T >= floor
        near &= free[start : start + BLOCK]
        owner, position = np.divmod(np.flatnonzero(near), near.shape[1])
        parts = np.split(position + start, np.searchsorted(owner, np.arange(1, len(rows))))
        for row, part in enumerate(parts):
            found[row].append(part)
    return bounds, [np.concatenate(parts) for parts in found]


def _similarity_bounds(
    rows: npt.NDArray[np.float32], columns: npt.NDArray[np.float32], free: npt.NDArray[np.bool_], wanted: int
) -> npt.NDArray[np.float32]:
    """Per row a similarity that about ``wanted`` free columns probably reach, estimated from an even sample of them."""
    available = np.flatnonzero(free)
    sample = available[:: max(1, len(available) // SAMPLE)]
    rank = min(len(sample) - 1, -(-wanted * len(sample) // len(available)))
    similarity = rows @ columns[sample].T
    bounds: npt.NDArray[np.float32] = -np.partition(-similarity, rank, axis=1)[:, rank]
    return bounds


def _best_free(
    row: npt.NDArray[np.float64],
    columns: npt.NDArray[np.float64],
    free: npt.NDArray[np.bool_],
    candidates: Positions,
    bound: np.float32,
    n: int,
) -> Positions:
    """The n free columns most similar to ``row``; looks beyond the candidates only if they cannot decide."""
    best, similarity = _top(row, columns, candidates[free[candidates]], n)
    if len(best) == n and similarity[-1] >= bound:
        return best
    return _top(row, columns, np.flatnonzero(free), n)[0]


def _top(
    row: npt.NDArray[np.float64], columns: npt.NDArray[np.float64], positions: Positions, n: int
) -> tuple[Positions, npt.NDArray[np.float64]]:
    """The up to n most similar of ``positions`` (ascending) with their cosines, best first, ties to the lower."""
    similarity = (columns[positions] * row).sum(axis=1)
    if len(positions) > 4 * n:
        worst = np.partition(similarity, -n)[-n]
        close = similarity >= worst
        positions, similarity = positions[close], similarity[close]
    order = np.argsort(-similarity, kind="stable")[:n]
    return positions[order].astype(np.int64), similarity[order]
