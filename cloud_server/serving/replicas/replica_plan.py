"""What a replica serves, as plain values: they travel to other machines, and stand in a RayService's manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from fedstill.cloud_server.serving.app.serve_plan import ServePlan
from fedstill.cloud_server.serving.app.trunk_options import TrunkOptions
from fedstill.cloud_server.serving.engine.engine_settings import BackendName
from fedstill.common.dataclass_codec import PlainError, from_plain, to_plain
from fedstill.common.errors import ConfigError
from fedstill.common.option_values import pair

MOST_REPLICAS = 1000


@dataclass(frozen=True, slots=True)
class WeightsPlan:
    """``--weights``, and what belongs to them; paths are the same on every machine."""

    weights: str
    architecture: str | None = None
    profile: str | None = None


@dataclass(frozen=True)
class ReplicaPlan:
    """As ``fedstill serve`` names them, and how many replicas there are.

    least, most: replicas. cpus, gpus: of each. cost: utility per second that a replica has to earn for another one to
    be started. Raises ValueError for numbers that cannot be.
    """

    state: str
    weights: tuple[WeightsPlan, ...]
    database: str = ""
    warmed: str | None = None
    policy: str = "fedstill"
    device: str = "auto"
    precision: str = "auto"
    backend: str = "auto"
    schedules: str | None = None
    batches: str = "1,2,4,8,16,32"
    images: tuple[str, ...] = ()
    val_images: int = 200
    seed: int = 0
    waiting: int = 1024
    otlp: str = ""
    least: int = 1
    most: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    cost: float = 0.0

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError("weights: names no file")
        if not 1 <= self.least <= self.most <= MOST_REPLICAS:
            raise ValueError(
                f"least, most: need whole numbers from 1 to {MOST_REPLICAS}, the least not above the most"
            )
        if not (0 < self.cpus < float("inf") and 0 <= self.gpus < float("inf")):
            raise ValueError("cpus: needs a number above 0")
        if not 0 <= self.cost < float("inf"):
            raise ValueError("cost: needs a number that is not below 0")
        if self.backend not in get_args(BackendName):
            raise ValueError(f"backend: {self.backend!r} is not one of {', '.join(get_args(BackendName))}")

    def serve_plan(self) -> ServePlan:
        """For what a server without ports is made of."""
        first, *others = (
            TrunkOptions(one.weights, one.architecture, Path(one.profile) if one.profile else None)
            for one in self.weights
        )
        backend: Any = self.backend  # checked
        return ServePlan(
            state=Path(self.state),
            warmed=Path(self.warmed) if self.warmed else None,
            listen=("127.0.0.1", 0),
            web=None,
            rest=None,
            policy=self.policy,
            authority=None,
            operators=frozenset(),
            weights=first.weights,
            architecture=first.architecture,
            device=self.device,
            precision=self.precision,
            backend=backend,
            profile=first.profile,
            schedules=self.schedules,
            batches=self.batches,
            images=self.images,
            val_images=self.val_images,
            seed=self.seed,
            waiting=self.waiting,
            lame_duck_seconds=0.0,
            drain_seconds=10.0,
            otlp=self.otlp,
            others=tuple(others),
            database=self.database,
        )


def replica_plan(plan: ServePlan, least: int, most: int, cpus: float, cost: float) -> ReplicaPlan:
    """What the replicas behind that server are to serve. Raises ConfigError.

    Relative paths become absolute: replicas run in another folder. Weights that are not here but in the data folder
    stay as typed, for each machine may have its own.
    """
    try:
        return ReplicaPlan(
            state=str(plan.state.absolute()),
            weights=tuple(
                WeightsPlan(
                    _absolute(one.weights),
                    one.architecture,
                    str(one.profile.absolute()) if one.profile else None,
                )
                for one in plan.trunks
            ),
            database=plan.database,
            warmed=str(plan.warmed.absolute()) if plan.warmed else None,
            policy=plan.policy,
            device=plan.device,
            precision=plan.precision,
            backend=plan.backend,
            schedules=plan.schedules,
            batches=plan.batches,
            images=tuple(_absolute_images(one) for one in plan.images),
            val_images=plan.val_images,
            seed=plan.seed,
            waiting=plan.waiting,
            otlp=plan.otlp,
            least=least,
            most=most,
            cpus=cpus,
            gpus=1.0 if plan.device.startswith("cuda") else 0.0,
            cost=cost,
        )
    except ValueError as error:
        raise ConfigError(f"--replicas, --replica-cpus or --replica-cost: {error}") from None


def _absolute(text: str) -> str:
    path = Path(text).expanduser()
    return str(path.absolute()) if path.exists() else text


def _absolute_images(text: str) -> str:
    name, path = pair(text)
    return f"{name}={_absolute(str(path))}"


def read_replica_plan(plain: object) -> ReplicaPlan:
    """Of plain values. Raises ConfigError naming the key."""
    try:
        return from_plain(ReplicaPlan, plain)
    except PlainError as error:
        raise ConfigError(str(error)) from None


def plain_replica_plan(plan: ReplicaPlan) -> dict[str, Any]:
    """As plain values, for `read_replica_plan`."""
    return to_plain(plan)
