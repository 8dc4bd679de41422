"""Guards Algorithm 7's SelectData and the prototypes against plain NumPy transcriptions of the thesis."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from fedstill.cloud_server.distillation import selection
from fedstill.cloud_server.distillation.selection import select_nearest
from fedstill.edge_client.privacy.prototypes import kmeans_prototypes

Array = npt.NDArray[np.floating]
TINY_SCANS = {"GROUP": 3, "BLOCK": 7, "SAMPLE": 5}


def select_data(prototypes: Array, public: Array, takes: list[int]) -> list[int]:
    """Lines 12-18 as printed: row by row, sort all public clips by cosine, take the best not yet chosen."""
    rows, columns = prototypes.astype(np.float64), public.astype(np.float64)
    rows = rows / np.sqrt((rows**2).sum(axis=1))[:, None]
    columns = columns / np.sqrt((columns**2).sum(axis=1))[:, None]
    chosen: list[int] = []
    for row, take in zip(rows, takes, strict=True):
        order = np.argsort(-(columns * row).sum(axis=1), kind="stable")
        chosen += [int(one) for one in order if one not in set(chosen)][:take]
    return chosen


def class_probabilities(kind: str, count: int, classes: int, rng: np.random.Generator) -> Array:
    """Probabilities (count, classes) of the given temper."""
    spread = {"random": 1.0, "confident": 60.0, "certain": 1e4, "duplicates": 1.0}[kind]
    logits = spread * rng.normal(size=(count, classes))
    if kind == "duplicates":
        logits = logits[rng.integers(0, max(1, count // 4), count)]
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: Array = (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
    return found


@st.composite
def selections(draw: st.DrawFn) -> tuple[Array, Array, list[int]]:
    """Prototypes, public clips and how many each prototype takes, never more than there are."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    classes, public = draw(st.integers(2, 8)), draw(st.integers(1, 90))
    takes, left = [], public
    for _ in range(draw(st.integers(1, 12))):
        take = draw(st.integers(1, 9))
        if take <= left:
            takes.append(take)
            left -= take
    kinds = st.sampled_from(["random", "confident", "certain", "duplicates"])
    takes = takes or [1]
    return (
        class_probabilities(draw(kinds), len(takes), classes, rng),
        class_probabilities(draw(kinds), public, classes, rng),
        takes,
    )


@settings(max_examples=150, deadline=None)
@given(selections())
def test_equals_the_row_by_row_loop(case: tuple[Array, Array, list[int]]) -> None:
    prototypes, public, takes = case
    found = select_nearest(prototypes, public, np.array(takes))
    assert found.dtype == np.int64
    assert found.tolist() == select_data(prototypes, public, takes)


@settings(max_examples=150, deadline=None)
@given(selections())
def test_equals_the_loop_when_the_scan_is_cut_into_groups_blocks_and_a_sample(
    case: tuple[Array, Array, list[int]],
) -> None:
    prototypes, public, takes = case
    with pytest.MonkeyPatch.context() as patch:
        for name, size in TINY_SCANS.items():
            patch.setattr(selection, name, size)
        found = select_nearest(prototypes, public, np.array(takes))
    assert found.tolist() == select_data(prototypes, public, takes)


@pytest.mark.parametrize("kind", ["random", "confident", "duplicates"])
def test_equals_the_loop_with_more_rows_than_a_group(kind: str) -> None:
    rng = np.random.default_rng(5)
    rows = selection.GROUP * 3 + 1
    prototypes, public = class_probabilities(kind, rows, 6, rng), class_probabilities(kind, 1500, 6, rng)
    assert select_nearest(prototypes, public, 5).tolist() == select_data(prototypes, public, [5] * rows)


def test_equals_the_loop_when_everything_is_taken() -> None:
    rng = np.random.default_rng(6)
    prototypes, public = (
        class_probabilities("confident", 40, 4, rng),
        class_probabilities("random", 200, 4, rng),
    )
    found = select_nearest(prototypes, public, 5)
    assert sorted(found.tolist()) == list(range(200))
    assert found.tolist() == select_data(prototypes, public, [5] * 40)


def test_ties_go_to_the_lower_position() -> None:
    public = np.tile(np.array([[0.5, 0.5], [1.0, 0.0]], np.float32), (4, 1))
    assert select_nearest(np.array([[1.0, 0.0], [1.0, 0.0]]), public, 2).tolist() == [1, 3, 5, 7]


def test_an_earlier_row_takes_what_a_later_one_wants() -> None:
    public = np.array([[1.0, 0.0], [0.9, 0.1], [0.5, 0.5], [0.0, 1.0]])
    wanted = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert select_nearest(wanted, public, np.array([1, 3])).tolist() == [0, 1, 2, 3]


def test_more_clips_wanted_than_there_are() -> None:
    with pytest.raises(ValueError, match="6 clips asked of 5"):
        select_nearest(np.eye(2), np.full((5, 2), 0.5), 3)


@pytest.mark.parametrize(("count", "per_prototype"), [(377, 3), (100, 7), (9, 2), (5, 5), (4, 1)])
def test_kmeans_prototypes_are_the_means_of_their_clips(count: int, per_prototype: int) -> None:
    """Section 5.3.4: k = ceil(n / samples), a prototype is its cluster's mean and counts its clips."""
    probabilities = class_probabilities("random", count, 6, np.random.default_rng(count))
    clusters = -(-count // per_prototype)
    assigned = KMeans(clusters, n_init=1, random_state=11).fit_predict(probabilities)
    found = kmeans_prototypes(probabilities, per_prototype, seed=11)
    assert found.probabilities.shape == (clusters, 6)
    for cluster in range(clusters):
        members = [
            row.astype(np.float64) for row, one in zip(probabilities, assigned, strict=True) if one == cluster
        ]
        assert found.counts[cluster] == len(members)
        np.testing.assert_allclose(found.probabilities[cluster], sum(members) / len(members), atol=1e-7)
