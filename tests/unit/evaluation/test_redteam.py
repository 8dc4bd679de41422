"""Guards the red team: attacks succeed and fail where they must, and the page says what the numbers say."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command import CliRunner

from fedstill.cli import main as cli
from fedstill.cli.shared import console
from fedstill.cloud_server.distillation.settings import PrototypeSettings
from fedstill.common.dataclass_codec import to_plain
from fedstill.common.errors import ConfigError
from fedstill.evaluation.redteam import intervals
from fedstill.evaluation.redteam.attack import RedteamResults, attack
from fedstill.evaluation.redteam.identity import identify
from fedstill.evaluation.redteam.intervals import over_devices
from fedstill.evaluation.redteam.inversion import bases, invert
from fedstill.evaluation.redteam.membership import auc_bound, game_bound, membership
from fedstill.evaluation.redteam.releases import Channel, DeviceClips, Upload, channels, devices, nearest
from fedstill.evaluation.redteam.report import markdown, reading, write_all
from fedstill.evaluation.redteam.similarity import psnr, squared_error, ssim
from fedstill.evaluation.redteam.stage import Stage, View
from fedstill.simulation.redteam_stage import victims_among

CLASSES, WIDTH, DRAWS = 4, 6, 3
NAMES = tuple("abcd")


def made_view(seed: int, speakers: int, clips: int = 24) -> View:
    """Clips whose sound is linear in their features, and whose features hold the speaker; pictures are noise."""
    rng = np.random.default_rng(seed)
    speaker = np.repeat(np.arange(speakers), clips)
    count = len(speaker)
    hidden = rng.normal(size=(count, WIDTH))
    hidden[:, 0] += 4 * speaker
    mixing = np.random.default_rng(99).normal(size=(WIDTH, 10 * 9))
    return View(
        sound=(hidden @ mixing).reshape(count, 10, 9).astype(np.float32),
        picture=rng.random((count, 8, 8), np.float32),
        features=hidden.astype(np.float32),
        compressed=hidden[:, :2].astype(np.float32),
        probabilities=rng.dirichlet(np.full(CLASSES, 0.4), count).astype(np.float32),
        speaker=speaker,
        recording=np.arange(count) // 2,
        label=np.arange(count) // 2 % CLASSES,
    )


@pytest.fixture(scope="module")
def stage() -> Stage:
    return Stage(
        name="made", dataset="made up", synthetic=True, class_names=NAMES,
        prototypes=PrototypeSettings(min_size=4), seed=3, attacker=made_view(1, 8), victims=made_view(2, 4),
        centres=np.eye(CLASSES, dtype=np.float32)[:2], correct=50, student_saw_victims=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(stage: Stage) -> RedteamResults:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "RESAMPLES", 60)
        return attack(stage, DRAWS, lambda text: None)


def played(view: View, seed: int = 0) -> list[DeviceClips]:
    return list(devices(view, DRAWS, np.random.default_rng(seed)))


def channel(stage: Stage, key: str) -> Channel:
    return next(one for one in channels(stage) if one.key == key)


def outcome(found: RedteamResults, key: str) -> Any:
    return next(one for one in found.outcomes if one.key == key)


def test_ssim_is_the_formula_window_by_window() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.random((2, 3, 11, 9)).astype(np.float32)
    found = ssim(torch.from_numpy(one), torch.from_numpy(other), 1.0)
    for number in range(3):
        values = []
        for y in range(11 - 6):
            for x in range(9 - 6):
                a, b = (
                    part[number, y : y + 7, x : x + 7].ravel().astype(np.float64) for part in (one, other)
                )
                covariance = np.cov(a, b)
                luminance = (2 * a.mean() * b.mean() + 1e-4) / (a.mean() ** 2 + b.mean() ** 2 + 1e-4)
                structure = (2 * covariance[0, 1] + 9e-4) / (covariance[0, 0] + covariance[1, 1] + 9e-4)
                values.append(luminance * structure)
        assert float(found[number]) == pytest.approx(np.mean(values), abs=1e-5)
    assert ssim(torch.from_numpy(one), torch.from_numpy(one), 1.0).numpy() == pytest.approx(
        np.ones(3), abs=1e-5
    )


def test_errors_and_decibels() -> None:
    error = squared_error(torch.zeros(2, 3, 3), torch.full((2, 3, 3), 0.1))
    assert error.tolist() == pytest.approx([0.01, 0.01])
    assert psnr(0.01, 1.0) == pytest.approx(20.0)
    assert psnr(0.01, 10.0) == pytest.approx(40.0)


def test_nearest_is_brute_force() -> None:
    rng = np.random.default_rng(0)
    rows, upload = rng.random((20, 3)).astype(np.float32), rng.random((5, 3)).astype(np.float32)
    two, owner = nearest(rows, Upload(upload, np.ones(5, np.int64)))
    every = np.linalg.norm(rows[:, None].astype(np.float64) - upload[None], axis=2)
    assert owner.tolist() == every.argmin(axis=1).tolist()
    np.testing.assert_allclose(two, np.sort(every, axis=1)[:, :2], atol=1e-6)
    none, nobody = nearest(rows, Upload(upload[:0], np.empty(0, np.int64)))
    assert np.isinf(none).all()
    assert (nobody == -1).all()


def test_a_device_is_half_of_one_speakers_recordings(stage: Stage) -> None:
    view, made = stage.victims, played(stage.victims)
    assert len(made) == 4 * DRAWS
    for device in made:
        both = np.concatenate([device.members, device.others])
        assert sorted(both) == np.flatnonzero(view.speaker == device.speaker).tolist()
        assert not set(view.recording[device.members]) & set(view.recording[device.others])
        assert len(device.members) == len(device.others) == 12
    assert len({device.members.tobytes() for device in made}) == len(made)


def test_a_third_of_the_speakers_are_victims() -> None:
    speakers = tuple(f"actor{number // 5}" for number in range(45))
    chosen = victims_among(speakers, 0)
    assert len({name for name, victim in zip(speakers, chosen, strict=True) if victim}) == 3
    for name in set(speakers):
        assert len({victim for one, victim in zip(speakers, chosen, strict=True) if one == name}) == 1
    assert victims_among(speakers, 1) != chosen
    with pytest.raises(ConfigError, match="3 speakers"):
        victims_among(("a", "b", "c"), 0)


@pytest.mark.slow
def test_what_is_in_a_row_is_found_and_what_is_not_is_not(found: RedteamResults) -> None:
    features, samples = outcome(found, "features_fp32"), outcome(found, "samples")
    assert features.sound.explained.low > 0.7
    assert features.speaker_upload.value == 1.0
    assert features.speaker_row.low > 0.8
    assert samples.sound.explained.value < 0.05  # made-up probabilities know nothing of sound or speaker
    assert samples.speaker_row.value < 0.5
    assert all(one.picture.explained.value < 0.1 for one in found.outcomes)


@pytest.mark.slow
def test_no_information_and_ceiling(found: RedteamResults) -> None:
    for nothing, best in zip(found.references.mean_clip, found.references.own_clip, strict=True):
        assert nothing.explained.value == pytest.approx(0, abs=1e-6)
        assert best.explained.value > 0.9
        assert best.psnr > nothing.psnr
    assert found.references.chance == 0.25


@pytest.mark.slow
def test_membership_follows_the_promise(found: RedteamResults) -> None:
    """Every clip's own row gives it away, and thesis prototypes do in part; dp keeps below its bound."""
    assert outcome(found, "samples").membership.value > 0.99
    assert outcome(found, "thesis").membership.low > 0.5
    assert outcome(found, "thesis").single > 0 == outcome(found, "constrained").single
    for key in ("dp_1", "dp_4", "dp_8"):
        one = outcome(found, key)
        assert one.membership.low <= one.game_bound
        assert 0.5 < one.bound < one.game_bound <= 1
    bounds = [outcome(found, key).bound for key in ("dp_1", "dp_4", "dp_8")]
    assert bounds == sorted(bounds)
    assert [outcome(found, key).bound for key in ("samples", "thesis", "constrained")] == [None] * 3


def test_the_bound_is_the_best_attack_on_gaussian_noise() -> None:
    """Telling N(mu, 1) from N(0, 1): the area under the curve is the chance that one draw exceeds the other."""
    rng, mu = np.random.default_rng(0), 1.3
    wins = (mu + rng.normal(size=400_000) > rng.normal(size=400_000)).mean()
    assert auc_bound(mu) == pytest.approx(wins, abs=0.003)
    assert auc_bound(0.0) == 0.5
    view = made_view(0, 2)  # two clips per recording
    assert game_bound(0.3, view) == pytest.approx(auc_bound(2 * math.sqrt(2) * 0.3))
    assert auc_bound(30.0) == pytest.approx(1.0)


def test_an_upload_without_rows_is_no_information(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 60)
    silent = Channel("silent", "nothing", lambda view: view.probabilities,
                     lambda rows, seed: Upload(rows[:0], np.empty(0, np.int64)))  # fmt: skip
    shadows, targets = played(stage.attacker), played(stage.victims, 1)
    known = bases(stage.attacker, 0)
    sound, _ = invert(silent, stage.attacker, shadows, stage.victims, targets, known, 0)
    assert abs(sound.explained.value) < 0.05
    judged = membership(silent, stage.attacker, shadows, stage.victims, targets, 0)
    assert 0.35 < judged.value < 0.65
    by_row, by_upload = identify(silent, stage.attacker, shadows, stage.victims, targets, DRAWS, 0)
    assert by_row.value == by_upload.value == 0.25


def test_the_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(size=200)
    one = over_devices(lambda some: float(values[some].mean()), 200, 0)
    assert one.value == pytest.approx(values.mean())
    assert one.high - one.low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(200), rel=0.15)


@pytest.mark.slow
def test_the_same_seed_finds_the_same(
    stage: Stage, found: RedteamResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 60)
    again = attack(stage, DRAWS, lambda text: None)
    assert json.dumps(to_plain(again)) == json.dumps(to_plain(found))


@pytest.mark.slow
def test_the_page_says_what_the_numbers_say(found: RedteamResults, tmp_path: Path) -> None:
    write_all(found, tmp_path / "out", tmp_path / "docs" / "privacy.md")
    page = (tmp_path / "docs" / "privacy.md").read_text()
    assert (tmp_path / "docs" / "privacy" / "redteam.png").stat().st_size > 10_000
    assert "(privacy/redteam.png)" in page
    assert (tmp_path / "out" / "redteam.md").read_text() == markdown(found, "redteam.png")
    kept = json.loads((tmp_path / "out" / "redteam.json").read_text())
    assert [one["key"] for one in kept["outcomes"]] == [one.key for one in found.outcomes]
    for one in found.outcomes:
        assert f"| {one.title} |" in page
        (sentence,) = [text for text in reading(found) if text.startswith(f"**{one.title}**")]
        leaks, _, quiet = sentence.partition("not shown to leak")
        assert ("membership" in leaks) == (one.membership.low > 0.5)
        assert ("membership" in quiet) == (one.membership.low <= 0.5)
    assert "## The capture card" in page
    assert kept["card"]["skipped"] == list(found.card.skipped)
    assert any("drawn, not recorded" in text for text in reading(found))
    told = replace(found, student_saw_victims=True, synthetic=False)
    assert "`made`, `teacher.epochs=3`, seed 3" in markdown(
        replace(found, changes=("teacher.epochs=3",)), "x"
    )
    assert any("distilled on the victims' clips" in text for text in reading(told))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a run directory, or an experiment"),
        (["somewhere", "--experiment", "quickstart"], "not both"),
        (["somewhere", "--set", "a=b"], "--set is for --experiment"),
        (["nowhere-at-all"], "no run to resume here"),
        (["--experiment", "no-such"], "no such experiment"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console.errors, "_width", 300)
    done = CliRunner().invoke(cli.app, ["redteam", *arguments])
    assert done.exit_code == 2, repr(done.exception)
    said = done.stderr.strip()
    assert words in said
    assert "\n" not in said
    assert list(tmp_path.iterdir()) == []  # nothing was begun
