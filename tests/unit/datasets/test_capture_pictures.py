"""Picture effects do to frames what their docstrings say in pixels, degrees and grey values."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.capture.effects import PICTURE_EFFECTS
from fedstill.datasets.audiovisual.capture.picture_effects import disc_kernel, line_kernel
from fedstill.datasets.audiovisual.synthetic import SyntheticSource

EFFECTS = {**PICTURE_EFFECTS["development"], **PICTURE_EFFECTS["test"]}
Frames = np.ndarray


def apply(name: str, frames: Frames, strength: float = 1.0, seed: int = 0) -> Frames:
    return EFFECTS[name](frames, strength, np.random.default_rng(seed))


def flat(grey: int, side: int = 48, count: int = 1) -> Frames:
    return np.full((count, side, side, 3), grey, np.uint8)


def dot(side: int = 49) -> Frames:
    """One white pixel in the middle."""
    frames = flat(0, side)
    frames[:, side // 2, side // 2] = 255
    return frames


def spread(frames: Frames) -> np.ndarray:
    """(2, 2): the covariance in pixels of the light of the first frame."""
    light = frames[0, :, :, 0].astype(float)
    where = np.indices(light.shape).reshape(2, -1)
    return np.cov(where, aweights=light.ravel(), bias=True)


@pytest.fixture(scope="module")
def faces() -> Frames:
    return SyntheticSource(seed=2, public_per_class=1).load(2).frames


@pytest.mark.parametrize("name", EFFECTS)
def test_strength_0_is_the_frames_themselves(name: str, faces: Frames) -> None:
    assert apply(name, faces, 0.0) is faces


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_a_strength_that_means_nothing_is_refused(name: str, strength: float, faces: Frames) -> None:
    with pytest.raises(DataError, match="strength"):
        apply(name, faces, strength)


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize("shape", [(1, 48, 48, 3), (3, 60, 100, 3), (2, 97, 41, 3), (1, 1, 1, 3)])
@pytest.mark.parametrize("strength", [0.01, 3.0])
def test_any_shape_is_kept_and_the_original_untouched(
    name: str, shape: tuple[int, ...], strength: float
) -> None:
    frames = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    before = frames.copy()
    after = apply(name, frames, strength)
    assert (after.shape, after.dtype) == (shape, np.uint8)
    assert np.array_equal(frames, before)


@pytest.mark.parametrize("name", EFFECTS)
def test_the_generator_alone_decides(name: str, faces: Frames) -> None:
    assert np.array_equal(apply(name, faces, seed=3), apply(name, faces, seed=3))


@pytest.mark.parametrize(
    "name", ["gamma", "sensor_noise", "side_light", "motion_blur", "camera_tilt", "low_light"]
)
def test_what_is_random_differs(name: str, faces: Frames) -> None:
    assert len({apply(name, faces, seed=seed).tobytes() for seed in range(8)}) > 1


@pytest.mark.parametrize("name", EFFECTS)
def test_the_damage_grows_with_strength(name: str, faces: Frames) -> None:
    before = faces.astype(float)
    damage = [
        np.abs(apply(name, faces, strength) - before).mean() for strength in (0.4, 0.7, 1.0, 1.5, 2.0, 3.0)
    ]
    assert all(less < more for less, more in zip([0.0, *damage], damage, strict=False)), damage


@pytest.mark.parametrize("name", EFFECTS)
def test_grey_pictures_stay_grey(name: str, faces: Frames) -> None:
    grey = np.repeat(faces[..., :1], 3, axis=3)
    after = apply(name, grey)
    assert np.array_equal(after[..., 0], after[..., 1])
    assert np.array_equal(after[..., 0], after[..., 2])


@pytest.mark.parametrize("name", ["blur", "motion_blur", "defocus", "camera_tilt", "gamma", "jpeg"])
def test_a_plain_picture_has_no_border(name: str) -> None:
    after = apply(name, flat(130), 2.0)
    assert np.ptp(after) <= 1


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_gamma_goes_both_ways(strength: float) -> None:
    seen = {int(apply("gamma", flat(128), strength, seed)[0, 0, 0, 0]) for seed in range(10)}
    assert seen == {round(255 * (128 / 255) ** gamma**strength) for gamma in (0.6, 1.8)}


@pytest.mark.parametrize(("side", "strength", "pixels"), [(48, 1.0, 1.0), (48, 2.0, 2.0), (96, 1.0, 2.0)])
def test_the_deviation_of_blur(side: int, strength: float, pixels: float) -> None:
    square = flat(0, side)
    square[:, 16:28, 16:28] = 255
    added = np.diag(spread(apply("blur", square, strength))) - np.diag(spread(square))
    assert np.sqrt(added) == pytest.approx([pixels] * 2, rel=0.05)


def test_the_deviation_of_noise() -> None:
    seen = apply("sensor_noise", flat(128, 96, count=8))
    made_small = seen.reshape(8, 48, 2, 48, 2, 3).mean(axis=(2, 4))
    assert made_small.std() == pytest.approx(12, rel=0.05)
    assert apply("sensor_noise", flat(128, count=8), 0.5).std() == pytest.approx(6, rel=0.05)
    assert seen.mean() == pytest.approx(128, abs=1)


def test_side_light_and_contrast() -> None:
    sides = [apply("side_light", flat(80), seed=seed)[0, 24, [0, -1], 0].astype(int) for seed in range(8)]
    assert {int(np.sign(left - right)) for left, right in sides} == {-1, 1}
    assert [abs(left - right) for left, right in sides] == pytest.approx([(160 - 40) / 2] * 8, abs=2)
    striped = flat(60)
    striped[:, ::2] = 100
    middle = apply("side_light", striped)[0, :, 23:25].astype(int)
    assert middle.max() - middle.min() == pytest.approx((100 - 60) / 2, abs=2)


@pytest.mark.parametrize(("strength", "pixels"), [(1.0, 7.0), (2.0, 14.0)])
def test_the_length_of_motion_blur(strength: float, pixels: float) -> None:
    for seed in range(4):
        light = np.linalg.eigvalsh(spread(apply("motion_blur", dot(), strength, seed)))
        assert np.sqrt(12 * light[1]) == pytest.approx(pixels, rel=0.1)  # as of a uniform distribution
        assert light[0] < 0.5  # pixels squared across


def test_kernels_at_a_tiny_strength_change_nothing() -> None:
    for kernel in (line_kernel(1e-6, 0.7), disc_kernel(1e-6)):
        assert kernel.sum() == pytest.approx(1)
        assert kernel.max() == pytest.approx(1, abs=1e-4)


def test_a_line_points_where_it_should() -> None:
    kernel = line_kernel(7, 0.0)
    assert kernel[len(kernel) // 2].sum() == pytest.approx(1)


def test_defocus_is_a_disc() -> None:
    seen = apply("defocus", dot())[0, :, :, 0].astype(float)
    lit = seen > seen.max() / 2
    assert lit.sum() == pytest.approx(np.pi * 2.5**2, rel=0.15)
    assert seen[lit].min() == pytest.approx(seen.max(), rel=0.3)  # even, unlike a Gaussian


def test_jpeg_of_quality_10(faces: Frames) -> None:
    file = BytesIO()
    Image.fromarray(faces[0]).save(file, "JPEG", quality=10)
    assert np.array_equal(apply("jpeg", faces)[0], np.asarray(Image.open(file)))
    assert np.abs(apply("jpeg", faces).astype(float) - faces).mean() > 3


@pytest.mark.parametrize(("strength", "degrees"), [(0.5, 7.5), (1.0, 15.0), (2.0, 30.0)])
def test_the_camera_is_tilted(strength: float, degrees: float) -> None:
    halves = flat(0, 96)
    halves[:, :, 48:] = 255
    angles = []
    for seed in range(8):
        seen = apply("camera_tilt", halves, strength, seed)[0, 10:-10, :, 0]
        edge = seen.shape[1] - seen.astype(float).sum(axis=1) / 255  # where each row turns white
        angles.append(np.degrees(np.arctan(np.polyfit(np.arange(len(edge)), edge, 1)[0])))
    assert np.abs(angles) == pytest.approx([degrees] * 8, abs=0.5)
    assert min(angles) < 0 < max(angles)


def test_low_light_is_dark_and_noisy() -> None:
    seen = apply("low_light", flat(180, count=8)).astype(float)
    dark = 255 * (180 / 255) ** 2.2
    assert seen.mean() == pytest.approx(dark, abs=1)
    assert seen.std() == pytest.approx(np.sqrt(dark * 255 / 200), rel=0.05)
    assert not apply("low_light", flat(0)).any()  # no light, no photons
