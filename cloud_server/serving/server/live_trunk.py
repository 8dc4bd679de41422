"""One trunk of a running server: its engine with its tasks, and its profile, whose times are taken again while idle."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch

from fedstill.cloud_server.serving.engine.idle_timing import IdleTiming
from fedstill.cloud_server.serving.scheduling.profile import Profile
from fedstill.cloud_server.serving.server.live_profile import fit_profile, with_times
from fedstill.cloud_server.serving.server.loadable_engine import NotLoaded, ServingEngine
from fedstill.cloud_server.serving.server.served_tasks import ServedTrunk
from fedstill.cloud_server.serving.tasks.registry import TaskRegistry, TaskVersion
from fedstill.models.vit.task_bank import TaskBank, TaskParameters

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """Other tasks for a trunk, read and checked. profile: for exactly these tasks."""

    tasks: dict[str, TaskVersion]
    parameters: dict[str, TaskParameters]
    profile: Profile


class LiveTrunk:
    """What belongs to one trunk alone; ``LiveTasks`` says when it changes.

    Args:
        engine: may be out of memory (``LoadableEngine``).
        fingerprint: SHA-256 of the engine's weights. name: for people, unique in a server; empty for the only trunk.
        profile, measured: as measured, and the fingerprints of the task versions that its columns belong to.
        served: what the engine serves already.
        keep: stores a profile whose times were corrected.
    """

    def __init__(
        self,
        engine: ServingEngine,
        fingerprint: str,
        name: str,
        profile: Profile,
        measured: Mapping[str, str],
        served: Mapping[str, TaskVersion],
        keep: Callable[[Profile], None] = lambda _: None,
    ) -> None:
        self.engine, self.fingerprint, self.name = engine, fingerprint, name
        self.served = dict(served)
        self._profile, self._measured, self._keep = profile, measured, keep
        self._schedules = {schedule.name: schedule for schedule in engine.settings.schedules}
        self._noisy = torch.empty(0)
        self.timing = IdleTiming(self._time, self._fitted(served))
        net = engine.net
        self.shape = ServedTrunk(fingerprint, name, net.image_size, net.width, net.preprocess)
        """As clients see it."""

    def check(self, name: str, parameters: TaskParameters) -> None:
        """Raises ValueError for a task that the engine would refuse."""
        TaskBank({name: parameters}, self.engine.net.layers, self.engine.net.width)

    def prepare(self, registry: TaskRegistry, tasks: Mapping[str, TaskVersion]) -> Change:
        """These tasks of the registry. Raises DataError, or ValueError for a task made for another trunk."""
        parameters = {name: registry.load(version) for name, version in tasks.items()}
        for name, one in parameters.items():
            self.check(name, one)
        return Change(dict(tasks), parameters, self._fitted(tasks))

    def apply(self, change: Change) -> None:
        """In the engine's thread, between two batches."""
        self.engine.swap(change.parameters)
        self.timing.restart(change.profile)

    def time_while_idle(self) -> None:
        """Time one batch, in the engine's thread; nothing while the trunk is not loaded."""
        if self.engine.ready:
            with suppress(NotLoaded):  # unloaded just now
                self.timing.step()

    def correct(self, swap: Callable[[], None]) -> bool:
        """Plan with the times that were found while idle, if some were; ``swap`` puts them into use. Whatever it raises
        is raised, and then all is as before."""
        found = self.timing.take_correction()
        if found is None:
            return False
        before, self._profile = self._profile, with_times(self._profile, found)
        try:
            swap()
        except BaseException:
            self._profile = before
            raise
        changed = [
            f"{one.name}:{was.seconds(1):.4f}->{one.seconds(1):.4f}"
            for one, was in zip(self._profile.schedules, before.schedules, strict=True)
            if one != was
        ]
        LOG.warning("event=profile_corrected seconds_of_one=%s", ",".join(changed))
        try:
            self._keep(self._profile)
        except OSError as error:  # a full disk: the next start finds it out again
            LOG.error("event=profile_not_kept reason=%r", str(error))
        return True

    def _fitted(self, tasks: Mapping[str, TaskVersion]) -> Profile:
        return fit_profile(self._profile, self._measured, tasks, self._schedules, self.engine.maximum_batch)

    def _time(self, schedule: str, size: int) -> None:
        """A batch of nobody's images, in the engine's thread."""
        names = [next(iter(self.served))] * size
        self.engine.infer(self._noise(size), names, self._schedules[schedule])

    def _noise(self, size: int) -> torch.Tensor:
        if len(self._noisy) < size:
            side = self.engine.net.image_size
            self._noisy = torch.randn(size, 3, side, side, generator=torch.Generator().manual_seed(0))
        return self._noisy[:size]
