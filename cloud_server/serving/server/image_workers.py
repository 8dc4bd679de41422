"""Threads that prepare images. Large ones share one thread, so that they hold up each other and nobody else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

from fedstill.cloud_server.serving.server.request_images import EncodedImage

THREADS = 2
LARGE_PIXELS = 2 * 2**20
"""Of an image that takes as long as a batch, or longer."""


class ImageWorkers(Executor):
    """An executor; what it runs has to release the interpreter's lock for most of its time, as decoders do."""

    def __init__(self) -> None:
        self._small = ThreadPoolExecutor(THREADS, thread_name_prefix="images")
        self._large = ThreadPoolExecutor(1, thread_name_prefix="large images")

    def submit(self, prepare: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        large = isinstance(prepare, EncodedImage) and prepare.pixels > LARGE_PIXELS
        return (self._large if large else self._small).submit(prepare, *arguments, **named)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Of both kinds of threads."""
        for pool in (self._small, self._large):
            pool.shutdown(wait, cancel_futures=cancel_futures)
