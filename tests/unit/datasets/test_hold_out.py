"""Guards the teacher's held-out clips: whole speakers, about the requested share, and always something to train on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedstill.cloud_server.federation.seed_state import hold_out

speakers = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=60)


@given(speakers, st.floats(0, 0.9), st.integers(0, 50))
def test_every_clip_is_on_one_side_and_every_speaker_too(names: list[str], share: float, seed: int) -> None:
    training, held_out = hold_out(tuple(names), share, seed)
    assert sorted([*training, *held_out]) == list(range(len(names)))
    assert not {names[one] for one in training} & {names[one] for one in held_out}


@given(speakers, st.floats(0, 0.9), st.integers(0, 50))
def test_something_is_left_to_train_on(names: list[str], share: float, seed: int) -> None:
    """Also if all public clips come from one speaker, or the manifest names none."""
    assert len(hold_out(tuple(names), share, seed)[0]) > 0


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_about_the_wanted_share(share: float) -> None:
    names = tuple(f"speaker{number // 10}" for number in range(400))
    found = len(hold_out(names, share, seed=1)[1]) / 400
    assert share <= found <= share + 10 / 400


def test_the_seed_decides_who_is_held_out() -> None:
    names = tuple(f"speaker{number // 10}" for number in range(400))
    assert np.array_equal(hold_out(names, 0.1, 1)[1], hold_out(names, 0.1, 1)[1])
    assert not np.array_equal(hold_out(names, 0.1, 1)[1], hold_out(names, 0.1, 2)[1])
