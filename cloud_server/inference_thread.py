"""The inference service inside the coordinator: its event loop runs in a thread of its own, beside the fleet."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from fedstill.cloud_server.authority import Authority, read_authority
from fedstill.cloud_server.heads import HeadShelf
from fedstill.cloud_server.inference_server import InferenceServer, ServerTls
from fedstill.cloud_server.inference_service import InferenceService
from fedstill.cloud_server.tokens import verify

FRESH_SECONDS = 5.0
"""How long a revoked node's token may still work."""


@contextmanager
def inference_serving(heads: Path, listen: str, authority: Authority | None) -> Iterator[int]:
    """Serve while inside; the port.

    Args:
        heads: folder of the students' heads; new ones are found as they come.
        listen: ``HOST:PORT``.
        authority: whose nodes may ask; None asks for no token and has no TLS.

    Raises:
        ServerError: the address cannot be used.
    """
    service = InferenceService(HeadShelf(heads), _Doorkeeper(authority) if authority else None)
    tls = (
        ServerTls(authority.key_file.read_bytes(), authority.certificate_file.read_bytes())
        if authority
        else None
    )
    opened: Future[int] = Future()
    loop = asyncio.new_event_loop()
    leave = asyncio.Event()
    thread = threading.Thread(
        target=loop.run_until_complete, args=(_serve(InferenceServer(service, listen, tls), opened, leave),),
        name="inference",
    )  # fmt: skip
    thread.start()
    try:
        yield opened.result()
    finally:
        loop.call_soon_threadsafe(leave.set)
        thread.join()
        loop.close()


async def _serve(server: InferenceServer, opened: Future[int], leave: asyncio.Event) -> None:
    try:
        opened.set_result(await server.start())
    except Exception as error:
        opened.set_exception(error)
        return
    await leave.wait()
    await server.stop()


class _Doorkeeper:
    """Token -> device name, by the register as it is now."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self._read_at = time.monotonic()

    def __call__(self, token: str) -> str:
        if time.monotonic() - self._read_at > FRESH_SECONDS:
            self._authority = read_authority(self._authority.directory)
            self._read_at = time.monotonic()
        return verify(self._authority.secret, token, time.time(), self._authority.revoked_names)
