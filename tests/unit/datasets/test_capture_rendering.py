"""Rendering: public clips come closer to a corrupted copy of themselves, for every condition, by its card alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedstill.datasets.audiovisual.capture.captured import CapturedSource
from fedstill.datasets.audiovisual.capture.conditions import Condition
from fedstill.datasets.audiovisual.capture.effects import PICTURE_EFFECTS, SOUND_EFFECTS
from fedstill.datasets.audiovisual.capture.rendering import fit_rendering, level_offsets
from fedstill.datasets.audiovisual.capture.views import PlainViews, RenderedViews, blind_views
from fedstill.datasets.audiovisual.capture_card import PICTURE, SOUND, card_of, from_bytes, to_bytes
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.audiovisual.store import ClipStore, build_store
from fedstill.datasets.audiovisual.synthetic import SyntheticSource

CLIPS = 24
SHARES = np.full(6, 1 / 6)
AUDIO = AudioSpec(seconds=1.5, hop=512, mel_bins=32, normalise="fixed")
EVERYTHING = np.arange(CLIPS)
UNSEEN = ("camera_tilt",)
"""A card has no geometry."""


@pytest.fixture(scope="module")
def source() -> SyntheticSource:
    return SyntheticSource(
        seed=3, public_per_class=CLIPS // 6, private_per_class=0, frame_size=32, frame_count=1
    )


@pytest.fixture(scope="module")
def public(source: SyntheticSource, tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    return built(source, tmp_path_factory.mktemp("public"))


def built(source: object, folder: Path) -> ClipStore:
    return build_store(
        source, EVERYTHING.tolist(), AUDIO, FrameSpec(32, 1, 1), folder / "store", keep_sound=True
    )


def recorded(source: SyntheticSource, folder: Path, condition: Condition) -> ClipStore:
    return built(CapturedSource(source, condition, seed=5), folder)


def rendered(public: ClipStore, device: ClipStore) -> tuple[np.ndarray, np.ndarray]:
    card = from_bytes(to_bytes(card_of(device.profiles)), len(device))
    return RenderedViews(public, fit_rendering(card, public, SHARES, 0), 0, 1).fixed(EVERYTHING)


@pytest.mark.parametrize("family", SOUND_EFFECTS)
def test_sound_comes_closer_to_its_corrupted_copy(
    family: str, source: SyntheticSource, public: ClipStore, tmp_path: Path
) -> None:
    for effect in SOUND_EFFECTS[family]:
        device = recorded(source, tmp_path / effect, Condition(effect, family, sound=((effect, 1.0),)))
        audio, _ = rendered(public, device)
        before = np.abs(public.audio - device.audio).mean()
        after = np.abs(audio - device.audio).mean()
        assert after < before, effect


@pytest.mark.parametrize("family", PICTURE_EFFECTS)
def test_pictures_come_closer_to_the_corrupted_ones(
    family: str, source: SyntheticSource, public: ClipStore, tmp_path: Path
) -> None:
    for effect in set(PICTURE_EFFECTS[family]) - set(UNSEEN):
        device = recorded(source, tmp_path / effect, Condition(effect, family, pictures=((effect, 1.0),)))
        _, frames = rendered(public, device)
        before, after = (
            np.abs(
                np.sort(one.reshape(CLIPS, -1)).mean(axis=0)
                - np.sort(device.frames.reshape(CLIPS, -1)).mean(axis=0)
            ).mean()
            for one in (public.frames, frames)
        )
        assert after <= before + 0.5, effect  # some change no grey values, only sharpness


def test_a_rendered_set_has_the_card_of_the_device(
    source: SyntheticSource, public: ClipStore, tmp_path: Path
) -> None:
    condition = Condition(
        "office",
        "development",
        (("pink_noise", 1.0), ("spectral_tilt", 1.0)),
        (("blur", 1.0), ("sensor_noise", 1.0)),
    )
    device = recorded(source, tmp_path, condition)
    card = card_of(device.profiles)
    rendering = fit_rendering(card, public, SHARES, 0)
    assert rendering.sound is not None
    assert rendering.pictures is not None
    views = RenderedViews(public, rendering, 0, 1)

    class Rendered:
        name, class_names, index = source.name, source.class_names, source.index

        def load(self, position: int) -> object:
            clip = source.load(position)
            heard = public.sound.waveform(position)
            waveform = rendering.render_sound(heard, position, np.random.default_rng(position))
            return replace(clip, audio=np.clip(waveform, -1, 1))

    again = card_of(built(Rendered(), tmp_path / "again").profiles).values
    plain = card_of(public.profiles).values
    assert np.abs(again - card.values)[SOUND].mean() < 0.3 * np.abs(plain - card.values)[SOUND].mean()
    from fedstill.datasets.audiovisual.capture_card import picture_profiles

    looks = picture_profiles(views.fixed(EVERYTHING)[1]).mean(axis=0)
    assert np.abs(looks - card.values[PICTURE]).mean() < 0.6 * np.abs(plain - card.values)[PICTURE].mean()


def test_what_a_card_does_not_tell_stays(public: ClipStore) -> None:
    values = card_of(public.profiles)
    nothing = type(values)(np.full_like(values.values, np.nan), values.clips)
    rendering = fit_rendering(nothing, public, SHARES, 0)
    assert rendering.sound is None
    assert rendering.pictures is None
    audio, frames = RenderedViews(public, rendering, 0, 2).fixed(EVERYTHING)
    assert np.array_equal(audio, public.audio)
    assert np.array_equal(frames, public.frames)


def test_views_are_repeatable_and_vary(public: ClipStore, source: SyntheticSource, tmp_path: Path) -> None:
    device = recorded(source, tmp_path, Condition("hiss", "development", (("white_noise", 1.0),)))
    rendering = fit_rendering(card_of(device.profiles), public, SHARES, 0)
    first, same = (RenderedViews(public, rendering, 7, 2) for _ in range(2))
    again = [one.take(EVERYTHING, torch.Generator().manual_seed(1))[0] for one in (first, same)]
    assert np.array_equal(*again)
    assert not np.array_equal(again[0], first.take(EVERYTHING, torch.Generator().manual_seed(2))[0])
    assert np.array_equal(first.fixed(EVERYTHING[::-1])[0], same.fixed(EVERYTHING)[0][::-1])


def test_what_is_forgotten_is_made_again_the_same(
    public: ClipStore, source: SyntheticSource, tmp_path: Path
) -> None:
    device = recorded(source, tmp_path, Condition("hiss", "development", (("white_noise", 1.0),)))
    views = RenderedViews(public, fit_rendering(card_of(device.profiles), public, SHARES, 0), 7, 2)
    part = views.only(sound=True, pictures=False)
    before = part.fixed(EVERYTHING[:5])[0]
    assert part._audio
    views.forget()
    assert not part._audio
    assert np.array_equal(part.fixed(EVERYTHING[:5])[0], before)


def test_blind_views_hold_the_clip_itself_and_random_recordings(public: ClipStore, tmp_path: Path) -> None:
    assert isinstance(blind_views(public, 0, tmp_path, 0), PlainViews)
    views = blind_views(public, 2, tmp_path, 0)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    audio, frames = views.take(EVERYTHING, torch.Generator().manual_seed(0))
    same = np.array([np.array_equal(one, other) for one, other in zip(audio, public.audio, strict=True)])
    assert 0.1 < same.mean() < 0.6
    assert not np.array_equal(frames, public.frames)
    assert np.array_equal(views.fixed(EVERYTHING)[0], public.audio)
    blind_views(public, 2, tmp_path, 0)
    assert kept == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}


@pytest.mark.parametrize("damage", ["empty", "cut", "gone", "others"])
def test_damaged_blind_views_are_made_again(damage: str, public: ClipStore, tmp_path: Path) -> None:
    before = np.array(blind_views(public, 1, tmp_path, 0).audio[0])
    file = tmp_path / "version0" / "audio.npy"
    if damage == "empty":
        file.write_bytes(b"")
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "gone":
        file.unlink()
    else:
        np.save(file, before[:4])
    assert np.array_equal(blind_views(public, 1, tmp_path, 0).audio[0], before)


def test_a_muted_speaker_is_no_soft_one(public: ClipStore) -> None:
    profiles = np.array(public.profiles)
    usual = level_offsets(public)
    muted = np.array(public.speakers) == public.speakers[0]
    profiles[muted, SOUND] = -110.0
    silent = level_offsets(replace(public, profiles=profiles))
    assert np.all(silent[muted] == 0)
    assert np.abs(silent[~muted] - usual[~muted]).max() < 3
    profiles[muted, SOUND] = -75.0
    assert np.abs(level_offsets(replace(public, profiles=profiles))).max() <= 20
    profiles[0] = np.nan
    assert np.isfinite(level_offsets(replace(public, profiles=profiles))).all()


def test_clips_that_share_their_sound_share_its_renderings(public: ClipStore) -> None:
    assert public.sound is not None
    assert len(set(public.sound.sounds().tolist())) == CLIPS
    assert np.abs(public.sound.waveform(3)).max() <= 1
