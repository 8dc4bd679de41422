"""The folders of the robustness experiment's devices, and what the cloud's controls are told about them.

To the cloud and to a device's own code these are devices like any others: what makes a cell is in the clips, the
profiles and the owner's limits of its folder. ``devices.json`` says which device is which cell, for the statistics.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.distillation.run_plan import RunPlan
from fedstill.common.atomic_files import replace_text, replacing
from fedstill.common.run_layout import DEVICES_FILE
from fedstill.datasets.audiovisual.capture.captured import CapturedSource
from fedstill.datasets.audiovisual.capture.conditions import DeviceCapture
from fedstill.datasets.audiovisual.capture.effects import SoundEffects, with_babble
from fedstill.datasets.audiovisual.capture.talkers import babble_of
from fedstill.datasets.audiovisual.capture_card import card_of, profile, to_bytes
from fedstill.datasets.audiovisual.clip import Clip, ClipSource
from fedstill.datasets.audiovisual.clip_tensors import focus, frame_tensor
from fedstill.datasets.audiovisual.store import PROFILES_FILE, ClipStore, open_store
from fedstill.edge_client.folder import DATA_FOLDER
from fedstill.simulation.config import Experiment
from fedstill.simulation.folders import DEVICES_FOLDER, SIMULATED, device_folder, write_device
from fedstill.simulation.robustness_cells import Cell, Recorder, cells_of, rotated
from fedstill.simulation.sources import Positions

THREADS = 2
"""Recorders at work at the same time: numpy, scipy and the codecs let go of the interpreter."""

Profiles = npt.NDArray[np.float32]


class HeldSource:
    """A ClipSource that makes each clip once, for many devices that hold the same ones."""

    def __init__(self, source: ClipSource) -> None:
        self.name, self.class_names, self.index = source.name, source.class_names, source.index
        self._source = source
        self._clips: dict[int, Clip] = {}

    def load(self, position: int) -> Clip:
        if position not in self._clips:
            self._clips[position] = self._source.load(position)
        return self._clips[position]


@dataclass(frozen=True)
class DeviceWriter:
    """Writes the folders of a run's devices, one recorder at a time.

    Attributes:
        source: of the fold, its clips held.
        cells, shares: of all devices.
        effects: with the public speakers as babble.
    """

    experiment: Experiment
    source: ClipSource
    cells: Sequence[Cell]
    shares: Sequence[Positions]
    run_dir: Path
    effects: SoundEffects

    def record(self, recorder: Recorder) -> dict[int, Profiles]:
        """Write the devices of one recorder; the profiles that devices of another one give as theirs, by client."""
        capture = capture_of(self.experiment, recorder)
        recorded = HeldSource(CapturedSource(self.source, capture.condition, capture.seed, self.effects))
        told: dict[int, Profiles] = {}
        for client, (cell, share) in enumerate(zip(self.cells, self.shares, strict=True)):
            if cell.recorder == recorder:
                policy = replace(SIMULATED, clips=cell.query or None)
                write_device(self.experiment, recorded, share, device_folder(self.run_dir, client), policy)
            elif cell.told == recorder:
                told[client] = np.stack([self._profile(recorded.load(one)) for one in share.tolist()])
        return told

    def _profile(self, clip: Clip) -> Profiles:
        waveform, rate = clip.audio if clip.sample_rate else None, self.experiment.audio.sample_rate
        seen = focus(clip, self.experiment.audio, self.experiment.frames).clip.frames
        return profile(waveform, clip.sample_rate, rate, frame_tensor(seen, self.experiment.frames))


def write_devices(
    experiment: Experiment,
    source: ClipSource,
    shares: Sequence[Positions],
    run_dir: Path,
    public: ClipStore,
    on_progress: Callable[[str], None],
) -> None:
    """Write ``devices.json``, and record every device's clips into its folder.

    Args:
        experiment: with ``partition.kind`` ``robustness``.
        source: of the fold.
        shares: of each device.
        run_dir: receives the folders.
        public: the clips of the fold's public speakers, who are heard as babble.
        on_progress: called with a line after each recorder.
    """
    cells = cells_of(experiment.robustness)
    _begin(experiment, cells, run_dir)
    recorders = tuple(dict.fromkeys(one for cell in cells for one in (cell.recorder, cell.told)))
    effects = with_babble(babble_of(public))
    writer = DeviceWriter(experiment, HeldSource(source), cells, shares, run_dir, effects)
    told: dict[int, Profiles] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for done, found in enumerate(pool.map(writer.record, recorders), 1):
            told |= found
            on_progress(f"recording {len(cells)} devices: {done} of {len(recorders)} conditions")
    for client, profiles in told.items():
        place = device_folder(run_dir, client) / DATA_FOLDER / PROFILES_FILE
        with replacing(place) as part, part.open("wb") as file:
            np.save(file, profiles, allow_pickle=False)


def with_controls(plan: RunPlan, experiment: Experiment, run_dir: Path) -> RunPlan:
    """The plan with another device's card and the true condition of each device, for controls only."""
    cells = cells_of(experiment.robustness)
    cards = [_card(device_folder(run_dir, client)) for client in range(len(cells))]
    captures = [capture_of(experiment, cell.recorder) for cell in cells]
    return replace(
        plan,
        other_cards=tuple(() if other is None else cards[other] for other in rotated(cells)),
        oracle_conditions=tuple(
            one if one.condition.sound or one.condition.pictures else None for one in captures
        ),
    )


def captures_of(run_dir: Path) -> tuple[str, ...]:
    """How each device of a run records, in words, by client; empty if the run simulates no such thing."""
    file = run_dir / DEVICES_FILE
    rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    return tuple(_in_words(row["strengths"]) for row in rows)


def _in_words(strengths: Mapping[str, float]) -> str:
    """As ``white noise, gamma (x1.5)``; the factor is left out if it is 1, and stands apart if each has its own."""
    names = [effect.replace("_", " ") for effect in strengths]
    factors = [f" (x{strength:g})" if strength != 1 else "" for strength in strengths.values()]
    if len(set(factors)) == 1:
        return ", ".join(names) + factors[0]
    return ", ".join(name + factor for name, factor in zip(names, factors, strict=True))


def capture_of(experiment: Experiment, recorder: Recorder) -> DeviceCapture:
    """A recorder's condition with its seed in this experiment."""
    return recorder.capture(experiment.robustness.fold, experiment.partition.seed)


def _begin(experiment: Experiment, cells: Sequence[Cell], run_dir: Path) -> None:
    """Write ``devices.json``, and remove the folders of other devices that an interrupted preparation left."""
    text, file = json.dumps(_rows(experiment, cells), indent=1), run_dir / DEVICES_FILE
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        shutil.rmtree(run_dir / DEVICES_FOLDER, ignore_errors=True)
        replace_text(file, text)


def _card(folder: Path) -> tuple[int, ...]:
    """The card of all clips in a device's folder, as on the wire."""
    profiles = open_store(folder / DATA_FOLDER).profiles
    assert profiles is not None  # the store was written by this version
    return tuple(to_bytes(card_of(profiles)).tolist())


def _rows(experiment: Experiment, cells: Sequence[Cell]) -> list[Mapping[str, object]]:
    settings = experiment.robustness
    return [
        {
            "client": client,
            "scenario": cell.scenario,
            "condition": cell.condition,
            "severity": cell.severity,
            "strengths": dict((*cell.recorder.condition.sound, *cell.recorder.condition.pictures)),
            "classes": cell.classes,
            "query": cell.query,
            "card": cell.told.condition.name,
            "seed": capture_of(experiment, cell.recorder).seed,
            "fold": settings.fold,
            "family": settings.family,
        }
        for client, cell in enumerate(cells)
    ]
