"""Trunks that need not fit into memory together: which are loaded at the start, and what loads the others.

At the end of the start every trunk has a profile, so all can be planned for. One without is loaded and measured now, if
need be in the place of others.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedstill.cloud_server.serving.app.serve_plan import ServePlan
from fedstill.cloud_server.serving.app.serve_trunk import (
    KnownTrunk,
    ReadyTrunk,
    chosen_engine,
    profile_of,
)
from fedstill.cloud_server.serving.app.served_models import Loading, OnProgress
from fedstill.cloud_server.serving.app.trunk_footprint import expected, footprint_file, least_bytes
from fedstill.cloud_server.serving.app.trunk_options import TrunkOptions
from fedstill.cloud_server.serving.engine.engine import Engine
from fedstill.cloud_server.serving.engine.engine_settings import EngineSettings
from fedstill.cloud_server.serving.engine.memory_limit import limit_bytes
from fedstill.cloud_server.serving.engine.openvino_library import load_library
from fedstill.cloud_server.serving.engine.trunk import TrunkError, load_trunk
from fedstill.cloud_server.serving.scheduling.profile import Profile
from fedstill.cloud_server.serving.server.loadable_engine import LoadableEngine
from fedstill.cloud_server.serving.server.residency import Footprint, Residency
from fedstill.common.errors import ConfigError
from fedstill.common.option_values import size_text
from fedstill.common.paths import data_path
from fedstill.models.vit.task_bank import TaskParameters

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class AskedTrunk:
    """A trunk whose weights are not in memory, and where they are."""

    known: KnownTrunk
    options: TrunkOptions
    tell: OnProgress


def trunks_within(
    plan: ServePlan, budget: int, asked: Sequence[AskedTrunk]
) -> tuple[list[ReadyTrunk], Loading]:
    """All of them with a profile, and those loaded that fit, in this order.

    Raises:
        ConfigError: one that does not fit alone, or a device whose memory is not counted. DataError: weights or images
            that cannot be read.
    """
    if budget > limit_bytes():
        LOG.warning(
            "event=unwise reason='--memory-budget is more than the %s that there is'",
            size_text(limit_bytes()),
        )
    load_library()  # what libraries take belongs to no trunk
    places = [_Place(plan, budget, one) for one in asked]
    inside: list[_Place] = []

    def used() -> int:
        return sum(place.footprint.bytes for place in inside)

    def take_in(place: _Place) -> None:
        place.load()
        inside.append(place)
        place.measure()
        if used() > budget:  # it is larger than it was expected to be
            inside.pop().engine.unload()

    for place in places:
        if place.profile is None:
            while inside and used() + place.footprint.bytes > budget:
                inside.pop().engine.unload()
            take_in(place)
    for place in places:
        if place not in inside and used() + place.footprint.bytes <= budget:
            take_in(place)
    for place in places:
        if place not in inside:
            place.asked.tell("known, and not loaded: there is no room")
    residency = Residency(
        budget, {place.name: place.footprint for place in places}, [place.name for place in inside]
    )
    LOG.info(
        "event=memory_budget bytes=%d loaded_bytes=%d loaded=%s not_loaded=%s", budget, used(),
        ",".join(place.weights for place in inside),
        ",".join(place.weights for place in places if place not in inside),
    )  # fmt: skip
    return [place.ready() for place in places], Loading(residency, {one.name: one.engine for one in places})


class _Place:
    """A trunk during the start."""

    def __init__(self, plan: ServePlan, budget: int, asked: AskedTrunk) -> None:
        self._plan, self._budget, self.asked = plan, budget, asked
        known = asked.known
        if known.settings.torch_device.type != "cpu":
            raise ConfigError("--memory-budget: counts main memory only: add --device cpu, or leave it out")
        self.name, self.weights = known.name, asked.options.weights
        self.profile: Profile | None = known.profile
        self._trial_seconds, self._starting = 0.0, True
        net, settings = known.trunk.net, known.settings
        self._file = footprint_file(plan.folder, known.trunk.fingerprint, settings, known.engine)
        kept, least = self._file.read(), least_bytes(net, settings)
        if kept is not None:
            self._check(kept.bytes, "by the last measurement")
        self._check(least, "at least, for weights and graphs")
        likely = kept or expected(net, settings)
        self.footprint = Footprint(min(likely.bytes, budget), likely.seconds)
        self.engine = LoadableEngine(net, settings, known.parameters, self._make, least, self._remember)

    def load(self) -> None:
        """Into memory. Raises ConfigError if it is too large."""
        self._trial_seconds = 0.0
        self.footprint = self.engine.load(self.asked.tell)
        if self._trial_seconds:
            seconds = max(0.1, self.footprint.seconds - self._trial_seconds)
            self.footprint = replace(self.footprint, seconds=seconds)
            self._file.write(self.footprint)
        self._check(self.footprint.bytes, "as measured now")

    def measure(self) -> None:
        """Its profile, if it has none; else look whether it still holds. It is loaded."""
        engine = self.engine.loaded_engine()
        self.profile = profile_of(
            self._plan, replace(self.asked.known, profile=self.profile), engine, self.asked.tell
        )
        self.engine.settings = replace(self.engine.settings, variant=engine.variant)

    def ready(self) -> ReadyTrunk:
        if self.profile is None:
            raise AssertionError("every trunk was measured")
        self._starting = False
        return self.asked.known.ready(self.engine, self.profile)

    def _remember(self, found: Footprint) -> None:
        """For the next start. While queries are answered, the process grows and shrinks by them, too: what a start has
        measured stays, and nothing that would refuse the next one."""
        if not self._starting:
            kept = self._file.read()
            found = replace(found, bytes=kept.bytes if kept else min(found.bytes, self._budget))
        self._file.write(found)

    def _make(
        self, parameters: dict[str, TaskParameters], settings: EngineSettings, tell: OnProgress
    ) -> Engine:
        tell("reading the weights")
        trunk = load_trunk(data_path(self.weights), self.asked.options.architecture)
        if trunk.fingerprint != self.asked.known.trunk.fingerprint:
            raise TrunkError(f"{self.weights}: is another file than at the start: start again")
        began = time.monotonic()
        engine = chosen_engine(trunk, parameters, settings, tell)
        if not settings.variant:  # a later loading need not choose
            self._trial_seconds = time.monotonic() - began
        engine.warm_up(tell)
        return engine

    def _check(self, size: int, how: str) -> None:
        if size > self._budget:
            raise ConfigError(
                f"--memory-budget {size_text(self._budget)}: {self.weights} alone takes {size_text(size)} ({how}): "
                f"give {size_text(size)} or more, or name fewer --schedules"
            )
