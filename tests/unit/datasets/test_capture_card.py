"""The capture card: physical values, one byte per value, cheap, and independent of the sample rate."""

from __future__ import annotations

import numpy as np
import pytest

from fedstill.datasets.audiovisual.capture_card import (
    BANDS,
    CARD_BYTES,
    CARD_SIZE,
    GREYS,
    PICTURE,
    RINGS,
    SILENCE_DB,
    SOUND,
    card_of,
    from_bytes,
    mel_points,
    picture_profiles,
    profile,
    sound_profile,
    to_bytes,
)

RATE = 16_000


def noise(seconds: float, rate: int, level: float) -> np.ndarray:
    return (level * np.random.default_rng(0).standard_normal(round(seconds * rate))).astype(np.float32)


def pictures(seed: int, size: int = 48, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (2, channels, size, size), dtype=np.uint8)


def test_white_noise_has_its_own_level_in_every_band_at_every_rate() -> None:
    for rate in (8_000, 16_000, 48_000):
        floor, level = sound_profile(noise(4, rate, 0.1), rate, 8_000).reshape(2, BANDS)
        density = 10 * np.log10(0.1**2 * 8_000 / (rate / 2))
        assert np.all(floor < level)
        middle = (floor[4:] + level[4:]) / 2
        assert np.abs(middle - density).mean() < 2.5


def test_a_tone_is_in_its_band_alone() -> None:
    tone = 0.5 * np.sin(2 * np.pi * 1000 / RATE * np.arange(RATE))
    _, level = sound_profile(tone, RATE, RATE).reshape(2, BANDS)
    assert abs(mel_points(RATE)[1:-1][level.argmax()] - 1000) < 80
    assert level.max() > np.median(level) + 40


def test_silence_and_missing_bands_are_at_the_bottom() -> None:
    assert np.all(sound_profile(np.zeros(RATE, np.float32), RATE, RATE) == SILENCE_DB)
    _, level = sound_profile(noise(1, 8_000, 0.1), 8_000, RATE).reshape(2, BANDS)
    assert np.all(level[mel_points(RATE)[1:-1] > 4_300] == SILENCE_DB)


def test_a_clip_shorter_than_a_window_has_a_profile() -> None:
    assert np.isfinite(sound_profile(np.ones(10, np.float32), RATE, RATE)).all()


@pytest.mark.parametrize(("size", "channels"), [(24, 1), (28, 3), (48, 1), (224, 3)])
def test_pictures_of_any_size(size: int, channels: int) -> None:
    found = picture_profiles(np.stack([pictures(0, size, channels), pictures(1, size, channels)]))
    assert found.shape == (2, GREYS + RINGS)
    assert np.isfinite(found).all()
    greys = found[:, :GREYS]
    assert np.all(np.diff(greys) >= 0)
    assert greys.min() >= 0
    assert greys.max() <= 255


def test_brightness_sharpness_and_noise_show() -> None:
    ramp = np.broadcast_to(np.linspace(40, 200, 48), (1, 1, 48, 48)).astype(np.uint8)
    grainy = np.clip(ramp + 10 * np.random.default_rng(0).standard_normal(ramp.shape), 0, 255).astype(
        np.uint8
    )
    plain, rough, dark = (picture_profiles(one[None])[0] for one in (ramp, grainy, ramp // 2))
    assert np.all(rough[-5:] > plain[-5:] + 6)
    assert abs(dark[GREYS // 2] - plain[GREYS // 2] / 2) < 2


def test_a_card_is_the_mean_of_what_is_known() -> None:
    silent = profile(None, 0, RATE, pictures(0))
    heard = profile(noise(1, RATE, 0.1), RATE, RATE, pictures(1))
    card = card_of(np.stack([silent, heard]))
    assert card.clips == 2
    assert np.array_equal(card.values[SOUND], heard[SOUND])
    assert np.allclose(card.values[PICTURE], (silent[PICTURE] + heard[PICTURE]) / 2)
    alone = card_of(silent[None])
    assert not alone.has_sound
    assert alone.has_pictures
    with pytest.raises(ValueError, match="at least one clip"):
        card_of(np.empty((0, CARD_SIZE), np.float32))


def test_what_few_clips_have_stays_unknown() -> None:
    silent, heard = profile(None, 0, RATE, pictures(0)), profile(noise(1, RATE, 0.1), RATE, RATE, pictures(1))
    card = card_of(np.stack([silent, silent, heard]), fewest=2)
    assert not card.has_sound, "it would be one clip's own"
    assert card.has_pictures


def test_a_card_travels_in_a_byte_per_value() -> None:
    card = card_of(profile(noise(1, RATE, 0.1), RATE, RATE, pictures(1))[None])
    data = to_bytes(card)
    assert data.dtype == np.uint8
    assert data.shape == (CARD_BYTES,)
    again = from_bytes(data, card.clips)
    assert np.abs(again.values - card.values)[SOUND].max() <= 0.25
    assert np.abs(again.values - card.values)[PICTURE].max() <= 0.5
    unknown = from_bytes(to_bytes(card_of(profile(None, 0, RATE, pictures(1))[None])), 1)
    assert not unknown.has_sound
    assert unknown.has_pictures
