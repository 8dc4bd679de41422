"""Guards the class mix: found where it can be known, refused where it cannot, never ruling a class out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from fedstill.cloud_server.distillation.class_mix import ClassMix, ClassMixes, unknown_mix, upper_tail
from fedstill.cloud_server.distillation.cross_fit import (
    CrossFit,
    open_cross_fit,
    save_cross_fit,
    speaker_folds,
)
from fedstill.cloud_server.distillation.mixture_fit import MixtureModel, best_temperature
from fedstill.models.audiovisual.confidence import confidence_histogram
from fedstill.protos.messages import Job, PrototypeUpload

CLASSES, SPEAKERS, CLIPS = 6, 10, 12
NAMES = tuple("abcdef")
EVEN = np.full(CLASSES, 1 / CLASSES)


def said(
    labels: np.ndarray,
    rng: np.random.Generator,
    speaker: float = 0.2,
    worse: float = 1.0,
    strength: float = 2.4,
) -> np.ndarray:
    """Logits of a student: the true class raised, with noise and with what is odd about one speaker."""
    odd = speaker * rng.normal(size=(CLASSES, CLASSES)) + speaker * rng.normal(size=CLASSES)
    raised = strength * worse * np.eye(CLASSES)[labels] + odd[labels]
    return (raised + rng.normal(size=raised.shape)).astype(np.float32)


def public(strength: float = 2.4, speakers: int = SPEAKERS) -> CrossFit:
    rng, labels = np.random.default_rng(0), np.tile(np.repeat(np.arange(CLASSES), CLIPS), speakers)
    speaker = np.repeat(np.arange(speakers), CLASSES * CLIPS)
    parts = [said(labels[speaker == one], rng, strength=strength) for one in range(speakers)]
    return CrossFit(np.concatenate(parts), labels, speaker)


def summary(mixes: ClassMixes, logits: np.ndarray) -> PrototypeUpload:
    rows = softmax((logits / mixes.temperature).astype(np.float64), axis=1)
    return PrototypeUpload(
        Job("latency_insensitive", "fedstill", 0, 0),
        rows.mean(axis=0, keepdims=True).astype(np.float32),
        np.array([len(rows)], np.int64),
        NAMES,
        confidence_histogram(rows),
    )


def judged(mixes: ClassMixes, logits: np.ndarray, seed: int = 0) -> ClassMix:
    return mixes.judge(summary(mixes, logits), np.random.default_rng(seed))


def right(logits: np.ndarray, labels: np.ndarray, bias: np.ndarray | float = 0.0) -> float:
    return float(((logits + bias).argmax(axis=1) == labels).mean())


@pytest.fixture(scope="module")
def mixes() -> ClassMixes:
    return ClassMixes(public(), EVEN, 0.25)


def test_half_of_the_classes_are_found_and_help(mixes: ClassMixes) -> None:
    gains, found = [], 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        own = rng.choice(CLASSES, 3, replace=False)
        labels = rng.choice(own, 120)
        logits = said(labels, rng)
        mix = judged(mixes, logits)
        found += mix.supported
        gains.append(right(logits, labels, mix.bias) - right(logits, labels))
        if mix.supported:
            assert np.array(mix.present)[own].all(), "a class of the device is called absent"
            assert mix.gain > 0
            assert sum(np.array(mix.shares)[own]) > 0.7
    assert found >= 5
    assert np.mean(gains) > 0.03
    assert min(gains) > -0.03


def test_a_device_with_the_public_classes_keeps_the_generic_student(mixes: ClassMixes) -> None:
    allowed = 0
    for seed in range(20):
        rng = np.random.default_rng(100 + seed)
        mix = judged(mixes, said(rng.integers(0, CLASSES, 120), rng))
        allowed += mix.supported
        if not mix.supported:
            assert mix == unknown_mix(EVEN, mix.reason)
            assert not mix.bias.any()
    assert allowed <= 2  # of 20, at a level of 5 %


def test_a_device_that_records_otherwise_is_not_believed(mixes: ClassMixes) -> None:
    """Another microphone: the student answers one class most of the time, and is rarely sure."""
    tilt = np.array([1.0, 0.4, -0.4, -0.4, -0.3, -0.3], np.float32)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        logits = 0.5 * said(rng.integers(0, CLASSES, 120), rng, worse=0.3) + tilt
        mix = judged(mixes, logits)
        assert not mix.supported
        assert "another microphone" in mix.reason


def test_hardly_any_class_but_one_is_not_believed(mixes: ClassMixes) -> None:
    """A confused student that is sure of itself looks like this, too, and then all other classes would be lost."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        labels = np.where(rng.random(120) < 0.85, seed % CLASSES, rng.integers(0, CLASSES, 120))
        mix = judged(mixes, said(labels, rng))
        assert not mix.supported
    assert "one class would have 8" in mix.reason


def test_a_third_of_the_classes_is_believed(mixes: ClassMixes) -> None:
    found = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        labels = rng.choice(rng.choice(CLASSES, 2, replace=False), 120)
        found += judged(mixes, said(labels, rng)).supported
    assert found >= 3


def test_without_the_test_the_same_device_would_be_harmed() -> None:
    """The guard has something to guard against."""
    naive, rng = ClassMixes(public(), EVEN, 0.25, tested=False), np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, 120)
    logits = 0.5 * said(labels, rng, worse=0.6) + np.array([1.0, 0.2, -0.3, -0.3, -0.3, -0.3], np.float32)
    mix = judged(naive, logits)
    assert mix.supported
    assert mix.reason == "not tested"
    assert right(logits, labels, mix.bias) < right(logits, labels) - 0.03


def test_a_weak_student_decides_nothing() -> None:
    weak = ClassMixes(public(strength=0.15), EVEN, 0.25)
    supported = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        supported += judged(weak, said(rng.choice([0, 2, 4], 60), rng, strength=0.15)).supported
    assert supported <= 1


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 500), st.floats(0.01, 10))
def test_whatever_comes_no_class_is_ruled_out(seed: int, clips: int, sharpness: float) -> None:
    """Any summary at all; also with the test off, where every one counts."""
    rng = np.random.default_rng(seed)
    logits = sharpness * rng.normal(size=(clips, CLASSES)).astype(np.float32)
    for one in (TESTED, UNTESTED):
        mix = judged(one, logits)
        shares = np.array(mix.shares)
        assert shares.sum() == pytest.approx(1)
        assert (shares >= 0.0199 / CLASSES).all()
        assert np.isfinite(mix.bias).all()
        assert any(mix.present)


TESTED, UNTESTED = ClassMixes(public(), EVEN, 0.25), ClassMixes(public(), EVEN, 0.25, tested=False)


def test_the_same_summary_gives_the_same_verdict(mixes: ClassMixes) -> None:
    rng = np.random.default_rng(3)
    logits = said(rng.choice([1, 2], 80), rng)
    assert judged(mixes, logits) == judged(ClassMixes(public(), EVEN, 0.25), logits)


def test_a_device_may_claim_any_number_of_clips() -> None:
    """A thousand million of them cost neither time nor memory."""
    upload = summary(TESTED, said(np.arange(CLASSES).repeat(20), np.random.default_rng(0)))
    claimed = dataclasses.replace(upload, counts=np.array([10**9], np.int64))
    assert not TESTED.judge(claimed, np.random.default_rng(0)).supported


def test_with_nobody_to_compare_with_nothing_is_decided() -> None:
    rng = np.random.default_rng(0)
    logits = said(rng.choice([1, 2], 80), rng)
    for few in (ClassMixes(None, EVEN, 0.25), ClassMixes(public(speakers=2), EVEN, 0.25)):
        assert "public speakers" in judged(few, logits).reason
    few_clips = public()
    few_clips = CrossFit(few_clips.logits[::9], few_clips.labels[::9], few_clips.speakers[::9])
    assert judged(ClassMixes(few_clips, EVEN, 0.25), logits).reason.startswith("80 public clips, and 140 are")
    assert judged(ClassMixes(few_clips, EVEN, 0.25, tested=False), logits).supported
    diverged = public()
    diverged.logits[3, 2] = np.nan
    assert "diverged" in ClassMixes(diverged, EVEN, 0.25).lacking
    assert "diverged" in judged(ClassMixes(diverged, EVEN, 0.25, tested=False), logits).reason
    upload = summary(TESTED, logits)
    old = PrototypeUpload(upload.job, upload.probabilities, upload.counts, NAMES)
    assert "without confidences" in TESTED.judge(old, rng).reason


def test_the_temperature_is_that_of_the_logits() -> None:
    rng, labels = np.random.default_rng(0), np.random.default_rng(1).integers(0, CLASSES, 4000)
    logits = np.log(np.full((len(labels), CLASSES), 0.1) + 0.4 * np.eye(CLASSES)[labels])
    drawn = np.array([rng.choice(CLASSES, p=row) for row in softmax(logits, axis=1)])
    assert best_temperature(2 * logits, drawn) == pytest.approx(2, rel=0.12)


def test_the_fit_finds_the_shares_of_a_mixture() -> None:
    model, shares = MixtureModel(public()), np.array([0.5, 0, 0.25, 0, 0.25, 0])
    found = shares @ model._class_means()
    fit = model.fit(found, 500, EVEN)
    np.testing.assert_allclose(fit.shares, shares, atol=1e-3)
    assert fit.distance < 1e-3
    assert model.distance(found, EVEN, 500) > 10


def test_the_tail_is_that_of_a_gamma() -> None:
    sample = np.random.default_rng(0).gamma(4, 2, 50_000)
    assert upper_tail(sample, float(np.quantile(sample, 0.95))) == pytest.approx(0.05, abs=0.005)
    assert upper_tail(np.zeros(5), 1.0) == 0.0


def test_folds_keep_speakers_whole_and_even() -> None:
    speakers = tuple(
        name for name, clips in zip("abcdefg", (9, 8, 7, 3, 3, 3, 3), strict=True) for _ in range(clips)
    )
    fold = speaker_folds(speakers, 3)
    assert {len(set(fold[np.array(speakers) == name])) for name in "abcdefg"} == {1}
    assert np.ptp(np.bincount(fold)) <= 3
    assert speaker_folds(("a", "b"), 4).tolist() in ([0, 1], [1, 0])
    assert set(speaker_folds(("a", "a"), 4).tolist()) == {0}


def test_a_cross_fit_is_kept_whole(tmp_path: Path) -> None:
    folder = tmp_path / "cross_fit"
    assert open_cross_fit(folder) is None
    made = public()
    save_cross_fit(made, folder)
    again = open_cross_fit(folder)
    assert again is not None
    for name in ("logits", "labels", "speakers"):
        np.testing.assert_array_equal(getattr(again, name), getattr(made, name))
    (folder / "done.json").unlink()
    assert open_cross_fit(folder) is None
