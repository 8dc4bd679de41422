"""SelectData at scale: 512 prototypes against 1,000,000 public clips, fast and as the plain loop over rows.

Both give the same clips in the same order; the benchmark ends with an error if they do not. The plain loop needs
a sort of the whole public set per prototype, so only its first rows are timed and the time of all is scaled from
them (``--full`` runs them all). The task is the harder, the more confident the probabilities are: those of an
over-trained teacher are nearly equal within a class, so that most clips tie and few can be ruled out early.
"""

from __future__ import annotations

import argparse
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from statistics import median
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from rich.console import Console

from fedstill.cloud_server.distillation.selection import per_prototype, select_nearest, unit_rows

CLASSES = 6
BUDGET = 0.28
SHARPNESS = {"soft": 1.0, "confident": 6.0, "saturated": 12.0}
"""Standard deviation of the logits behind the probabilities."""

Probabilities = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]
Result = TypeVar("Result")


def select_row_by_row(prototypes: Probabilities, public: Probabilities, takes: Positions) -> Positions:
    """Lines 12-18 as written: per prototype its cosine with every public clip, a sort, the best free ones."""
    rows, columns = unit_rows(prototypes), unit_rows(public)
    free = np.ones(len(public), dtype=bool)
    chosen = []
    for row, take in zip(rows, takes, strict=True):
        similarity = (columns * row).sum(axis=1)
        order = np.argsort(-similarity, kind="stable")
        best = order[free[order]][:take]
        free[best] = False
        chosen.append(best)
    return np.concatenate(chosen)


def main(arguments: Sequence[str]) -> None:
    """Measure both kinds of probabilities; raises SystemExit if the two selections differ."""
    options = _options(arguments)
    k, public, repeats = (32, 20_000, 1) if options.quick else (512, 1_000_000, options.repeats)
    timed = k if options.full or options.quick else options.rows
    console = Console(soft_wrap=True, highlight=False)
    for kind, sharpness in SHARPNESS.items():
        console.print(compare(kind, sharpness, k, public, timed, repeats))


def compare(kind: str, sharpness: float, k: int, public: int, timed: int, repeats: int) -> str:
    """One line: seconds of both ways (medians, measured in turn), their ratio and the fast one's peak memory."""
    rng = np.random.default_rng(0)
    prototypes, clips = _probabilities(rng, k, sharpness), _probabilities(rng, public, sharpness)
    takes = per_prototype(round(BUDGET * public), k)
    slow, fast = [], []
    for _ in range(repeats):
        chosen, seconds = _timed(lambda: select_nearest(prototypes, clips, takes))
        fast.append(seconds)
        plain, seconds = _timed(lambda: select_row_by_row(prototypes[:timed], clips, takes[:timed]))
        slow.append(seconds * k / timed)
        if not np.array_equal(chosen[: len(plain)], plain):
            sys.exit(f"{kind}: select_nearest and the plain loop chose different clips")
    tracemalloc.start()
    select_nearest(prototypes, clips, takes)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    scaled = "" if timed == k else f" (scaled from {timed} of {k} rows)"
    return (
        f"{kind:<10} {k} prototypes x {public:,} clips, medians of {repeats}: row by row {median(slow):.2f} s{scaled}, "
        f"select_nearest {median(fast):.2f} s, ratio {median(slow) / median(fast):.1f}, "
        f"peak memory {peak:.0f} MB beside its input, equal result"
    )


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def _probabilities(rng: np.random.Generator, rows: int, sharpness: float) -> Probabilities:
    """float32 (rows, CLASSES), softmax of normal logits."""
    logits = sharpness * rng.standard_normal((rows, CLASSES), dtype=np.float32)
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: Probabilities = raised / raised.sum(axis=1, keepdims=True)
    return result


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke test in seconds")
    parser.add_argument("--full", action="store_true", help="run the plain loop over all prototypes")
    parser.add_argument("--rows", type=int, default=32, help="rows of the plain loop to time (default 32)")
    parser.add_argument("--repeats", type=int, default=3, help="times that each way is run (default 3)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
