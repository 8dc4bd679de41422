"""The devices of ``cohorts.py``: 12 conditions of continuous severity, Dirichlet class mixes, and their uploads.

Ten thousand devices are not recorded one by one. Private clips are recorded for real under each condition at a grid of
severities, and each recording gets its capture profile and the generic student's answer. A device is one person under
one condition: it draws clips by its class mix, and takes for each the values between the two nearest severities. The
level of its microphone differs by a few decibels. Only the devices of the sample, whose students are trained, are
recorded at their very severity.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from fedstill.cloud_server.distillation.public_bank import outputs_of
from fedstill.cloud_server.federation.seed_state import GENERIC, SeedCloud
from fedstill.common.atomic_files import replacing
from fedstill.datasets.audiovisual.capture.captured import CapturedSource
from fedstill.datasets.audiovisual.capture.conditions import Condition
from fedstill.datasets.audiovisual.capture.effects import Family
from fedstill.datasets.audiovisual.capture.views import PlainViews
from fedstill.datasets.audiovisual.capture_card import BANDS, CaptureCard, to_bytes
from fedstill.datasets.audiovisual.clip import ClipSource
from fedstill.datasets.audiovisual.store import ClipStore, build_store
from fedstill.models.audiovisual.confidence import confidence_histogram
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.protos.messages import Job, PrototypeUpload
from fedstill.simulation.config import Experiment

Floats = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]

CONDITIONS: tuple[tuple[Family, str, str], ...] = (
    ("development", "white_noise", "gamma"), ("development", "spectral_tilt", "blur"),
    ("development", "low_pass", "sensor_noise"), ("development", "pink_noise", "blur"),
    ("development", "white_noise", "sensor_noise"), ("development", "spectral_tilt", "gamma"),
    ("test", "reverberation", "side_light"), ("test", "telephone", "motion_blur"), ("test", "babble", "jpeg"),
    ("test", "brown_noise", "camera_tilt"), ("test", "opus", "defocus"), ("test", "clipping", "low_light"),
)  # fmt: skip
SEVERITIES = (0.0, 0.5, 1.0, 1.5)
"""Of the grid; 0: as the public clips."""
LEVEL_SPREAD = 1.5
"""Decibels, of the devices' microphones."""
ALPHA = 0.5
"""Of the Dirichlet distribution of class mixes."""
CLIPS = 60
"""That a device summarises."""
CONDITION_SEED = 3


def condition_of(number: int, severity: float) -> Condition:
    """Both effects of a condition at this severity."""
    family, sound, pictures = CONDITIONS[number]
    return Condition(
        f"{sound}, {pictures} {severity:.2f}", family, ((sound, severity),), ((pictures, severity),)
    )


@dataclass(frozen=True)
class Device:
    """One of the fleet. ``number`` is also the seed of all that is drawn for it."""

    number: int
    condition: int
    severity: float
    speaker: int
    shares: npt.NDArray[np.float64]

    @classmethod
    def draw(cls, number: int, speakers: int, classes: int) -> Device:
        """The device of this number, the same in every run."""
        rng = np.random.default_rng((1, number))
        condition, speaker = int(rng.integers(len(CONDITIONS))), int(rng.integers(speakers))
        severity = float(rng.uniform(SEVERITIES[0], SEVERITIES[-1]))
        return cls(number, condition, severity, speaker, rng.dirichlet(np.full(classes, ALPHA)))


@dataclass(frozen=True)
class Recorded:
    """All private clips under one condition.

    Attributes:
        profiles: float32 (clips, CARD_SIZE).
        logits: float32 (clips, classes), of the generic student.
    """

    profiles: Floats
    logits: Floats


class Fleet:
    """Makes the devices' uploads.

    Args:
        source, rows: the private clips.
        folder: keeps what was recorded.
    """

    def __init__(
        self, cloud: SeedCloud, experiment: Experiment, source: ClipSource, rows: Positions, folder: Path
    ) -> None:
        self._cloud, self._experiment, self._source, self._rows = cloud, experiment, source, rows
        self._folder = folder
        self.labels = np.array([source.index[row].label for row in rows])
        names = np.array([source.index[row].speaker for row in rows])
        self.speaker = np.unique(names, return_inverse=True)[1]
        self._grid: dict[tuple[int, float], Recorded] = {}

    def devices(self, count: int) -> Iterator[Device]:
        """The first ``count`` ones."""
        speakers, classes = int(self.speaker.max()) + 1, len(self._cloud.public.class_names)
        return (Device.draw(number, speakers, classes) for number in range(count))

    def clips(self, device: Device, count: int = CLIPS) -> Positions:
        """Of its person, drawn by its class mix, some of them more than once."""
        rng = np.random.default_rng((2, device.number))
        mine = np.flatnonzero(self.speaker == device.speaker)
        chances = device.shares[self.labels[mine]] / np.bincount(self.labels[mine])[self.labels[mine]]
        found: Positions = rng.choice(mine, count, p=chances / chances.sum())
        return found

    def upload(self, device: Device) -> PrototypeUpload:
        """Its summary and card, from the grid."""
        clips = self.clips(device)
        above = int(np.searchsorted(SEVERITIES, device.severity, side="right").clip(1, len(SEVERITIES) - 1))
        low, high = SEVERITIES[above - 1], SEVERITIES[above]
        weight = (device.severity - low) / (high - low)
        near, far = (self.recorded(device.condition, one) for one in (low, high))
        profiles = (1 - weight) * near.profiles[clips] + weight * far.profiles[clips]
        probabilities = (1 - weight) * self._said(near.logits[clips]) + weight * self._said(far.logits[clips])
        return self.summary(profiles, probabilities, device)

    def summary(self, profiles: Floats, probabilities: Floats, device: Device) -> PrototypeUpload:
        """What a device with these clips uploads; its microphone is a little louder or softer than others."""
        values = profiles.mean(axis=0)
        values[: 2 * BANDS] += np.random.default_rng((3, device.number)).normal(0, LEVEL_SPREAD)
        names = self._cloud.public.class_names
        job = Job("latency_sensitive", "fedstill", self._cloud.seed, 0)
        card = to_bytes(CaptureCard(values.astype(np.float32), len(profiles)))
        mean = probabilities.mean(axis=0, keepdims=True).astype(np.float32)
        counts = np.array([len(profiles)])
        return PrototypeUpload(job, mean, counts, names, confidence_histogram(probabilities), card)

    def recorded(self, condition: int, severity: float) -> Recorded:
        """A point of the grid; severity 0 is the same for all conditions."""
        key = (condition if severity else 0), severity
        if key not in self._grid:
            path = self._folder / f"grid-{key[0]}-{severity}.npz"
            if not path.exists():
                store = self.store(key[0], severity, self._rows, "recording")
                logits = self.answers(self.generic, store)
                assert store.profiles is not None  # it was just built
                with replacing(path) as part, part.open("wb") as file:
                    np.savez(file, profiles=store.profiles, logits=logits)
            with np.load(path, allow_pickle=False) as file:
                self._grid[key] = Recorded(file["profiles"], file["logits"])
        return self._grid[key]

    def store(self, condition: int, severity: float, rows: Positions, name: str) -> ClipStore:
        """Private clips, really recorded."""
        chosen, experiment = condition_of(condition, severity), self._experiment
        source = CapturedSource(self._source, chosen, CONDITION_SEED)
        return build_store(source, rows.tolist(), experiment.audio, experiment.frames, self._folder / name)

    def sampled(self, device: Device) -> tuple[ClipStore, PrototypeUpload]:
        """A device of the sample at its very severity: all clips of its person, and its upload."""
        clips = np.flatnonzero(self.speaker == device.speaker)
        store = self.store(device.condition, device.severity, self._rows[clips], f"device-{device.number}")
        assert store.profiles is not None  # it was just built
        places = self.places(device)
        said = self._said(self.answers(self.generic, store))
        return store, self.summary(np.asarray(store.profiles)[places], said[places], device)

    def places(self, device: Device) -> Positions:
        """Where the clips that a device of the sample summarises are among those of its person."""
        return np.searchsorted(np.flatnonzero(self.speaker == device.speaker), self.clips(device))

    def answers(self, net: AudioVisualNet, store: ClipStore) -> Floats:
        """Logits of a student, float32 (clips, classes)."""
        outputs = outputs_of(net, PlainViews(store), np.arange(len(store)), self._cloud.plan.compute)
        return np.concatenate([found.joint.numpy() for _, found in outputs]).astype(np.float32)

    @cached_property
    def generic(self) -> AudioVisualNet:
        return self._cloud.shared(GENERIC)

    def _said(self, logits: Floats) -> Floats:
        return np.asarray(softmax(logits / self._cloud.class_mixes.temperature, axis=1), np.float32)
