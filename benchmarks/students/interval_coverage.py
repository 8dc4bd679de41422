"""How often a 95 % interval holds the truth, and how often a test without an effect says p < 0.05.

    python benchmarks/students/interval_coverage.py

Two arms of equal skill are compared on recordings of some speakers; for some speakers one arm happens to be better, for
others the other. The statistics of the reports (speakers, then recordings) stand beside the plain ones, which take
every recording as a trial of its own. Some two minutes on one core.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fedstill.evaluation.clusters import bootstrap_interval
from fedstill.evaluation.paired_tests import SIGNIFICANT, sign_flip

SPEAKERS = (6, 12, 24)
SPREADS = (0, 15, 30)  # standard deviation of the speakers' true differences, in points
RECORDINGS = 44  # of each speaker, as in emotion_pairs
MOVED = 0.4  # share of recordings that the arms answer differently
REPEATS = 400
RESAMPLES = 1000


def measure(speakers: int, spread: float, repeats: int, rng: np.random.Generator) -> np.ndarray:
    """Four shares: does the interval hold 0, and is p < 0.05; by speaker, then by recording."""
    owners = np.repeat(np.arange(speakers), RECORDINGS)
    ones = np.ones_like(owners)
    counts = np.zeros(4)
    for _ in range(repeats):
        truth = rng.normal(0, spread / 100, speakers).clip(-MOVED, MOVED)[owners]
        chance = rng.random(len(owners))
        changes = (chance < (MOVED + truth) / 2).astype(int) - (chance > 1 - (MOVED - truth) / 2)
        per_speaker = np.bincount(owners, changes).astype(np.int64)
        intervals = [bootstrap_interval(changes, ones, rng, who, RESAMPLES) for who in (owners, None)]
        p_values = sign_flip(per_speaker, rng), sign_flip(changes, rng)
        counts += [
            *(low <= 0 <= high for low, high in intervals),
            *(p < SIGNIFICANT for p in p_values),
        ]
    return counts / repeats


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="does it still work? the figures mean nothing")
    repeats = 3 if parser.parse_args(arguments).quick else REPEATS
    table = Table(title=f"{RECORDINGS} recordings of each speaker, {repeats} repeats, no true difference")
    headings = ("speakers", "spread (points)", "interval holds 0, by speaker", "by recording")
    for heading in (*headings, "p < 0.05, by speaker", "by recording"):
        table.add_column(heading, justify="right")
    rng = np.random.default_rng(0)
    for speakers, spread in track([(speakers, spread) for speakers in SPEAKERS for spread in SPREADS]):
        shares = [f"{100 * share:.0f} %" for share in measure(speakers, spread, repeats, rng)]
        table.add_row(str(speakers), str(spread), *shares)
    Console().print(table)


if __name__ == "__main__":
    main()
