"""Clips into folders: the cloud's, and one per simulated device."""

from __future__ import annotations

from pathlib import Path

from fedstill.datasets.audiovisual.clip import ClipSource
from fedstill.datasets.audiovisual.store import ClipStore, build_store
from fedstill.edge_client.folder import DATA_FOLDER
from fedstill.edge_client.privacy.privacy_policy import PrivacyPolicy, write_policy
from fedstill.simulation.config import Experiment
from fedstill.simulation.sources import Positions

DEVICES_FOLDER = "devices"
"""In a run directory."""
SIMULATED = PrivacyPolicy(accepts="samples", epsilon=None, noise_seed=0)
"""A simulated device is repeatable, and answers every arm as if it were the only one; no real device may."""


def device_folder(run_dir: Path, client: int) -> Path:
    """The folder of one simulated device."""
    return run_dir / DEVICES_FOLDER / str(client)


def write_device(
    experiment: Experiment,
    source: ClipSource,
    share: Positions,
    folder: Path,
    policy: PrivacyPolicy = SIMULATED,
    feature_steps: int | None = None,
) -> ClipStore:
    """A device's clips and what its owner allows. ``feature_steps``: of the public clips."""
    store = write_store(experiment, source, share, folder / DATA_FOLDER, feature_steps=feature_steps)
    write_policy(folder, policy)
    return store


def write_store(
    experiment: Experiment,
    source: ClipSource,
    positions: Positions,
    directory: Path,
    *,
    keep_sound: bool = False,
    feature_steps: int | None = None,
) -> ClipStore:
    """The clip store of these clips."""
    return build_store(
        source,
        positions.tolist(),
        experiment.audio,
        experiment.frames,
        directory,
        keep_sound=keep_sound,
        feature_steps=feature_steps,
    )
