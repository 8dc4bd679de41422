"""What a device without torch needs to run students of one kind: graphs without weights, and their description."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np

from fedstill.common.export_manifest import (
    ENCODERS,
    FORMAT,
    HEAD,
    STATISTICS,
    WEIGHTS,
    ExportedStudent,
    from_json,
    to_json,
)
from fedstill.datasets.audiovisual.specs import spec_values
from fedstill.datasets.audiovisual.store import ClipStore
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.models.audiovisual.onnx_export import (
    encoder_graph,
    head_graph,
    point_to,
    statistics_graph,
    weight_shapes,
)
from fedstill.models.audiovisual.specs import network_to_json
from fedstill.models.weights.packing import pack
from fedstill.protos.messages import StudentGraphs


def for_older(graphs: StudentGraphs) -> StudentGraphs:
    """Without what an older device does not know."""
    described = from_json(graphs.description)
    files = {name: digest for name, digest in described.files.items() if name != STATISTICS}
    weights = {name: shapes for name, shapes in described.weights.items() if name != STATISTICS}
    return replace(
        graphs,
        description=to_json(replace(described, files=files, weights=weights)),
        statistics=np.empty(0, np.uint8),
    )


def graphs_of(net: AudioVisualNet, store: ClipStore) -> StudentGraphs:
    """The graphs of every student of this network's kind; none of its weights is in them.

    Args:
        net: on the CPU, in evaluation mode.
        store: clips of the kind that the student is for.
    """
    audio, frames = store.audio.shape[1:], store.frames.shape[1:]
    packed = pack(net.state_dict())
    encoders = encoder_graph(net, audio, frames)
    graphs = {ENCODERS: encoders, HEAD: head_graph(net), STATISTICS: statistics_graph(encoders)}
    files = {name: point_to(graph, packed, WEIGHTS) for name, graph in graphs.items()}
    described = ExportedStudent(
        format=FORMAT,
        version="",
        class_names=store.class_names,
        network=json.loads(network_to_json(net.spec)),
        audio=spec_values(store.audio_spec),
        frames=spec_values(store.frame_spec),
        audio_shape=audio,
        frame_shape=frames,
        feature_width=net.spec.feature_width,
        rates=(),
        training_prior=(),
        files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        weights={name: weight_shapes(graph) for name, graph in graphs.items()},
    )
    arrays = (np.frombuffer(files[name], np.uint8).copy() for name in (ENCODERS, HEAD, STATISTICS))
    return StudentGraphs(to_json(described), *arrays)
