"""A dataset recorded by one device: repeatable clip by clip, constant where a device is, different where clips are."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest

from fedstill.common.dataclass_codec import from_plain, to_plain
from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.capture.babble import Babble
from fedstill.datasets.audiovisual.capture.captured import CapturedSource, captured_clip
from fedstill.datasets.audiovisual.capture.conditions import Applied, Condition, random_condition
from fedstill.datasets.audiovisual.capture.effects import PICTURE_EFFECTS, SOUND_EFFECTS, Family, with_babble
from fedstill.datasets.audiovisual.capture.talkers import VOICES, babble_of
from fedstill.datasets.audiovisual.clip import Clip, ClipInfo
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.audiovisual.store import build_store
from fedstill.datasets.audiovisual.synthetic import SyntheticSource

PLAIN = Condition("plain", "test")
HALL = Condition(
    "hall", "test", sound=(("reverberation", 1.0), ("babble", 0.5)), pictures=(("low_light", 1.0),)
)
NOISY = Condition("noisy", "development", sound=(("white_noise", 1.0),), pictures=(("sensor_noise", 1.0),))


@pytest.fixture(scope="module")
def clips() -> SyntheticSource:
    return SyntheticSource(seed=3, public_per_class=2, private_per_class=0)


@dataclass(frozen=True)
class Given:
    """A ClipSource of one clip, repeated under several ids."""

    clip: Clip
    count: int = 1

    @property
    def name(self) -> str:
        return "given"

    @property
    def class_names(self) -> tuple[str, ...]:
        return ("one",)

    @cached_property
    def index(self) -> tuple[ClipInfo, ...]:
        return tuple(replace(self.clip.info, clip_id=str(number)) for number in range(self.count))

    def load(self, position: int) -> Clip:
        return replace(self.clip, info=self.index[position])


def equal(one: Clip, other: Clip) -> bool:
    return (
        one.info == other.info
        and np.array_equal(one.audio, other.audio)
        and np.array_equal(one.frames, other.frames)
    )


def test_a_condition_without_effects_changes_nothing(clips: SyntheticSource) -> None:
    for condition in (PLAIN, HALL.scaled(0.0)):
        assert equal(CapturedSource(clips, condition, seed=1).load(0), clips.load(0))


def test_it_describes_itself(clips: SyntheticSource) -> None:
    captured = CapturedSource(clips, HALL, seed=1)
    assert captured.name == "synthetic (hall)"
    assert captured.class_names == clips.class_names
    assert captured.index == clips.index


@pytest.mark.parametrize("condition", [HALL, NOISY])
def test_a_clip_does_not_depend_on_what_was_loaded_before(
    clips: SyntheticSource, condition: Condition
) -> None:
    one, other = (CapturedSource(clips, condition, seed=1) for _ in range(2))
    forwards = [one.load(position) for position in range(4)]
    backwards = [other.load(position) for position in reversed(range(4))]
    assert all(equal(*pair) for pair in zip(forwards, reversed(backwards), strict=True))
    assert not equal(forwards[0], clips.load(0))
    assert equal(forwards[0], captured_clip(clips.load(0), condition, seed=1))


def test_two_devices_differ(clips: SyntheticSource) -> None:
    one, other = (CapturedSource(clips, HALL, seed=seed).load(0) for seed in (1, 2))
    assert not np.array_equal(one.audio, other.audio)
    assert not np.array_equal(one.frames, other.frames)


def test_noise_differs_from_clip_to_clip(clips: SyntheticSource) -> None:
    captured = CapturedSource(Given(clips.load(0), 2), NOISY, seed=1)
    assert not np.array_equal(captured.load(0).frames, captured.load(1).frames)
    first, second = (captured.load(position).audio for position in range(2))
    assert abs(np.corrcoef(first - clips.load(0).audio, second - clips.load(0).audio)[0, 1]) < 0.5


@pytest.mark.parametrize(
    ("family", "sound", "pictures"),
    [
        ("development", (("spectral_tilt", 1.0),), (("gamma", 1.0),)),
        ("test", (("reverberation", 1.0),), (("side_light", 1.0), ("camera_tilt", 1.0))),
    ],
)
def test_what_belongs_to_the_device_stays(
    clips: SyntheticSource, family: Family, sound: Applied, pictures: Applied
) -> None:
    """The same clip under eight ids: only the gain may differ."""
    device = CapturedSource(Given(clips.load(0), 8), Condition("device", family, sound, pictures), seed=1)
    first, *others = [device.load(position) for position in range(8)]
    for other in others:
        assert np.array_equal(first.frames, other.frames)
        assert np.corrcoef(first.audio, other.audio)[0, 1] > 0.999


def test_directions_are_drawn_per_device_and_effect(clips: SyntheticSource) -> None:
    """Of 30 devices, some tilt up and brighten, others tilt up and darken, and so on."""
    condition = Condition("signs", "development", (("spectral_tilt", 1.0),), (("gamma", 1.0),))
    clip = clips.load(0)
    seen = set()
    for seed in range(30):
        captured = captured_clip(clip, condition, seed)
        sharpness = [
            np.abs(np.diff(sound)).mean() / np.abs(sound).mean() for sound in (clip.audio, captured.audio)
        ]
        seen.add((sharpness[1] > sharpness[0], captured.frames.mean() > clip.frames.mean()))
    assert len(seen) == 4


def test_the_gain_varies_by_up_to_2_db(clips: SyntheticSource) -> None:
    quiet = replace(clips.load(0), audio=clips.load(0).audio * np.float32(0.2))
    almost_nothing = Condition("loudness", "development", sound=(("spectral_tilt", 1e-6),))
    captured = CapturedSource(Given(quiet, 60), almost_nothing, seed=1)
    loudness = np.array([np.std(captured.load(position).audio) for position in range(60)])
    gains = 20 * np.log10(loudness / np.std(quiet.audio))
    assert np.abs(gains).max() <= 2.01
    assert min(gains.max(), -gains.min()) > 1.5


def test_the_sound_is_clipped_at_the_end(clips: SyntheticSource) -> None:
    loud = replace(
        clips.load(0), audio=(clips.load(0).audio / np.abs(clips.load(0).audio).max()).astype(np.float32)
    )
    heard = captured_clip(loud, Condition("storm", "development", sound=(("white_noise", 3.0),)), 1).audio
    assert np.abs(heard).max() == 1
    assert heard.dtype == np.float32


def test_ready_features_keep_their_sound(clips: SyntheticSource) -> None:
    features = np.random.default_rng(0).standard_normal((64, 100)).astype(np.float32)
    clip = replace(clips.load(0), audio=features, sample_rate=0)
    captured = captured_clip(clip, NOISY, seed=1)
    assert captured.audio is features
    assert not np.array_equal(captured.frames, clip.frames)


def test_silence_stays_silence(clips: SyntheticSource) -> None:
    silent = replace(clips.load(0), audio=np.zeros(16_000, np.float32))
    for condition in (HALL, NOISY):
        assert not captured_clip(silent, condition, seed=1).audio.any()


def test_the_given_talkers_are_heard(clips: SyntheticSource) -> None:
    crowd = Condition("crowd", "test", sound=(("babble", 1.0),))
    talkers = with_babble(Babble((clips.load(5).audio,)))
    clip = clips.load(0)
    assert not np.array_equal(
        captured_clip(clip, crowd, 1, talkers).audio, captured_clip(clip, crowd, 1).audio
    )
    assert equal(CapturedSource(clips, crowd, 1, talkers).load(0), captured_clip(clip, crowd, 1, talkers))


def test_severities_scale_all_strengths() -> None:
    half = HALL.scaled(0.5)
    assert (half.sound, half.pictures) == ((("reverberation", 0.5), ("babble", 0.25)), (("low_light", 0.5),))
    assert (half.name, half.family) == (HALL.name, HALL.family)


@pytest.mark.parametrize(
    ("family", "sound", "pictures", "message"),
    [
        (
            "development",
            (("reverberation", 1.0),),
            (),
            "no sound effect 'reverberation' in the development family",
        ),
        ("test", (), (("gamma", 1.0),), "no picture effect 'gamma' in the test family"),
        ("test", (("telephone", -1.0),), (), "strength"),
        ("production", (), (), "no capture family 'production'"),
    ],
)
def test_a_mistaken_condition_is_refused(
    family: Family, sound: Applied, pictures: Applied, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Condition("mistaken", family, sound, pictures)


def test_a_condition_travels_as_plain_values() -> None:
    assert from_plain(Condition, json.loads(json.dumps(to_plain(HALL)))) == HALL


def test_the_families_share_no_effect() -> None:
    for effects in (SOUND_EFFECTS, PICTURE_EFFECTS):
        development, test = effects["development"], effects["test"]
        assert development.keys().isdisjoint(test)
        assert {effect.apply for effect in development.values()}.isdisjoint(e.apply for e in test.values())


def test_random_conditions_cover_the_development_family() -> None:
    rng = np.random.default_rng(0)
    drawn = [random_condition(rng) for _ in range(2000)]
    strengths: dict[str, list[float]] = {}
    for condition in drawn:
        assert condition.family == "development"
        for effect, strength in (*condition.sound, *condition.pictures):
            strengths.setdefault(effect, []).append(strength)
    assert strengths.keys() == SOUND_EFFECTS["development"].keys() | PICTURE_EFFECTS["development"].keys()
    shares = {effect: len(values) / 2000 for effect, values in strengths.items()}
    halves = {"white_noise": 0.25, "pink_noise": 0.25}
    assert shares == pytest.approx({effect: halves.get(effect, 0.5) for effect in shares}, abs=0.05)
    bounds = {effect: (min(values), max(values)) for effect, values in strengths.items()}
    assert bounds.pop("low_pass") == (1, 1)
    lowest = {"white_noise": 0.178, "pink_noise": 0.178, "blur": 0.5, "sensor_noise": 5 / 12}
    for effect, (low, high) in bounds.items():
        assert low == pytest.approx(lowest.get(effect, 0.0), abs=0.02)
        assert high == pytest.approx(1, abs=0.02)


def test_random_conditions_repeat_with_their_generator() -> None:
    one, other = (np.random.default_rng(4) for _ in range(2))
    first, second = ([random_condition(rng) for _ in range(5)] for rng in (one, other))
    assert first == second
    assert len(set(first)) > 1


def test_a_store_s_people_babble(clips: SyntheticSource, tmp_path: Path) -> None:
    spec = AudioSpec(seconds=0.6), FrameSpec(size=24)
    store = build_store(clips, range(len(clips.index)), *spec, tmp_path / "with", keep_sound=True)
    crowd = babble_of(store)
    assert crowd.rate == spec[0].sample_rate
    assert len(crowd.voices) == len(clips.index) < VOICES
    np.testing.assert_allclose(crowd.voices[3], clips.load(3).audio, atol=1e-4)
    assert babble_of(build_store(clips, [0], *spec, tmp_path / "without")).voices == ()


def test_a_large_store_gives_some_voices_of_everywhere(tmp_path: Path) -> None:
    people = SyntheticSource(public_per_class=20, private_per_class=0, frame_size=24, frame_count=1)
    spec = AudioSpec(seconds=0.6), FrameSpec(size=24)
    store = build_store(people, range(len(people.index)), *spec, tmp_path / "clips", keep_sound=True)
    voices = babble_of(store).voices
    assert len(voices) == VOICES
    assert store.sound is not None
    np.testing.assert_array_equal(voices[0], store.sound.waveform(0))
    np.testing.assert_array_equal(voices[-1], store.sound.waveform(len(store) - 1))
