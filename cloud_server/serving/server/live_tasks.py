"""The tasks of a running server: the registry's, in engine and policy at once, swapped between two batches.

The registry may be changed by calls to this server or by `fedstill tasks` beside it. Tasks of other trunks are not this
server's: they are left out with a warning. A change that cannot be served (a damaged file, no task is left) leaves
everything as it was.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError

import grpc
import torch

from fedstill.cloud_server.grpc.request_error import RequestError
from fedstill.cloud_server.serving.engine.engine import Engine
from fedstill.cloud_server.serving.engine.idle_timing import IdleTiming
from fedstill.cloud_server.serving.scheduling.policy import Policy
from fedstill.cloud_server.serving.scheduling.profile import Profile
from fedstill.cloud_server.serving.server.dispatcher import Dispatcher
from fedstill.cloud_server.serving.server.live_profile import fit_profile, with_times
from fedstill.cloud_server.serving.tasks.registry import RegistryError, TaskRegistry, TaskVersion
from fedstill.common.errors import DataError
from fedstill.models.vit.preprocess_settings import Preprocess
from fedstill.models.vit.task_bank import TaskBank, TaskParameters

LOG = logging.getLogger(__name__)


class LiveTasks:
    """Safe to call from any thread but the engine's; calls wait for the running batch.

    Args:
        trunk: SHA-256 of the engine's weights.
        profile, measured: as measured, and the fingerprints of the task versions that its columns belong to.
        served: what engine and dispatcher serve already.
        generation: of the registry, read before ``served`` was.
        make_policy: for the present profile.
        keep: stores a profile whose times were corrected.
    """

    def __init__(
        self,
        registry: TaskRegistry,
        engine: Engine,
        dispatcher: Dispatcher,
        trunk: str,
        profile: Profile,
        measured: Mapping[str, str],
        served: Mapping[str, TaskVersion],
        generation: int,
        make_policy: Callable[[Profile], Policy],
        keep: Callable[[Profile], None] = lambda _: None,
    ) -> None:
        self.trunk = trunk
        self._registry, self._engine, self._dispatcher = registry, engine, dispatcher
        self._profile, self._measured, self._make_policy = profile, measured, make_policy
        self._keep = keep
        self._served, self._generation = dict(served), generation
        self._changing = threading.Lock()
        self._schedules = {schedule.name: schedule for schedule in engine.settings.schedules}
        self._noisy = torch.empty(0)
        self._timing = IdleTiming(self._time, dispatcher.policy.profile)
        dispatcher.when_idle(self._timing.step)
        dispatcher.versions = _numbers(served)

    @property
    def preprocess(self) -> Preprocess:
        return self._engine.net.preprocess

    @property
    def width(self) -> int:
        return self._engine.net.width

    @property
    def served(self) -> Mapping[str, TaskVersion]:
        """What is served now, by name."""
        return self._served

    def refresh(self) -> bool:
        """Serve the registry's present tasks, by a profile that holds; returns whether anything changed. Tasks that
        cannot be served are logged."""
        with self._changing:
            generation = self._registry.generation()
            if generation == self._generation:
                return self._correct_times()
            warn_of_other_trunks(self._registry.active(), self.trunk)
            if self._registry.active_on(self.trunk) == self._served:
                self._generation = generation
                return False
            try:
                self._swap()
            except (DataError, ValueError, CancelledError) as error:
                LOG.error("event=swap_refused reason=%r", str(error))
                self._generation = generation  # logged once; the next change is examined again
                return False
            return True

    def register(
        self, name: str, parameters: TaskParameters, latency_ms: float, utility: float, accuracy: float
    ) -> TaskVersion:
        """Serve a task or a new version of it. Raises RequestError; then everything is as it was."""
        try:  # a task that the engine would refuse must not enter the registry
            TaskBank({name: parameters}, self._engine.net.layers, self._engine.net.width)
        except ValueError as error:
            raise _refused(grpc.StatusCode.INVALID_ARGUMENT, "parameters", error) from None
        with self._changing:
            before = self._registry.active().get(name)
            try:
                version = self._registry.register(
                    name, parameters, self.trunk, latency_ms=latency_ms, utility=utility, accuracy=accuracy
                )
            except RegistryError as error:
                raise _refused(grpc.StatusCode.INVALID_ARGUMENT, "name", error) from None
            self._swap_or_undo(name, before)
        return version

    def versions(self) -> tuple[TaskVersion, ...]:
        """All registered versions, by name and number."""
        return self._registry.versions()

    def load(self, name: str, version: int | None = None) -> TaskVersion:
        """Serve a registered version: by default the active one, or the newest of a task that is not served.

        Raises RequestError; then everything is as it was.
        """
        with self._changing:
            before = self._registry.active().get(name)
            known = self._registry.versions(name)
            try:
                newest = known[-1].version if known else None
                wanted = self._registry.get(name, version or (before.version if before else newest))
            except RegistryError as error:
                raise _refused(grpc.StatusCode.NOT_FOUND, "name", error) from None
            if wanted.trunk != self.trunk:
                text = f"{name} version {wanted.version} was trained on another trunk ({wanted.trunk[:12]})"
                raise RequestError(grpc.StatusCode.FAILED_PRECONDITION, "name", text)
            if self._served.get(name) != wanted:
                if not wanted.active:
                    self._registry.activate(name, wanted.version)
                self._swap_or_undo(name, before)
            return self._served[name]

    def delete(self, name: str) -> None:
        """Stop serving a task. Raises RequestError for one that is not served, or the last one."""
        with self._changing:
            before = self._registry.active_on(self.trunk).get(name)
            if before is None:
                known = ", ".join(self._served)
                raise RequestError(
                    grpc.StatusCode.NOT_FOUND, "name", f"{name[:64]!r} is not served (served: {known})"
                )
            self._registry.remove(name)
            self._swap_or_undo(name, before)

    def _swap_or_undo(self, name: str, before: TaskVersion | None) -> None:
        """Serve what the registry says now; if that cannot be, it says of this task what it said before."""
        try:
            self._swap()
        except (DataError, ValueError, CancelledError) as error:
            if before is None:
                self._registry.remove(name)
            else:
                self._registry.activate(name, before.version)
            raise _refused(grpc.StatusCode.FAILED_PRECONDITION, "name", error) from None

    def _time(self, schedule: str, size: int) -> None:
        """A batch of nobody's images, in the engine's thread."""
        names = self._engine.bank.names[:1] * size
        self._engine.infer(self._noise(size), names, self._schedules[schedule])

    def _noise(self, size: int) -> torch.Tensor:
        if len(self._noisy) < size:
            side = self._engine.net.image_size
            self._noisy = torch.randn(size, 3, side, side, generator=torch.Generator().manual_seed(0))
        return self._noisy[:size]

    def _correct_times(self) -> bool:
        found = self._timing.take_correction()
        if found is None:
            return False
        before, self._profile = self._profile, with_times(self._profile, found)
        try:
            self._swap()
        except (DataError, ValueError, CancelledError) as error:
            self._profile = before
            LOG.error("event=correction_refused reason=%r", str(error))
            return False
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

    def _swap(self) -> None:
        generation = self._registry.generation()
        tasks = self._registry.active_on(self.trunk)
        parameters = self._registry.load_active(self.trunk)
        if parameters.keys() != tasks.keys():
            raise RegistryError("the registry was changed meanwhile: trying again")
        profile = fit_profile(
            self._profile, self._measured, tasks, self._schedules, self._engine.maximum_batch
        )

        def change() -> Policy:
            policy = self._make_policy(profile)
            self._engine.swap(parameters)
            self._timing.restart(profile)
            self._dispatcher.versions = _numbers(tasks)
            return policy

        self._dispatcher.swap(change).result()
        self._served, self._generation = tasks, generation
        LOG.info("event=tasks_swapped tasks=%s generation=%d", ",".join(tasks), generation)


def warn_of_other_trunks(active: Mapping[str, TaskVersion], trunk: str) -> list[str]:
    """The active tasks that a server of this trunk leaves out, each named in the log."""
    others = [task for task in active.values() if task.trunk != trunk]
    for task in others:
        LOG.warning(
            "event=task_left_out task=%s version=%d trunk=%s served_trunk=%s hint='start another server with "
            "its --weights and --state, or add the task again'",
            task.name, task.version, task.trunk[:12], trunk[:12],
        )  # fmt: skip
    return [task.name for task in others]


def _numbers(tasks: Mapping[str, TaskVersion]) -> dict[str, int]:
    return {name: task.version for name, task in tasks.items()}


def _refused(code: grpc.StatusCode, field: str, error: BaseException) -> RequestError:
    return RequestError(code, field, str(error) or "the server is going down")
