"""Does a device gain from the estimate of its classes, and does it ever lose? On development data.

    python benchmarks/students/class_mix.py --out runs/class_mix --markdown docs/results/class_mix.md

Devices are random: all classes or half of them, few clips or more, of one speaker or of all, recorded as the public
clips are or otherwise. Each is answered by the generic student alone, with EM on its own posteriors (Saerens et al.
2002; nothing guards it), with the fitted class mix untested, and as in the product, with the mix if it passes the test.
Students and tables of logits stay in ``--out``: delete the folder after a change to what makes them. The first run
takes some 18 minutes on one core, the next ones one.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from scipy.special import softmax

from fedstill.cloud_server.distillation.class_mix import ClassMix, ClassMixes
from fedstill.cloud_server.distillation.compute import use_threads
from fedstill.cloud_server.distillation.settings import SelectionSettings
from fedstill.common.errors import ConfigError
from fedstill.evaluation.robustness.baselines.label_shift import em_shares
from fedstill.models.audiovisual.confidence import confidence_histogram
from fedstill.protos.messages import Job, PrototypeUpload

sys.path.insert(0, str(Path(__file__).parent))
from class_mix_page import Kind, Outcome, Row, by_shift, harms, page, raw, table_of
from class_mix_sets import QUICK_SETS, SETS, Table

DEVICES = 12  # of each kind
EM_PRIOR_CLIPS = 1  # the prior counts as one clip more, so that no class is ruled out

Floats = npt.NDArray[np.float64]


KINDS = tuple(Kind(*one) for one in product((1.0, 0.5), (44, 130), (False, True)))


def device(table: Table, kind: Kind, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """The private positions of a random device; fewer clips than asked for if its speaker has no more."""
    classes = len(table.prior)
    own = rng.choice(classes, int(classes * kind.share), replace=False)
    speaker = rng.choice(np.unique(table.speakers))
    fits = np.isin(table.labels, own) & ((table.speakers == speaker) | (not kind.one_speaker))
    pool = np.flatnonzero(fits)
    chosen: npt.NDArray[np.int64] = rng.choice(pool, min(kind.clips, len(pool)), replace=False)
    return chosen


def judge(
    logits: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    prior: Floats,
    guard: ClassMixes,
    believer: ClassMixes,
    seed: int,
) -> Outcome:
    """Answer a device's clips in all ways."""
    probabilities = softmax((logits / guard.temperature).astype(np.float64), axis=1)
    names = tuple(map(str, range(len(prior))))
    summary = PrototypeUpload(
        Job("latency_insensitive", "prior_corrected", 0, 0),
        probabilities.mean(axis=0, keepdims=True).astype(np.float32),
        np.array([len(labels)]),
        names,
        confidence_histogram(probabilities),
    )
    mix, untested = (one.judge(summary, np.random.default_rng(seed)) for one in (guard, believer))
    posteriors = softmax(logits.astype(np.float64), axis=1)
    em_bias = np.log(em_shares(posteriors, prior, EM_PRIOR_CLIPS) / prior)
    present = np.unique(labels)

    def right(bias: npt.NDArray[np.floating]) -> int:
        return int(((logits + bias).argmax(axis=1) == labels).sum())

    def absent(one: ClassMix) -> int:
        return int((~np.array(one.present)[present]).sum())

    return Outcome(
        clips=len(labels),
        generic=right(np.zeros(len(prior))),
        em=right(em_bias),
        untested=right(untested.bias),
        guarded=right(mix.bias),
        allowed=int(mix.supported),
        estimated=round(100 * mix.gain, 2),
        classes=len(present),
        absent=absent(mix),
        absent_untested=absent(untested),
    )


def measure(name: str, table: Table, devices: int) -> Iterator[Row]:
    """All devices of a set; the same ones in every way of recording."""
    threshold = SelectionSettings().support
    guard, believer = (ClassMixes(table.public, table.prior, threshold, tested) for tested in (True, False))
    for (recorded, logits), kind, number in product(table.logits.items(), KINDS, range(devices)):
        own = device(table, kind, np.random.default_rng((KINDS.index(kind), number)))
        outcome = judge(logits[own], table.labels[own], table.prior, guard, believer, number)
        yield Row(name, recorded, kind, outcome)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; write the page and the counts if asked to."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="does it still work? the figures mean nothing")
    parser.add_argument("--out", type=Path, help="folder that keeps students and tables for the next run")
    parser.add_argument("--markdown", type=Path, help="page to write, for instance docs/results/class_mix.md")
    options = parser.parse_args(arguments)
    use_threads(1)
    console, sets = Console(soft_wrap=True, highlight=False), QUICK_SETS if options.quick else SETS
    with tempfile.TemporaryDirectory() as scratch:
        rows, left_out = measured(
            sets, options.out or Path(scratch), 1 if options.quick else DEVICES, console
        )
    for line in (*table_of(rows, by_shift), *harms(rows)):
        console.print(line)
    if options.markdown:
        command = shlex.join(["python", "benchmarks/students/class_mix.py", *map(str, arguments)])
        counts = options.markdown.with_suffix("") / "devices.json"
        counts.parent.mkdir(parents=True, exist_ok=True)
        counts.write_text(raw(rows))
        options.markdown.write_text(page(rows, left_out, command))
        console.print(f"page: {options.markdown}, counts: {counts}")


def measured(
    sets: Mapping[str, Callable[[Path], Table]], work: Path, devices: int, console: Console
) -> tuple[list[Row], list[str]]:
    """All rows, and why sets are left out, if any are."""
    rows: list[Row] = []
    left_out = []
    for name, make in track(sets.items(), "sets", console=Console(stderr=True)):
        try:
            table = make(work / name.replace(", ", "_").replace(" ", "_"))
        except ConfigError as error:
            left_out.append(f"{name}: {error}")
            console.print(f"left out: {name}: {error}")
            continue
        rows += measure(name, table, devices)
    return rows, left_out


if __name__ == "__main__":
    main()
