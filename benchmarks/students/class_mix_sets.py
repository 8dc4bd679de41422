"""The development sets of ``class_mix.py``: what a generic student says of public clips and of a device's, as tables.

Synthetic clips in three strengths, spoken and written digits in two, and sets of numbers, which have more classes.
The private clips are recorded in several ways. Whatever is trained or decoded stays in the work folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.signal import butter, sosfilt
from sklearn.linear_model import LogisticRegression

from fedstill.cloud_server.distillation.cross_fit import CrossFit
from fedstill.cloud_server.distillation.public_bank import outputs_of
from fedstill.cloud_server.federation.seed_state import GENERIC, SeedCloud
from fedstill.cloud_server.journal.event_log import Metrics
from fedstill.common.atomic_files import replacing
from fedstill.datasets.audiovisual.capture.views import PlainViews
from fedstill.datasets.audiovisual.clip import Clip, ClipSource
from fedstill.datasets.audiovisual.store import build_store
from fedstill.simulation.config import load_experiment
from fedstill.simulation.launcher import make_plan
from fedstill.simulation.sources import open_source, split_positions

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Effect = Callable[[Clip, np.random.Generator], Clip]
FOLDS = 4


@dataclass(frozen=True)
class Table:
    """One set, seen by its generic student.

    Attributes:
        public: float32 (clips, classes) logits for public clips, each from a student that did not know its speaker,
            with labels and speakers.
        logits: the same for the private clips, per way of recording them.
        labels, speakers: int64 (private clips,).
    """

    public: CrossFit
    logits: Mapping[str, Floats]
    labels: Integers
    speakers: Integers

    @property
    def prior(self) -> npt.NDArray[np.float64]:
        """Shares of the classes among the public clips."""
        counts = np.bincount(self.public.labels, minlength=self.public.logits.shape[1])
        shares: npt.NDArray[np.float64] = counts / counts.sum()
        return shares


def white_noise(clip: Clip, rng: np.random.Generator) -> Clip:
    """5 dB below the clip's own level."""
    level = np.sqrt((clip.audio**2).mean()) * 10 ** (-5 / 20)
    return replace(clip, audio=clip.audio + level * rng.standard_normal(len(clip.audio), np.float32))


def low_pass(clip: Clip, rng: np.random.Generator) -> Clip:
    """No more than 1.5 kHz."""
    filtered = sosfilt(butter(6, 1500, fs=clip.sample_rate, output="sos"), clip.audio)
    return replace(clip, audio=filtered.astype(np.float32))


def darker(clip: Clip, rng: np.random.Generator) -> Clip:
    """Gamma 1.8."""
    return replace(clip, frames=(255 * (clip.frames / 255) ** 1.8).astype(np.uint8))


def grainy(clip: Clip, rng: np.random.Generator) -> Clip:
    """Noise of 14 grey levels."""
    noisy = clip.frames + 14 * rng.standard_normal(clip.frames.shape)
    return replace(clip, frames=noisy.clip(0, 255).astype(np.uint8))


RECORDED: Mapping[str, tuple[Effect, ...]] = {
    "as public clips": (),
    "white noise": (white_noise,),
    "low-pass": (low_pass,),
    "darker": (darker,),
    "grainy": (grainy,),
    "white noise, darker": (white_noise, darker),
    "low-pass, grainy": (low_pass, grainy),
}


class Recorded:
    """The clips of another source, recorded otherwise: a ClipSource."""

    def __init__(self, source: ClipSource, effects: Iterable[Effect]) -> None:
        self._source, self._effects = source, effects
        self.name, self.class_names, self.index = source.name, source.class_names, source.index

    def load(self, position: int) -> Clip:
        clip, rng = self._source.load(position), np.random.default_rng(position)
        for effect in self._effects:
            clip = effect(clip, rng)
        return clip


def trained(experiment: str, settings: tuple[str, ...], folder: Path) -> Table:
    """Train a generic student as a run does, and let it judge private clips; or read what an earlier run found.

    Raises:
        ConfigError: the data are not there.
    """
    chosen = load_experiment(experiment, (*settings, "compute.precision=fp32", "compute.workers=1"))
    source = open_source(chosen)
    public, private = split_positions(source)
    folder /= sha256("\n".join((experiment, *settings)).encode()).hexdigest()[:12]
    kept = folder / "table.npz"
    if kept.exists():
        return read_table(kept)
    folder.mkdir(parents=True, exist_ok=True)
    build_store(source, public.tolist(), chosen.audio, chosen.frames, folder / "public")
    metrics = Metrics(folder)
    cloud = SeedCloud(make_plan(chosen, source, (private,), folder), 0, metrics)
    student, logits = cloud.shared(GENERIC), {}
    for name, effects in RECORDED.items():
        place = folder / "private" / name.replace(", ", "_")
        store = build_store(Recorded(source, effects), private.tolist(), chosen.audio, chosen.frames, place)
        outputs = outputs_of(student, PlainViews(store), np.arange(len(store)), cloud.plan.compute)
        logits[name] = np.concatenate([found.joint.numpy() for _, found in outputs])
    _, speakers = np.unique(np.array(store.speakers), return_inverse=True)
    unknown = cloud.cross_fit
    assert unknown is not None  # there are several public speakers
    table = Table(unknown, logits, store.labels, speakers.astype(np.int64))
    metrics.close()
    write_table(table, kept)
    return table


def write_table(table: Table, path: Path) -> None:
    """As one ``.npz``."""
    arrays: dict[str, Any] = {"labels": table.labels, "speakers": table.speakers}
    arrays |= {f"public/{name}": value for name, value in vars(table.public).items()}
    arrays |= {f"private/{name}": value for name, value in table.logits.items()}
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)


def read_table(path: Path) -> Table:
    """What ``write_table`` wrote."""
    with np.load(path, allow_pickle=False) as file:
        found = {name: file[name] for name in file.files}
    public = {name: found[f"public/{name}"] for name in ("logits", "labels", "speakers")}
    private = {
        name.removeprefix("private/"): value for name, value in found.items() if name.startswith("private/")
    }
    return Table(CrossFit(**public), private, found["labels"], found["speakers"])


def numbers(classes: int, separation: float, per_class: int, weight: float, folder: Path) -> Table:
    """Classes as points, speakers as offsets of them, and logistic regression as the student.

    Args:
        separation: of the classes; a clip scatters by 1 and a speaker by 0.6 in each of as many dimensions.
        per_class: public clips of each of 16 speakers.
        weight: of the data against the regression's penalty.
    """
    rng = np.random.default_rng(classes)
    centres = separation * rng.standard_normal((classes, classes))

    def people(count: int, clips: int) -> tuple[npt.NDArray[np.float64], Integers, Integers]:
        own = 0.3 * rng.standard_normal((count, classes, classes))
        own += 0.6 * rng.standard_normal((count, 1, classes))
        points = np.repeat(centres + own, clips, axis=1).reshape(-1, classes)
        labels = np.tile(np.repeat(np.arange(classes), clips), count)
        return (
            points + rng.standard_normal(points.shape),
            labels,
            np.repeat(np.arange(count), classes * clips),
        )

    def student(points: npt.NDArray[np.float64], labels: Integers) -> LogisticRegression:
        return LogisticRegression(C=weight, max_iter=200).fit(points, labels)

    points, labels, speakers = people(16, per_class)
    unknown = np.empty((len(labels), classes), np.float32)
    for fold in range(FOLDS):
        seen = speakers % FOLDS != fold
        unknown[~seen] = student(points[seen], labels[seen]).decision_function(points[~seen])
    generic = student(points, labels)
    own_points, own_labels, own_speakers = people(6, 14)
    aside = rng.standard_normal(classes)
    shifted = 0.8 * own_points + 1.2 * aside / np.linalg.norm(aside)
    noise = 1.2 * rng.standard_normal(own_points.shape)
    recorded = {
        "as public clips": own_points,
        "shifted": shifted,
        "halved": 0.5 * own_points,
        "noisy": own_points + noise,
        "shifted, noisy": shifted + noise,
    }
    logits = {name: generic.decision_function(one).astype(np.float32) for name, one in recorded.items()}
    return Table(CrossFit(unknown, labels, speakers), logits, own_labels, own_speakers)


DIGITS = (
    "dataset.kind=manifest",
    "dataset.manifest=digit_pairs/manifest.csv",
    'dataset.classes=["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]',
    "audio.seconds=0.8",
    "audio.skip_silence=false",
    "audio.sample_rate=8000",
    "audio.n_fft=256",
    "audio.hop=128",
    "audio.mel_bins=40",
    "frames.size=28",
    "frames.count=1",
    "frames.channels=1",
)
PRIVATE = "dataset.private_per_class=132"
WEAK = ("dataset.difficulty=3.0", "dataset.public_per_class=100", "dataset.seed=9")
SETS: Mapping[str, Callable[[Path], Table]] = {
    "synthetic": partial(trained, "quickstart", (PRIVATE,)),
    "synthetic, harder": partial(
        trained, "quickstart", (PRIVATE, "dataset.difficulty=2.0", "dataset.seed=5")
    ),
    "synthetic, weak": partial(
        trained, "quickstart", (PRIVATE, *WEAK, "teacher.epochs=8", "student.epochs=6")
    ),
    "digit_pairs": partial(trained, "quickstart", (*DIGITS, "teacher.epochs=8", "student.epochs=8")),
    "digit_pairs, weak": partial(trained, "quickstart", (*DIGITS, "teacher.epochs=2", "student.epochs=2")),
    "numbers, 6 classes": partial(numbers, 6, 0.8, 4, 1.0),
    "numbers, 10 classes": partial(numbers, 10, 0.7, 4, 0.5),
    "numbers, 20 classes": partial(numbers, 20, 0.5, 3, 0.3),
    "numbers, 30 classes": partial(numbers, 30, 0.4, 2, 0.1),
}
TINY = ("dataset.public_per_class=16", "dataset.private_per_class=6", "audio.seconds=0.6", "audio.mel_bins=32",
        "frames.size=24", "teacher.encoder.width=4", "student.encoder.width=2", "teacher.epochs=1",
        "student.epochs=1", "distillation.outer_epochs=1", "distillation.inner_epochs=1",
        "fedstill.outer_epochs=1", "fedstill.inner_epochs=1", "capture.blind=1")  # fmt: skip
QUICK_SETS: Mapping[str, Callable[[Path], Table]] = {
    "synthetic, tiny": partial(trained, "quickstart", TINY),
    "numbers, 6 classes": partial(numbers, 6, 0.8, 4, 1.0),
}
