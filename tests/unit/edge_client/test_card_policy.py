"""What a device's owner allows decides which form of the capture card leaves, and whether any does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.recorded_clips import noisy_store
from test_privacy import clips, dp_request

from fedstill.datasets.audiovisual.capture_card import PICTURE, SOUND, CaptureCard, card_of, from_bytes
from fedstill.edge_client.folder import DATA_FOLDER
from fedstill.edge_client.node.device import Device
from fedstill.edge_client.privacy.privacy_ledger import LEDGER_FILE
from fedstill.edge_client.privacy.privacy_policy import PrivacyPolicy, write_policy
from fedstill.edge_client.privacy.prototypes import DeviceError
from fedstill.protos.messages import PrototypeRequest, PrototypeUpload

CLIPS = 20


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    noisy_store(tmp_path / DATA_FOLDER, "abcde", CLIPS)
    monkeypatch.setattr(Device, "_probabilities", lambda *_: clips(CLIPS))
    return Device(tmp_path, None)  # type: ignore[arg-type]


def exact(min_size: int = 8) -> PrototypeRequest:
    return replace(
        dp_request(min_size=min_size), kind="histogram", epsilon=0.0, delta=0.0,
        centres=np.empty((0, 0), np.float32), card=True,
    )  # fmt: skip


def private(epsilon: float) -> PrototypeRequest:
    return replace(dp_request(epsilon=epsilon, cells=1, min_size=1), card=True, card_share=0.5)


def card_in(upload: PrototypeUpload) -> CaptureCard:
    return from_bytes(upload.card, CLIPS)


def owner(device: Device, accepts: Any, **limits: Any) -> None:
    write_policy(device.directory, PrivacyPolicy(accepts=accepts, noise_seed=0, **limits))


def test_an_exact_card_is_the_mean_of_the_clips(device: Device) -> None:
    found, wanted = card_in(device.prototypes(exact())), card_of(device.store.profiles)
    assert np.abs(found.values - wanted.values).max() <= 0.5


def test_an_owner_of_dp_never_sends_an_exact_card(device: Device) -> None:
    owner(device, "dp", epsilon=900.0)
    with pytest.raises(DeviceError, match="accepts dp"):
        device.prototypes(exact())
    upload = device.prototypes(private(epsilon=800.0))
    assert len(upload.confidence) == 0
    found, true = card_in(upload).values, card_of(device.store.profiles).values
    assert np.abs(found - true)[SOUND].mean() < 4, "the private form, nearly without noise"
    assert len({tuple(device.prototypes(private(epsilon=800.0)).card) for _ in range(3)}) == 1


def test_twenty_clips_are_too_few_for_a_private_card_of_epsilon_4(device: Device) -> None:
    owner(device, "dp")
    found = card_in(device.prototypes(private(epsilon=4.0)))
    assert not found.has_sound
    assert not found.has_pictures


def test_an_owner_of_constrained_sends_a_card_of_enough_clips_only(device: Device) -> None:
    owner(device, "constrained", min_size=CLIPS)
    with pytest.raises(DeviceError, match="min_size 8"):
        device.prototypes(exact())
    assert card_in(device.prototypes(exact(min_size=CLIPS))).has_sound
    owner(device, "constrained", min_size=CLIPS + 1)
    with pytest.raises(DeviceError, match="fewer than the minimum"):
        device.prototypes(exact(min_size=CLIPS + 1))


def test_a_part_that_few_clips_have_is_left_out(device: Device) -> None:
    owner(device, "constrained", min_size=8)
    profiles = np.array(device.store.profiles)
    profiles[5:, SOUND] = np.nan
    device.store = replace(device.store, profiles=profiles)
    upload = device.prototypes(exact())
    assert not card_in(upload).has_sound
    assert np.isfinite(card_in(upload).values[PICTURE]).all()


def test_a_store_older_than_cards_sends_none(device: Device) -> None:
    device.store = replace(device.store, profiles=None)
    assert len(device.prototypes(exact()).card) == 0
    owner(device, "dp", epsilon=900.0)
    assert len(device.prototypes(private(epsilon=800.0)).card) == 0


def test_a_ledger_older_than_cards_still_answers(device: Device) -> None:
    import sqlite3

    owner(device, "dp")
    plain = dp_request(epsilon=4.0, cells=1, min_size=1)
    first = device.prototypes(plain)
    with sqlite3.connect(device.directory / LEDGER_FILE) as ledger:
        ((kept,),) = ledger.execute("SELECT upload FROM releases").fetchall()
        old = {name: value for name, value in json.loads(kept).items() if name != "card"}
        ledger.execute("UPDATE releases SET upload = ?", (json.dumps(old),))
    assert np.array_equal(device.prototypes(plain).probabilities, first.probabilities)
