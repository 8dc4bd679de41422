"""Guards distillation: the public bank changes the cost and nothing else, and every setting does what its name says."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedstill.cloud_server.distillation.compute import Compute
from fedstill.cloud_server.distillation.distiller import (
    Distiller,
    FeatureSource,
    feature_loss,
    logit_loss,
    make_distiller,
)
from fedstill.cloud_server.distillation.public_bank import PublicBank, compute_bank, open_bank, save_bank
from fedstill.cloud_server.distillation.selection import Selection
from fedstill.cloud_server.distillation.settings import DistillationSettings, Optimiser, OptimiserSettings
from fedstill.datasets.audiovisual.capture.views import PlainViews
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.audiovisual.store import ClipStore, build_store
from fedstill.datasets.audiovisual.synthetic import SyntheticSource
from fedstill.models.audiovisual.encoders import EncoderSpec
from fedstill.models.audiovisual.network import AudioVisualNet, Features, NetworkSpec
from fedstill.models.vit.preprocess import to_tensors

EXACT = Compute(device="cpu", precision="fp32", workers=1)
PLAIN = DistillationSettings(optimiser=OptimiserSettings(batch_size=16, learning_rate=3e-3))
CLIPS, WIDTH = 48, 16
EVERYTHING = Selection.uniform(np.arange(CLIPS))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    source = SyntheticSource(public_per_class=CLIPS // 6, private_per_class=0, frame_size=24, frame_count=1)
    folder = tmp_path_factory.mktemp("store")
    audio = AudioSpec(seconds=0.6, hop=512, mel_bins=32)
    return build_store(source, range(CLIPS), audio, FrameSpec(size=24), folder)


@pytest.fixture(scope="module")
def teacher(store: ClipStore) -> AudioVisualNet:
    return network(6, seed=1).eval()


@pytest.fixture(scope="module")
def bank(teacher: AudioVisualNet, store: ClipStore) -> PublicBank:
    return compute_bank(teacher, store, EXACT, "v1")


def network(width: int, seed: int) -> AudioVisualNet:
    spec = NetworkSpec(EncoderSpec("resnet10", width), WIDTH, 6, "concat", 1)
    return AudioVisualNet(spec, torch.Generator().manual_seed(seed))


def distiller(
    store: ClipStore, bank: PublicBank, settings: DistillationSettings = PLAIN, seed: int = 0, epochs: int = 6
) -> Distiller:
    generator = torch.Generator().manual_seed(seed)
    return make_distiller(
        network(3, seed=2), PlainViews(store), bank, settings, settings.optimiser, EXACT, generator,
        epochs=epochs, clips_per_epoch=CLIPS,
    )  # fmt: skip


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def asked_again(teacher: AudioVisualNet) -> FeatureSource:
    """Algorithm 7 as printed: the teacher runs on every batch."""

    @torch.no_grad()
    def source(_positions: np.ndarray, audio: Tensor, frames: Tensor) -> Features:
        features: Features = teacher.encoders(audio, frames)
        return features

    return source


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_the_bank_equals_asking_the_teacher_again(
    optimiser: Optimiser, store: ClipStore, bank: PublicBank, teacher: AudioVisualNet
) -> None:
    chosen = Selection(np.arange(5, 45), np.linspace(0.2, 1.8, 40, dtype=np.float32))
    settings = replace(PLAIN, optimiser=replace(PLAIN.optimiser, kind=optimiser))
    banked, printed = distiller(store, bank, settings), distiller(store, bank, settings)
    start = weights(banked.student)
    printed.teacher_features = asked_again(teacher)
    losses = banked.run(chosen, 3), printed.run(chosen, 3)
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert furthest(weights(banked.student), weights(printed.student)) < 1e-5
    assert furthest(weights(banked.student), start) > 1e-3


def test_the_bank_holds_what_the_teacher_says(
    store: ClipStore, bank: PublicBank, teacher: AudioVisualNet
) -> None:
    rows = np.array([40, 3, 17])
    with torch.no_grad():
        features = teacher.encoders(*to_tensors(store.audio[rows], store.frames[rows]))
        logits = teacher.head(features).joint
    for banked, direct in zip(bank.features(rows), features, strict=True):
        torch.testing.assert_close(banked, direct, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(bank.probabilities()[rows], logits.softmax(dim=1), atol=1e-5)
    np.testing.assert_allclose(bank.probabilities(4.0)[rows], (logits / 4).softmax(dim=1), atol=1e-5)
    np.testing.assert_allclose(bank.class_prior(), np.full(6, 1 / 6))
    assert np.array_equal(bank.labels, store.labels)


def test_the_loss_falls(store: ClipStore, bank: PublicBank) -> None:
    losses = distiller(store, bank, epochs=12).run(EVERYTHING, 12)
    assert losses[-1] < 0.7 * losses[0]


def test_the_same_seed_makes_the_same_student(store: ClipStore, bank: PublicBank) -> None:
    settings = replace(PLAIN, augment=True, logit_weight=0.5)
    first, same, other = (distiller(store, bank, settings, seed) for seed in (1, 1, 2))
    for one in (first, same, other):
        one.run(EVERYTHING, 2)
    assert furthest(weights(first.student), weights(same.student)) == 0
    assert furthest(weights(first.student), weights(other.student)) > 0


def test_weights_scale_the_loss(store: ClipStore, bank: PublicBank) -> None:
    sgd = replace(
        PLAIN, optimiser=OptimiserSettings("sgd", learning_rate=1e-9, weight_decay=0, batch_size=CLIPS)
    )
    (plain,) = distiller(store, bank, sgd).run(EVERYTHING, 1)
    doubled = Selection(EVERYTHING.positions, np.full(CLIPS, 2, np.float32))
    (double,) = distiller(store, bank, sgd).run(doubled, 1)
    assert double == pytest.approx(2 * plain, rel=1e-4)


def test_a_clip_without_weight_does_not_pull(store: ClipStore, bank: PublicBank) -> None:
    """Clips of weight 0 are in the batch (and its norm) but their target does not count."""
    settings = replace(PLAIN, optimiser=replace(PLAIN.optimiser, batch_size=CLIPS))
    half = np.repeat(np.array([0, 2], np.float32), CLIPS // 2)
    moved = replace(bank, audio=np.where(half[:, None] == 0, 9, bank.audio).astype(np.float32))
    moved.__dict__["feature_variance"] = bank.feature_variance
    results = []
    for targets in (bank, moved):
        one = distiller(store, targets, settings)
        one.run(Selection(np.arange(CLIPS), half), 2)
        results.append(weights(one.student))
    assert furthest(*results) == 0


@pytest.mark.parametrize("freeze", [True, False])
def test_freezing_keeps_the_norm_statistics(freeze: bool, store: ClipStore, bank: PublicBank) -> None:
    one = distiller(store, bank, replace(PLAIN, freeze_batch_norm=freeze))
    before = weights(one.student)
    one.run(EVERYTHING, 1)
    statistics = [name for name in before if "running" in name or "num_batches" in name]
    assert statistics
    moved = {name for name in statistics if not torch.equal(before[name], one.student.state_dict()[name])}
    assert moved == (set() if freeze else set(statistics))


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_head_learns_only_from_logits(weight: float, store: ClipStore, bank: PublicBank) -> None:
    one = distiller(store, bank, replace(PLAIN, logit_weight=weight))
    before = weights(one.student)["head.joint.classifier.weight"]
    one.run(EVERYTHING, 1)
    assert torch.equal(before, weights(one.student)["head.joint.classifier.weight"]) == (weight == 0)


def test_one_clip_left_over_is_no_batch(store: ClipStore, bank: PublicBank) -> None:
    one = distiller(store, bank)
    assert np.isfinite(one.run(Selection.uniform(np.arange(17)), 1)).all()
    assert one.schedule.last_epoch == 1


def test_outer_epochs_continue_one_schedule(store: ClipStore, bank: PublicBank) -> None:
    whole, parts = distiller(store, bank), distiller(store, bank)
    whole.run(EVERYTHING, 4)
    for _ in range(2):
        parts.run(EVERYTHING, 2)
    assert furthest(weights(whole.student), weights(parts.student)) == 0
    assert whole.schedule.last_epoch == 4 * CLIPS // 16


def test_the_teacher_and_the_bank_stay_as_they_are(
    store: ClipStore, bank: PublicBank, teacher: AudioVisualNet
) -> None:
    before, audio = weights(teacher), copy.deepcopy(bank.audio)
    distiller(store, bank, replace(PLAIN, logit_weight=1.0)).run(EVERYTHING, 1)
    assert furthest(before, weights(teacher)) == 0
    assert np.array_equal(audio, bank.audio)


def test_losses_of_a_perfect_student_are_zero() -> None:
    features = Features(torch.randn(4, 8), torch.randn(4, 8))
    assert feature_loss(features, features, (1.0, 1.0)).tolist() == [0.0] * 4
    logits = torch.randn(4, 3)
    torch.testing.assert_close(logit_loss(logits + 5, logits), torch.zeros(4), atol=1e-5, rtol=0)


def test_feature_loss_counts_in_units_of_the_teachers_variance() -> None:
    ours = Features(torch.zeros(2, 4), torch.zeros(2, 4))
    theirs = Features(torch.full((2, 4), 2.0), torch.full((2, 4), 3.0))
    torch.testing.assert_close(feature_loss(ours, theirs, (4.0, 9.0)), torch.full((2,), 2.0))


def test_the_bank_on_disk(bank: PublicBank, tmp_path: Path) -> None:
    assert open_bank(tmp_path / "bank", "v1") is None
    save_bank(bank, tmp_path / "bank")
    again = open_bank(tmp_path / "bank", "v1")
    assert again is not None
    for name in ("audio", "visual", "logits", "labels"):
        assert np.array_equal(getattr(again, name), getattr(bank, name))
    assert isinstance(again.audio, np.memmap)
    assert again.feature_variance == pytest.approx(bank.feature_variance)
    assert open_bank(tmp_path / "bank", "v2") is None


def test_an_unfinished_bank_is_no_bank(bank: PublicBank, tmp_path: Path) -> None:
    save_bank(bank, tmp_path)
    (tmp_path / "bank.json").unlink()
    assert open_bank(tmp_path, "v1") is None


@pytest.mark.parametrize("text", ["", "{", '{"other": 1}'])
def test_a_damaged_bank_is_no_bank(text: str, bank: PublicBank, tmp_path: Path) -> None:
    """A kill in the middle of writing bank.json must not stop a resumed run."""
    save_bank(bank, tmp_path)
    (tmp_path / "bank.json").write_text(text)
    assert open_bank(tmp_path, "v1") is None
