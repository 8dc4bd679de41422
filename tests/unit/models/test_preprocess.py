"""Pictures to network inputs: as timm does it for the same settings, and nothing that cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from fedstill.models.vit.preprocess import image_tensor
from fedstill.models.vit.preprocess_settings import PLAIN, Preprocess

IMAGENET = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), crop_pct=0.9)


def picture(height: int, width: int) -> np.ndarray:
    """Smooth, so that the rounding of Pillow's steps stays below a grey value or two."""
    small = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        (IMAGENET, (90, 90)),
        (Preprocess(interpolation="bilinear", crop_pct=0.875), (71, 71)),
        (Preprocess(crop_pct=0.95, crop_mode="squash"), (50, 91)),
        (Preprocess((0.2, 0.5, 0.8), (0.3, 0.5, 0.7)), (64, 64)),
        (PLAIN, (200, 200)),
    ],
)
def test_the_input_is_timms_for_the_same_settings(settings: Preprocess, shape: tuple[int, int]) -> None:
    image = picture(*shape)
    transform = create_transform(
        (3, 64, 64),
        interpolation=settings.interpolation,
        mean=settings.mean,
        std=settings.std,
        crop_pct=settings.crop_pct,
        crop_mode=settings.crop_mode,
    )
    expected = transform(Image.fromarray(image))
    greys = (image_tensor(image, 64, settings) - expected) * torch.tensor(settings.std).view(3, 1, 1) * 255
    assert greys.abs().max() < 2  # Pillow rounds to whole grey values, between its two passes as well
    assert greys.abs().mean() < 0.5


def test_a_wide_picture_is_cropped_to_its_centre_and_a_squashed_one_kept_whole() -> None:
    wide = np.zeros((8, 32, 3), np.uint8)
    wide[:, 12:20] = 255
    assert float(image_tensor(wide, 8, PLAIN).min()) == 1
    whole = image_tensor(wide, 8, Preprocess(crop_mode="squash"))
    assert whole.shape == (3, 8, 8)
    assert (float(whole[0, 4, 0]), float(whole[0, 4, -1])) == (-1, -1)


def test_each_channel_has_its_own_mean_and_std() -> None:
    settings = Preprocess((0.1, 0.2, 0.3), (0.2, 0.4, 0.5))
    made = image_tensor(np.full((4, 4, 3), 255, np.uint8), 4, settings)
    np.testing.assert_allclose(made[:, 0, 0], [0.9 / 0.2, 0.8 / 0.4, 0.7 / 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mean": (123.0, 116.0, 103.0)}, "mean: .* is not between 0 and 1"),
        ({"mean": (float("nan"), 0.5, 0.5)}, "mean: "),
        ({"std": (0.0, 0.2, 0.2)}, "std: "),
        ({"crop_pct": 0.01}, "crop_pct: 0.01 is not between 0.25 and 1"),
        ({"crop_pct": 1.1}, "crop_pct: "),
    ],
)
def test_what_cannot_be_is_named(values: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Preprocess(**values)
