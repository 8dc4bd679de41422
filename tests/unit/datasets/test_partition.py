"""Every partition assigns each clip exactly once, is the same for the same seed, and leaves no client empty."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.partition import (
    Positions,
    by_speaker,
    dirichlet,
    halves,
    pathological,
    query_and_test,
)

SEED = st.integers(0, 2**32 - 1)
LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=80)


def assert_complete(parts: Sequence[Positions], count: int) -> None:
    for part in parts:
        assert part.dtype == np.int64
        assert len(part) > 0
        assert (np.diff(part) > 0).all()  # sorted, none twice
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(count))


@given(labels=LABELS)
def test_halves(labels: list[int]) -> None:
    try:
        first, second = halves(labels, 6)
    except DataError:
        assert max(labels) < 3 or min(labels) >= 3
        return
    assert_complete((first, second), len(labels))
    assert all(labels[i] < 3 for i in first)
    assert all(labels[i] >= 3 for i in second)


def test_thesis_halves_and_latency_sensitive_counts() -> None:
    """CREMA-D 377/367 clips, 189/185 of them tested; AVE's 28 classes halve after the 14th."""
    labels = np.repeat(np.arange(6), [114, 123, 140, 133, 129, 105])
    clients = halves(labels, 6)
    assert [len(part) for part in clients] == [377, 367]
    assert [len(query_and_test(labels[part], seed=1)[1]) for part in clients] == [189, 185]
    assert [part.tolist() for part in halves([13, 14], 28)] == [[0], [1]]


@given(labels=LABELS, clients=st.integers(1, 8), classes_per_client=st.integers(1, 6), seed=SEED)
def test_pathological(labels: list[int], clients: int, classes_per_client: int, seed: int) -> None:
    present = len(set(labels))
    try:
        parts = pathological(labels, clients, classes_per_client, seed)
    except DataError:
        fewest = min(labels.count(name) for name in set(labels))
        assert classes_per_client > present or clients * classes_per_client < present or fewest < clients
        return
    assert len(parts) == clients
    assert_complete(parts, len(labels))
    assert all(len({labels[i] for i in part}) <= classes_per_client for part in parts)


def test_pathological_shares_are_even() -> None:
    labels = np.repeat(np.arange(6), 60)
    parts = pathological(labels, 6, 2, seed=0)
    assert [len(part) for part in parts] == [60] * 6
    assert all(len(set(labels[part])) == 2 for part in parts)


@given(labels=LABELS, clients=st.integers(1, 6), alpha=st.floats(0.05, 1e3), seed=SEED)
def test_dirichlet(labels: list[int], clients: int, alpha: float, seed: int) -> None:
    try:
        parts = dirichlet(labels, clients, alpha, seed)
    except DataError as error:
        assert "raise alpha, lower clients or change the seed" in str(error)  # noqa: PT017
        assert clients > 1
        return
    assert len(parts) == clients
    assert_complete(parts, len(labels))


def test_alpha_sets_the_skew() -> None:
    labels = np.repeat(np.arange(6), 200)

    def largest_class_share(alpha: float) -> float:
        parts = dirichlet(labels, 3, alpha, seed=0)
        return float(np.mean([np.bincount(labels[part]).max() / len(part) for part in parts]))

    assert largest_class_share(1e4) < 0.2 < 0.35 < largest_class_share(0.1)


@given(
    speakers=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40),
    clients=st.integers(1, 9),
    seed=SEED,
)
def test_by_speaker(speakers: list[str], clients: int, seed: int) -> None:
    if clients > len(set(speakers)):
        with pytest.raises(DataError, match="one per speaker"):
            by_speaker(speakers, clients, seed)
        return
    parts = by_speaker(speakers, clients, seed)
    assert len(parts) == clients
    assert_complete(parts, len(speakers))
    owned = [{speakers[i] for i in part} for part in parts]
    assert sum(map(len, owned)) == len(set(speakers))  # no speaker on two clients
    assert max(map(len, owned)) - min(map(len, owned)) <= 1


@given(labels=LABELS, seed=SEED)
def test_query_and_test(labels: list[int], seed: int) -> None:
    counts = np.bincount(labels, minlength=6)
    if counts.max() == 1:
        with pytest.raises(DataError, match="two clips"):
            query_and_test(labels, seed)
        return
    query, test = query_and_test(labels, seed)
    assert_complete((query, test), len(labels))
    np.testing.assert_array_equal(np.bincount(np.take(labels, test), minlength=6), (counts + 1) // 2)


Clips = list[tuple[int, int]]
"""(class, recording within the class) of each clip."""
CLIPS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=80)
DEALERS = {
    "query_and_test": query_and_test,
    "pathological": lambda labels, seed, groups=None: pathological(labels, 3, 4, seed, groups),
    "dirichlet": lambda labels, seed, groups=None: dirichlet(labels, 3, 2.0, seed, groups),
}


def old_query_and_test(labels: list[int], seed: int) -> tuple[list[int], list[int]]:
    """The rule before there were groups, written anew."""
    label, generator = np.array(labels), np.random.default_rng(seed)
    test: list[int] = []
    for name in sorted(set(labels)):
        members = generator.permutation(np.flatnonzero(label == name))
        test += members[: (len(members) + 1) // 2].tolist()
    return sorted(set(range(len(labels))) - set(test)), sorted(test)


@given(labels=LABELS, seed=SEED)
def test_distinct_recordings_change_no_query(labels: list[int], seed: int) -> None:
    if max(map(labels.count, labels)) == 1:
        return
    own = [f"clip {number}" for number in range(len(labels))][::-1]  # their order by name must not matter
    for groups in (None, own):
        parts = query_and_test(labels, seed, groups)
        assert tuple(part.tolist() for part in parts) == old_query_and_test(labels, seed)


@pytest.mark.parametrize("dealer", DEALERS.values(), ids=DEALERS)
def test_distinct_recordings_change_nothing(dealer: Callable[..., tuple[Positions, ...]]) -> None:
    labels = np.random.default_rng(0).integers(0, 6, 300)
    own = [f"clip {number}" for number in range(len(labels))][::-1]
    for seed in range(200):
        plain, grouped = dealer(labels, seed), dealer(labels, seed, own)
        assert [part.tolist() for part in plain] == [part.tolist() for part in grouped]


@pytest.mark.parametrize("dealer", DEALERS.values(), ids=DEALERS)
@given(clips=CLIPS, seed=SEED, spans=st.booleans())
def test_a_recording_is_on_one_side(
    dealer: Callable[..., tuple[Positions, ...]], clips: Clips, seed: int, spans: bool
) -> None:
    labels = [label for label, _ in clips]
    groups = [str(number) if spans else f"{label}.{number}" for label, number in clips]
    try:
        parts = dealer(labels, seed, groups)
    except DataError:  # too few recordings for so many parts
        return
    assert_complete(parts, len(labels))
    owned = [{groups[i] for i in part} for part in parts]
    assert sum(map(len, owned)) == len(set(groups))


def test_half_of_the_recordings_of_each_class_are_tested() -> None:
    """As in emotion_pairs: two faces beside each sound. The parts have the same sizes as without groups."""
    labels = np.repeat(np.arange(6), [80, 88, 88, 88, 96, 88])
    groups = [f"sound {number // 2}" for number in range(len(labels))]
    query, test = query_and_test(labels, 3, groups)
    np.testing.assert_array_equal(np.bincount(labels[test]), np.bincount(labels) // 2)
    assert not {groups[i] for i in query} & {groups[i] for i in test}
    plain_query, plain_test = query_and_test(labels, 3)
    assert {groups[i] for i in plain_query} & {groups[i] for i in plain_test}


def test_a_recording_that_spans_classes_counts_for_the_class_of_its_first_clip() -> None:
    labels, groups = [0, 1, 1, 1, 0], ["mixed", "mixed", "a", "b", "c"]
    for seed in range(20):
        _, test = query_and_test(labels, seed, groups)
        # Class 0 has "mixed" and "c", one of which is tested; class 1 has "a" and "b".
        assert len({0, 4} & set(test.tolist())) == 1
        assert len({2, 3} & set(test.tolist())) == 1
        assert (0 in test) == (1 in test)


def test_the_seed_decides() -> None:
    labels = np.repeat(np.arange(6), 30)
    speakers = [f"speaker {label}" for label in labels]
    dealers = (
        lambda seed: pathological(labels, 4, 2, seed),
        lambda seed: dirichlet(labels, 4, 5.0, seed),
        lambda seed: by_speaker(speakers, 4, seed),
        lambda seed: query_and_test(labels, seed),
    )
    for deal in dealers:
        one, again, other = (np.concatenate(deal(seed)) for seed in (1, 1, 2))
        np.testing.assert_array_equal(one, again)
        assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("deal", "says"),
    [
        (lambda: halves([0, 6], 6), "check the class list"),
        (lambda: halves([0, 1], 6), "both halves"),
        (lambda: halves([], 6), "at least one clip"),
        (lambda: halves([0.5, 4.0], 6), "whole numbers"),
        (lambda: query_and_test([0, -1], 0), "unlabelled"),
        (lambda: query_and_test([0, 0, 0], 0, ["a", "a", "a"]), "two clips of different recordings"),
        (lambda: query_and_test([0, 0, 0], 0, ["a", "b"]), "2 groups for 3 labels"),
        (lambda: pathological([0, 1], 2, 3, 0), "choose 1 to 2"),
        (lambda: pathological([0, 1, 2], 1, 2, 0), "raise clients or classes_per_client"),
        (lambda: pathological([0, 0], 3, 1, 0), "lower clients"),
        (lambda: dirichlet([0, 1], 2, 0.0, 0), "positive number"),
        (lambda: dirichlet([0, 1], 0, 1.0, 0), "at least 1"),
        (lambda: by_speaker(["a"], 0, 0), "at least 1"),
    ],
)
def test_impossible_splits_say_what_to_change(deal: object, says: str) -> None:
    assert callable(deal)
    with pytest.raises(DataError, match=says):
        deal()
