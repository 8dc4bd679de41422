"""A warm start does what a cold one does; the command and its work end together; without a warm process it is cold."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from fedstill.edge_client.node import hand_over, warm_start
from fedstill.edge_client.node.clientapp_process import FIRST, NAME, install_command

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="an agent starts messages warm on Linux only")

WENT_COLD = 99
AGENT = '"$@" $$ & echo $!; wait'
TOKEN = "a-secret-token"


@dataclass
class WarmDevice:
    """The command of a device, and its warm process below a shell that stands for the agent."""

    programs: Path
    agent: subprocess.Popen[bytes]
    process: psutil.Process

    def start(self, *options: str, **more: object) -> subprocess.Popen[str]:
        return start(self.programs, *options, **more)

    def children(self, count: int) -> list[psutil.Process]:
        """Those of the warm process, as soon as there are so many."""
        wait_for(lambda: len(self.process.children()) == count)
        return list(self.process.children())


def start(programs: Path, *options: str, **more: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [programs / NAME, *options],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
    )  # type: ignore[call-overload, no-any-return]  # fmt: skip


def wait_for(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def installed(programs: Path) -> Path:
    """The command; when it would start cold it says so instead, by its exit status."""
    install_command(programs)
    (programs / FIRST).write_text(
        (programs / FIRST).read_text().replace("\nmain()\n", f"\nsys.exit({WENT_COLD})\n", 1)
    )
    return programs


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    return installed(tmp_path / "bin")


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmDevice]:
    """In a folder whose name is longer than a socket's may be."""
    programs = installed(tmp_path_factory.mktemp("warm") / ("a long näme" * 10) / "bin")
    log = programs / "log"
    with log.open("wb") as errors:
        agent = subprocess.Popen(
            ["sh", "-c", AGENT, "agent", *warm_start.command(0)[:-1]], cwd=programs,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
    assert agent.stdout is not None
    process = psutil.Process(int(agent.stdout.readline()))
    wait_for(lambda: (programs / hand_over.SOCKET).exists())
    yield WarmDevice(programs, agent, process)
    agent.kill()
    agent.wait()
    with suppress(psutil.NoSuchProcess):
        process.kill()
    assert log.read_text() == "", "neither a secret nor anything else"


@pytest.fixture
def silence() -> Iterator[list[str]]:
    """Flower's options for a message of a SuperNode that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        where = f"127.0.0.1:{server.getsockname()[1]}"
        yield ["--runtime-api-address", where, "--insecure", "--token", TOKEN]


@pytest.mark.parametrize(
    ("options", "columns", "status"),
    [(["--nonsense"], "40", 2), (["--runtime-api-address", "x", "--token-file", "empty"], "80", 1)],
)
def test_words_status_folder_and_environment_are_those_of_a_cold_start(
    options: list[str], columns: str, status: int, device: WarmDevice, tmp_path: Path
) -> None:
    (tmp_path / "empty").touch()
    install_command(tmp_path / "bin")
    variables = {**os.environ, "COLUMNS": columns}
    warm, cold = (
        start(programs, *options, cwd=tmp_path, env=variables)
        for programs in (device.programs, tmp_path / "bin")
    )
    assert warm.communicate() == cold.communicate()
    assert warm.returncode == cold.returncode == status


def test_one_killed_command_takes_its_own_work_along(device: WarmDevice, silence: list[str]) -> None:
    commands = [device.start(*silence) for _ in range(3)]
    before = device.children(3)
    commands[0].kill()
    left = device.children(2)
    assert set(left) < set(before)
    assert [command.poll() for command in commands[1:]] == [None, None]
    commands[1].terminate()
    commands[2].kill()
    device.children(0)


def test_killed_work_is_a_failure_of_its_command(device: WarmDevice, silence: list[str]) -> None:
    command = device.start(*silence)
    device.children(1)[0].kill()
    assert command.wait() == 128 + 9


def test_nothing_is_shared_but_memory(device: WarmDevice) -> None:
    """No thread that a fork would lose, no state of a random generator, none of the large libraries."""
    assert device.process.num_threads() == 1
    loaded = Path(f"/proc/{device.process.pid}/maps").read_text()
    assert "multiarray" in loaded
    assert [name for name in ("mtrand", "onnxruntime", "torch") if name in loaded] == []


def test_it_does_not_grow(device: WarmDevice) -> None:
    def fork(count: int) -> tuple[int, int]:
        for _ in range(count):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(f"/proc/{os.getpid()}/fd/{folder}/{hand_over.SOCKET}")
                assert connection.recv(1)
        device.children(0)
        return device.process.memory_info().rss, device.process.num_fds()

    folder = os.open(device.programs, os.O_RDONLY)
    try:
        before, after = fork(5), fork(50)
    finally:
        os.close(folder)
    assert after[0] - before[0] < 1_000_000
    assert after[1] == before[1]


def test_work_goes_on_without_its_parent_and_the_next_start_is_cold(
    device: WarmDevice, silence: list[str]
) -> None:
    """The last test of this process, which ends itself once the agent is gone."""
    command = device.start(*silence)
    (work,) = device.children(1)
    device.agent.kill()
    wait_for(lambda: not device.process.is_running())
    assert work.is_running()
    assert command.poll() is None
    command.kill()
    wait_for(lambda: not work.is_running())
    assert (device.programs / hand_over.SOCKET).exists(), "a stale one"
    assert device.start(*silence).wait() == WENT_COLD


def test_no_warm_process_means_cold(programs: Path) -> None:
    assert start(programs, "--insecure").wait() == WENT_COLD


def test_a_working_directory_that_was_deleted_means_cold(programs: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'rmdir "$PWD" && exec "$0" --insecure'
    command = subprocess.Popen(["sh", "-c", script, programs / NAME], cwd=gone, stderr=subprocess.PIPE)
    assert (command.wait(), b"Traceback" in command.communicate()[1]) == (WENT_COLD, False)


@pytest.mark.parametrize("hangs", [True, False])
def test_a_warm_process_that_does_not_greet_means_cold(
    hangs: bool, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(programs)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(hand_over.SOCKET)
        listener.listen()
        command = start(programs, "--insecure")
        if not hangs:
            listener.accept()[0].close()
        assert command.wait() == WENT_COLD


def test_the_command_imports_next_to_nothing() -> None:
    program = "import sys; sys.path.append(sys.argv[1]); import hand_over; print(*sys.modules)"
    folder = Path(hand_over.__file__).parent
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", program, folder], capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "hand_over" in loaded
    assert loaded & {"fedstill", "flwr", "socket", "signal", "pathlib", "re", "json", "argparse"} == set()
