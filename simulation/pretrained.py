"""The pretrained weights of an experiment's teacher, checked before anything is decoded or trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from fedstill.cloud_server.pretrained.settings import Modality
from fedstill.cloud_server.pretrained.weights_file import read_weights
from fedstill.common.errors import ConfigError
from fedstill.common.paths import data_path
from fedstill.simulation.config import Experiment


def with_checked_encoders(experiment: Experiment) -> Experiment:
    """The experiment with the full paths of its teacher's pretrained weights, which were opened once.

    Files and hashes come first: they need neither torch nor timm, which take seconds to import.

    Raises:
        ConfigError: a file is missing or another one, the model is unknown, or the weights do not fit it.
    """
    chosen: dict[str, Any] = {}
    for modality, settings in experiment.teacher.pretrained.items():
        with _named(modality):
            read_weights(settings)
            chosen[f"pretrained_{modality}"] = replace(settings, weights=str(data_path(settings.weights)))
    if not chosen:
        return experiment
    teacher = replace(experiment.teacher, **chosen)
    from fedstill.cloud_server.pretrained.open_encoders import open_encoder

    for modality, settings in teacher.pretrained.items():
        with _named(modality):
            open_encoder(modality, settings)
    return replace(experiment, teacher=teacher)


@contextmanager
def _named(modality: Modality) -> Iterator[None]:
    """An error begins with the table that it is about."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"teacher.pretrained_{modality}: {error}") from error
