"""The folders of the robustness experiment's devices, and what the cloud's controls are told about them.

To the cloud and to a device's own code these are devices like any others: what makes a cell is in the clips, the
profiles and the owner's limits of its folder. ``devices.json`` says which device is which cell, for the statistics.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.distillation.run_plan import RunPlan
from fedstill.common.atomic_files import replace_text, replacing
from fedstill.datasets.audiovisual.capture.captured import CapturedSource
from fedstill.datasets.audiovisual.capture.card import card_of, profile, to_bytes
from fedstill.datasets.audiovisual.capture.conditions import DeviceCapture
from fedstill.datasets.audiovisual.capture.effects import with_babble
from fedstill.datasets.audiovisual.capture.talkers import babble_of
from fedstill.datasets.audiovisual.clip import Clip, ClipSource
from fedstill.datasets.audiovisual.store import PROFILES_FILE, ClipStore, frame_tensor, open_store
from fedstill.edge_client.folder import DATA_FOLDER
from fedstill.simulation.config import Experiment
from fedstill.simulation.folders import SIMULATED, device_folder, write_device
from fedstill.simulation.robustness.cells import Cell, cells_of, rotated
from fedstill.simulation.sources import Positions

DEVICES_FILE = "devices.json"


class HeldSource:
    """A ClipSource that decodes each clip once: many devices record the same ones."""

    def __init__(self, source: ClipSource) -> None:
        self.name, self.class_names, self.index = source.name, source.class_names, source.index
        self._source = source
        self._clips: dict[int, Clip] = {}

    def load(self, position: int) -> Clip:
        if position not in self._clips:
            self._clips[position] = self._source.load(position)
        return self._clips[position]


def write_devices(
    experiment: Experiment,
    source: ClipSource,
    shares: Sequence[Positions],
    run_dir: Path,
    public: ClipStore,
    on_progress: Callable[[str], None],
) -> None:
    """Record every device's clips into its folder, and write ``devices.json``.

    Args:
        experiment: with ``partition.kind`` ``robustness``.
        source: of the fold.
        shares: of each device.
        run_dir: receives the folders.
        public: the clips of the fold's public speakers, who are heard as babble.
        on_progress: called with a line about each device.
    """
    cells = cells_of(experiment.robustness)
    held, effects = HeldSource(source), with_babble(babble_of(public))
    for client, (cell, share) in enumerate(zip(cells, shares, strict=True)):
        on_progress(
            f"recording clips of device {client + 1} of {len(cells)}: {cell.scenario} {cell.condition}"
        )
        folder, capture = device_folder(run_dir, client), _capture_of(experiment, cell)
        recorded = CapturedSource(held, capture.condition, capture.seed, effects)
        policy = replace(SIMULATED, clips=cell.query or None)
        store = write_device(experiment, recorded, share, folder, policy)
        if cell.told != cell.capture:
            _tell(store, CapturedSource(held, cell.told, capture.seed, effects), share)
    replace_text(run_dir / DEVICES_FILE, json.dumps(_rows(experiment, cells), indent=1))


def with_controls(plan: RunPlan, experiment: Experiment, run_dir: Path) -> RunPlan:
    """The plan with another device's card and the true condition of each device, for controls only."""
    cells = cells_of(experiment.robustness)
    cards = [_card(device_folder(run_dir, client)) for client in range(len(cells))]
    return replace(
        plan,
        other_cards=tuple(() if other is None else cards[other] for other in rotated(cells)),
        oracle_conditions=tuple(
            _capture_of(experiment, cell) if cell.capture.sound or cell.capture.pictures else None
            for cell in cells
        ),
    )


def _capture_of(experiment: Experiment, cell: Cell) -> DeviceCapture:
    """A condition with the device in its name, so that a half-prepared run never takes another device's clips."""
    seed = cell.seed(experiment.robustness.fold, experiment.partition.seed)
    return DeviceCapture(replace(cell.capture, name=f"{cell.capture.name}, device {seed}"), seed)


def _tell(store: ClipStore, told: ClipSource, share: Positions) -> None:
    """Replace the profiles of a store by those of the same clips, recorded otherwise."""
    rows = [_profile(told.load(position), store) for position in share.tolist()]
    with replacing(store.directory / PROFILES_FILE) as part, part.open("wb") as file:
        np.save(file, np.stack(rows), allow_pickle=False)


def _profile(clip: Clip, store: ClipStore) -> npt.NDArray[np.float32]:
    waveform = clip.audio if clip.sample_rate else None
    frames = frame_tensor(clip.frames, store.frame_spec)
    return profile(waveform, clip.sample_rate, store.audio_spec.sample_rate, frames)


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
            "strengths": dict((*cell.capture.sound, *cell.capture.pictures)),
            "classes": cell.classes,
            "query": cell.query,
            "fold": settings.fold,
            "family": settings.family,
        }
        for client, cell in enumerate(cells)
    ]
