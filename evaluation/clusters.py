"""Clips are not independent: they hang together by recording, and recordings by speaker.

Two faces beside one sound are right or wrong together, and so are the clips of a person whom a model understands badly.
An interval that counts clips is then too narrow. So outcomes are summed per recording first, and the bootstrap draws
speakers, then recordings of each speaker drawn.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedstill.evaluation.results import ClipRow

RESAMPLES = 10_000

Kind = tuple[int, int]
"""(summed outcome, number of outcomes) of a recording; all that the bootstrap has to know about it."""


@dataclass(frozen=True, slots=True)
class Recordings:
    """Outcomes per recording, summed over its clips and over all seeds.

    Attributes:
        sums: int64 (recordings,), the summed outcomes.
        counts: int64 (recordings,), over how many (seed, clip) pairs.
        speakers: int64 (recordings,), the number of each one's speaker; its own number if speakers are unknown.
        known: whether the speakers are known.
    """

    sums: NDArray[np.int64]
    counts: NDArray[np.int64]
    speakers: NDArray[np.int64]
    known: bool

    @property
    def speaker_count(self) -> int:
        return int(self.speakers.max()) + 1

    @property
    def speaker_sums(self) -> NDArray[np.int64]:
        """int64 (speakers,): the summed outcomes of each speaker."""
        totals = np.zeros(self.speaker_count, dtype=np.int64)
        np.add.at(totals, self.speakers, self.sums)
        return totals

    def interval(self, rng: np.random.Generator) -> tuple[float, float]:
        """95 % interval of the mean outcome in points."""
        return bootstrap_interval(self.sums, self.counts, rng, self.speakers)


def by_recording(outcomes: Sequence[tuple[ClipRow, Sequence[int]]]) -> Recordings:
    """Sum the outcomes of clips, one per clip of each row, over the clips and seeds of a recording.

    A speaker, and a recording of that speaker, is the same at every client. If any speaker is unknown, none is used.
    """
    known = all(row.speakers and all(row.speakers) for row, _ in outcomes)
    sums: dict[tuple[object, str], int] = defaultdict(int)
    counts: Counter[tuple[object, str]] = Counter()
    for row, values in outcomes:
        for key, value in zip(_recordings(row, known), values, strict=True):
            sums[key] += value
            counts[key] += 1
    numbers = {speaker: number for number, speaker in enumerate(dict.fromkeys(owner for owner, _ in sums))}
    return Recordings(
        sums=np.array(list(sums.values()), dtype=np.int64),
        counts=np.array([counts[key] for key in sums], dtype=np.int64),
        speakers=np.array([numbers[owner] for owner, _ in sums]) if known else np.arange(len(sums)),
        known=known,
    )


def _recordings(row: ClipRow, known: bool) -> list[tuple[object, str]]:
    """(speaker, recording) of each clip. Without groups or speakers, clip ids are distinct only within a client."""
    names = row.groups or row.clip_ids
    if known:
        return list(zip(row.speakers, names, strict=True))
    return [(None if row.groups else row.client, name) for name in names]


def unit_of(clips: Sequence[ClipRow]) -> str:
    """What the statistics take as independent: "speaker", else "recording", else "clip" (older files)."""
    if clips and all(row.speakers and all(row.speakers) for row in clips):
        return "speaker"
    return "recording" if clips and all(row.groups for row in clips) else "clip"


def bootstrap_interval(
    sums: NDArray[np.int64],
    counts: NDArray[np.int64],
    rng: np.random.Generator,
    speakers: NDArray[np.int64] | None = None,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """95 % percentile interval of a mean in points by the hierarchical (two-stage) bootstrap.

    Speakers are drawn with replacement, then as many recordings of each speaker drawn as that speaker has, also with
    replacement (Davison and Hinkley 1997, section 3.8). Drawing at both stages counts the spread within speakers twice,
    so it errs to the wide side. On the other side, few speakers show too little of the spread between them (Cameron,
    Gelbach and Miller 2008): docs/decisions/025 says how often it holds the truth.

    Args:
        sums, counts: int64 (recordings,): the summed outcome, and over how many (seed, clip) pairs it was summed.
        rng: of the draws.
        speakers: int64 (recordings,): who speaks; by default everybody once, and recordings are drawn.
        resamples: how many means the interval is read from.
    """
    owners = np.arange(len(sums)) if speakers is None else speakers
    kinds_of: dict[int, Counter[Kind]] = defaultdict(Counter)
    for owner, total, count in zip(owners.tolist(), sums.tolist(), counts.tolist(), strict=True):
        kinds_of[owner][total, count] += 1
    # Speakers with the same recordings are exchangeable: how often they are drawn is one multinomial number.
    alike = sorted(Counter(tuple(sorted(kinds.items())) for kinds in kinds_of.values()).items())
    many = np.array([copies for _, copies in alike])
    drawn = rng.multinomial(many.sum(), many / many.sum(), size=resamples)
    totals = np.zeros((resamples, 2))
    for times, (pattern, _) in zip(drawn.T, alike, strict=True):
        kinds = np.array([kind for kind, _ in pattern])
        copies = np.array([number for _, number in pattern])
        # So are recordings of one kind: a speaker drawn twice is two draws of all recordings.
        own = times * copies.sum()
        totals += (own[:, None] if copies.size == 1 else rng.multinomial(own, copies / copies.sum())) @ kinds
    low, high = np.quantile(100 * totals[:, 0] / totals[:, 1], [0.025, 0.975])
    return float(low), float(high)
