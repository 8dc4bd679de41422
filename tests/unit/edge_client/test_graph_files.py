"""Graphs from the cloud run any student of their kind without torch; spoiled ones are refused, lost ones asked for."""

from __future__ import annotations

import builtins
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.exports import Exported, make_export, settled_network

from fedstill.cloud_server.export.graphs import graphs_of
from fedstill.common.export_manifest import DESCRIPTION, HEAD
from fedstill.edge_client.folder import EXPORT_FOLDER
from fedstill.edge_client.node.loading import late_loader, loader
from fedstill.edge_client.privacy.prototypes import DeviceError
from fedstill.edge_client.students.graph_files import keep_graphs
from fedstill.edge_client.students.runtime_api import OtherNetwork
from fedstill.edge_client.students.torch_runtime import TorchRuntime
from fedstill.models.audiovisual.specs import network_to_json
from fedstill.models.weights.packing import arrays

VERSION = "ab" * 32


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return make_export(tmp_path_factory.mktemp("exported"), int8=False)


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device where it is not installed."""
    importing = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "fedstill.edge_client.students.torch_runtime":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return importing(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_they_run_any_student_of_their_kind(exported: Exported, tmp_path: Path, no_torch: None) -> None:
    store = exported.store
    load = late_loader(tmp_path)
    later = settled_network(exported.net.spec, store, seed=2)
    spec = network_to_json(later.spec)
    with pytest.raises(OtherNetwork, match="neither torch nor graphs"):
        load(arrays(later), spec, store.class_names, VERSION)
    keep_graphs(tmp_path / EXPORT_FOLDER, graphs_of(exported.net, store))
    found = load(arrays(later), spec, store.class_names, VERSION)
    expected = TorchRuntime(later, store.class_names, VERSION)
    mine, theirs = (one.features(store.audio, store.frames) for one in (found, expected))
    for part, other in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(part, other, atol=1e-4)
    np.testing.assert_allclose(found.logits(mine), expected.logits(theirs), atol=1e-4)
    strange = json.dumps(json.loads(spec) | {"feature_width": 8})
    with pytest.raises(OtherNetwork, match="another network"):
        load(arrays(later), strange, store.class_names, VERSION)


def test_they_are_small_and_hold_no_weights(exported: Exported) -> None:
    graphs = graphs_of(exported.net, exported.store)
    weights = sum(value.nbytes for value in arrays(exported.net).values())
    assert len(graphs.encoders) + len(graphs.head) < weights / 2
    for value in arrays(exported.net).values():
        if value.dtype == np.float32 and value.size > 16:
            assert value.tobytes() not in graphs.encoders.tobytes()


def test_spoiled_ones_are_refused_and_nothing_changes(exported: Exported, tmp_path: Path) -> None:
    graphs, folder = graphs_of(exported.net, exported.store), tmp_path / EXPORT_FOLDER
    keep_graphs(folder, graphs)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for spoiled in (
        replace(graphs, head=graphs.head[:-1]),
        replace(graphs, description="{}"),
        replace(graphs, description="no JSON"),
        replace(graphs, description=graphs.description.replace(HEAD, "../head.onnx")),
    ):
        with pytest.raises(DeviceError, match=r"^graphs: "):
            keep_graphs(folder, spoiled)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_kill_while_they_are_written_leaves_a_device_that_asks_again(
    exported: Exported, tmp_path: Path, no_torch: None
) -> None:
    keep_graphs(tmp_path / EXPORT_FOLDER, graphs_of(exported.net, exported.store))
    (tmp_path / EXPORT_FOLDER / DESCRIPTION).unlink()  # it is written last
    with pytest.raises(OtherNetwork):
        loader(tmp_path)(arrays(exported.net), "{}", exported.store.class_names, VERSION)
