"""The cloud's heads on disk and in memory, and many clips answered as one by one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.inference import CLASSES, VERSION, WIDTH, made_heads, made_student

from fedstill.cloud_server.edge_inference.heads import HeadError, Heads, HeadStore, UnknownVersion, save_heads
from fedstill.cloud_server.edge_inference.micro_batching import (
    Batching,
    MicroBatcher,
    QueueFull,
    classify_group,
)
from fedstill.models.audiovisual.compression import RATES
from fedstill.models.audiovisual.encoders import EncoderSpec
from fedstill.models.audiovisual.network import AudioVisualNet, Features, NetworkSpec
from fedstill.protos.features import FeatureVectors


@pytest.fixture(scope="module")
def model_store(tmp_path_factory: pytest.TempPathFactory) -> HeadStore:
    return HeadStore(made_heads(tmp_path_factory.mktemp("heads")))


def clips(count: int, width: int) -> list[FeatureVectors]:
    random = np.random.default_rng(1)
    return [FeatureVectors(*random.normal(size=(2, width)).astype(np.float32)) for _ in range(count)]


@pytest.mark.parametrize("rate", RATES)
def test_saved_heads_answer_as_the_networks_did(model_store: HeadStore, rate: float) -> None:
    net, levels = made_student()
    features = Features(*torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1)))
    with torch.inference_mode():
        logits = net.head(features).joint if rate == 1 else levels[rate](features)
        sent = features if rate == 1 else levels[rate].compressor(features)
    found = model_store.get(VERSION).probabilities(rate, sent.audio, sent.visual)
    torch.testing.assert_close(found, logits.softmax(dim=1))


@pytest.mark.parametrize("fusion", ["sum", "film", "gated"])
def test_every_fusion_head_survives_the_disk(tmp_path: Path, fusion: str) -> None:
    net = AudioVisualNet(NetworkSpec(EncoderSpec("resnet10", 2), 16, 3, fusion)).eval()
    save_heads(tmp_path, "abc", net, {}, CLASSES)
    features = Features(torch.randn(4, 16), torch.randn(4, 16))
    heads = HeadStore(tmp_path).get("abc")
    assert (heads.class_names, heads.feature_width, set(heads.by_rate)) == (CLASSES, 16, {1.0})
    expected = net.head(features).joint.detach().softmax(dim=1)
    torch.testing.assert_close(heads.probabilities(1.0, features.audio, features.visual), expected)


@pytest.mark.parametrize("version", ["../x", "", ".", "a/b", "a\0b", "é", "x" * 129])
def test_a_version_is_never_a_path(tmp_path: Path, version: str) -> None:
    with pytest.raises(UnknownVersion, match="student_version"):
        HeadStore(tmp_path).get(version)
    with pytest.raises(HeadError, match="student_version"):
        save_heads(tmp_path, version, made_student()[0], {}, CLASSES)
    assert not list(tmp_path.iterdir())


def test_unknown_and_damaged_heads_are_told_apart(tmp_path: Path) -> None:
    made_heads(tmp_path)
    model_store = HeadStore(tmp_path)
    with pytest.raises(UnknownVersion, match="not known"):
        model_store.get("f" * 64)
    weights = tmp_path / f"{VERSION}.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(HeadError, match="unusable"):
        model_store.get(VERSION)


def test_the_least_recently_used_heads_leave_the_memory(tmp_path: Path) -> None:
    net, _ = made_student()
    for version in "abc":
        save_heads(tmp_path, version, net, {}, CLASSES)
    model_store = HeadStore(tmp_path, capacity=2)
    first = model_store.get("a")
    model_store.get("b")
    assert model_store.get("a") is first
    model_store.get("c")
    assert model_store.get("a") is first
    (tmp_path / "b.json").unlink()
    with pytest.raises(UnknownVersion):  # it had to be read again
        model_store.get("b")


@pytest.mark.parametrize("rate", RATES)
def test_a_batch_is_answered_as_one_by_one(model_store: HeadStore, rate: float) -> None:
    heads = model_store.get(VERSION)
    many = clips(50, int(WIDTH / rate))
    alone = np.concatenate([classify_group(heads, rate, [clip]) for clip in many])
    np.testing.assert_allclose(classify_group(heads, rate, many), alone, atol=1e-6)


def test_devices_share_products_and_get_their_own_answers(model_store: HeadStore) -> None:
    heads = model_store.get(VERSION)
    work = [(rate, clip) for rate in (1.0, 3.0) for clip in clips(20, int(WIDTH / rate))]

    async def all_at_once() -> tuple[list[np.ndarray], int]:
        batcher = MicroBatcher(Batching(window_seconds=0.05))
        batcher.start()
        answers = await asyncio.gather(*(batcher.classify(heads, rate, clip) for rate, clip in work))
        await batcher.stop()
        return answers, batcher.products

    answers, products = asyncio.run(all_at_once())
    assert products == 2  # one per rate, for 40 clips
    for (rate, clip), answer in zip(work, answers, strict=True):
        np.testing.assert_allclose(answer, classify_group(heads, rate, [clip])[0], atol=1e-6)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(model_store: HeadStore) -> None:
    heads, (clip,) = model_store.get(VERSION), clips(1, WIDTH)

    async def too_many() -> list[object]:
        batcher = MicroBatcher(Batching(window_seconds=0.01, waiting=3))
        waiting = [asyncio.ensure_future(batcher.classify(heads, 1.0, clip)) for _ in range(5)]
        await asyncio.sleep(0)  # no worker yet: all five have knocked
        batcher.start()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        await batcher.stop()
        return found

    found = asyncio.run(too_many())
    assert [isinstance(one, QueueFull) for one in found] == [False, False, False, True, True]
    assert all(one.retry_milliseconds >= 1 for one in found if isinstance(one, QueueFull))


def test_one_group_that_fails_leaves_the_others_alone(model_store: HeadStore) -> None:
    heads, (clip,) = model_store.get(VERSION), clips(1, WIDTH)
    broken = Heads("broken", CLASSES, WIDTH, {})

    async def both() -> list[object]:
        batcher = MicroBatcher(Batching(window_seconds=0.02))
        batcher.start()
        knocks = (batcher.classify(broken, 1.0, clip), batcher.classify(heads, 1.0, clip))
        found = await asyncio.gather(*knocks, return_exceptions=True)
        await batcher.stop()
        return found

    failed, fine = asyncio.run(both())
    assert isinstance(failed, KeyError)
    assert isinstance(fine, np.ndarray)
