"""A process that has imported what a message needs, and forks a child for every message.

Flower starts a process per message, whose imports cost more than most messages. The agent starts this one beside its
SuperNode, in the folder of the command ``flwr-clientapp``, and that command (``hand_over.py``) connects to it. The
parent takes connections and reports how children ended, nothing else: requests, with their secret, are read by
children. So it does not grow, and no message can harm another.

Nothing is imported here that starts threads, which a fork would lose: neither onnxruntime nor torch. (OpenBLAS, below
numpy, ends its threads before a fork by itself.) Nor is there a random generator that children would share: Python's
own is seeded again in a child, and ``numpy.random`` is not loaded yet.
"""

from __future__ import annotations

import atexit
import gc
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from fedstill.common.atomic_files import PRIVATE
from fedstill.edge_client.node import clientapp_process
from fedstill.edge_client.node.hand_over import SIZE_BYTES, SOCKET

IMPORTS = (
    "flwr.common.args",
    "flwr.supercore.tls",
    "flwr.supernode.runtime.run_clientapp",
    "httpcore",  # a client of httpx loads it as late as it can
    "fedstill.edge_client.node.client_app",
    "fedstill.edge_client.node.device",
    "fedstill.edge_client.node.loading",
)
LOOK_SECONDS = 5.0
"""Between two looks whether the agent is still there."""
SIGNALLED = 128
"""A shell's exit status for a program that a signal has ended, without the number of the signal."""


def command(agent: int) -> list[str]:
    """Starts this process for the agent with this pid, which is its parent."""
    return [sys.executable, "-P", "-m", __spec__.name, str(agent)]


def main(arguments: Sequence[str]) -> None:
    """Until the agent is gone; in a child, until its message is handled."""
    leave = QuickExit()
    atexit.register(leave)  # before what is imported registers anything, so it is called after that
    for name in IMPORTS:
        import_module(name)
    gc.freeze()  # children share this memory as long as nobody writes to it, and a collection would
    connection = serve(int(arguments[0]))
    if connection is not None:
        leave.status = 1
        try:
            handle(connection)
            leave.status = 0
        except SystemExit as end:
            leave.status = end.code if isinstance(end.code, int) else int(end.code is not None)
            raise


@dataclass
class QuickExit:
    """Ends a child when only its modules are left to take apart, which costs as much as a light message."""

    status: int | None = None

    def __call__(self) -> None:
        if self.status is not None:
            with suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(self.status)


def serve(agent: int) -> socket.socket | None:
    """Fork a child per connection to ``SOCKET`` in the working directory.

    Returns:
        In a child, its connection, and all else that the parent has open is closed; in the parent None, once its own
        parent is not ``agent`` any more.
    """
    working: dict[int, socket.socket] = {}
    with _listening() as listener, _told_of_children() as told:
        while os.getppid() == agent:
            ready, _, _ = select.select([listener, told], [], [], LOOK_SECONDS)
            if told in ready:
                told.recv(select.PIPE_BUF)
                _report(working)
            if listener in ready:
                connection, _ = listener.accept()
                try:
                    pid = os.fork()
                except OSError:  # no memory, too many processes: the command tries it alone
                    connection.close()
                    continue
                if pid == 0:
                    for other in working.values():
                        other.close()
                    return connection
                working[pid] = connection
    return None


def handle(connection: socket.socket) -> None:
    """Do as the command would that has connected, and end as soon as it ends."""
    try:
        connection.sendall(b"\0")
        header, handles, _, _ = socket.recv_fds(connection, SIZE_BYTES, 2)
        content = _exactly(connection, int.from_bytes(header, "big"))
    except OSError:
        content = b""
    if not content:  # the command has died or lost its patience
        return
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    home, count, *rest = content.split(b"\0")
    os.chdir(home)
    for target, source in zip((1, 2), handles, strict=True):
        os.dup2(source, target)
        os.close(source)
    sys.argv = [os.fsdecode(word) for word in rest[: int(count)]]
    os.environb.clear()
    for variable in rest[int(count) :]:
        name, _, value = variable.partition(b"=")
        os.environb[name] = value
    clientapp_process.main()


def _listening() -> socket.socket:
    """A socket that only this user may connect to; one that a killed process has left is replaced."""
    Path(SOCKET).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(SOCKET)
    Path(SOCKET).chmod(PRIVATE)  # before it listens, so nobody can have connected
    listener.listen()
    return listener


@contextmanager
def _told_of_children() -> Iterator[socket.socket]:
    """There is something to read whenever a child has ended."""
    told, tell = socket.socketpair()
    tell.setblocking(False)
    signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        with told, tell:
            yield told
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _report(working: dict[int, socket.socket]) -> None:
    """Send the exit status of every child that has ended to the command that waits for it."""
    while working:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        code = os.waitstatus_to_exitcode(status)
        with working.pop(pid) as connection, suppress(OSError):
            connection.send(bytes([code if code >= 0 else SIGNALLED - code]))


def _exactly(connection: socket.socket, size: int) -> bytes:
    """So many bytes; none if the connection ends before."""
    content = bytearray()
    while len(content) < size:
        part = connection.recv(size - len(content))
        if not part:
            return b""
        content += part
    return bytes(content)


def _end_with(connection: socket.socket) -> None:
    """End this process as the kernel does when the command is gone, so that Flower finds its message lost."""
    with suppress(OSError):
        connection.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
