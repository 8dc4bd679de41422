"""The page of ``class_mix.py``: outcomes of devices as tables in Markdown, and their counts as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from itertools import groupby

import numpy as np
import numpy.typing as npt

from fedstill.common.provenance import git_revision, hardware

WAYS = {"em": "EM", "untested": "untested mix", "guarded": "guarded mix"}
MEAN_HARM, DEVICE_HARM = -1.0, -5.0  # points

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Kind:
    """What a device has."""

    share: float
    clips: int
    one_speaker: bool

    def __str__(self) -> str:
        classes = "all classes" if self.share == 1 else "half of the classes"
        return f"{classes}, {self.clips} clips, {'one speaker' if self.one_speaker else 'all speakers'}"


@dataclass(frozen=True)
class Outcome:
    """One device: counts of clips and classes; ``estimated`` is the gain that the mix promises, in points.

    ``absent`` and ``absent_untested`` count classes that the device has and that the mix calls absent.
    """

    clips: int
    generic: int
    em: int
    untested: int
    guarded: int
    allowed: int
    estimated: float
    classes: int
    absent: int
    absent_untested: int


@dataclass(frozen=True)
class Row:
    """An outcome and where it comes from."""

    name: str
    recorded: str
    kind: Kind
    outcome: Outcome


def column(rows: Sequence[Row], name: str) -> Floats:
    """One field of the outcomes."""
    return np.array([getattr(row.outcome, name) for row in rows], np.float64)


def gains(rows: Sequence[Row], way: str) -> Floats:
    """Of each device over the generic student, in points."""
    return 100 * (column(rows, way) - column(rows, "generic")) / column(rows, "clips")


def together(rows: Sequence[Row], key: Callable[[Row], tuple[str, ...]]) -> dict[tuple[str, ...], list[Row]]:
    """Rows by key, in order of appearance."""
    order = {one: number for number, one in enumerate(dict.fromkeys(map(key, rows)))}
    ordered = sorted(rows, key=lambda row: order[key(row)])
    return {one: list(group) for one, group in groupby(ordered, key)}


def classes_of(row: Row) -> str:
    return "all" if row.kind.share == 1 else "half"


def by_shift(row: Row) -> tuple[str, ...]:
    clean = row.recorded == "as public clips"
    return row.name, "as public clips" if clean else "otherwise", classes_of(row)


def by_recording(row: Row) -> tuple[str, ...]:
    return row.name, row.recorded, classes_of(row)


def by_cell(row: Row) -> tuple[str, ...]:
    return row.name, row.recorded, classes_of(row), str(row.kind.clips)


def table_of(rows: Sequence[Row], key: Callable[[Row], tuple[str, ...]]) -> Iterator[str]:
    """Accuracy of the generic student, and what every way adds: mean / worst device."""
    yield "| set | recorded | classes | devices | generic | " + " | ".join(WAYS.values()) + " | allowed |"
    yield "|---|---|---|---|---|" + "---|" * len(WAYS) + "---|"
    for names, group in together(rows, key).items():
        accuracy = 100 * (column(group, "generic") / column(group, "clips")).mean()
        found = [gains(group, way) for way in WAYS]
        told = " | ".join(f"{one.mean():+.1f} / {one.min():+.1f}" for one in found)
        allowed = 100 * column(group, "allowed").mean()
        yield f"| {' | '.join(names)} | {len(group)} | {accuracy:.1f} | {told} | {allowed:.0f} % |"


def promises(rows: Sequence[Row]) -> Iterator[str]:
    """What the guarded mix says of itself, where it is allowed."""
    yield "| set | allowed | gain, estimated | real | mean error of the estimate | classes wrongly absent | untested |"
    yield "|---|---|---|---|---|---|---|"
    for (name,), group in together(rows, lambda row: (row.name,)).items():
        used = [row for row in group if row.outcome.allowed]
        if not used:
            yield f"| {name} | 0 |  |  |  |  | {absent_share(group, 'absent_untested')} |"
            continue
        estimated, real = column(used, "estimated"), gains(used, "guarded")
        yield (
            f"| {name} | {len(used)} | {estimated.mean():+.1f} | {real.mean():+.1f} | "
            f"{np.abs(estimated - real).mean():.1f} | {absent_share(used, 'absent')} | "
            f"{absent_share(group, 'absent_untested')} |"
        )


def absent_share(rows: Sequence[Row], name: str) -> str:
    """Classes called absent among those that the devices have."""
    return f"{100 * column(rows, name).sum() / column(rows, 'classes').sum():.1f} %"


def harms(rows: Sequence[Row]) -> Iterator[str]:
    """How many devices lose in each way, and the cells in which the guarded mix does harm, the worst first."""
    for way, title in WAYS.items():
        lost, fell = gains(rows, way) < 0, gains(rows, way) < DEVICE_HARM
        cells = [gains(group, way).mean() for group in together(rows, by_cell).values()]
        bad = sum(mean < MEAN_HARM for mean in cells)
        yield (
            f"- {title}: {100 * lost.mean():.1f} % of {len(rows)} devices lose, {100 * fell.mean():.1f} % more than "
            f"{-DEVICE_HARM:g} points; the mean is below {MEAN_HARM:g} in {bad} of {len(cells)} cells"
        )
    yield ""
    harmed = []
    for names, group in together(rows, by_cell).items():
        found = gains(group, "guarded")
        if found.mean() < MEAN_HARM or found.min() < DEVICE_HARM:
            error = found.std(ddof=1) / np.sqrt(len(found)) if len(found) > 1 else np.nan
            below = int((found < DEVICE_HARM).sum())
            told = f"{found.mean():+.1f} +- {error:.1f} | {found.min():+.1f} | {below} of {len(found)} |"
            harmed.append((found.mean(), f"| {' | '.join(names)} | {told}"))
    if not harmed:
        yield "No cell is harmed by the guarded mix."
        return
    yield "| set | recorded | classes | clips | mean, standard error | worst | below -5 |"
    yield "|---|---|---|---|---|---|---|"
    yield from (line for _, line in sorted(harmed))


def page(rows: Sequence[Row], left_out: Sequence[str], command: str) -> str:
    """The results as Markdown."""
    told = [
        "# The guard of the class mix",
        f"<!-- written by {command}; run it again instead of editing -->",
        f"{datetime.now(UTC):%Y-%m-%d}, revision {git_revision()}, {hardware()}, one thread: `{command}`.",
        "Development data, most of which the guard was tuned on: this page shows what it does, and proves nothing "
        "about other data. Random devices hold all classes or half of them, 44 or 130 clips (fewer if a speaker has no "
        "more), from one speaker or from all, and are recorded as the public clips are or otherwise. They summarise "
        "the clips that they then answer. *EM* corrects for the prior of the device's own posteriors (Saerens et al. "
        "2002), without a guard; *untested mix* believes every fitted class mix; *guarded mix* is the product: the "
        "generic student unless the test passes (*allowed*). Differences from the generic student "
        "(`all_distill_equal_steps`), in points, as mean / worst device. Devices of a set share clips, speakers and "
        "one student.",
        *(f"Left out: {reason}." for reason in left_out),
        "## By set",
        "\n".join(table_of(rows, by_shift)),
        "## Where it harms",
        f"A cell is a set, a way of recording, a share of the classes and a number of clips. Listed are those in which "
        f"the mean of the guarded mix is below {MEAN_HARM:g} point or a device loses more than {-DEVICE_HARM:g}. One "
        "clip of 44 is 2.3 points.",
        "\n".join(harms(rows)),
        "## What the mix says of itself",
        "Estimated and real gain of allowed devices, in points, and how many of the classes that a device has are "
        "called absent, by the guarded mix (allowed devices) and by the untested one (all devices).",
        "\n".join(promises(rows)),
        "## By recording",
        "\n".join(table_of(rows, by_recording)),
        "The counts of every device are in `class_mix/devices.json`.",
    ]
    return "\n\n".join(told) + "\n"


def raw(rows: Sequence[Row]) -> str:
    """Every outcome, as JSON."""
    found: dict[str, dict[str, dict[str, list[tuple[float, ...]]]]] = {}
    for row in rows:
        kinds = found.setdefault(row.name, {}).setdefault(row.recorded, {})
        kinds.setdefault(str(row.kind), []).append(astuple(row.outcome))
    told = {"columns": [one.name for one in fields(Outcome)], "sets": found}
    return json.dumps(told, separators=(",", ":")).replace('],"', '],\n"') + "\n"
