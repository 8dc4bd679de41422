"""From an experiment's ``[dataset]`` table to a clip source, and from its ``[partition]`` to devices."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedstill.common.errors import ConfigError
from fedstill.common.paths import data_path
from fedstill.datasets.audiovisual.clip import EMOTIONS, ClipSource
from fedstill.datasets.audiovisual.folds import FoldSource
from fedstill.datasets.audiovisual.manifest import ManifestSource
from fedstill.datasets.audiovisual.partition import by_speaker, dirichlet, halves, pathological
from fedstill.simulation.config import DatasetSettings, Experiment, PartitionSettings

Positions = npt.NDArray[np.int64]


def open_source(experiment: Experiment) -> ClipSource:
    """The experiment's dataset, or its fold of it. Raises ConfigError or DataError in one line."""
    source = _open_dataset(experiment)
    own, dataset = experiment.robustness, experiment.dataset
    if experiment.partition.kind == "robustness":
        return FoldSource(source, own.fold, own.folds, own.per_recording)
    return source if dataset.folds == 1 else FoldSource(source, dataset.fold, dataset.folds)


def _open_dataset(experiment: Experiment) -> ClipSource:
    settings = experiment.dataset
    if settings.kind == "synthetic":
        return _synthetic(settings, experiment.frames.size, experiment.frames.count)
    if settings.kind == "manifest":
        if not settings.manifest:
            raise ConfigError("dataset.manifest: not set; add --set dataset.manifest=PATH/manifest.csv")
        root = data_path(settings.root) if settings.root else None
        return ManifestSource(
            data_path(settings.manifest),
            root,
            settings.classes or None,
            frame_count=experiment.frames.count,
            allow_outside=settings.allow_outside,
        )
    return _prepared(settings, experiment.frames.crop)


def split_positions(source: ClipSource) -> tuple[Positions, Positions]:
    """(public, private) positions of a source. Raises ConfigError if either is empty."""
    is_public = np.array([info.split == "public" for info in source.index], dtype=bool)
    public, private = np.flatnonzero(is_public), np.flatnonzero(~is_public)
    if not len(public) or not len(private):
        raise ConfigError(
            f"{source.name}: needs public and private clips, has {len(public)} and {len(private)}"
        )
    return public, private


def deal(source: ClipSource, private: Positions, settings: PartitionSettings) -> tuple[Positions, ...]:
    """The private positions of each device."""
    infos = [source.index[position] for position in private]
    labels = np.array([-1 if info.label is None else info.label for info in infos], dtype=np.int64)
    groups = [info.recording for info in infos]
    if settings.kind == "speaker":
        shares = by_speaker(tuple(info.speaker for info in infos), settings.clients, settings.seed)
    elif (labels < 0).any():
        raise ConfigError(f"partition.kind: {settings.kind} needs labelled private clips; use speaker")
    elif settings.kind == "halves":
        shares = halves(labels, len(source.class_names))
    elif settings.kind == "pathological":
        shares = pathological(labels, settings.clients, settings.classes_per_client, settings.seed, groups)
    else:
        shares = dirichlet(labels, settings.clients, settings.alpha, settings.seed, groups)
    return tuple(private[share] for share in shares)


def _synthetic(settings: DatasetSettings, size: int, count: int) -> ClipSource:
    from fedstill.datasets.audiovisual.synthetic import SyntheticSource

    return SyntheticSource(
        seed=settings.seed,
        class_count=settings.class_count,
        public_per_class=settings.public_per_class,
        private_per_class=settings.private_per_class,
        frame_size=size,
        frame_count=count,
        difficulty=settings.difficulty,
    )


def _prepared(settings: DatasetSettings, crop: str) -> ClipSource:
    from fedstill.datasets.audiovisual.prepare import PreparedSource

    if not settings.root:
        raise ConfigError(
            f"dataset.root: not set; run fedstill data prepare {settings.kind} --root DIR --out PREPARED, "
            "then add --set dataset.root=PREPARED"
        )
    names = EMOTIONS if settings.kind == "cremad" else None
    source = PreparedSource(data_path(settings.root), names, settings.kind)
    if source.crop != crop:
        raise ConfigError(
            f"{settings.root}: was prepared with --crop {source.crop}, but frames.crop is {crop}: "
            f"set frames.crop={source.crop}, or prepare another folder with --crop {crop}"
        )
    return source
