"""Whether a data set is fit for training: everything is decoded once, measured and summed up per split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.clip import Clip, ClipSource
from fedstill.datasets.audiovisual.specs import AudioSpec
from fedstill.datasets.audiovisual.waveform import feature_shape
from fedstill.datasets.inspection.clip_measures import SILENCE, ClipMeasures, measure

SPLITS = ("public", "private")
MOST_VALUES = 4
"""Different rates or sizes that are listed one by one."""
MOST_NAMES = 3


@dataclass(frozen=True)
class DatasetCheck:
    """problems: one line each, with its remedy; none means fit for training. measures: of the clips that decode."""

    problems: tuple[str, ...]
    measures: tuple[ClipMeasures, ...]


def check_dataset(
    source: ClipSource,
    progress: Callable[[int, int, int], None] | None = None,
    workers: int = 1,
    look: Callable[[Clip], object] = lambda _: None,
) -> DatasetCheck:
    """Decode and measure all clips; bad ones are problems and stop nothing.

    Args:
        source: any data set.
        progress: called with (clips done, clips in all, clips with a problem) after each clip.
        workers: threads; decoders leave Python's lock, and a source need not be copied for a thread.
        look: called with every clip that can be decoded, from these threads.
    """
    public = {info.label for info in source.index if info.split == "public"}
    problems = [
        f"class {name!r} has no public clip: add some or leave the class out"
        for label, name in enumerate(source.class_names)
        if label not in public
    ]
    classes = len(problems)

    def checked(position: int) -> ClipMeasures | str:
        try:
            return measure(source, position, look)
        except DataError as error:
            return str(error)

    measures = []
    with ThreadPoolExecutor(workers) as pool:
        try:
            for position, found in enumerate(pool.map(checked, range(len(source.index)))):
                if isinstance(found, ClipMeasures):
                    measures.append(found)
                complaint = found if isinstance(found, str) else found.problem
                if complaint:
                    problems.append(f"clip {source.index[position].clip_id}: {complaint}")
                if progress is not None:
                    progress(position + 1, len(source.index), len(problems) - classes)
        finally:
            pool.shutdown(cancel_futures=True)  # an interrupt does not wait for all clips
    return DatasetCheck((*problems, *_unlike(measures)), tuple(measures))


def _unlike(measures: Sequence[ClipMeasures]) -> list[str]:
    """Clips of another kind than the first one, which no model could take beside it."""
    problems = []
    for one in measures:
        if bool(one.sample_rate) != bool(measures[0].sample_rate):
            problems.append(
                f"clip {one.info.clip_id}: waveforms and ready feature matrices are mixed: use one kind"
            )
        elif one.rows != measures[0].rows:
            problems.append(
                f"clip {one.info.clip_id}: has {one.rows} features, the first clip {measures[0].rows}: "
                "give all clips as many"
            )
    return problems


def split_table(check: DatasetCheck, spec: AudioSpec) -> list[tuple[str, list[str]]]:
    """Rows of (what, its value in each split of ``SPLITS``): lengths, rates, loudness and faults, for a person."""
    sides = [[one for one in check.measures if one.info.split == split] for split in SPLITS]
    rows = [
        ("decoded clips", [str(len(side)) for side in sides]),
        ("speakers", [str(len({one.info.speaker for one in side})) for side in sides]),
        ("recordings", [str(len({one.info.recording for one in side})) for side in sides]),
    ]
    heard = [[one for one in side if one.sample_rate] for side in sides]
    ready = [[one for one in side if not one.sample_rate] for side in sides]
    if any(heard):
        rows += [
            ("length in s", [_spread([one.length for one in side], ".2f") for side in heard]),
            (
                f"shorter than {spec.seconds:g} s, repeated",
                _count(heard, lambda one: one.length < spec.seconds),
            ),
            (f"longer than {spec.seconds:g} s, cut", _count(heard, lambda one: one.length > spec.seconds)),
            ("sample rate in Hz", [_listed([one.sample_rate for one in side]) for side in heard]),
            ("loudness in dBFS", [_spread([_level(one) for one in side], ".0f") for side in heard]),
            (f"silent (below {SILENCE:g} dBFS)", _named(heard, lambda one: one.silent)),
            ("antiphase", _named(heard, lambda one: one.antiphase)),
            ("clipped", _named(heard, lambda one: one.clipped)),
        ]
    if any(ready):
        steps = feature_steps(check, spec)
        rows.append(("columns of features", [_spread([one.length for one in side], ".0f") for side in ready]))
        if steps is not None:
            rows += [
                (f"shorter than {steps} columns, repeated", _count(ready, lambda one: one.length < steps)),
                (f"longer than {steps} columns, cut", _count(ready, lambda one: one.length > steps)),
            ]
    rows.append(
        (
            "frames, height x width",
            [_listed([f"{one.size[0]} x {one.size[1]}" for one in side]) for side in sides],
        )
    )
    return rows


def feature_steps(check: DatasetCheck, spec: AudioSpec) -> int | None:
    """The columns that ready feature matrices get, as ``build_store`` gives them; None if there are none."""
    public, private = (
        {int(one.length) for one in check.measures if not one.sample_rate and one.info.split == split}
        for split in SPLITS
    )
    known = public or private
    return None if not known else known.pop() if len(known) == 1 else feature_shape(spec)[1]


def _level(one: ClipMeasures) -> float:
    return -float("inf") if one.loudness is None else one.loudness


def _spread(values: Sequence[float], form: str) -> str:
    """Smallest, median and largest value."""
    if not values:
        return ""
    low, middle, high = (format(value, form) for value in (min(values), median(values), max(values)))
    return low if low == high else f"{low} to {high}, median {middle}"


def _listed(values: Sequence[object]) -> str:
    """Each value with its clips, the most frequent first."""
    counts = Counter(values).most_common()
    if len(counts) == 1:
        return str(counts[0][0])
    shown = ", ".join(f"{value}: {count}" for value, count in counts[:MOST_VALUES])
    return shown if len(counts) <= MOST_VALUES else f"{shown}, {len(counts) - MOST_VALUES} more"


def _count(sides: Sequence[Sequence[ClipMeasures]], asked: Callable[[ClipMeasures], bool]) -> list[str]:
    return [str(sum(map(asked, side))) for side in sides]


def _named(sides: Sequence[Sequence[ClipMeasures]], asked: Callable[[ClipMeasures], bool]) -> list[str]:
    """How many clips, and the first ones."""
    cells = []
    for side in sides:
        names = [one.info.clip_id for one in side if asked(one)]
        shown = ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")
        cells.append(f"{len(names)} ({shown})" if names else "0")
    return cells
