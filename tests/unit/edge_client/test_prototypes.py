"""Guards what a device uploads about its clips: no cluster below the minimum, every clip counted, clear refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstill.edge_client.privacy.prototypes import (
    DeviceError,
    Probabilities,
    constrained_prototypes,
    kmeans_prototypes,
    summarise,
)
from fedstill.protos.messages import Job, PrototypeRequest, Student

STUDENT = Student(np.zeros(1, np.uint8), "", ("a", "b", "c", "d", "e"), "0" * 64)
KINDS = ("samples", "histogram", "kmeans", "constrained")


def request(kind: str, *, samples: int = 3, min_size: int = 8, limit: int = 0) -> PrototypeRequest:
    return PrototypeRequest(
        job=Job("latency_sensitive", "fedstill", 0, 0),
        student=STUDENT,
        kind=kind,
        samples_per_prototype=samples,
        min_size=min_size,
        upload_limit=limit,
        temperature=1.0,
    )


def class_probabilities(count: int, seed: int = 0, *, distinct: int | None = None) -> Probabilities:
    rows = np.random.default_rng(seed).dirichlet(np.full(5, 0.4), distinct or count)
    return np.resize(rows, (count, 5)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_no_cluster_is_smaller_than_the_minimum(count: int, samples: int, min_size: int, seed: int) -> None:
    if count < min_size:
        return
    found = constrained_prototypes(class_probabilities(count, seed), max(samples, min_size), min_size, seed)
    assert found.counts.min() >= min_size
    assert found.counts.sum() == count


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [8, 9, 40, 101])
def test_every_clip_is_counted_and_rows_sum_to_one(kind: str, count: int) -> None:
    clips = class_probabilities(count)
    found = summarise(clips, request(kind), seed=1)
    assert found.probabilities.dtype == np.float32
    assert found.counts.dtype == np.int64
    assert found.probabilities.shape == (len(found.counts), 5)
    assert found.counts.sum() == count
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, atol=1e-5)
    weighted = found.counts @ found.probabilities.astype(np.float64) / count
    np.testing.assert_allclose(weighted, clips.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "rows"), [("samples", 30), ("histogram", 1), ("kmeans", 10), ("constrained", 3)]
)
def test_how_many_rows_each_kind_sends(kind: str, rows: int) -> None:
    assert len(summarise(class_probabilities(30), request(kind), seed=1).counts) == rows


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_sends_the_same(kind: str) -> None:
    first, again = (summarise(class_probabilities(60), request(kind, limit=40), seed=3) for _ in range(2))
    assert np.array_equal(first.probabilities, again.probabilities)
    assert np.array_equal(first.counts, again.counts)


def test_fewer_clips_than_the_minimum_are_not_uploaded() -> None:
    with pytest.raises(DeviceError, match="7 clips") as caught:
        summarise(class_probabilities(7), request("constrained"), seed=0)
    assert "\n" not in str(caught.value)
    assert len(summarise(class_probabilities(8), request("constrained"), seed=0).counts) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_no_clips(kind: str) -> None:
    with pytest.raises(DeviceError, match="no clips") as caught:
        summarise(np.empty((0, 5), np.float32), request(kind), seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_student_uploads_nothing(kind: str, bad: float) -> None:
    clips = class_probabilities(20)
    clips[3, 2] = bad
    with pytest.raises(DeviceError, match="NaN"):
        summarise(clips, request(kind), seed=0)


@pytest.mark.parametrize("distinct", [1, 4, 11])
def test_more_clusters_than_different_clips(distinct: int) -> None:
    """k larger than n, in the sense that counts: samples_per_prototype 1 over repeated rows."""
    found = kmeans_prototypes(class_probabilities(24, distinct=distinct), 1, seed=0)
    assert len(found.counts) == distinct
    assert found.counts.sum() == 24


@pytest.mark.parametrize("distinct", [1, 2])
def test_constrained_clusters_of_repeated_clips(distinct: int) -> None:
    found = constrained_prototypes(class_probabilities(40, distinct=distinct), 8, 8, seed=0)
    assert found.counts.min() >= 8
    assert found.counts.sum() == 40
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(("limit", "taking_part"), [(0, 30), (12, 12), (30, 30), (31, 30)])
def test_the_upload_limit(limit: int, taking_part: int) -> None:
    clips = class_probabilities(30)
    found = summarise(clips, request("samples", limit=limit), seed=5)
    assert len(found.counts) == taking_part
    places = [int(np.flatnonzero((clips == row).all(axis=1))[0]) for row in found.probabilities]
    assert places == sorted(set(places))
    other = summarise(clips, request("samples", limit=limit), seed=6)
    assert np.array_equal(found.probabilities, other.probabilities) == (taking_part == 30)


def test_the_limit_counts_before_the_minimum() -> None:
    with pytest.raises(DeviceError, match="5 clips"):
        summarise(class_probabilities(30), request("constrained", limit=5), seed=0)


def test_coarse_prototypes_are_the_same_ones_rounded() -> None:
    exact = summarise(class_probabilities(60), request("constrained"), seed=3)
    coarse = summarise(class_probabilities(60), replace(request("constrained"), coarse=True), seed=3)
    assert np.array_equal(coarse.counts, exact.counts)
    assert not np.array_equal(coarse.probabilities, exact.probabilities)
    np.testing.assert_allclose(coarse.probabilities, exact.probabilities, atol=1.5 / 255)
    np.testing.assert_allclose(coarse.probabilities.sum(axis=1), 1, atol=1e-6)
