"""The three devices of ``drift.py``, two people each: one meets other classes later, and one gets another microphone.

The cloud's service and the devices' ClientApp are the product's. A grid in this process takes the place of Flower's
processes, and pauses of a day take a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.distillation.run_plan import write_plan
from fedstill.cloud_server.federation.exchange import Exchange
from fedstill.cloud_server.federation.node_registry import NodeRegistry
from fedstill.cloud_server.federation.seed_state import SeedCloud
from fedstill.cloud_server.federation.server_app import make_shared
from fedstill.cloud_server.federation.service import FleetService
from fedstill.cloud_server.journal.event_log import Metrics
from fedstill.cloud_server.journal.journal import Journal, open_journal
from fedstill.cloud_server.journal.visit import Visit
from fedstill.datasets.audiovisual.capture.captured import CapturedSource
from fedstill.datasets.audiovisual.capture.conditions import Condition
from fedstill.datasets.audiovisual.clip import Clip, ClipInfo, ClipSource
from fedstill.datasets.audiovisual.clip_format import ClipFormat, format_to_json
from fedstill.datasets.audiovisual.store import ClipStore, build_store
from fedstill.edge_client.folder import DATA_FOLDER, SHELF_FOLDER
from fedstill.edge_client.node.change_check import find_change
from fedstill.edge_client.node.client_app import app as client_app
from fedstill.edge_client.node.loading import loader
from fedstill.edge_client.students.students import ModelStore, StoredModel
from fedstill.simulation.config import load_experiment
from fedstill.simulation.folders import device_folder
from fedstill.simulation.inprocess import InProcessGrid
from fedstill.simulation.launcher import make_plan
from fedstill.simulation.sources import open_source, split_positions

BEFORE, NEWER, HELD_OUT = 96, (11, 23), 60
"""Clips of a device: at first; newer ones at its first and second look, less than a quarter; to try students on."""
NEW_CLIPS = 0.25
"""As ``fedstill agent --new-clips``."""
DAY_AS_SECOND = 1 / 86_400
SAME, CLASSES, MICROPHONE = 0, 1, 2
NAMES = ("nothing", "its classes", "its microphone")
MICROPHONES = ("low_pass", "white_noise", "spectral_tilt", "pink_noise")
STRENGTH = 1.5
PATIENCE = 600.0

Positions = npt.NDArray[np.int64]


class Changed:
    """A source of which some clips are recorded otherwise."""

    def __init__(self, source: ClipSource, otherwise: ClipSource, changed: Sequence[int]) -> None:
        self._source, self._otherwise, self._changed = source, otherwise, frozenset(changed)
        self.name, self.class_names = source.name, source.class_names

    @property
    def index(self) -> tuple[ClipInfo, ...]:
        return self._source.index

    def load(self, position: int) -> Clip:
        """Decode clip ``position`` of ``index``."""
        return (self._otherwise if position in self._changed else self._source).load(position)


@dataclass(frozen=True)
class Share:
    """Positions of one device's clips."""

    before: list[int]
    newer: list[int]
    held_out: list[int]


class Home:
    """The three devices of one seed.

    Args:
        source, rows: the private clips; two speakers for each device.
        fresh: makes a store of clips in a folder.
    """

    def __init__(
        self, source: ClipSource, rows: Positions, seed: int, fresh: Callable[[ClipSource, list[int], Path], ClipStore]
    ) -> None:  # fmt: skip
        self._source, self._fresh = source, fresh
        effect = MICROPHONES[seed % len(MICROPHONES)]
        other = Condition(effect, "development", sound=((effect, STRENGTH),))
        self.microphone = effect
        self._otherwise = CapturedSource(source, other, seed)
        labels = np.array([source.index[row].label for row in rows])
        speakers = [source.index[row].speaker for row in rows]
        lives_at = np.unique(np.array(speakers), return_inverse=True)[1] % len(NAMES)
        half = len(source.class_names) // 2
        self._shares = []
        for device in range(len(NAMES)):
            mine = lives_at == device
            old = rows[mine & (labels < half)] if device == CLASSES else rows[mine]
            later = rows[mine & (labels >= half)] if device == CLASSES else old[BEFORE:]
            parts = np.split(later, [NEWER[-1], NEWER[-1] + HELD_OUT])[:2]
            self._shares.append(Share(old[:BEFORE].tolist(), *(part.tolist() for part in parts)))

    def record(self, device: int, folder: Path, newer: int) -> None:
        """Make these the clips of a device: the old ones, and so many newer ones."""
        share = self._shares[device]
        self._fresh(self._of(device), share.before + share.newer[:newer], folder)

    def tried(self, device: int, folder: Path) -> ClipStore:
        """Clips that no student was made for, as the device records and meets them now."""
        return self._fresh(self._of(device), self._shares[device].held_out, folder)

    def pool(self, device: int, folder: Path) -> ClipStore:
        """All clips of a device that has not changed."""
        share = self._shares[device]
        return self._fresh(self._source, share.before + share.newer + share.held_out, folder)

    def _of(self, device: int) -> ClipSource:
        share = self._shares[device]
        changed = share.newer + share.held_out if device == MICROPHONE else []
        return Changed(self._source, self._otherwise, changed)


@dataclass
class Fleet:
    """A service and its three devices, in this process."""

    work: Path
    home: Home
    service: FleetService
    journal: Journal

    def folder(self, device: int) -> Path:
        return device_folder(self.work, device)

    def look(self, device: int, newer: int) -> str:
        """What the device's own look finds, with so many newer clips in its folder."""
        self.home.record(device, self.folder(device) / DATA_FOLDER, newer)
        return find_change(self.folder(device), NEW_CLIPS, loader(self.folder(device)))

    def student(self, device: int) -> StoredModel:
        """The one that it uses."""
        found = ModelStore(self.folder(device) / SHELF_FOLDER).current()
        assert found is not None  # it was served
        return found

    def probabilities(self, device: int, student: StoredModel, store: ClipStore) -> npt.NDArray[np.float32]:
        """Of clips, by the device's own runtime; float32 (clips, classes)."""
        load = loader(self.folder(device))
        runtime = load(student.state, student.spec, student.class_names, student.version)
        return runtime.probabilities(runtime.logits(runtime.features(store.audio, store.frames)))

    def visits(self) -> dict[int, Visit]:
        return self.journal.visits.newest()

    def settle(self, wanted: Sequence[int]) -> None:
        """Until each device has had its last visit of this number; then for three more days."""
        limit = time.monotonic() + PATIENCE
        calm = 0
        while calm < 30:
            if time.monotonic() > limit:
                raise SystemExit(
                    f"the service did not serve its devices in {PATIENCE:.0f} s: {self.visits()}"
                )
            self.service.look()
            time.sleep(0.1)
            found = self.visits()
            served = [found.get(one) for one in range(len(NAMES))]
            done = all(
                one is not None and one.outcome and one.visit >= least
                for one, least in zip(served, wanted, strict=True)
            )
            calm = calm + 1 if done else 0


@contextmanager
def fleet_of(seed: int, work: Path, settings: Sequence[str]) -> Iterator[Fleet]:
    """A trained cloud and its three devices, none of which has a student yet."""
    experiment = load_experiment("quickstart", [*settings, f"dataset.seed={seed}", f"run.first_seed={seed}"])
    source = open_source(experiment)
    public, private = split_positions(source)
    audio, frames = experiment.audio, experiment.frames
    store = build_store(source, public.tolist(), audio, frames, work / "public", keep_sound=True)

    def fresh(clips: ClipSource, positions: list[int], folder: Path) -> ClipStore:
        return build_store(clips, positions, audio, frames, folder, feature_steps=store.audio.shape[-1])

    plan = replace(
        make_plan(experiment, source, (private,) * len(NAMES), work),
        service=True, arms=("fedstill",), scenarios=("latency_insensitive",), pause_scale=DAY_AS_SECOND,
    )  # fmt: skip
    write_plan(plan)
    metrics, journal = Metrics(work), open_journal(work)
    cloud = SeedCloud(plan, seed, metrics)
    make_shared(cloud, plan.arms)
    clip_format = format_to_json(ClipFormat(store.class_names, audio, frames, store.audio.shape[-1]))
    grid = InProcessGrid(client_app, len(NAMES), {"run-dir": str(work)})
    exchange = Exchange(grid, plan.reply_timeout)
    home = Home(source, private, seed, fresh)
    for device in range(len(NAMES)):
        home.record(device, device_folder(work, device) / DATA_FOLDER, 0)
    with NodeRegistry(exchange, len(NAMES), journal, metrics, clip_format) as registry:
        service = FleetService(cloud, exchange, registry, journal, metrics)
        yield Fleet(work, home, service, journal)
        service.close()
    journal.close()
    metrics.close()
