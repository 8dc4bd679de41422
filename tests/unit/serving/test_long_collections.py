"""Garbage collections pass over what a server is made of, and over nothing that comes later."""

from __future__ import annotations

import asyncio
import gc
import weakref

import numpy as np
import pytest

from fedstill.cloud_server.serving.engine.environment import without_long_collections
from fedstill.evaluation.serving.open_loop import Response, play


class Node:
    """Refers to itself."""

    def __init__(self) -> None:
        self.me = self


def seen(one: object) -> bool:
    """Whether a full collection would look at it."""
    return any(other is one for other in gc.get_objects())


def test_a_collection_passes_over_what_existed_and_frees_what_came_later() -> None:
    before = Node()
    with without_long_collections():
        assert not seen(before)
        later = Node()
        assert seen(later)
        gone = weakref.ref(later)
        del later
        gc.collect()
        assert gone() is None
    assert seen(before)
    assert gc.get_freeze_count() == 0


def test_a_block_within_another_leaves_the_other_as_it_was() -> None:
    with without_long_collections():
        kept = Node()
        with without_long_collections():
            assert not seen(kept)
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("wrong", [False, True])
def test_a_load_is_sent_without_long_collections(wrong: bool) -> None:
    frozen = []

    async def send(_: int, __: float) -> Response:
        frozen.append(gc.get_freeze_count())
        if wrong:
            raise ValueError("no such image")
        return Response("answered")

    def run() -> None:
        asyncio.run(play(np.zeros(1), np.ones(1), send, outstanding=1, grace=1.0))

    if wrong:
        with pytest.raises(ValueError, match="image"):
            run()
    else:
        run()
    assert len(frozen) == 1
    assert frozen[0] > 1000
    assert gc.get_freeze_count() == 0
