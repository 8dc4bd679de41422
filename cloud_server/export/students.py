"""``fedstill export``: a trained student as a folder that a device without torch can run.

The fp32 graphs take their weights from the student's own safetensors file, so nothing is stored twice; the int8 graph
holds its own. Everything is hashed in ``meta.json``, which is written last.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.export.quantisation import quantise_graph
from fedstill.common.errors import DataError
from fedstill.common.export_manifest import (
    DESCRIPTION,
    ENCODERS,
    FORMAT,
    HEAD,
    INT8_ENCODERS,
    WEIGHTS,
    ExportedStudent,
    compressor_file,
    compressor_weights_file,
    to_json,
)
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.audiovisual.store import ClipStore
from fedstill.datasets.audiovisual.waveform import feature_shape
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.models.audiovisual.onnx_export import (
    compressor_graph,
    encoder_graph,
    folded_encoder_graph,
    head_graph,
    point_to,
    weight_shapes,
)
from fedstill.models.weights.checkpoint import CheckpointMeta, load_checkpoint, load_levels, network_to_json
from fedstill.models.weights.packing import pack


def export_student(
    stem: Path, out: Path, *, store: ClipStore | None = None, int8: bool = False, version: str = ""
) -> ExportedStudent:
    """Write a checkpoint as ONNX into ``out``.

    Args:
        stem: of the checkpoint, without suffix. Levels saved beside it (``checkpoint.save_levels``) become compressors.
        out: a new or empty folder, or an earlier export, which is replaced.
        store: clips of the student's own kind. Their labels give the class prior, and the public ones calibrate int8.
        int8: also write quantised encoders.
        version: hash by which the cloud knows the student; that of its safetensors bytes by default.

    Raises:
        CheckpointError: no usable checkpoint.
        DataError: ``int8`` without public clips, a store of another kind, or ``out`` holds something else.
    """
    net, meta = load_checkpoint(stem)
    if store is not None:
        _require_same_kind(store, meta)
    if int8 and not (store and any(clip.split == "public" for clip in store.info)):
        raise DataError("int8 is calibrated on public clips: give a clip store with --store")
    if out.exists() and any(out.iterdir()) and not (out / DESCRIPTION).exists():
        raise DataError(f"{out}: is not empty and no earlier export: choose another --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    audio = store.audio.shape[1:] if store else feature_shape(AudioSpec(**meta.audio))
    count, size, channels = (int(meta.frames[key]) for key in ("count", "size", "channels"))
    frames = (count, channels, size, size)
    weights = _write_graphs(net, audio, frames, out)
    rates = _write_compressors(stem, net, out)
    if int8:
        assert store is not None
        quantised = quantise_graph(folded_encoder_graph(net, audio, frames), store)
        (out / INT8_ENCODERS).write_bytes(quantised)
    described = ExportedStudent(
        format=FORMAT,
        version=version or _hash(out / WEIGHTS),
        class_names=meta.class_names,
        network=json.loads(network_to_json(net.spec)),
        audio=meta.audio,
        frames=meta.frames,
        audio_shape=audio,
        frame_shape=frames,
        feature_width=net.spec.feature_width,
        rates=rates,
        training_prior=_class_prior(store),
        files={path.name: _hash(path) for path in sorted(out.iterdir())},
        weights=weights,
    )
    (out / DESCRIPTION).write_text(to_json(described), encoding="utf-8")
    return described


def _write_graphs(
    net: AudioVisualNet, audio: tuple[int, ...], frames: tuple[int, ...], out: Path
) -> dict[str, dict[str, tuple[int, ...]]]:
    packed = pack(net.state_dict())
    (out / WEIGHTS).write_bytes(packed.tobytes())
    graphs = {ENCODERS: encoder_graph(net, audio, frames), HEAD: head_graph(net)}
    for name, graph in graphs.items():
        (out / name).write_bytes(point_to(graph, packed, WEIGHTS))
    return {name: weight_shapes(graph) for name, graph in graphs.items()}


def _write_compressors(stem: Path, net: AudioVisualNet, out: Path) -> tuple[float, ...]:
    levels = load_levels(stem, net.spec)
    for rate, level in levels.items():
        packed = pack(level.state_dict())
        (out / compressor_weights_file(rate)).write_bytes(packed.tobytes())
        graph = compressor_graph(level.compressor, net.spec.feature_width)
        (out / compressor_file(rate)).write_bytes(point_to(graph, packed, compressor_weights_file(rate)))
    return tuple(levels)


def _class_prior(store: ClipStore | None) -> tuple[float, ...]:
    """Shares of the classes among the labelled public clips, as ``PublicBank.class_prior``; empty without any."""
    if store is None:
        return ()
    public = np.array([clip.split == "public" for clip in store.info])
    labels: npt.NDArray[np.int64] = store.labels[public & (store.labels >= 0)]
    if not len(labels):
        return ()
    counts = np.bincount(labels, minlength=len(store.class_names))
    return tuple(float(share) for share in counts / counts.sum())


def _require_same_kind(store: ClipStore, meta: CheckpointMeta) -> None:
    mine = (meta.class_names, AudioSpec(**meta.audio), FrameSpec(**meta.frames))
    if mine != (store.class_names, store.audio_spec, store.frame_spec):
        raise DataError(
            f"{store.directory}: its classes, audio or frames are not those that the student was trained with: "
            "give the store of the student's own run"
        )


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
