"""Guards pretrained teachers: the right file or none, encoded once, fine-tuned repeatably, never a download."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers.pretrained import (
    HUBERT,
    TIMM_MODEL,
    overrides_of,
    settings_of,
    sha256,
    small_hubert,
    written_hubert,
    written_timm,
)
from helpers.runs import tiny_experiment
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedstill.cloud_server.distillation.compute import Compute
from fedstill.cloud_server.distillation.public_bank import compute_bank
from fedstill.cloud_server.distillation.settings import OptimiserSettings, TeacherSettings
from fedstill.cloud_server.distillation.teacher import count_correct, new_teacher, train_teacher
from fedstill.cloud_server.pretrained.open_encoders import open_encoder
from fedstill.cloud_server.pretrained.open_parts import open_parts
from fedstill.cloud_server.pretrained.parts import FineTunedPictures, FineTunedSound, PretrainedParts
from fedstill.cloud_server.pretrained.settings import Modality, PretrainedSettings
from fedstill.cloud_server.pretrained.sound import NO_SOUND, Waveforms
from fedstill.common.errors import ConfigError
from fedstill.common.paths import VIT_WEIGHTS
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.audiovisual.store import ClipStore, build_store
from fedstill.datasets.audiovisual.synthetic import SyntheticSource
from fedstill.models.audiovisual.encoders import EncoderSpec
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.models.vit.preprocess import to_tensors
from fedstill.models.weights.checkpoint import (
    CheckpointError,
    CheckpointMeta,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from fedstill.simulation.config import load_experiment
from fedstill.simulation.pretrained import with_checked_encoders

EXACT = Compute(device="cpu", precision="fp32", workers=1)
CLIPS = 24
SETTINGS = TeacherSettings(
    encoder=EncoderSpec("resnet10", 4),
    feature_width=16,
    epochs=2,
    optimiser=OptimiserSettings(batch_size=8, learning_rate=1e-2),
)
Chosen = dict[Modality, PretrainedSettings]


@pytest.fixture(scope="module")
def source() -> SyntheticSource:
    return SyntheticSource(public_per_class=CLIPS // 6, private_per_class=0, frame_size=24, frame_count=1)


@pytest.fixture(scope="module")
def store(source: SyntheticSource, tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    audio = AudioSpec(seconds=0.6, hop=512, mel_bins=32)
    return build_store(
        source, range(CLIPS), audio, FrameSpec(24, 1), tmp_path_factory.mktemp("store"), keep_sound=True
    )


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written_timm(tmp_path_factory.mktemp("timm"))


@pytest.fixture(scope="module")
def hubert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written_hubert(tmp_path_factory.mktemp("hubert"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a run must not download anything")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def opened(store: ClipStore, tmp_path: Path) -> Callable[[Chosen], PretrainedParts]:
    return lambda chosen: open_parts(chosen, store, tmp_path / "kept", torch.device("cpu"))


def both(vit: Path, hubert: Path, frozen: bool) -> Chosen:
    return {
        "visual": settings_of(vit, TIMM_MODEL, frozen),
        "audio": settings_of(hubert, "wav2vec2_model", frozen),
    }


def trained(
    store: ClipStore, parts: PretrainedParts, settings: TeacherSettings = SETTINGS, clips: int = CLIPS
) -> tuple[AudioVisualNet, list[float]]:
    losses: list[float] = []
    rng = torch.Generator().manual_seed(0)
    net = train_teacher(
        store, np.arange(clips), settings, EXACT, rng, lambda _, loss: losses.append(loss), parts
    )
    return net, losses


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


# What a user is told


def refusal(folder: Path, modality: Modality, settings: PretrainedSettings, *more: str) -> str:
    with pytest.raises(ConfigError) as caught:
        with_checked_encoders(tiny_experiment(folder, [*overrides_of(modality, settings), *more]))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"teacher.pretrained_{modality}")
    return str(caught.value)


@pytest.mark.parametrize("key", ["model", "weights", "sha256", "licence"])
def test_half_a_table_is_refused(key: str, vit: Path) -> None:
    lines = [
        line
        for line in overrides_of("visual", settings_of(vit, TIMM_MODEL))
        if not line.startswith(f"teacher.pretrained_visual.{key}=")
    ]
    with pytest.raises(ConfigError, match=f"^teacher.pretrained_visual.{key}: not set"):
        load_experiment("quickstart", lines)


@pytest.mark.parametrize(
    ("key", "value"), [("sha256", '"ABC"'), ("rate", "0.0"), ("rate", "nan"), ("rate", "2")]
)
def test_impossible_values_are_named(key: str, value: str, vit: Path) -> None:
    lines = overrides_of("visual", settings_of(vit, TIMM_MODEL))
    with pytest.raises(ConfigError, match=rf"^teacher\.pretrained_visual\.{key}: "):
        load_experiment("quickstart", [*lines, f"teacher.pretrained_visual.{key}={value}"])


def test_another_file_is_refused(tmp_path: Path, vit: Path) -> None:
    said = refusal(tmp_path, "visual", replace(settings_of(vit, TIMM_MODEL), sha256="0" * 64))
    assert sha256(vit) in said


def test_a_missing_file_is_refused(tmp_path: Path, vit: Path) -> None:
    assert "gone.safetensors: not found" in refusal(
        tmp_path, "visual", replace(settings_of(vit, TIMM_MODEL), weights="gone.safetensors")
    )


def test_an_unknown_model_is_refused(tmp_path: Path, vit: Path, hubert: Path) -> None:
    assert "'vit_of_mine' is not a model of timm" in refusal(
        tmp_path, "visual", settings_of(vit, "vit_of_mine")
    )
    assert "hf-hub" in refusal(tmp_path, "visual", settings_of(vit, "hf-hub:timm/vit"))
    assert "hubert_base" in refusal(tmp_path, "audio", settings_of(hubert, "whisper"))


def test_weights_of_another_model_are_refused(tmp_path: Path, vit: Path, hubert: Path) -> None:
    assert "does not fit test_resnet" in refusal(tmp_path, "visual", settings_of(vit, "test_resnet"))
    (tmp_path / "wide.json").write_text(json.dumps(HUBERT | {"encoder_embed_dim": 32}))
    (tmp_path / "wide.safetensors").write_bytes(hubert.read_bytes())
    assert "does not fit" in refusal(
        tmp_path, "audio", settings_of(tmp_path / "wide.safetensors", "wav2vec2_model")
    )


@pytest.mark.parametrize("text", ["", "[1]", '{"encoder_embed_dims": 3}', '{"encoder_embed_dim": "wide"}'])
def test_a_wrong_description_is_refused(text: str, tmp_path: Path, hubert: Path) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(hubert.read_bytes())
    assert "mine.json" in refusal(tmp_path, "audio", settings_of(path, "wav2vec2_model"))
    path.with_suffix(".json").write_text(text)
    assert "mine.json" in refusal(tmp_path, "audio", settings_of(path, "wav2vec2_model"))


def test_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "test_vit.safetensors"
    path.write_bytes(b"\x80\x04weights")
    assert "not a safetensors file" in refusal(tmp_path, "visual", settings_of(path, TIMM_MODEL))


def test_clips_without_sound_are_refused(store: ClipStore, hubert: Path, tmp_path: Path) -> None:
    chosen: Chosen = {"audio": settings_of(hubert, "wav2vec2_model")}
    assert store.sound is not None
    places = store.sound.places.copy()
    places[5] = 0
    for sound in (None, replace(store.sound, places=places)):
        with pytest.raises(ConfigError) as caught:
            open_parts(chosen, replace(store, sound=sound), tmp_path, torch.device("cpu"))
        assert str(caught.value) == NO_SOUND


def test_paths_are_whole_in_the_plan(tmp_path: Path, vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ServerApp runs in another folder."""
    monkeypatch.setenv("FEDSTILL_DATA", str(vit.parent))
    lines = overrides_of("visual", replace(settings_of(vit, TIMM_MODEL), weights=vit.name))
    experiment = tiny_experiment(tmp_path, lines)
    assert experiment.teacher.pretrained_visual.weights == vit.name
    assert with_checked_encoders(experiment).teacher.pretrained_visual.weights == str(vit.resolve())


# What an encoder computes


def test_pictures_are_seen_as_timm_sees_them(vit: Path) -> None:
    net = timm.create_model(TIMM_MODEL, pretrained=False, num_classes=0).eval()
    net.load_state_dict(load_file(vit), strict=False)
    data = timm.data.resolve_model_data_config(net)
    side = data["input_size"][1]
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 3, side, side), dtype=np.uint8)
    encoder = open_encoder("visual", settings_of(vit, TIMM_MODEL))
    mean, std = (torch.tensor(data[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        found = encoder(to_tensors(np.zeros((2, 1, 1), np.float32), frames)[1])
        direct = net((torch.from_numpy(frames).flatten(0, 1) / 255 - mean) / std)
    torch.testing.assert_close(found, direct.reshape(2, 3, -1).mean(dim=1), atol=1e-4, rtol=1e-4)
    assert found.shape == (2, encoder.width)


def test_small_grey_pictures_are_scaled_up(vit: Path) -> None:
    encoder = open_encoder("visual", settings_of(vit, TIMM_MODEL))
    grey = np.random.default_rng(0).integers(0, 256, (2, 1, 1, 24, 24), dtype=np.uint8)
    none = np.zeros((2, 1, 1), np.float32)
    with torch.no_grad():
        found = encoder(to_tensors(none, grey)[1])
        coloured = encoder(to_tensors(none, np.repeat(grey, 3, axis=2))[1])
    torch.testing.assert_close(found, coloured)
    assert not torch.allclose(found[0], found[1])


def test_a_folder_as_timm_saves_it_says_what_its_model_is(tmp_path: Path) -> None:
    net = timm.create_model("test_resnet", pretrained=False)
    net.pretrained_cfg |= {"mean": [0.1, 0.2, 0.3]}
    timm.models.save_for_hf(net, str(tmp_path), safe_serialization=True)
    weights_file = tmp_path / "model.safetensors"
    settings = replace(settings_of(weights_file, "local-dir"), weights=str(tmp_path))
    found = open_encoder("visual", settings)
    named = open_encoder("visual", settings_of(weights_file, "test_resnet"))
    assert_same(found, named)
    torch.testing.assert_close(found.get_buffer("mean").flatten(), torch.tensor([0.1, 0.2, 0.3]))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json"):
        open_encoder("visual", settings)


def test_a_folder_as_hugging_face_saves_it_gives_the_same_sound_encoder(hubert: Path, tmp_path: Path) -> None:
    """transformers names the same weights otherwise (see also ``import_huggingface_model`` of torchaudio)."""
    state = {f"hubert.{name}": value for name, value in load_file(hubert).items()}
    for ours, theirs in (
        ("encoder.transformer.", "encoder."),
        ("encoder.feature_projection.", "feature_projection."),
    ):
        state = {name.replace(f"hubert.{ours}", f"hubert.{theirs}"): value for name, value in state.items()}
    state |= {"hubert.masked_spec_embed": torch.zeros(24), "lm_head.weight": torch.zeros(32, 24)}
    save_file(state, tmp_path / "model.safetensors")
    dims, kernels, strides = zip(*HUBERT["extractor_conv_layer_config"], strict=True)
    config = {
        "model_type": "hubert", "conv_bias": False, "hidden_size": 24, "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "do_stable_layer_norm": False, "feat_extract_norm": "group",
        "conv_dim": dims, "conv_kernel": kernels, "conv_stride": strides,
    }  # fmt: skip
    settings = replace(settings_of(tmp_path / "model.safetensors", "local-dir"), weights=str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same(open_encoder("audio", settings), open_encoder("audio", settings_of(hubert, "wav2vec2_model")))
    for wrong, said in (({"model_type": "whisper"}, "whisper"), ({"model_type": "wavlm"}, "num_buckets")):
        (tmp_path / "config.json").write_text(json.dumps(config | wrong))
        with pytest.raises(ConfigError, match=said):
            open_encoder("audio", settings)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    assert weights(one).keys() == weights(other).keys()
    assert all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


def test_sound_is_heard_as_torchaudio_hears_it(hubert: Path) -> None:
    net = small_hubert().eval()
    net.load_state_dict(load_file(hubert))
    waveforms = torch.randn(2, 9600, generator=torch.Generator().manual_seed(0)) / 10
    encoder = open_encoder("audio", settings_of(hubert, "wav2vec2_model"))
    with torch.no_grad():
        torch.testing.assert_close(encoder(waveforms), net(waveforms)[0].mean(dim=1))
        torch.testing.assert_close(encoder.train()(waveforms), encoder(waveforms))


def test_layer_normalised_networks_get_normalised_waveforms(tmp_path: Path) -> None:
    """As torchaudio's pipelines do for the large models, so that loudness does not count."""
    from torchaudio.models import wav2vec2_model

    described = HUBERT | {"extractor_mode": "layer_norm", "encoder_layer_norm_first": True}
    net = wav2vec2_model(
        **described, encoder_projection_dropout=0, encoder_attention_dropout=0, encoder_ff_interm_dropout=0,
        encoder_dropout=0, encoder_layer_drop=0, aux_num_out=29,
    )  # fmt: skip
    path = tmp_path / "large.safetensors"
    save_file(net.state_dict(), path)
    path.with_suffix(".json").write_text(json.dumps(described))
    encoder = open_encoder("audio", settings_of(path, "wav2vec2_model"))
    waveforms = torch.randn(2, 9600, generator=torch.Generator().manual_seed(0)) / 10
    with torch.no_grad():
        torch.testing.assert_close(encoder(waveforms), encoder(3 * waveforms), atol=1e-3, rtol=1e-3)


def test_the_named_models_are_torchaudios(tmp_path: Path) -> None:
    """With a file that does not fit: the network was built, and nothing was downloaded for it."""
    path = tmp_path / "none.safetensors"
    save_file({"nothing": torch.zeros(1)}, path)
    for model in ("hubert_base", "wavlm_base"):
        with pytest.raises(ConfigError, match=f"does not fit {model}"):
            open_encoder("audio", settings_of(path, model))


def test_sound_is_the_piece_that_the_spectrogram_shows(store: ClipStore, source: SyntheticSource) -> None:
    assert store.sound is not None
    plain = Waveforms(store.sound, store.audio_spec)(np.array([3, 0]))
    assert plain.shape == (2, 9600)
    np.testing.assert_allclose(plain[1], np.resize(source.load(0).audio, 9600), atol=1e-4)
    slow = replace(store.audio_spec, sample_rate=8_000)
    assert Waveforms(store.sound, slow)(np.array([0])).shape == (1, 9600), "resampled to 16 kHz"


# Teachers


def test_a_frozen_teacher_learns_and_its_encoders_run_once(store: ClipStore, tmp_path: Path) -> None:
    files = written_timm(tmp_path), written_hubert(tmp_path)
    chosen = both(*files, frozen=True)

    def opened() -> PretrainedParts:
        return open_parts(chosen, store, tmp_path / "kept", torch.device("cpu"))

    first = opened()
    for file in files:
        file.unlink()
    again = opened()  # needs no file any more
    net, losses = trained(store, first, replace(SETTINGS, epochs=30))
    assert losses[-1] < 0.7 * losses[0]
    assert count_correct(net, store, np.arange(CLIPS), EXACT, again) > CLIPS // 2
    assert set(weights(net)) == set(weights(new_teacher(store, SETTINGS, first)))
    assert not any("net." in name for name in weights(net)), "a frozen encoder is no part of the checkpoint"
    bank = compute_bank(net, store, EXACT, "v1", again)
    assert bank.audio.shape == bank.visual.shape == (CLIPS, 16)
    rows = np.array([5, 0])
    read = first.inputs(rows, *to_tensors(store.audio[rows], store.frames[rows]))
    with torch.no_grad():
        np.testing.assert_allclose(bank.visual[rows], net.encoders(*read).visual, atol=1e-5)


def test_features_of_other_weights_are_not_reused(vit: Path, store: ClipStore, tmp_path: Path) -> None:
    other = written_timm(tmp_path, seed=1)
    found = []
    for file in (vit, other, vit):
        parts = open_parts(
            {"visual": settings_of(file, TIMM_MODEL)}, store, tmp_path / "kept", torch.device("cpu")
        )
        assert parts.visual is not None
        found.append(parts.inputs(np.arange(CLIPS), torch.empty(0), torch.empty(0))[1].numpy())
    assert np.array_equal(found[0], found[2])
    assert not np.allclose(found[0], found[1])


def test_one_pretrained_encoder_goes_with_one_of_our_own(
    vit: Path, store: ClipStore, opened: Callable[[Chosen], PretrainedParts]
) -> None:
    parts = opened({"visual": settings_of(vit, TIMM_MODEL)})
    net, losses = trained(store, parts, replace(SETTINGS, epochs=8))
    assert "encoders.audio.stem.0.weight" in weights(net)
    assert losses[-1] < losses[0]


def test_a_fine_tuned_teacher_trains_through(
    vit: Path, hubert: Path, store: ClipStore, opened: Callable[[Chosen], PretrainedParts]
) -> None:
    chosen = both(vit, hubert, frozen=False)
    parts = opened(chosen)
    assert isinstance(parts.visual, FineTunedPictures)
    assert isinstance(parts.audio, FineTunedSound)
    before = weights(parts.visual.encoder), weights(parts.audio.encoder)
    net, losses = trained(store, parts)
    assert losses[-1] < losses[0]
    assert any(
        not torch.equal(value, before[0][name]) for name, value in weights(parts.visual.encoder).items()
    )
    for name, value in weights(parts.audio.encoder).items():
        if "feature_extractor" in name:
            assert torch.equal(value, before[1][name])
    assert any(
        not torch.equal(value, before[1][name]) for name, value in weights(parts.audio.encoder).items()
    )
    same, _ = trained(store, opened(chosen))
    assert all(torch.equal(value, weights(same)[name]) for name, value in weights(net).items())


def test_a_fine_tuned_encoder_steps_at_its_own_rate(
    vit: Path, store: ClipStore, opened: Callable[[Chosen], PretrainedParts]
) -> None:
    moved = []
    for rate in (0.01, 1.0):
        chosen: Chosen = {"visual": replace(settings_of(vit, TIMM_MODEL, frozen=False), rate=rate)}
        parts = opened(chosen)
        assert isinstance(parts.visual, FineTunedPictures)
        start = torch.cat([one.detach().flatten().clone() for one in parts.visual.encoder.parameters()])
        trained(store, parts)
        end = torch.cat([one.detach().flatten() for one in parts.visual.encoder.parameters()])
        moved.append(float((end - start).abs().mean()))
    assert moved[1] > 20 * moved[0] > 0


@pytest.mark.parametrize("frozen", [True, False])
def test_a_kept_teacher_answers_the_same(
    frozen: bool,
    vit: Path,
    hubert: Path,
    store: ClipStore,
    opened: Callable[[Chosen], PretrainedParts],
    tmp_path: Path,
) -> None:
    chosen = both(vit, hubert, frozen)
    parts = opened(chosen)
    net, _ = trained(store, parts)
    stem = tmp_path / "teacher"
    save_checkpoint(stem, net, CheckpointMeta(net.spec, store.class_names, {}, {}, {"visual": {}}))
    with pytest.raises(CheckpointError, match="pretrained"):
        load_checkpoint(stem)
    fresh = opened(chosen)
    again = load_weights(stem, new_teacher(store, SETTINGS, fresh))
    banks = compute_bank(net, store, EXACT, "", parts), compute_bank(again, store, EXACT, "", fresh)
    assert np.array_equal(banks[0].logits, banks[1].logits)
    stem.with_suffix(".safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError):
        load_weights(stem, new_teacher(store, SETTINGS, fresh))


@pytest.mark.parametrize("frozen", [True, False])
def test_each_modality_also_classifies_on_its_own(
    frozen: bool, vit: Path, hubert: Path, store: ClipStore, opened: Callable[[Chosen], PretrainedParts]
) -> None:
    """``unimodal_weight`` is for pretrained teachers, too."""
    chosen = both(vit, hubert, frozen)
    start = weights(new_teacher(store, SETTINGS, opened(chosen), torch.Generator().manual_seed(0)))
    for unimodal in (0.0, 1.0):
        net, _ = trained(store, opened(chosen), replace(SETTINGS, unimodal_weight=unimodal))
        moved = not torch.allclose(net.head.audio.bias, start["head.audio.bias"], atol=1e-4)
        assert moved == (unimodal > 0)


@pytest.mark.data
@pytest.mark.parametrize("frozen", [True, False])
def test_the_real_vit_tiny_teaches(
    frozen: bool, data_dir: Path, store: ClipStore, opened: Callable[[Chosen], PretrainedParts]
) -> None:
    weights_file = data_dir / VIT_WEIGHTS
    if not weights_file.exists():
        pytest.skip(f"the data folder has no {VIT_WEIGHTS}")
    model = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    parts = opened({"visual": settings_of(weights_file, model, frozen)})
    some = replace(SETTINGS, epochs=20 if frozen else 1)
    net, losses = trained(store, parts, some, CLIPS if frozen else 8)
    assert np.isfinite(losses).all()
    if frozen:
        assert losses[-1] < losses[0]
    bank = compute_bank(net, store, EXACT, "", parts)
    assert bank.visual.std() > 0.01
