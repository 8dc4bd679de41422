"""Guards the private capture card: sensitivity, the size of the noise, its price, and what the owner allows."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from test_privacy import clips, dp_request

from fedstill.datasets.audiovisual.capture_card import (
    BANDS,
    CARD_BYTES,
    CARD_SIZE,
    GREYS,
    PICTURE,
    RINGS,
    SOUND,
    card_of,
    from_bytes,
)
from fedstill.edge_client.privacy.privacy import composed, sigma_for, sigma_of_share
from fedstill.edge_client.privacy.privacy_ledger import LEDGER_FILE, PrivacyLedger, release_once
from fedstill.edge_client.privacy.privacy_policy import PrivacyPolicy
from fedstill.edge_client.privacy.private_card import (
    CENTRE,
    MOST_ERROR,
    REACH,
    SENSITIVITY,
    contributions,
    private_card,
)
from fedstill.edge_client.privacy.private_prototypes import private_prototypes
from fedstill.edge_client.privacy.prototypes import DeviceError, Prototypes
from fedstill.protos.messages import PrototypeRequest

POLICY = PrivacyPolicy(accepts="dp", epsilon=8.0, noise_seed=0)


def profiles(count: int, seed: int = 0) -> np.ndarray:
    """Clips of one microphone and camera, which differ by a few decibels."""
    rng = np.random.default_rng(seed)
    usual = np.concatenate(
        [np.full(BANDS, -60.0), np.linspace(-20, -45, BANDS), np.linspace(5, 200, GREYS),
         np.linspace(48, 28, RINGS)]
    )  # fmt: skip
    return (usual + rng.normal(0, 3, (count, CARD_SIZE))).astype(np.float32)


def released(own: np.ndarray, sigma: float, seed: int = 0, min_size: int = 1) -> np.ndarray:
    return from_bytes(private_card(own, sigma, min_size, np.random.default_rng(seed)), 1).values


def card_request(epsilon: float = 4.0, share: float = 0.5, round_: int = 0) -> PrototypeRequest:
    request = dp_request(epsilon=epsilon, cells=1)
    return replace(request, card=True, card_share=share, job=replace(request.job, round=round_))


def release(folder: Path, request: PrototypeRequest, policy: PrivacyPolicy = POLICY) -> Prototypes:
    return release_once(folder, "", policy, request, lambda _: clips(400), profiles(400))


@settings(deadline=None)
@given(
    arrays.arrays(
        np.float32, st.tuples(st.integers(1, 4), st.just(CARD_SIZE)), elements=st.floats(width=32),
        fill=st.floats(width=32),
    ),
    st.data(),
)  # fmt: skip
def test_one_clip_moves_the_sums_by_the_sensitivity_at_most(rows: np.ndarray, data: st.DataObject) -> None:
    """Whatever the clips hold, NaN and infinity included."""
    gone = data.draw(st.integers(0, len(rows) - 1))
    full, without = (contributions(some).sum(axis=0) for some in (rows, np.delete(rows, gone, axis=0)))
    assert np.isfinite(full).all()
    assert np.linalg.norm(full - without) <= SENSITIVITY * (1 + 1e-9)


def test_an_extreme_clip_reaches_the_sensitivity() -> None:
    loud = np.full((1, CARD_SIZE), 1e30, np.float32)
    assert np.linalg.norm(contributions(loud)) == pytest.approx(SENSITIVITY)


def test_a_huge_outlier_moves_the_mean_by_no_more_than_its_share() -> None:
    """Almost without noise: each of 10 clips may move a value by 2 / 10 of its range, however loud one is."""
    own = profiles(9)
    outlier = np.full((1, CARD_SIZE), 1e30, np.float32)
    before, after = (released(some, 1e-6) for some in (own, np.concatenate([own, outlier])))
    moved = np.abs(after - before)
    assert moved[SOUND].max() <= 2 * 40 / 10 + 0.5  # half a decibel is the step on the wire
    assert moved[SOUND].max() >= 0.5, "it counts, though"
    assert moved[PICTURE][:GREYS].max() <= 2 * 160 / 10 + 1
    exact = np.abs(card_of(np.concatenate([own, outlier])).values - card_of(own).values)
    assert exact[SOUND].min() > 1e20, "the exact card has no such bound"


def test_almost_without_noise_it_is_the_smooth_exact_card() -> None:
    own = profiles(300)
    assert np.abs(released(own, 1e-6) - card_of(own).values).max() < 3


def test_the_noise_has_the_size_that_epsilon_asks_for() -> None:
    """The released value at a knot scatters by sensitivity * sigma * reach / clips around the truth."""
    own, sigma = profiles(80), sigma_of_share(8.0, 1e-5, 0.5)
    drawn = np.array([released(own, sigma, seed) for seed in range(600)], np.float64)
    wanted = math.sqrt(11) * 0.60022907219895156 * math.sqrt(2) / 80  # sigma(8, 1e-5) by mpmath
    for place, reach in ((2 * BANDS - 1, 40.0), (CARD_SIZE - 1, 20.0)):
        step = 0.5 / math.sqrt(12)
        assert drawn[:, place].std() == pytest.approx(math.hypot(reach * wanted, step), rel=0.1)
    np.testing.assert_allclose(drawn.mean(axis=0)[SOUND], released(own, 1e-9)[SOUND], atol=0.5)


def test_a_part_that_noise_would_make_misleading_is_left_out() -> None:
    sigma = sigma_for(4.0, 1e-5)
    needed = SENSITIVITY * sigma / MOST_ERROR
    assert np.isnan(released(profiles(round(0.8 * needed)), sigma)).all()
    assert np.isfinite(released(profiles(round(1.2 * needed)), sigma)).all()
    assert np.isnan(released(profiles(round(1.2 * needed)), sigma, min_size=200)).all()


def test_clips_without_sound_leave_the_sound_out_alone() -> None:
    silent = profiles(300)
    silent[5:, SOUND] = np.nan
    found = released(silent, 0.5)
    assert np.isnan(found[SOUND]).all()
    assert np.isfinite(found[PICTURE]).all()


def test_a_released_card_is_one_that_could_be() -> None:
    for seed in range(20):
        found = released(profiles(60), 1.0, seed)
        assert np.all(found[BANDS : 2 * BANDS] >= found[:BANDS])
        assert np.all(np.diff(found[PICTURE][:GREYS]) >= 0)


def test_the_centre_is_a_fixed_point() -> None:
    """A clip at the public centre adds nothing but its counts."""
    coarse = iter(np.split(CENTRE, [12, 24, 30]))
    at_centre = np.concatenate(
        [np.interp(np.linspace(0, 1, many), np.linspace(0, 1, len(one)), one)
         for many, one in zip((BANDS, BANDS, GREYS, RINGS), coarse, strict=True)]
    )  # fmt: skip
    found = contributions(at_centre[None])
    assert found[0, :2].tolist() == [1, 1]
    np.testing.assert_allclose(found[0, 2:] * REACH, 0, atol=1e-9)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_rows_and_card_together_cost_what_was_asked(tmp_path: Path, share: float) -> None:
    both = [1 / sigma_of_share(4.0, 1e-5, part) for part in (share, 1 - share)]
    assert composed(both) == pytest.approx(1 / sigma_for(4.0, 1e-5), rel=1e-12)
    release(tmp_path, card_request(share=share))
    ledger = PrivacyLedger(tmp_path / LEDGER_FILE, 8.0, 1e-5)
    assert ledger.uploads() == 1
    assert ledger.spent() == pytest.approx(4.0, rel=1e-6)


def test_the_rows_pay_for_their_part_with_more_noise() -> None:
    request, rows = card_request(epsilon=8.0, share=0.75), clips(500)
    counts = [
        private_prototypes(rows, request, np.random.default_rng(seed)).counts[0] for seed in range(1500)
    ]
    wanted = math.sqrt(2) * 0.60022907219895156 / math.sqrt(0.25)
    assert np.std(counts) == pytest.approx(math.hypot(wanted, 1 / math.sqrt(12)), rel=0.08)


def test_the_same_question_gets_the_same_card(tmp_path: Path) -> None:
    first, again = (release(tmp_path, card_request()) for _ in range(2))
    assert first.card.shape == (CARD_BYTES,)
    assert first.card.dtype == again.card.dtype == np.uint8
    assert np.array_equal(first.card, again.card)
    another = release(tmp_path, card_request(epsilon=3.0, round_=1))
    assert not np.array_equal(first.card, another.card)
    with pytest.raises(DeviceError, match="other settings"):
        release(tmp_path, card_request(share=0.25))


def test_past_the_budget_no_card_leaves(tmp_path: Path) -> None:
    release(tmp_path, card_request(epsilon=8.0))
    with pytest.raises(DeviceError, match="privacy budget"):
        release(tmp_path, card_request(epsilon=0.5, round_=1))
