"""The inference service inside the coordinator: its event loop runs in a thread of its own, beside the fleet."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from fedstill.cloud_server.auth.authenticator import Authenticator
from fedstill.cloud_server.auth.authority import Authority
from fedstill.cloud_server.auth.roots_update import RootsUpdate
from fedstill.cloud_server.auth.token_renewal import TokenRenewal
from fedstill.cloud_server.edge_inference.heads import HeadStore
from fedstill.cloud_server.edge_inference.inference_server import InferenceServer
from fedstill.cloud_server.edge_inference.inference_service import InferenceService


@contextmanager
def inference_serving(heads: Path, listen: str, authority: Authority | None) -> Iterator[int]:
    """Serve while inside; the port.

    Args:
        heads: folder of the students' heads; new ones are found as they appear.
        listen: ``HOST:PORT``.
        authority: whose nodes may send requests; None requires no token and has no TLS.

    Raises:
        ServerError: the address cannot be used.
    """
    service = InferenceService(
        HeadStore(heads),
        Authenticator(authority) if authority else None,
        renewal=TokenRenewal(authority) if authority else None,
        roots=RootsUpdate(authority) if authority else None,
    )
    server = InferenceServer(service, listen, authority.tls.files if authority else None)
    opened: Future[int] = Future()
    loop = asyncio.new_event_loop()
    leave = asyncio.Event()
    thread = threading.Thread(
        target=loop.run_until_complete, args=(_serve(server, opened, leave),), name="inference"
    )
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
