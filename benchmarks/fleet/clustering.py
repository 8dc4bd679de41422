"""Our k-means under bounds against k-means-constrained: is it as good, and how long does it take?

On made-up class probabilities, from undecided to sure. Both cluster each set once, in turns. A cluster holds at least 8
rows, or 3, and at most twice as many. Theirs has one start, as the product used it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from statistics import fmean, median

import numpy as np
import numpy.typing as npt
from k_means_constrained import KMeansConstrained
from rich.console import Console

from fedstill.edge_client.privacy.kmeans import bounded_kmeans, sum_of_squares

SETS, QUICK_SETS = 100, 3
SIZES = {"16 to 120": (16, 121), "1000": (1000, 1001)}
"""Rows of a set: range of what is drawn."""
EQUAL = 1e-9


def main(arguments: Sequence[str]) -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three small sets")
    quick = parser.parse_args(arguments).quick
    console = Console(soft_wrap=True, highlight=False)
    for name, (least, above) in list(SIZES.items())[: 1 if quick else None]:
        count = QUICK_SETS if quick else SETS if above < 1000 else SETS // 20
        found = [compared(seed, least, above) for seed in range(count)]
        squares, times, seconds = ([one[index] for one in found] for index in range(3))
        console.print(
            f"{count} sets of {name} rows: sum of squares, ratio {fmean(squares):.3f} (mean; {max(squares):.3f} "
            f"at most, above 1 in {sum(one > 1 + EQUAL for one in squares)}); processor time, ratio "
            f"{median(times):.1f} (ours {median(seconds):.2f} s)"
        )


def compared(seed: int, least: int, above: int) -> tuple[float, float, float]:
    """Ours relative to theirs in sum of squares and in time, and our seconds."""
    rng = np.random.default_rng(seed)
    shape = int(rng.integers(least, above)), int(rng.integers(2, 12))
    rows = rng.dirichlet(np.full(shape[1], rng.choice([0.1, 0.5, 2.0])), shape[0]).astype(np.float32)
    low = (3, 8)[seed % 2]
    clusters, high = max(2, len(rows) // low), 2 * low
    model = KMeansConstrained(clusters, low, high, n_init=1, random_state=seed, max_iter=50)
    ours = _timed(lambda: bounded_kmeans(rows, clusters, low, high, seed), rows)
    theirs = _timed(lambda: model.fit_predict(rows.astype(np.float64)), rows)
    return ours[0] / theirs[0], ours[1] / theirs[1], ours[1]


def _timed(
    cluster: Callable[[], npt.NDArray[np.integer]], rows: npt.NDArray[np.float32]
) -> tuple[float, float]:
    begun = time.process_time()
    labels = cluster()
    return sum_of_squares(rows, labels.astype(np.int64)), time.process_time() - begun


if __name__ == "__main__":
    main(sys.argv[1:])
