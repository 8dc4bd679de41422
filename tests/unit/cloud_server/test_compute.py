"""Guards the number of threads: as many as asked for, and never more than there are cores for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fedstill.cloud_server.distillation.compute import use_threads


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setattr("fedstill.cloud_server.distillation.compute.usable_cores", lambda: 8)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("wish", "asked", "threads"),
    [
        ("", 2, 2),
        ("", 99, 8),
        ("1", 2, 1),
        ("3", 8, 3),
        ("64", 99, 8),
        ("0", 2, 2),
        ("4,2", 2, 2),
        ("-1", 2, 2),
    ],
)
def test_who_shares_the_cores_says_so(
    wish: str, asked: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", wish)
    use_threads(asked)
    assert torch.get_num_threads() == threads
