"""The tasks of a running server: the registry's, in engine and policy at once, swapped between two batches.

The registry may be changed by calls to this server or by `fedstill tasks` beside it. Tasks of other trunks are not this
server's: they are left out with a warning. A change that cannot be served (a damaged file, no task is left) leaves
everything as it was.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import CancelledError

import grpc

from fedstill.cloud_server.grpc.request_error import RequestError
from fedstill.cloud_server.serving.scheduling.policy import Policy
from fedstill.cloud_server.serving.scheduling.profile import Profile
from fedstill.cloud_server.serving.server.dispatcher import Dispatcher
from fedstill.cloud_server.serving.server.live_trunk import LiveTrunk
from fedstill.cloud_server.serving.server.loadable_engine import ServingEngine
from fedstill.cloud_server.serving.server.served_tasks import ServedTrunk, TrunkState
from fedstill.cloud_server.serving.tasks.registry import RegistryError, TaskRegistry, TaskVersion
from fedstill.common.errors import DataError
from fedstill.models.vit.task_bank import TaskParameters

LOG = logging.getLogger(__name__)


class LiveTasks:
    """Safe to call from any thread but the engine's; calls wait for the running batch.

    Args:
        trunk: SHA-256 of the engine's weights.
        profile, measured: as measured, and the fingerprints of the task versions that its columns belong to.
        served: what engine and dispatcher serve already of this trunk.
        generation: of the registry, read before ``served`` was.
        make_policy: for the present profile; with several trunks it is the joint one, by their names.
        keep: stores a profile whose times were corrected.
        name, others: of several trunks that share the device, the name of this one, and the others.
        state: of a trunk, by its name.
    """

    def __init__(
        self,
        registry: TaskRegistry,
        engine: ServingEngine,
        dispatcher: Dispatcher,
        trunk: str,
        profile: Profile,
        measured: Mapping[str, str],
        served: Mapping[str, TaskVersion],
        generation: int,
        make_policy: Callable[[Profile], Policy],
        keep: Callable[[Profile], None] = lambda _: None,
        name: str = "",
        others: Sequence[LiveTrunk] = (),
        state: Callable[[str], TrunkState] = lambda _: TrunkState(),
    ) -> None:
        self._registry, self._dispatcher, self._make_policy = registry, dispatcher, make_policy
        self._keep, self._state = keep, state
        first = LiveTrunk(
            engine, trunk, name, profile, measured, served, lambda corrected: self._keep(corrected)
        )
        self._trunks = {one.fingerprint: one for one in (first, *others)}
        self.trunks: Mapping[str, ServedTrunk] = {key: one.shape for key, one in self._trunks.items()}
        """By fingerprint, in the order in which they were given."""
        self._generation = generation
        self._changing = threading.Lock()
        self._note_served()
        dispatcher.versions = _numbers(self._served)
        for one in self._trunks.values():
            dispatcher.when_idle(one.time_while_idle)

    @property
    def trunk(self) -> str:
        """SHA-256 of the first trunk's weights."""
        return next(iter(self._trunks))

    @property
    def states(self) -> Mapping[str, TrunkState]:
        """Of the trunks, by fingerprint."""
        return {key: self._state(one.name) for key, one in self._trunks.items()}

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
            warn_of_other_trunks(self._registry.active(), tuple(self._trunks))
            self._warn_of_kept()
            if not self._changed():
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
        self,
        name: str,
        parameters: TaskParameters,
        latency_ms: float,
        utility: float,
        accuracy: float,
        trunk: str = "",
    ) -> TaskVersion:
        """Serve a task or a new version of it. Raises RequestError; then everything is as it was."""
        mine = self._trunks[trunk or self.trunk]
        try:  # a task that the engine would refuse must not enter the registry
            mine.check(name, parameters)
        except ValueError as error:
            raise _refused(grpc.StatusCode.INVALID_ARGUMENT, "parameters", error) from None
        with self._changing:
            before = self._registry.active().get(name)
            try:
                version = self._registry.register(
                    name,
                    parameters,
                    mine.fingerprint,
                    latency_ms=latency_ms,
                    utility=utility,
                    accuracy=accuracy,
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
            if wanted.trunk not in self._trunks:
                text = f"{name} version {wanted.version} was trained on another trunk ({wanted.trunk[:12]})"
                raise RequestError(grpc.StatusCode.FAILED_PRECONDITION, "name", text)
            if self._served.get(name) != wanted:
                if not wanted.active:
                    self._registry.activate(name, wanted.version)
                self._swap_or_undo(name, before)
            return self._served[name]

    def delete(self, name: str) -> None:
        """Stop serving a task. Raises RequestError for one that is not served, or the last one of its trunk."""
        with self._changing:
            before = self._servable(self._registry.active()).get(name)
            if before is None:
                known = ", ".join(self._served)
                raise RequestError(
                    grpc.StatusCode.NOT_FOUND, "name", f"{name[:64]!r} is not served (served: {known})"
                )
            self._registry.remove(name)
            self._swap_or_undo(name, before)

    def registered(self, name: str) -> TaskVersion | None:
        """The active version of a task, of whatever trunk."""
        return self._registry.active().get(name)

    def restore(self, name: str, made: TaskVersion | None, before: TaskVersion | None) -> None:
        """Have the registry say of a task what it said before, unless it no longer says ``made``, and serve that."""
        with self._changing:
            now = self.registered(name)
            if (now and now.version) == (made and made.version):  # else somebody has changed it meanwhile
                self._put_back(name, before)
            self._swap()

    def _put_back(self, name: str, before: TaskVersion | None) -> None:
        if before is None:
            self._registry.remove(name)
        else:
            self._registry.activate(name, before.version)

    def _swap_or_undo(self, name: str, before: TaskVersion | None) -> None:
        """Serve what the registry says now; if that cannot be, it says of this task what it said before."""
        try:
            self._swap()
            if self._served.get(name) != self._registry.active().get(name):
                raise DataError(f"no task is left to serve by the weights of {name}")
        except (DataError, ValueError, CancelledError) as error:
            self._put_back(name, before)
            raise _refused(grpc.StatusCode.FAILED_PRECONDITION, "name", error) from None

    def _correct_times(self) -> bool:
        corrected = False
        for trunk in self._trunks.values():
            try:
                corrected = trunk.correct(lambda trunk=trunk: self._swap([trunk])) or corrected  # type: ignore[misc]
            except (DataError, ValueError, CancelledError) as error:
                LOG.error("event=correction_refused reason=%r", str(error))
        return corrected

    def _servable(self, active: Mapping[str, TaskVersion]) -> dict[str, TaskVersion]:
        """Those of the served trunks."""
        return {name: task for name, task in active.items() if task.trunk in self._trunks}

    def _wanted(self) -> dict[str, dict[str, TaskVersion]]:
        """What each trunk is to serve: what the registry says. But one of several that would be left without a task
        keeps what it has, and no other trunk gets a task of one of these names."""
        active, kept, names = self._registry.active(), set[str](), set[str]()
        while True:
            wanted = {
                trunk: {n: task for n, task in active.items() if task.trunk == trunk and n not in names}
                for trunk in self._trunks
            }
            empty = {trunk for trunk, tasks in wanted.items() if not tasks} - kept
            if not empty or len(self._trunks) == 1:
                return wanted | {trunk: self._trunks[trunk].served for trunk in kept}
            kept |= empty
            names = {name for trunk in kept for name in self._trunks[trunk].served}

    def _warn_of_kept(self) -> None:
        active = self._registry.active()
        for trunk, tasks in self._wanted().items():
            if gone := [name for name, task in tasks.items() if active.get(name) != task]:
                LOG.error(
                    "event=last_tasks_kept trunk=%s tasks=%s hint='weights keep their last tasks while a server runs'",
                    self._trunks[trunk].name, ",".join(gone),
                )  # fmt: skip

    def _changed(self) -> dict[str, dict[str, TaskVersion]]:
        """By trunk, what is to be served and is not what is served."""
        return {
            trunk: tasks for trunk, tasks in self._wanted().items() if tasks != self._trunks[trunk].served
        }

    def _swap(self, trunks: Sequence[LiveTrunk] | None = None) -> None:
        """Serve what the registry says of these trunks, by default of all, and at once: a task may have moved from one
        to another."""
        generation = self._registry.generation()
        wanted = self._wanted()
        asked = [self._trunks[one] for one in self._changed()] if trunks is None else trunks
        changes = [(one, one.prepare(self._registry, wanted[one.fingerprint])) for one in asked]

        def change() -> Policy:
            new = {trunk.name: made.profile for trunk, made in changes}
            policy = self._make_policy(self._dispatcher.policy.profile.with_parts(new))
            for trunk, made in changes:
                trunk.apply(made)
                trunk.served = made.tasks
            self._note_served()
            self._dispatcher.versions = _numbers(self._served)
            return policy

        if changes:
            self._dispatcher.swap(change).result()
        if trunks is None:
            self._generation = generation
        LOG.info("event=tasks_swapped tasks=%s generation=%d", ",".join(self._served), generation)

    def _note_served(self) -> None:
        tasks = [task for trunk in self._trunks.values() for task in trunk.served.values()]
        self._served = {task.name: task for task in sorted(tasks, key=lambda task: task.name)}


def warn_of_other_trunks(active: Mapping[str, TaskVersion], served: Collection[str]) -> list[str]:
    """The active tasks that a server of these trunks leaves out, each named in the log."""
    others = [task for task in active.values() if task.trunk not in served]
    for task in others:
        LOG.warning(
            "event=task_left_out task=%s version=%d trunk=%s served_trunk=%s hint='start the server with --weights of "
            "this trunk, too, or add the task again'",
            task.name, task.version, task.trunk[:12], ",".join(one[:12] for one in served),
        )  # fmt: skip
    return [task.name for task in others]


def _numbers(tasks: Mapping[str, TaskVersion]) -> dict[str, int]:
    return {name: task.version for name, task in tasks.items()}


def _refused(code: grpc.StatusCode, field: str, error: BaseException) -> RequestError:
    return RequestError(code, field, str(error) or "the server is going down")
