"""Guards the device's students: whatever is interrupted, damaged or full, a whole, checked student stays in use."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedstill.common.atomic_files import PART, locked
from fedstill.edge_client.privacy.prototypes import DeviceError
from fedstill.edge_client.students.students import (
    POINTER,
    Installation,
    ModelStore,
    NotInStore,
    StoredModel,
)
from fedstill.models.weights.delta import content_hash, encode_update
from fedstill.protos.messages import Student, WireError

NAMES = ("calm", "cross")
SPEC = '{"classes": 2}'
State = dict[str, np.ndarray]


def state(seed: int) -> State:
    rng = np.random.default_rng(seed)
    return {
        "weight": rng.standard_normal((8, 9)).astype(np.float32),
        "bn.num_batches_tracked": np.array(seed, np.int64),
    }


def message(seed: int, base: int | None = None) -> Student:
    """A student as it travels, whole or against another one."""
    update = encode_update(state(seed), None if base is None else state(base), "exact")
    known = "" if base is None else version(base)
    return Student(np.frombuffer(update.payload, np.uint8), SPEC, NAMES, version(seed), known)


def version(seed: int) -> str:
    return content_hash(state(seed), (SPEC, *NAMES))


def agrees(_student: StoredModel) -> float:
    return 0.9


def shelf_with(folder: Path, *seeds: int) -> ModelStore:
    """A model store in which these were installed, one after the other."""
    model_store = ModelStore(folder)
    for seed in seeds:
        model_store.student(message(seed))
        assert model_store.install(version(seed), agrees, 0.5).installed
    return model_store


def in_use(model_store: ModelStore) -> int | None:
    """The seed of the current student, whose content is checked to be right."""
    found = model_store.current()
    if found is None:
        return None
    seed = int(found.state["bn.num_batches_tracked"])
    assert (found.version, found.spec, found.class_names) == (version(seed), SPEC, NAMES)
    assert np.array_equal(found.state["weight"], state(seed)["weight"])
    return seed


def test_a_whole_student_and_an_update_of_it(tmp_path: Path) -> None:
    model_store = ModelStore(tmp_path / "students")
    for sent in (message(1), message(2, base=1)):
        found = model_store.student(sent)
        assert content_hash(found.state, (found.spec, *found.class_names)) == sent.version == found.version
    assert model_store.versions() == [version(1), version(2)]


def test_a_known_version_needs_no_payload(tmp_path: Path) -> None:
    model_store = ModelStore(tmp_path)
    model_store.student(message(1))
    again = model_store.student(message(1, base=1))
    assert len(message(1, base=1).weights) < 100
    assert again.version == version(1)


def test_a_base_that_is_not_there_is_asked_for(tmp_path: Path) -> None:
    model_store = ModelStore(tmp_path)
    with pytest.raises(NotInStore) as missing:
        model_store.student(message(2, base=1))
    assert (missing.value.item, missing.value.version) == ("base", version(1))
    model_store.student(message(1))
    model_store.student(message(2, base=1))
    shutil.rmtree(tmp_path)  # a wiped device
    with pytest.raises(NotInStore):
        model_store.student(message(3, base=2))
    assert model_store.student(message(3)).version == version(3)


def test_an_update_to_something_else_is_refused_by_name(tmp_path: Path) -> None:
    model_store = ModelStore(tmp_path)
    model_store.student(message(1))
    for wrong in (
        replace(message(2, base=1), version=version(3)),
        replace(message(2), spec='{"classes": 3}'),
        replace(message(2), class_names=NAMES[::-1]),
    ):
        with pytest.raises(WireError, match=r"^version: the update leads to"):
            model_store.student(wrong)
    with pytest.raises(WireError, match=r"^version: is known here with another spec"):
        model_store.student(replace(message(1), class_names=NAMES[::-1]))
    with pytest.raises(WireError, match=r"^weights: digest: "):
        model_store.student(replace(message(2), weights=message(2).weights[:-1]))
    assert model_store.versions() == [version(1)]


def test_an_update_against_another_base_than_it_was_made_for_is_refused(tmp_path: Path) -> None:
    model_store = ModelStore(tmp_path)
    model_store.student(message(1))
    model_store.student(message(2))
    with pytest.raises(WireError, match=r"^version: the update leads to"):
        model_store.student(replace(message(3, base=1), base=version(2)))


def test_a_student_that_is_too_large_is_refused(tmp_path: Path) -> None:
    model_store = ModelStore(tmp_path, most_bytes=100)
    with pytest.raises(WireError, match=r"^weights: tensors: more than the 100 bytes"):
        model_store.student(message(1))


def test_the_last_students_are_kept_and_the_installed_ones(tmp_path: Path) -> None:
    model_store = ModelStore(tmp_path, kept=2)
    for seed in (1, 2):
        model_store.student(message(seed))
        model_store.install(version(seed), agrees, 0.5)
    for seed in (3, 4, 5, 3, 6):
        model_store.student(message(seed))
    assert set(model_store.versions()) == {
        version(seed) for seed in (1, 2, 5, 3, 6)
    }  # not 4: 3 was used since
    assert in_use(model_store) == 2


def test_a_student_that_passes_is_used_and_the_one_before_it_kept(tmp_path: Path) -> None:
    model_store = ModelStore(tmp_path)
    assert in_use(model_store) is None
    model_store = shelf_with(tmp_path, 1, 2, 3)
    assert in_use(model_store) == 3
    assert json.loads((tmp_path / POINTER).read_text()) == {"current": version(3), "previous": version(2)}


def test_a_student_that_fails_is_rolled_back(tmp_path: Path) -> None:
    model_store = shelf_with(tmp_path, 1)
    model_store.student(message(2, base=1))
    found = model_store.install(version(2), lambda _: 0.25, 0.5)
    reason = "agrees with the teacher on 25% of the canary clips, 50% are needed"
    assert found == Installation(False, 0.25, reason, version(1))
    assert in_use(model_store) == 1


@pytest.mark.parametrize("agreement", [float("nan"), 0.0])
def test_what_cannot_be_compared_does_not_pass(agreement: float, tmp_path: Path) -> None:
    model_store = shelf_with(tmp_path, 1)
    model_store.student(message(2))
    assert not model_store.install(version(2), lambda _: agreement, 0.1).installed
    assert in_use(model_store) == 1


def test_a_student_that_does_not_fit_its_specification_is_rolled_back(tmp_path: Path) -> None:
    def unfit(_student: StoredModel) -> float:
        raise ValueError("weights: size mismatch\nfor head.weight")

    model_store = shelf_with(tmp_path, 1)
    model_store.student(message(2))
    found = model_store.install(version(2), unfit, 0.5)
    assert found == Installation(False, 0.0, "weights: size mismatch for head.weight", version(1))


def test_the_first_student_may_fail_too(tmp_path: Path) -> None:
    model_store = ModelStore(tmp_path)
    model_store.student(message(1))
    assert model_store.install(version(1), lambda _: 0.0, 0.5).current == ""
    assert in_use(model_store) is None


def test_installing_twice_changes_nothing(tmp_path: Path) -> None:
    model_store = shelf_with(tmp_path, 1, 2)
    before = (tmp_path / POINTER).read_bytes()
    assert model_store.install(version(2), agrees, 0.5).installed
    assert (tmp_path / POINTER).read_bytes() == before


def test_the_check_sees_what_lies_on_the_disk(tmp_path: Path) -> None:
    model_store = shelf_with(tmp_path, 1)
    model_store.student(message(2))
    tamper(tmp_path / f"{version(2)}.safetensors")
    with pytest.raises(DeviceError, match=r"^students: version .* is not on this device, or damaged"):
        model_store.install(version(2), agrees, 0.5)
    assert in_use(model_store) == 1


def tamper(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


TAMPERINGS: dict[str, Callable[[Path], object]] = {
    "one bit": tamper,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "emptied": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello " * 20),
    "another student": lambda path: shutil.copy(path.with_name(f"{version(1)}.safetensors"), path),
    "classes turned round": lambda path: path.write_bytes(
        path.read_bytes().replace(b'\\"calm\\", \\"cross\\"', b'\\"cross\\", \\"calm\\"')
    ),
    "removed": Path.unlink,
}


@pytest.mark.parametrize("how", TAMPERINGS)
def test_a_tampered_student_is_never_used(how: str, tmp_path: Path) -> None:
    model_store = shelf_with(tmp_path, 1, 2)
    path = tmp_path / f"{version(2)}.safetensors"
    before = path.read_bytes()
    TAMPERINGS[how](path)
    assert not path.exists() or path.read_bytes() != before
    assert in_use(model_store) == 1
    with pytest.raises(NotInStore):
        model_store.student(message(3, base=2))
    assert model_store.student(message(2)).version == version(2), "it cannot be sent again"
    assert in_use(model_store) == 2


def test_nothing_readable_is_one_clear_line(tmp_path: Path) -> None:
    model_store = shelf_with(tmp_path, 1, 2)
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"x")
    with pytest.raises(DeviceError, match=r"^students: no installed student is readable"):
        model_store.current()


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"current": 3, "previous": []}', "null"])
def test_a_damaged_pointer_is_no_pointer(text: str, tmp_path: Path) -> None:
    model_store = shelf_with(tmp_path, 1)
    (tmp_path / POINTER).write_text(text)
    assert in_use(model_store) is None
    assert model_store.install(version(1), agrees, 0.5).installed
    assert in_use(model_store) == 1


# Interrupted: the process ends between any two calls of the operating system that change files.

CALLS = ("open", "write", "fsync", "replace", "unlink", "utime", "mkdir", "close")


def update_and_install(folder: Path) -> None:
    """The interrupted steps: an update arrives at a full store and is installed."""
    model_store = ModelStore(folder, kept=0)
    model_store.student(message(3, base=2))
    model_store.install(version(3), agrees, 0.5)


def killed_at(folder: Path, step: int, *, half: bool) -> bool:
    """Do it in a child process that ends at its ``step``-th call, as by kill -9; whether it got that far."""
    child = os.fork()
    if child == 0:
        steps = iter(range(step))

        def counted(real: Callable[..., Any], name: str) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                if next(steps, None) is None:
                    if half and name == "write":
                        real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                    os._exit(9)
                return real(*arguments, **options)

            return call

        try:
            for name in CALLS:
                setattr(os, name, counted(getattr(os, name), name))
            update_and_install(folder)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("half", [False, True])
def test_a_kill_at_any_point_leaves_a_whole_student(half: bool, tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    shelf_with(prepared, 1, 2)
    seen = set()
    for step in range(200):
        folder = tmp_path / str(step)
        shutil.copytree(prepared, folder)
        if not killed_at(folder, step, half=half):
            break
        model_store = ModelStore(folder)
        seen.add(in_use(model_store))
        update_and_install(folder)  # the same message comes again after the restart
        assert in_use(model_store) == 3
        assert not list(folder.glob(f".*{PART}"))
    else:
        pytest.fail("it never came to its end")
    assert step > 15
    assert seen == {2, 3}
    assert in_use(ModelStore(folder)) == 3


def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with locked(tmp_path):
            os._exit(9)
    os.waitpid(child, 0)
    with locked(tmp_path):
        pass


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """``full_disk(n)``: after n writes there is no space left."""

    def fill(left: int) -> None:
        writes = iter(range(left))
        real = os.write

        def write(handle: int, content: Any) -> int:
            if next(writes, None) is None:
                real(handle, bytes(content)[:10])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(handle, content)

        monkeypatch.setattr(os, "write", write)

    yield fill
    monkeypatch.undo()


@pytest.mark.parametrize("left", [0, 1])
def test_a_full_disk_leaves_the_old_student_and_says_so(
    left: int, tmp_path: Path, full_disk: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model_store = shelf_with(tmp_path, 1, 2)
    full_disk(left)  # the first write is the student's, the second the pointer's
    with pytest.raises(DeviceError, match=r"^students: No space left on device .*the current student stays$"):
        update_and_install(tmp_path)
    monkeypatch.undo()
    assert in_use(model_store) == 2
    assert not list(tmp_path.glob(f".*{PART}"))
    update_and_install(tmp_path)
    assert in_use(model_store) == 3


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "students").write_text("a file")
    with pytest.raises(DeviceError, match=r"^students: "):
        ModelStore(tmp_path / "students").student(message(1))


def test_a_device_without_torch_has_students_too() -> None:
    modules = "fedstill.edge_client.students.students, fedstill.edge_client.students.canaries"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'flwr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
