"""The settings that an operator gave to ``fedstill serve``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import torch

from fedstill.cloud_server.serving.app.trunk_options import TrunkOptions
from fedstill.cloud_server.serving.callers.rate_limits import Rate
from fedstill.cloud_server.serving.engine.engine_settings import BackendName, Precision
from fedstill.cloud_server.serving.engine.openvino_library import missing_library
from fedstill.cloud_server.serving.policies.registry import POLICIES
from fedstill.cloud_server.serving.tasks.registry import open_registry
from fedstill.cloud_server.warmup.warmed_models import read_catalogue
from fedstill.common.errors import ConfigError
from fedstill.common.option_values import pair, whole_numbers

SHARING = "fedstill"
"""The policy that can share a device among trunks."""
LONGEST_END = 86_400
"""Seconds, a day: for each part of a server's end."""


@dataclass(frozen=True)
class ServePlan:
    """The options as typed; see ``fedstill serve --help``."""

    state: Path
    warmed: Path | None
    listen: tuple[str, int]
    web: tuple[str, int] | None
    rest: tuple[str, int] | None
    policy: str
    authority: Path | None
    operators: frozenset[str]
    weights: str
    architecture: str | None
    device: str
    precision: str
    backend: BackendName
    profile: Path | None
    schedules: str | None
    batches: str
    images: tuple[str, ...]
    val_images: int
    seed: int
    waiting: int
    lame_duck_seconds: float
    drain_seconds: float
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    otlp: str = ""
    rates: Mapping[str, Rate] = field(default_factory=dict)
    database: str = ""
    """URL of the registry's database, if not in ``state``."""
    others: tuple[TrunkOptions, ...] = ()
    """Of further trunks, beside that of ``weights``, ``architecture`` and ``profile``."""

    memory_budget: int | None = None
    """Bytes, of all loaded trunks together; by default all stay in memory."""

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of torch devices; each gets an engine."""
        return tuple(name.strip() for name in self.device.split(","))

    @property
    def trunks(self) -> tuple[TrunkOptions, ...]:
        """All of them, the first one first."""
        return TrunkOptions(self.weights, self.architecture, self.profile), *self.others

    def check(self) -> None:
        """The checks that need no model. Raises ConfigError, WarmedModelError."""
        if self.policy not in POLICIES:
            raise ConfigError(
                f"--policy: unknown policy {self.policy!r} (known: {', '.join(_live_policies())})"
            )
        if self.policy not in _live_policies():
            raise ConfigError(
                f"--policy {self.policy}: switches between whole models, and a server has one trunk; "
                f"compare it with: fedstill loadtest virtual --policies {self.policy}"
            )
        if self.others and self.policy != SHARING:
            raise ConfigError(
                f"--policy {self.policy}: serves one trunk; leave it out, or give one --weights"
            )
        if self.others and self.warmed is not None:
            raise ConfigError("--warmed: its models are of one trunk; give one --weights")
        if self.memory_budget is not None and self.warmed is not None:
            raise ConfigError("--memory-budget: the models of --warmed stay in memory; drop one of the two")
        if self.precision not in get_args(Precision):
            raise ConfigError(
                f"--precision: {self.precision!r} is not one of {', '.join(get_args(Precision))}"
            )
        for name, seconds in (("lame-duck", self.lame_duck_seconds), ("drain-seconds", self.drain_seconds)):
            if not 0 <= seconds <= LONGEST_END:  # nor if it is no number
                raise ConfigError(f"--{name} {seconds:g}: needs seconds from 0 to {LONGEST_END}")
        self._check_devices()
        if self.backend == "openvino" and (missing := missing_library()):
            raise ConfigError(f"--backend openvino: {missing}")
        for text in self.images:
            pair(text)
        if not whole_numbers("--batches", self.batches):
            raise ConfigError("--batches: name at least one batch size")
        if self.warmed is None:
            open_registry(self.state, self.database).close()
        else:
            read_catalogue(self.warmed)

    def _check_devices(self) -> None:
        for name in self.devices:
            if name != "auto" and not is_here(name):
                raise ConfigError(f"--device: {name!r} is not here: use auto, cpu or cuda, or cuda:0,cuda:1")
        if len(self.devices) == 1:
            return
        if "auto" in self.devices or len(set(map(_place, self.devices))) < len(self.devices):
            raise ConfigError(
                f"--device {self.device}: name each of several devices once, such as cuda:0,cuda:1"
            )
        if self.warmed is not None or self.memory_budget is not None:
            other = "--warmed" if self.warmed is not None else "--memory-budget"
            raise ConfigError(f"--device {self.device}: {other} goes with one device; drop one of the two")

    @property
    def folder(self) -> Path:
        """The folder for the server's own files."""
        return (self.warmed or self.state) / "serve"


def is_here(name: str) -> bool:
    """Whether this machine has a device of that name, for torch."""
    try:
        device = torch.device(name)
    except RuntimeError:  # no name of a device
        return False
    index = device.index or 0
    if ":" in name and name != f"{device.type}:{index}":  # torch takes cpu:256 for cpu:0
        return False
    if device.type == "cuda":
        return torch.cuda.is_available() and 0 <= index < torch.cuda.device_count()
    return device.type == "cpu" and index >= 0


def _place(name: str) -> tuple[str, int]:
    """With its number: cuda is cuda:0."""
    device = torch.device(name)
    return device.type, device.index or 0


def _live_policies() -> tuple[str, ...]:
    return tuple(name for name in POLICIES if name != "infaas")
