"""Recall at 1: the nearest other image is of the same class, or not."""

from __future__ import annotations

import numpy as np

from fedstill.cloud_server.serving.engine.nearest import nearest_right
from fedstill.cloud_server.serving.engine.predictions import Prediction

EAST, NORTH = (1.0, 0.1), (0.1, 1.0)


def test_the_image_itself_is_no_neighbour() -> None:
    vectors = np.array([EAST, NORTH, EAST, NORTH], np.float32)
    assert nearest_right(vectors, vectors, np.array([0, 1, 0, 1])).all()
    assert not nearest_right(vectors, vectors, np.array([0, 1, 1, 0])).any()


def test_queries_are_compared_by_direction_with_what_is_stored() -> None:
    stored = np.array([EAST, NORTH, EAST, NORTH], np.float32)
    longer, mixed = 100 * stored, stored[[1, 1, 2, 3]]
    labels = np.array([0, 1, 0, 1])
    assert nearest_right(longer, stored, labels).all()
    assert nearest_right(mixed, stored, labels).tolist() == [False, True, True, True]


def test_a_refused_image_is_wrong() -> None:
    vectors = np.array([EAST, NORTH, EAST, NORTH], np.float32)
    queries = vectors.copy()
    queries[0] = np.nan
    assert nearest_right(queries, vectors, np.array([0, 1, 0, 1])).tolist() == [False, True, True, True]


def test_probabilities_are_sigmoids_without_overflow() -> None:
    said = Prediction(np.array([-1000.0, 0.0, 2.0, 1000.0], np.float32), ("a", "b", "c", "d"), "labels")
    np.testing.assert_allclose(said.probabilities, [0, 0.5, 0.880797, 1], atol=1e-6)
    assert said.labels == ("d", "c", "b")
