"""Several devices follow one registry that other processes change, too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from helpers.serving import TASKS, TRUNK, serving
from helpers.vit import task

from fedstill.cloud_server.grpc.request_error import RequestError
from fedstill.cloud_server.serving.server.device_tasks import DeviceTasks
from fedstill.cloud_server.serving.server.live_tasks import LiveTasks

OTHER = "1" * 64


class Part:
    """The ``LiveTasks`` of a device, of a registry that is a dictionary of versions by name."""

    def __init__(self, registry: dict[str, int], look: Callable[[], None] = lambda: None) -> None:
        self._registry, self._look, self.served = registry, look, dict(registry)

    def refresh(self) -> bool:
        self._look()
        self.served = dict(self._registry)
        return True

    def registered(self, name: str) -> Any:
        return self._registry.get(name)

    def register(self, name: str, *_: Any) -> Any:
        self._registry[name] = 1 + max(self._registry.values(), default=0)
        self.served = dict(self._registry)
        return self._registry[name]

    def restore(self, name: str, made: Any, before: Any) -> None:
        if self._registry.get(name) == made:
            self._registry[name] = before
        self.served = dict(self._registry)


def devices(*parts: Part) -> DeviceTasks:
    return DeviceTasks(cast(Sequence[LiveTasks], parts))


def register(tasks: DeviceTasks) -> None:
    tasks.register("cats", cast(Any, None), 1.0, 1.0, 1.0)


def test_what_another_process_registers_meanwhile_is_not_undone() -> None:
    registry = {"cats": 1}
    meanwhile = [lambda: registry.update(cats=3)]
    tasks = devices(Part(registry), Part(registry, lambda: meanwhile.pop()() if meanwhile else None))
    register(tasks)
    assert registry == {"cats": 3}
    assert tasks.served == {"cats": 3}


def test_one_that_cannot_is_no_reason_for_others_to_stay_behind() -> None:
    registry = {"cats": 1}

    def fail() -> None:
        raise RuntimeError("CUDA out of memory")

    able = Part(registry)
    tasks = devices(Part(registry), Part(registry, fail), able)
    with pytest.raises(RequestError, match="not every device can serve this: CUDA out of memory"):
        register(tasks)
    assert registry == {"cats": 1}
    registry["dogs"] = 7
    with pytest.raises(RuntimeError):
        tasks.refresh()
    assert able.served == {"cats": 1, "dogs": 7}


def test_a_task_is_there_while_it_changes_also_if_one_device_refuses_the_new_version() -> None:
    registry, follows = {"cats": 1}, [True]

    def look() -> None:
        if not follows[0]:
            raise RuntimeError("CUDA out of memory")

    tasks = devices(Part(registry), Part(registry, look))
    assert tasks.served == {"cats": 1}
    registry |= {"cats": 2, "dogs": 1}
    follows[0] = False
    with pytest.raises(RuntimeError):
        tasks.refresh()
    assert tasks.served == {"cats": 1}, "and a new one not before all have it"
    follows[0] = True
    tasks.refresh()
    assert tasks.served == {"cats": 2, "dogs": 1}


def test_what_is_put_back_is_what_the_registry_said_for_whichever_trunk(tmp_path: Path) -> None:
    with serving(tmp_path) as made:
        elsewhere = made.registry.register("fish", task(2, seed=5), OTHER, accuracy=0.5)
        before = made.tasks.registered("fish")
        assert before == elsewhere
        mine = made.tasks.register("fish", task(2, seed=6), 600.0, 1.0, 0.5, TRUNK)
        assert set(made.tasks.served) == {*TASKS, "fish"}
        made.tasks.restore("fish", mine, before)
        assert made.registry.active()["fish"].trunk == OTHER
        assert set(made.tasks.served) == set(TASKS)
        newer = made.registry.register("fish", task(2, seed=7), TRUNK, accuracy=0.5)
        made.tasks.restore("fish", mine, before)
        assert made.registry.active()["fish"] == newer == made.tasks.served["fish"]
        made.tasks.restore("fish", newer, None)
        assert "fish" not in made.registry.active()
        assert set(made.tasks.served) == set(TASKS)
