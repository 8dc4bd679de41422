"""A device changes: is it seen, is it left alone otherwise, and what is the new student worth beside the old one?

    python benchmarks/fleet/drift.py --out runs/drift --markdown docs/results/drift.md

For each seed a cloud is trained anew, and serves three devices of two people each (``drift_devices.py``). Then 11
newer clips come to the 96 of each device, and another 12: as before, of other classes, or from another microphone.
Each device looks both times by the product's own code, and those that ask for it get another student. Both students are
tried on 60 further clips, as the device meets and records them now.

False triggers: of the clips of the device that has not changed, 96 are drawn as the older and 32 as the newer ones, 100
times for each seed; each time the device looks when 8, 16 and 32 newer ones are there. ``--out`` keeps what a finished
seed found; delete it after a change of the code.
"""

from __future__ import annotations

import json
import math
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console
from scipy.special import stdtrit

from fedstill.cloud_server.distillation.compute import use_threads
from fedstill.common.atomic_files import replace_text
from fedstill.common.provenance import git_revision, hardware
from fedstill.datasets.audiovisual.store import ClipStore
from fedstill.edge_client.node.drift import drift_between, level_of
from fedstill.edge_client.students.students import StoredModel
from fedstill.evaluation.paired_tests import paired_t

sys.path.insert(0, str(Path(__file__).parent))
from drift_devices import BEFORE, CLASSES, HELD_OUT, MICROPHONE, NAMES, NEWER, SAME, Fleet, fleet_of

SETTINGS = ("dataset.public_per_class=60", "dataset.private_per_class=120", "dataset.difficulty=0.5",
            "compute.precision=fp32", "compute.workers=1")  # fmt: skip
TINY = ("dataset.public_per_class=6", "audio.seconds=0.6", "audio.mel_bins=32", "frames.size=24",
        "teacher.encoder.width=4", "student.encoder.width=2", "teacher.epochs=1", "student.epochs=1",
        "distillation.outer_epochs=1", "distillation.inner_epochs=1", "capture.blind=1", "fedstill.outer_epochs=1",
        "fedstill.inner_epochs=1", "capture.versions=1", "downlink.minimum_agreement=0")  # fmt: skip
SEEDS, RESAMPLES = 5, 100
LOOKS = (8, 16, 32)
LEAST_GAIN, MOST_FALSE = 5.0, 5.0


@dataclass(frozen=True)
class Outcome:
    """One seed.

    Attributes:
        microphone: the effect that the second device's new one has.
        causes: why each device got a second student; empty: it got none.
        visits: how many each device had.
        stale, new: accuracies in percent of each device's first and last student on the clips that it meets now.
        false: how many of ``resamples`` resamples of the device that has not changed were taken for a change.
    """

    microphone: str
    causes: tuple[str, ...]
    visits: tuple[int, ...]
    stale: tuple[float, ...]
    new: tuple[float, ...]
    false: int
    resamples: int


def outcome_of(seed: int, settings: Sequence[str], resamples: int) -> Outcome:
    """Train, serve, change, look, serve again, and count."""
    devices = range(len(NAMES))
    with TemporaryDirectory(prefix="fedstill-drift-") as name, fleet_of(seed, Path(name), settings) as fleet:
        fleet.settle([0] * len(NAMES))
        first = [fleet.student(device) for device in devices]
        changed = [False] * len(NAMES)
        for newer in NEWER:
            changed = [bool(fleet.look(device, newer)) or changed[device] for device in devices]
            fleet.settle([int(one) for one in changed])
        visits = [fleet.visits()[device] for device in devices]
        tried = [fleet.home.tried(device, fleet.work / f"tried{device}") for device in devices]
        return Outcome(
            fleet.home.microphone,
            tuple(one.cause if one.visit else "" for one in visits),
            tuple(one.visit + 1 for one in visits),
            tuple(accuracy(fleet, one, first[one], tried[one]) for one in devices),
            tuple(accuracy(fleet, one, fleet.student(one), tried[one]) for one in devices),
            false_triggers(fleet, first[SAME], seed, resamples),
            resamples,
        )


def accuracy(fleet: Fleet, device: int, student: StoredModel, store: ClipStore) -> float:
    """Percent of the clips."""
    decided = fleet.probabilities(device, student, store).argmax(axis=1)
    return 100 * float((decided == store.labels).mean())


def false_triggers(fleet: Fleet, student: StoredModel, seed: int, resamples: int) -> int:
    """How many resamples of a device that has not changed look like a change, at any look."""
    store = fleet.home.pool(SAME, fleet.work / "pool")
    rows = fleet.probabilities(SAME, student, store)
    rng = np.random.default_rng((5, seed))
    false = 0
    for _ in range(resamples):
        order = rng.permutation(len(store))
        for number, newer in enumerate(LOOKS):
            chosen = order[: BEFORE + newer]
            names = tuple(store.recordings[clip] for clip in chosen)
            profiles = None if store.profiles is None else store.profiles[chosen]
            is_new = np.arange(len(chosen)) >= BEFORE
            drift = drift_between(rows[chosen], profiles, names, is_new, level_of(number), rng)
            if drift is not None and drift.drifted:
                false += 1
                break
    return false


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval, of the t distribution over seeds."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return mean, math.nan, math.nan
    half = float(stdtrit(count - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return mean, mean - half, mean + half


def page(outcomes: Sequence[Outcome], command: str) -> str:
    """What came out, as Markdown."""
    lines = [
        "# Devices that change",
        "",
        f"`{command}`: {len(outcomes)} seeds, synthetic clips,",
        f"{hardware()}, revision `{git_revision()}`. For each seed a cloud is trained anew and serves three devices.",
        f"Then {NEWER[0]}, and later {NEWER[1]}, newer clips lie beside the {BEFORE} of each device, and it looks each",
        f"time. Both students are tried on {HELD_OUT} further clips, as the device meets and records them now.",
        "Means over seeds with 95 % intervals (t), paired by seed.",
        "",
        "| what changes | a second student | cause | old student | new student | gain in points |",
        "|---|---|---|---|---|---|",
        *(row(outcomes, device) for device in range(len(NAMES))),
    ]
    microphones = [f"{one.microphone} {one.new[MICROPHONE] - one.stale[MICROPHONE]:+.1f}" for one in outcomes]
    both = [CLASSES, MICROPHONE]
    mean = interval(gains(outcomes, both))[0]
    exactly = sum(
        one.visits[SAME] == 1 and all(one.visits[device] == 2 for device in both) for one in outcomes
    )
    false, drawn = sum(one.false for one in outcomes), sum(one.resamples for one in outcomes)
    rate, worst = 100 * false / drawn, max(100 * one.false / one.resamples for one in outcomes)
    lines += [
        "",
        f"Gain by microphone: {', '.join(microphones)}.",
        "",
        f"- Exactly the two that changed got a second student, once: in {exactly} of {len(outcomes)} seeds.",
        f"- Gain over both devices that changed: {gain_of(outcomes, both)} (asked {LEAST_GAIN:g}): "
        f"{said(mean >= LEAST_GAIN)}.",
        f"- False triggers: {false} of {drawn} resamples of the same device, {rate:.1f} %, at most {worst:.0f} % in "
        f"the {outcomes[0].resamples} of one seed (asked {MOST_FALSE:g} %): {said(worst <= MOST_FALSE)}.",
        "",
    ]
    return "\n".join(lines)


def row(outcomes: Sequence[Outcome], device: int) -> str:
    """Of the table."""
    again = [one for one in outcomes if one.visits[device] > 1]
    causes = ", ".join(sorted({one.causes[device] for one in again})) or "none"
    stale, new = (np.mean([getattr(one, part)[device] for one in outcomes]) for part in ("stale", "new"))
    return (
        f"| {NAMES[device]} | {len(again)} of {len(outcomes)} | {causes} | {stale:.1f} % | {new:.1f} % "
        f"| {gain_of(outcomes, [device])} |"
    )


def gains(outcomes: Sequence[Outcome], devices: Sequence[int]) -> list[float]:
    """Of the new student over the old one, for each seed, the mean over devices."""
    return [float(np.mean([one.new[device] - one.stale[device] for device in devices])) for one in outcomes]


def gain_of(outcomes: Sequence[Outcome], devices: Sequence[int]) -> str:
    """Mean, interval and p value."""
    found = gains(outcomes, devices)
    if not any(found):
        return "0"
    mean, low, high = interval(found)
    p = paired_t(found)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]" + ("" if p is None else f", p = {p:.3f}")


def said(met: bool) -> str:
    """Of an aim."""
    return "met" if met else "missed"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/drift"), help="keeps what each seed found")
    parser.add_argument("--markdown", type=Path, help="also write the page")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--quick", action="store_true", help="does it still work? the figures mean nothing")
    options = parser.parse_args(arguments)
    seeds, resamples = (1, 3) if options.quick else (options.seeds, RESAMPLES)
    use_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True, highlight=False)
    outcomes = []
    for seed in range(seeds):
        path = options.out / f"seed{seed}.json"
        if not path.exists():
            found = outcome_of(seed, (*SETTINGS, *TINY) if options.quick else SETTINGS, resamples)
            replace_text(path, json.dumps(asdict(found)))
        outcomes.append(Outcome(**json.loads(path.read_text())))
        console.print(f"seed {seed}: {outcomes[-1]}")
    text = page(outcomes, "python benchmarks/fleet/drift.py")
    if options.markdown:
        replace_text(options.markdown, text)
    Console(highlight=False, soft_wrap=True, markup=False).print(text)


if __name__ == "__main__":
    main()
