"""Guards each arm's selection: exactly the budget, the target classes, the devices' weights."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstill.cloud_server.distillation.selection import (
    Selection,
    per_prototype,
    select_by_prior,
    select_by_shares,
    select_by_transport,
    select_nearest,
    select_random,
)
from fedstill.cloud_server.distillation.similar_clips import played_prototypes, select_similar

Floats = npt.NDArray[np.floating]


def probabilities(count: int, classes: int, seed: int, sharp: float = 1.0) -> Floats:
    logits = sharp * np.random.default_rng(seed).normal(size=(count, classes))
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: Floats = (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
    return found


@given(st.integers(1, 5000), st.integers(1, 500))
def test_the_budget_is_shared_out_to_the_clip(budget: int, prototypes: int) -> None:
    if prototypes > budget:
        return
    takes = per_prototype(budget, prototypes)
    assert takes.sum() == budget
    assert takes.shape == (prototypes,)
    assert takes.min() >= 1
    assert takes.max() - takes.min() <= 1
    assert (np.diff(takes) <= 0).all()


def test_more_prototypes_than_clips_take_shares() -> None:
    public = np.eye(3) * 0.7 + 0.1
    like_first, like_third = [0.8, 0.15, 0.05], [0.05, 0.15, 0.8]
    found = select_by_shares(np.array([like_first, like_first, like_third]), public, 2)
    assert found.positions.tolist() == [
        0,
        2,
    ]  # the second prototype's last third lay in clip 1, and goes to clip 0
    assert found.weights.tolist() == pytest.approx([4 / 3, 2 / 3])
    crowded = select_by_shares(np.array([like_first] * 5), public, 2)
    assert crowded.positions.tolist() == [0, 1]  # no clip takes more than its share of the budget
    assert crowded.weights.tolist() == [1, 1]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 99), st.data())
def test_shares_use_up_the_budget_and_every_prototype(
    more: int, budget: int, seed: int, data: st.DataObject
) -> None:
    public = probabilities(budget + data.draw(st.integers(0, 30)), 4, seed, sharp=2)
    prototypes = probabilities(budget + more, 4, seed + 1, sharp=2)
    found = select_by_shares(prototypes, public, budget)
    assert len(np.unique(found.positions)) == budget
    assert found.weights.min() > 0
    assert found.weights.sum() == pytest.approx(budget)
    whole = select_by_shares(prototypes[:budget], public, budget)
    assert sorted(whole.positions) == sorted(select_nearest(prototypes[:budget], public, 1))
    assert (whole.weights == 1).all()


def test_random_clips_are_different_and_depend_on_the_generator_only() -> None:
    first, same, other = (select_random(100, 40, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert len(np.unique(first)) == 40
    assert first.max() < 100
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    assert sorted(select_random(5, 9, np.random.default_rng(0))) == [0, 1, 2, 3, 4]


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=2, max_size=6),
    st.lists(st.floats(0, 1), min_size=6, max_size=6),
    st.integers(1, 100),
)
def test_classes_appear_as_in_the_prior(supply: list[int], shares: list[float], budget: int) -> None:
    prior = np.array(shares[: len(supply)])
    wanted = np.where(np.array(supply) > 0, prior, 0.0)
    if wanted.sum() < 1e-6:
        return
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(supply)), supply))
    found = select_by_prior(labels, prior, budget, np.random.default_rng(1))
    took = np.bincount(labels[found], minlength=len(supply))
    assert found.dtype == np.int64
    assert len(found) == budget
    assert np.abs(took - budget * wanted / wanted.sum()).max() <= 1
    assert (took[wanted == 0] == 0).all()
    for label in range(len(supply)):  # each clip of a class once before any a second time
        times = np.bincount(found, minlength=len(labels))[labels == label]
        assert times.size == 0 or times.max() - times.min() <= 1


def test_exact_shares() -> None:
    labels = np.repeat(np.arange(4), 50)
    found = select_by_prior(labels, np.array([0.5, 0.3, 0.2, 0.0]), 40, np.random.default_rng(0))
    assert np.bincount(labels[found]).tolist() == [20, 12, 8]
    assert len(np.unique(found)) == 40


def test_no_public_clip_of_any_wanted_class() -> None:
    """The device has classes that the public set lacks: a sentence, not numpy's complaint about a shape."""
    with pytest.raises(ValueError, match="class"):
        select_by_prior(np.zeros(9, np.int64), np.array([0.0, 1.0]), 4, np.random.default_rng(0))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 80),
    st.integers(1, 100),
    st.sampled_from([1.0, 8.0]),
    st.integers(0, 999),
)
def test_transport_selects_the_budget(
    prototypes: int, public: int, budget: int, sharp: float, seed: int
) -> None:
    counts = np.random.default_rng(seed).integers(1, 40, prototypes)
    found = select_by_transport(
        probabilities(prototypes, 5, seed), counts, probabilities(public, 5, seed + 1, sharp), budget
    )
    assert found.positions.dtype == np.int64
    assert found.weights.dtype == np.float32
    assert len(np.unique(found.positions)) == len(found.positions) == min(budget, public)
    assert ((found.positions >= 0) & (found.positions < public)).all()
    assert found.weights.shape == found.positions.shape
    assert (found.weights >= 0).all()
    assert found.weights.mean() == pytest.approx(1, abs=1e-4)


def class_shares(counts: list[int]) -> Floats:
    """The weight that each class gets when prototype c is almost sure of class c; 200 clips per class."""
    public = np.repeat(np.eye(3, dtype=np.float32) * 0.97 + 0.01, 200, axis=0)
    found = select_by_transport(np.eye(3, dtype=np.float32) * 0.97 + 0.01, np.array(counts), public, 120)
    shares: Floats = np.bincount(found.positions // 200, found.weights, minlength=3) / 120
    return shares


def test_transport_follows_the_counts() -> None:
    np.testing.assert_allclose(class_shares([10, 10, 10]), 1 / 3, atol=0.02)
    np.testing.assert_allclose(class_shares([60, 30, 10]), [0.6, 0.3, 0.1], atol=0.03)
    np.testing.assert_allclose(class_shares([1, 98, 1]), [0.01, 0.98, 0.01], atol=0.03)


def test_transport_weighs_a_prototype_by_the_clips_behind_it() -> None:
    """Two equal prototypes of 5 clips say what one of 10 says."""
    rows, public = probabilities(3, 4, 1), probabilities(300, 4, 2)
    one = select_by_transport(rows, np.array([10, 4, 7]), public, 50)
    split = select_by_transport(rows[[0, 0, 1, 2]], np.array([5, 5, 4, 7]), public, 50)
    assert np.array_equal(one.positions, split.positions)
    np.testing.assert_allclose(one.weights, split.weights, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(7)))
def test_the_order_of_prototypes_does_not_matter(order: list[int]) -> None:
    rows, counts, public = probabilities(7, 5, 3), np.arange(1, 8), probabilities(250, 5, 4)
    plain = select_by_transport(rows, counts, public, 60)
    moved = select_by_transport(rows[order], counts[order], public, 60)
    assert np.array_equal(plain.positions, moved.positions)
    np.testing.assert_allclose(plain.weights, moved.weights, atol=1e-5)


def test_transport_is_deterministic() -> None:
    arguments = probabilities(20, 6, 5), np.arange(1, 21), probabilities(2000, 6, 6), 300
    first, second = select_by_transport(*arguments), select_by_transport(*arguments)
    assert np.array_equal(first.positions, second.positions)
    assert np.array_equal(first.weights, second.weights)


def test_transport_forgets_no_class_that_the_device_has() -> None:
    """A confident teacher, more public clips of each class than the budget, one class of the device rarer."""
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(6), 300)
    logits = 6 * np.eye(6)[labels] + rng.normal(size=(1800, 6))
    public = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    own = np.array([0.6, 0.3, 0.1, 0, 0, 0])
    found = select_by_transport(public[[0, 300, 600]], np.array([60, 30, 10]), public, 250)
    shares = np.bincount(labels[found.positions], found.weights, minlength=6) / 250
    np.testing.assert_allclose(shares, own, atol=0.1)


def test_equal_weights() -> None:
    chosen = Selection.uniform(np.array([4, 2, 9]))
    assert chosen.weights.tolist() == [1.0, 1.0, 1.0]
    assert chosen.weights.dtype == np.float32


def test_a_device_with_more_prototypes_than_the_budget_gets_one_clip_for_each() -> None:
    rng = np.random.default_rng(3)
    prototypes, public = rng.dirichlet(np.ones(5), 30), rng.dirichlet(np.ones(5), 40)
    few = select_similar(prototypes[:4], public, 10)
    assert few.tolist() == select_nearest(prototypes[:4], public, per_prototype(10, 4)).tolist()
    assert len(set(select_similar(prototypes, public, 10).tolist())) == 30
    assert sorted(select_similar(prototypes, public[:20], 10).tolist()) == list(range(20))


def test_played_prototypes_are_means_of_the_probabilities() -> None:
    rng = np.random.default_rng(4)
    probabilities = rng.dirichlet(np.ones(5), 50)
    found = played_prototypes(probabilities, 3, np.random.default_rng(0))
    assert found.shape == (16, 5)
    assert np.allclose(found.sum(axis=1), 1)
    assert np.array_equal(found, played_prototypes(probabilities, 3, np.random.default_rng(0)))
    assert played_prototypes(np.repeat(probabilities[:2], 20, axis=0), 3, rng).shape == (2, 5)
    assert played_prototypes(probabilities[:1], 3, rng) == pytest.approx(probabilities[:1])
