"""A student for one device sees clips of others, too: some of each rendered part, and all of a part that is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedstill.datasets.audiovisual.capture.views import HedgedViews

COUNT = 600
POSITIONS = np.arange(COUNT)


class Filled:
    """Every sound and picture is the same number."""

    def __init__(self, value: int, parts: tuple[bool, bool] = (True, True)) -> None:
        self.value, self.parts = value, parts

    def take(self, positions: np.ndarray, generator: torch.Generator) -> Any:
        shape = (len(positions), 2, 2)
        return np.full(shape, self.value, np.float32), np.full(shape, self.value, np.uint8)

    def fixed(self, positions: np.ndarray) -> Any:
        return self.take(positions, SimpleNamespace())  # type: ignore[arg-type]


@pytest.mark.parametrize("parts", [(True, True), (True, False), (False, True)])
def test_a_part_that_is_not_rendered_is_all_of_random_devices(parts: tuple[bool, bool]) -> None:
    views = HedgedViews(Filled(1, parts), Filled(2))  # type: ignore[arg-type]
    taken = views.take(POSITIONS, torch.Generator().manual_seed(0))
    for rendered, found in zip(parts, taken, strict=True):
        theirs = (found == 2).all(axis=(1, 2)).mean()
        assert theirs == pytest.approx(1 / 3, abs=0.08) if rendered else theirs == 1.0
        assert ((found == 1) | (found == 2)).all()
    again = views.take(POSITIONS, torch.Generator().manual_seed(0))
    assert all(np.array_equal(one, other) for one, other in zip(taken, again, strict=True))


def test_the_judge_sees_the_device_alone() -> None:
    views = HedgedViews(Filled(1), Filled(2))  # type: ignore[arg-type]
    assert all((found == 1).all() for found in views.fixed(POSITIONS))
