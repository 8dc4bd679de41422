"""A student takes batch norm statistics of its device's clips where these show all classes, and only there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from helpers.exports import Exported, make_export, settled_network

from fedstill.cloud_server.export.graphs import for_older, graphs_of
from fedstill.common.atomic_files import PART
from fedstill.edge_client.folder import EXPORT_FOLDER, SHELF_FOLDER, STATISTICS_FOLDER
from fedstill.edge_client.students.graph_files import keep_graphs
from fedstill.edge_client.students.own_statistics import Wish, adapted, installed, settle, stamp
from fedstill.edge_client.students.runtime import ExportFolder
from fedstill.edge_client.students.runtime_api import DeviceRuntime, FeatureArrays, OtherNetwork
from fedstill.edge_client.students.students import StoredModel
from fedstill.edge_client.students.torch_runtime import TorchRuntime
from fedstill.models.audiovisual.own_clips import least_share
from fedstill.models.audiovisual.specs import network_to_json
from fedstill.models.weights.packing import arrays

VERSION, OTHER = "ab" * 32, "cd" * 32
NAMES = ("calm", "cross")
FOUR = ("a", "b", "c", "d")
ONE = np.ones(1, np.float32)
WEIGHT = 0.75


@dataclass
class Counting:
    """Runtimes that decide by the statistics that they were given: 1, and every other clip is cross; 0, and none is."""

    made: int = 0
    mean: float = 1.0

    def __call__(self, student: StoredModel) -> DeviceRuntime:
        return _Made(self, float(student.state["bn.running_mean"][0]))


@dataclass
class _Made:
    owner: Counting
    mean: float
    class_names: tuple[str, ...] = NAMES
    version: str = VERSION

    def statistics(
        self, audio: npt.NDArray[np.float32], frames: npt.NDArray[np.uint8], weight: float
    ) -> dict[str, np.ndarray]:
        assert weight == WEIGHT
        self.owner.made += 1
        return {"bn.running_mean": ONE * np.float32(self.owner.mean)}

    def features(self, audio: npt.NDArray[np.float32], frames: npt.NDArray[np.uint8]) -> FeatureArrays:
        return FeatureArrays(audio[:, 0], audio[:, 0])

    def logits(self, features: FeatureArrays) -> npt.NDArray[np.float32]:
        cross = (np.arange(len(features.audio)) % 2 == 1) & (self.mean == 1)
        return np.stack([~cross, cross], axis=1).astype(np.float32)


@pytest.fixture
def student() -> StoredModel:
    return StoredModel(VERSION, "{}", NAMES, {"weight": ONE, "bn.running_mean": 0 * ONE})


def tried(
    folder: Path, student: StoredModel, make: Counting, names: tuple[str, ...] = FOUR, wanted: float = 0.9
) -> float:
    """The mean that the student has then."""
    count = len(names)
    clips = np.zeros((count, 1, 1), np.float32), np.zeros((count, 1, 1, 1, 1), np.uint8)
    found = adapted(folder, student, Wish(WEIGHT, wanted), names, lambda: clips, make)
    assert found.version == student.version
    return float(found.state["bn.running_mean"][0])


def test_they_are_used_where_all_classes_are_there(tmp_path: Path, student: StoredModel) -> None:
    assert tried(tmp_path, student, Counting()) == 1
    assert tried(tmp_path, student, Counting(mean=2)) == 1, "they were computed before"
    assert float(student.state["bn.running_mean"][0]) == 0, "the stored student stays as it is"


def test_they_are_not_used_where_a_class_is_missing(tmp_path: Path, student: StoredModel) -> None:
    make = Counting(mean=2)
    assert tried(tmp_path, student, make) == 0
    assert tried(tmp_path, student, make) == 0
    assert make.made == 1


def test_of_other_clips_or_by_another_wish_they_are_computed_again(
    tmp_path: Path, student: StoredModel
) -> None:
    make = Counting()
    for names, wanted in ((FOUR, 0.9), (FOUR[:3], 0.5), (FOUR[:3], 0.4), (FOUR, 0.9)):
        assert tried(tmp_path, student, make, names, wanted) == 1
    assert make.made == 4


def test_a_single_clip_has_none(tmp_path: Path, student: StoredModel) -> None:
    make = Counting()
    assert tried(tmp_path, student, make, FOUR[:1], 1e-9) == 0
    assert make.made == 0


def test_only_what_is_settled_is_installed(tmp_path: Path, student: StoredModel) -> None:
    tried(tmp_path, student, Counting())
    assert installed(tmp_path, student) is student
    assert stamp(tmp_path, VERSION) == 0
    settle(tmp_path, VERSION, own=True)
    assert float(installed(tmp_path, student).state["bn.running_mean"][0]) == 1
    assert stamp(tmp_path, VERSION) > 0
    tried(tmp_path, student, Counting(mean=2), FOUR[:2])  # another round, with other clips
    assert float(installed(tmp_path, student).state["bn.running_mean"][0]) == 1
    settle(tmp_path, VERSION, own=False)
    assert installed(tmp_path, student) is student


def test_files_of_students_that_are_gone_go_too(tmp_path: Path, student: StoredModel) -> None:
    folder = tmp_path / STATISTICS_FOLDER
    for version in (VERSION, OTHER):
        tried(tmp_path, replace(student, version=version), Counting())
        settle(tmp_path, version, own=True)
    assert [path.stem for path in folder.iterdir()] == [OTHER]
    (tmp_path / SHELF_FOLDER).mkdir()
    (tmp_path / SHELF_FOLDER / f"{OTHER}.safetensors").touch()
    tried(tmp_path, student, Counting())
    settle(tmp_path, VERSION, own=True)
    assert {path.stem for path in folder.iterdir()} == {VERSION, OTHER}


@pytest.mark.parametrize("damage", ["empty", "noise", "text", "one bit"])
@pytest.mark.parametrize("own", [True, False], ids=["installed", "tried"])
def test_a_damaged_file_is_as_none(tmp_path: Path, student: StoredModel, damage: str, own: bool) -> None:
    tried(tmp_path, student, Counting())
    if own:
        settle(tmp_path, VERSION, own=True)
    (path,) = (tmp_path / STATISTICS_FOLDER).iterdir()
    content = path.read_bytes()
    last = bytes([content[-1] ^ 1])
    damaged = {"empty": b"", "noise": b"\xff" * 40, "text": b"{}", "one bit": content[:-1] + last}
    path.write_bytes(damaged[damage])
    assert installed(tmp_path, student) is student
    make = Counting()
    assert tried(tmp_path, student, make) == 1
    assert make.made == 1


def test_what_a_kill_left_behind_goes(tmp_path: Path, student: StoredModel) -> None:
    tried(tmp_path, student, Counting())
    left = tmp_path / STATISTICS_FOLDER / f".{VERSION}.safetensors.0123abcd{PART}"
    left.write_bytes(b"half")
    settle(tmp_path, VERSION, own=True)
    assert not left.exists()


def test_statistics_of_another_network_are_not_used(tmp_path: Path, student: StoredModel) -> None:
    tried(tmp_path, student, Counting())
    settle(tmp_path, VERSION, own=True)
    other = replace(student, state={"weight": ONE, "bn.running_mean": np.zeros(2, np.float32)})
    assert installed(tmp_path, other) is other
    assert installed(tmp_path, replace(student, state={"weight": ONE})).state.keys() == {"weight"}


def test_the_share_is_of_the_class_that_is_decided_least() -> None:
    assert least_share(np.array([0, 1, 2, 2]), 3) == 0.75
    assert least_share(np.array([0, 0, 1, 1]), 3) == 0
    assert least_share(np.array([], np.int64), 3) == 0
    assert least_share(np.array([0, 1] * 5), 2) == 1


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return make_export(tmp_path_factory.mktemp("exported"), int8=False)


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_a_device_without_torch_computes_the_same(exported: Exported, tmp_path: Path, weight: float) -> None:
    store = exported.store
    keep_graphs(tmp_path / EXPORT_FOLDER, graphs_of(exported.net, store))
    later = settled_network(exported.net.spec, store, seed=2)
    state, spec = arrays(later), network_to_json(later.spec)
    without = ExportFolder.open(tmp_path / EXPORT_FOLDER).load(state, spec, store.class_names, VERSION)
    wanted = TorchRuntime(later, store.class_names, VERSION).statistics(store.audio, store.frames, weight)
    found = without.statistics(store.audio, store.frames, weight)
    assert found.keys() == wanted.keys()
    assert len(found) > 10
    for name, value in found.items():
        assert not np.allclose(value, state[name]), "they are others than the student has"
        np.testing.assert_allclose(value, wanted[name], rtol=1e-4, atol=1e-5)
    again = ExportFolder.open(tmp_path / EXPORT_FOLDER)
    adapted_one = again.load({**state, **found}, spec, store.class_names, VERSION)
    mine = adapted_one.features(store.audio, store.frames)
    assert np.abs(mine.audio - without.features(store.audio, store.frames).audio).max() > 1e-3
    with pytest.raises(ValueError, match="at least 2"):
        without.statistics(store.audio[:1], store.frames[:1], weight)


def test_graphs_for_an_older_device_have_no_statistics(exported: Exported, tmp_path: Path) -> None:
    store, older = exported.store, for_older(graphs_of(exported.net, exported.store))
    keep_graphs(tmp_path / EXPORT_FOLDER, older)
    runtime = ExportFolder.open(tmp_path / EXPORT_FOLDER).load(
        arrays(exported.net), network_to_json(exported.net.spec), store.class_names, VERSION
    )
    runtime.features(store.audio, store.frames)
    with pytest.raises(OtherNetwork, match="no graph for batch norm statistics"):
        runtime.statistics(store.audio, store.frames, 1.0)


def test_an_owner_s_export_has_none_and_stays(exported: Exported, tmp_path: Path) -> None:
    """Graphs from the coordinator would take the place of its int8 graph and compressors."""
    runtime = ExportFolder.open(exported.folder).load(
        arrays(exported.net), network_to_json(exported.net.spec), exported.store.class_names, VERSION
    )
    assert runtime.statistics(exported.store.audio, exported.store.frames, 1.0) == {}
