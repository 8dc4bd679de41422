"""Guards the published baselines: each does what its paper says, touches nothing else, and repeats itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from helpers.patterned_clips import SPEC, Clips, made_clips, patterned_student, recorded_otherwise
from torch import Tensor, nn

from fedstill.evaluation.robustness.baselines import adabn, shot, tent
from fedstill.evaluation.robustness.baselines.label_shift import LabelShift, bbse, em, em_shares
from fedstill.evaluation.robustness.baselines.query_clips import even_batches, network_inputs
from fedstill.models.audiovisual.batch_statistics import batch_norms
from fedstill.models.audiovisual.class_bias import with_class_bias
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.models.vit.preprocess import to_tensors


def blurred(clips: Clips) -> Clips:
    """The same clips with each value averaged with its two neighbours, over bins and over columns."""
    audio, frames = clips.audio.copy(), clips.frames.astype(np.float32)
    audio[:, 1:-1] = (audio[:, :-2] + audio[:, 1:-1] + audio[:, 2:]) / 3
    frames[..., 1:-1] = (frames[..., :-2] + frames[..., 1:-1] + frames[..., 2:]) / 3
    return Clips(audio, frames.astype(np.uint8), clips.labels)


def logits_of(net: AudioVisualNet, clips: Clips) -> Tensor:
    with torch.no_grad():
        joint: Tensor = net.eval()(*to_tensors(clips.audio, clips.frames)).joint
    return joint


def accuracy(net: AudioVisualNet, clips: Clips) -> float:
    return float((logits_of(net, clips).argmax(dim=1).numpy() == clips.labels).mean())


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def source() -> AudioVisualNet:
    """A network that knows the clips as they are."""
    net = patterned_student()
    assert accuracy(net, made_clips(200, 3)) > 0.95
    return net


@pytest.fixture(scope="module")
def device() -> Clips:
    return recorded_otherwise(made_clips(128, 4))


def test_adabn_has_the_exact_statistics_of_what_each_layer_receives(
    source: AudioVisualNet, device: Clips
) -> None:
    adapted = adabn.adapt(source, device.audio, device.frames)
    received: dict[nn.Module, list[Tensor]] = {}

    def keep(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        received.setdefault(part, []).append(inputs[0])

    norms = batch_norms(adapted)
    hooks = [norm.register_forward_pre_hook(keep) for norm in norms]
    for start in range(0, 128, 30):  # as single answers come: in evaluation mode, a few clips at a time
        logits_of(adapted, Clips(*(part[start : start + 30] for part in device)))
    for hook in hooks:
        hook.remove()
    assert len(norms) == len(received) > 10
    for norm in norms:
        values = torch.cat(received[norm]).double().transpose(0, 1).flatten(1)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        torch.testing.assert_close(norm.running_mean.double(), values.mean(dim=1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            norm.running_var.double(), values.var(dim=1, correction=0), rtol=1e-4, atol=1e-5
        )


def test_adabn_restores_what_another_microphone_and_camera_cost(
    source: AudioVisualNet, device: Clips
) -> None:
    before, plain = state(source), accuracy(source, made_clips(128, 4))
    assert accuracy(source, device) < plain - 0.3
    adapted = adabn.adapt(source, device.audio, device.frames)
    assert accuracy(adapted, device) > plain - 0.05
    assert same(before, state(source))
    parameters = dict(source.named_parameters())
    assert all(torch.equal(value, parameters[name]) for name, value in adapted.named_parameters())
    assert not any(part.training for part in adapted.modules())


def test_tent_is_surer_and_changes_batch_norms_only(source: AudioVisualNet, device: Clips) -> None:
    adapted = tent.adapt(source, device.audio, device.frames, torch.Generator().manual_seed(0))
    statistics_only = adabn.adapt(source, device.audio, device.frames)
    before, after = (float(tent.entropy(logits_of(net, device)).mean()) for net in (statistics_only, adapted))
    assert after < before
    norms = {name for name, part in adapted.named_modules() if isinstance(part, nn.BatchNorm2d)}
    old, new = source.state_dict(), adapted.state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert {name.rpartition(".")[0] for name in changed} == norms
    assert {f"{name}.{part}" for name in norms for part in ("weight", "bias")} <= changed


def test_tents_frozen_statistics_are_those_of_the_clips(source: AudioVisualNet, device: Clips) -> None:
    adapted = tent.adapt(source, device.audio, device.frames, torch.Generator())
    again = adabn.adapt(adapted, device.audio, device.frames)
    assert same(state(adapted), state(again))


def test_entropy_is_that_of_the_predictions() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [100.0, 0.0, 0.0]])
    np.testing.assert_allclose(tent.entropy(logits), [np.log(3), 0], atol=1e-6)


def test_shot_keeps_the_heads_and_learns_what_statistics_cannot(source: AudioVisualNet) -> None:
    before, clips = state(source), blurred(made_clips(128, 4))
    learning, still = (
        shot.adapt(
            source, clips.audio, clips.frames, torch.Generator(), shot.ShotSettings(learning_rate=rate)
        )
        for rate in (1e-2, 0)
    )
    statistics_only = max(
        accuracy(still, clips), accuracy(adabn.adapt(source, clips.audio, clips.frames), clips)
    )
    assert accuracy(learning, clips) > statistics_only + 0.05 > accuracy(source, clips) + 0.1
    assert same(state(source.head), state(learning.head))
    assert not same(state(source.encoders), state(learning.encoders))
    assert same(before, state(source))


def test_shots_information_loss_is_least_where_predictions_are_sure_and_diverse() -> None:
    sure = 100 * torch.eye(3)
    alike = sure[:1].expand(3, 3)
    losses = [float(shot.information_loss(logits)) for logits in (sure, alike, torch.zeros(3, 3))]
    np.testing.assert_allclose(losses, [-np.log(3), 0, 0], atol=1e-5)


def test_shot_learns_its_pseudo_labels(source: AudioVisualNet, device: Clips) -> None:
    with_labels, without = (
        shot.adapt(
            source,
            *device.first(8),
            torch.Generator(),
            shot.ShotSettings(epochs=1, pseudo_label_weight=weight),
        )
        for weight in (0.3, 0)
    )
    assert not same(state(with_labels), state(without))


def test_shots_pseudo_labels_come_from_the_nearest_centroid() -> None:
    angles = torch.tensor([0.0, 0.1, 0.2, 1.4, 1.5, 1.6])
    features = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor(
        [[1.0], [9], [2], [3], [1], [5]]
    )
    unsure = torch.tensor(
        [[0.9, 0.1, 0], [0.4, 0.6, 0], [0.9, 0.1, 0], [0.1, 0.9, 0], [0.6, 0.4, 0], [0.1, 0.9, 0]]
    )
    assert shot.centroid_labels(features, unsure).tolist() == [0, 0, 0, 1, 1, 1]


def test_a_class_that_no_clip_has_is_no_pseudo_label() -> None:
    angles = torch.tensor([0.0, 0, 0, 0, 0, 2])  # the last is more than a right angle from the mean of all
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert shot.centroid_labels(features, torch.tensor([[0.75, 0.25]]).expand(6, 2)).tolist() == [0] * 6


def test_a_class_that_is_hardly_believed_has_a_centroid_all_the_same() -> None:
    features = torch.tensor([[1.0, 0], [0, 1]])
    assert shot.centroid_labels(features, torch.tensor([[1, 1e-25], [1, 1e-20]])).tolist() == [0, 1]


@pytest.mark.parametrize("clips", [2, 3, 8])
def test_few_clips_are_enough_for_all_of_them(source: AudioVisualNet, device: Clips, clips: int) -> None:
    audio, frames = device.first(clips)
    settings = tent.TentSettings(batch_size=2), shot.ShotSettings(batch_size=2, epochs=1)
    for net in (
        adabn.adapt(source, audio, frames),
        tent.adapt(source, audio, frames, torch.Generator(), settings[0]),
        shot.adapt(source, audio, frames, torch.Generator(), settings[1]),
    ):
        assert logits_of(net, device).isfinite().all()


def test_what_cannot_be_adapted_is_refused(source: AudioVisualNet, device: Clips) -> None:
    with pytest.raises(ValueError, match="1 query clips: batch statistics need at least 2"):
        network_inputs(source, *device.first(1))
    with pytest.raises(ValueError, match="no batch norm"):
        batch_norms(nn.Linear(2, 2))


@pytest.mark.parametrize(("clips", "sizes"), [(8, [8]), (65, [33, 32]), (130, [44, 43, 43]), (128, [64, 64])])
def test_batches_are_even_and_hold_every_clip(clips: int, sizes: list[int]) -> None:
    batches = even_batches(clips, 64, torch.Generator())
    assert [len(rows) for rows in batches] == sizes
    assert sorted(torch.cat(batches).tolist()) == list(range(clips))


@pytest.mark.parametrize("adapt", [tent.adapt, shot.adapt])
def test_the_same_seed_gives_the_same_network(
    source: AudioVisualNet, device: Clips, adapt: Callable[..., AudioVisualNet]
) -> None:
    settings = {
        tent.adapt: tent.TentSettings(batch_size=8),
        shot.adapt: shot.ShotSettings(batch_size=8, epochs=2),
    }
    found = [
        state(adapt(source, *device.first(16), torch.Generator().manual_seed(seed), settings[adapt]))
        for seed in (5, 5, 6)
    ]
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


PUBLIC = np.array([0.4, 0.3, 0.2, 0.1])
SHIFTED = np.array([0.0, 0.1, 0.3, 0.6])


def made_logits(
    shares: npt.NDArray[np.float64], count: int, seed: int, sharper: float = 1.0
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Logits that are honest where the public shares hold, but for a factor: classes are normal clouds one apart."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(shares), count, p=shares)
    seen = 1.8 * np.eye(len(shares))[labels] + rng.normal(size=(count, len(shares)))
    return (sharper * (1.8 * seen + np.log(PUBLIC))).astype(np.float32), labels


@pytest.mark.parametrize("sharper", [1.0, 3.0])
@pytest.mark.parametrize("method", [em, bbse])
@pytest.mark.parametrize("shares", [PUBLIC, SHIFTED], ids=["not shifted", "shifted"])
def test_shares_of_a_shift_are_recovered(
    method: Callable[..., LabelShift], shares: npt.NDArray[np.float64], sharper: float
) -> None:
    logits, labels = made_logits(shares, 4000, 1, sharper)
    public = made_logits(PUBLIC, 4000, 2, sharper)
    found = method(*public, logits)
    np.testing.assert_allclose(found.shares, shares, atol=0.03)
    assert found.shares.sum() == pytest.approx(1)
    right = [float((rows.argmax(axis=1) == labels).mean()) for rows in (logits, logits + found.bias)]
    if shares is SHIFTED:
        assert right[1] > right[0] + 0.05
        ideal = sharper * np.log(SHIFTED[1:] / PUBLIC[1:])
        np.testing.assert_allclose(found.bias[1:] - found.bias[3], ideal - ideal[-1], atol=0.4 * sharper)
    else:
        assert right[1] == pytest.approx(right[0], abs=0.01)
        np.testing.assert_allclose(found.bias, 0, atol=0.2 * sharper)


@pytest.mark.parametrize("method", [em, bbse])
def test_few_clips_and_absent_classes_leave_finite_numbers(method: Callable[..., LabelShift]) -> None:
    public, labels = made_logits(PUBLIC, 60, 3)
    kept = labels != 3  # a class without public clips
    one_class = np.tile(np.array([9, 0, 0, 0], np.float32), (8, 1))
    for query in (one_class, one_class[:, ::-1], one_class[:1]):
        for some in (kept, np.ones(60, bool)):
            found = method(public[some], labels[some], query)
            assert found.shares.sum() == pytest.approx(1)
            assert found.shares.min() >= 0
            assert np.isfinite(found.bias).all()
            assert found.bias.dtype == np.float32
    assert with_class_bias(AudioVisualNet(SPEC), found.bias).head.joint.logit_bias.isfinite().all()


def test_em_shares_with_a_prior_never_rule_a_class_out() -> None:
    posteriors = np.tile([0.98, 0.01, 0.01], (20, 1))
    prior = np.array([0.2, 0.3, 0.5])
    assert em_shares(posteriors, prior).min() < 1e-6
    assert em_shares(posteriors, prior, prior_clips=1).min() >= 0.3 / 21 * 0.99


def test_a_package_of_baselines_starts_without_torch() -> None:
    program = "import sys, fedstill.evaluation.robustness.baselines; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
