"""Frames cut to a face: the right one, the same square in all frames, never beyond the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.focus import square_at, white_squares_are_faces

from fedstill.datasets.decoding.decode import read_video_frames
from fedstill.datasets.focus.face_crop import crop_to_face
from fedstill.datasets.focus.face_track import middle_square, square_around, track_face
from fedstill.datasets.focus.faces import find_faces


def boxes(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, float).reshape(-1, 4)


def test_the_largest_face_is_followed_in_both_directions() -> None:
    found = [
        boxes((0, 0, 19, 19), (50, 10, 18, 18)),  # before the anchor: the nearest, though another is larger
        boxes((54, 10, 20, 20), (0, 0, 19, 19)),
        boxes((2, 0, 19, 19), (58, 10, 18, 18)),
    ]
    assert track_face(found) is not None
    assert track_face(found).tolist() == [54, 10, 18, 18]  # type: ignore[union-attr]


def test_a_far_face_is_somebody_else_and_one_wrong_box_does_not_count() -> None:
    steady = boxes((50, 10, 20, 20))
    assert track_face([steady, boxes((5, 40, 19, 19)), steady, boxes(), steady]).tolist() == [50, 10, 20, 20]  # type: ignore[union-attr]
    assert track_face([steady, steady, boxes((60, 15, 26, 26))]).tolist() == [50, 10, 20, 20]  # type: ignore[union-attr]
    assert track_face([boxes(), boxes()]) is None


@pytest.mark.parametrize(
    ("box", "square"),
    [
        ((50, 20, 20, 20), (46, 16, 28)),
        ((50, 20, 10, 20), (41, 16, 28)),  # a narrow face gets a square, too
        ((0, 0, 20, 20), (0, 0, 28)),
        ((85, 45, 20, 20), (72, 32, 28)),
        ((20, 5, 55, 55), (18, 0, 60)),  # no larger than the picture
    ],
)
def test_the_square_has_a_margin_and_stays_in_the_picture(
    box: tuple[int, ...], square: tuple[int, int, int]
) -> None:
    assert square_around(np.array(box, float), height=60, width=100) == square


def test_all_frames_show_the_same_square(monkeypatch: pytest.MonkeyPatch) -> None:
    white_squares_are_faces(monkeypatch)
    frames = np.stack([square_at(left, 20) for left in (50, 52, 54)])
    cropped, found = crop_to_face(frames)
    assert found
    np.testing.assert_array_equal(cropped, frames[:, 16:44, 48:76])


def test_a_large_picture_is_searched_small_and_cut_large(monkeypatch: pytest.MonkeyPatch) -> None:
    white_squares_are_faces(monkeypatch)
    seen = find_faces(square_at(400, 200, side=160, height=600, width=1280))
    np.testing.assert_allclose(seen, [[400, 200, 160, 160]], atol=8)


def test_without_a_face_it_is_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    white_squares_are_faces(monkeypatch)
    frames = np.random.default_rng(0).integers(0, 100, (2, 60, 100, 3)).astype(np.uint8)
    cropped, found = crop_to_face(frames)
    assert not found
    np.testing.assert_array_equal(cropped, frames[:, :, 20:80])
    assert middle_square(100, 61) == (0, 19, 61)


def test_a_still_picture_is_searched_once() -> None:
    looked: list[int] = []

    def find(frame: np.ndarray) -> np.ndarray:
        looked.append(int(frame[0, 0, 0]))
        return boxes()

    crop_to_face(np.repeat(np.array([1, 1, 2, 2, 1], np.uint8), 12).reshape(5, 2, 2, 3), find)
    assert looked == [1, 2, 1]


def test_the_real_detector_sees_no_face_in_noise_and_leaves_threads_as_they_are() -> None:
    cv2 = pytest.importorskip("cv2", reason="install fedstill[speech] to test it")
    threads = cv2.getNumThreads()
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3)).astype(np.uint8)
    assert find_faces(noise).shape == (0, 4)
    assert cv2.getNumThreads() == threads


@pytest.mark.data
def test_the_faces_of_crema_d_are_found(data_dir: Path) -> None:
    pytest.importorskip("cv2", reason="install fedstill[speech] to test it")
    films = sorted((data_dir / "cremad_sample" / "VideoFlash").glob("*.flv"))
    for film in films:
        frames = read_video_frames(film, 1)
        cropped, found = crop_to_face(frames)
        assert found
        assert 150 < cropped.shape[1] < 210, "a face is about 125 of 360 pixels high"
        again, still = crop_to_face(cropped)
        assert still
        assert again.shape[1] > 0.8 * cropped.shape[1], "the square holds the whole face"
    assert len(films) == 6
