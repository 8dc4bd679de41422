"""The command ``flwr-clientapp`` of an agent: lets its warm process handle the message, or starts what handles it.

It runs for every message, so it imports next to nothing: no fedstill, no Flower, not even ``socket``, which loads for
as long as Python itself; its core ``_socket`` is enough. The agent copies this file beside the command.

The two agree in three steps. The warm process forks a child, which greets; the request, once whole, is an order; one
byte comes back, the exit status. Before the request is whole nothing has begun, and the message is handled cold, as
without a warm process. Afterwards the ends are tied: a broken connection means to either side that the other has died.
"""

from __future__ import annotations

import os
import sys
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET, socket

SOCKET = "warm.sock"
"""Beside the command. It is named relative to the working directory: longer names than about 100 bytes are refused."""
PATIENCE = 3.0
"""Seconds for the greeting of a warm process that is there, on a busy machine."""
SIZE_BYTES = 8
"""The request begins with its size, big-endian, and with it come standard output and error."""
HANDLE_BYTES = 4
LOST = 1
COLD = """import sys
from fedstill.edge_client.node.clientapp_process import main
del sys.argv[0]
main()
"""


def main() -> None:
    """``sys.argv`` is this file, the command, and the options of Flower."""
    folder, command = sys.argv[0].rpartition("/")[0], sys.argv[1:]
    try:
        home = os.getcwd()  # noqa: PTH109 (pathlib alone loads for as long as the rest)
    except OSError:  # it was deleted under the SuperNode
        home = folder
    connection = handed_over(folder, request(home, command, dict(os.environb)))
    if connection is not None:
        sys.exit(ord(connection.recv(1) or bytes([LOST])))
    os.chdir(home)
    os.execv(sys.executable, [sys.executable, "-P", "-c", COLD, *command])


def request(home: str, command: list[str], environment: dict[bytes, bytes]) -> bytes:
    """The working directory, the number of words, the words and the variables; none of them can hold a zero byte."""
    words = [os.fsencode(word) for word in command]
    variables = [name + b"=" + value for name, value in environment.items()]
    return b"\0".join([os.fsencode(home), str(len(words)).encode(), *words, *variables])


def handed_over(folder: str, content: bytes) -> socket | None:
    """The connection to the child that has the whole request; None if there is no such child."""
    connection = socket(AF_UNIX, SOCK_STREAM)
    connection.settimeout(PATIENCE)
    handles = b"".join(handle.to_bytes(HANDLE_BYTES, sys.byteorder) for handle in (1, 2))
    try:
        os.chdir(folder)
        connection.connect(SOCKET)
        if connection.recv(1):
            connection.sendmsg(
                [len(content).to_bytes(SIZE_BYTES, "big")], [(SOL_SOCKET, SCM_RIGHTS, handles)]
            )
            connection.sendall(content)
            connection.settimeout(None)
            return connection
    except OSError:
        pass
    connection.close()
    return None


if __name__ == "__main__":
    main()
