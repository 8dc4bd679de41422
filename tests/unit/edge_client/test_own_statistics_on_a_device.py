"""What a device answers stays what it was before its students could take statistics of its clips: nothing more leaks,
and no refused student changes the one in use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from helpers.exports import AUDIO, FRAMES, settled_network

from fedstill.cloud_server.federation.downlink import Downlink
from fedstill.datasets.audiovisual.store import ClipStore, build_store
from fedstill.datasets.audiovisual.synthetic import SyntheticSource
from fedstill.edge_client.folder import DATA_FOLDER, SHELF_FOLDER, STATISTICS_FOLDER
from fedstill.edge_client.node.device import Device
from fedstill.edge_client.privacy.privacy_policy import PrivacyPolicy, write_policy
from fedstill.edge_client.students.own_statistics import installed, stamp
from fedstill.edge_client.students.students import ModelStore
from fedstill.edge_client.students.torch_runtime import TorchRuntime, load_torch
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.models.audiovisual.specs import EncoderSpec, NetworkSpec
from fedstill.models.weights.canaries import Canaries
from fedstill.protos.messages import InstallRequest, InstallResult, Job, PrototypeRequest, Student

JOB = Job("latency_insensitive", "fedstill", 0, 0)
Rows = npt.NDArray[np.float32]


@dataclass
class Here:
    """A device with some of the clips, and a student for it."""

    device: Device
    store: ClipStore
    net: AudioVisualNet

    @property
    def folder(self) -> Path:
        return self.device.directory

    def student(self, own: float) -> Student:
        downlink = Downlink("exact", self.store.class_names)
        downlink.own_statistics = own
        return downlink.shipment(self.net).student

    def install(self, own: float, minimum: float, spoilt: bool = False) -> InstallResult:
        """With canaries on which the teacher agrees with the plain student, or never does."""
        runtime = TorchRuntime(self.net, self.store.class_names, "")
        audio, frames = self.store.audio[:8].copy(), self.store.frames[:8].copy()
        teacher = runtime.probabilities(runtime.logits(runtime.features(audio, frames)))
        teacher = np.roll(teacher, 1, axis=1) if spoilt else teacher
        clips = Canaries(audio, frames, teacher)
        nothing = np.empty(0, np.uint8)
        request = InstallRequest(
            JOB, self.student(own), clips.version, audio, frames, teacher, nothing, minimum
        )
        return self.device.install(request)

    @property
    def changed(self) -> int:
        """How many tensors of the student in use are the device's own."""
        current = ModelStore(self.folder / SHELF_FOLDER).current()
        assert current is not None
        used = installed(self.folder, current).state
        return sum(not np.array_equal(used[name], current.state[name]) for name in used)


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Here]:
    torch.set_num_threads(1)

    def make(name: str, first: int = 0, last: int | None = None, **policy: object) -> Here:
        folder = tmp_path / name
        folder.mkdir()
        source = SyntheticSource(public_per_class=4, private_per_class=4, frame_size=24, frame_count=1)
        store = build_store(source, range(len(source.index))[first:last], AUDIO, FRAMES, folder / DATA_FOLDER)
        if policy:
            write_policy(folder, PrivacyPolicy(**policy))  # type: ignore[arg-type]
        spec = NetworkSpec(EncoderSpec("resnet10", 8, "compact"), 32, len(store.class_names), "concat", 1)
        return Here(Device(folder, load_torch), store, settled_network(spec, store, 1))

    return make


def test_it_is_installed_with_them(made: Callable[..., Here]) -> None:
    here = made("device")
    assert here.install(0.5, 0.9).installed
    assert here.changed > 10


def test_a_private_summary_is_of_the_student_as_it_is(made: Callable[..., Here]) -> None:
    """Else another clip would change every row, and no noise would cover that."""
    one, other = (made(name, last=last, noise_seed=1) for name, last in (("all", None), ("less", -1)))
    other.net = one.net
    count, classes = len(other.store.info), len(one.store.class_names)
    centres = np.full((1, classes), 1 / classes, np.float32)
    rows: list[Rows] = []
    for here in (one, other):
        request = PrototypeRequest(JOB, here.student(1.0), "dp", 3, 1, 0, 1.0, 4.0, 1e-5, centres)
        rows.append(here.device._probabilities(request, np.arange(count)))
    np.testing.assert_allclose(*rows, atol=1e-6)


@pytest.mark.parametrize("policy", [{"accepts": "dp", "accuracy": False}, {"accepts": "histogram"}])
def test_the_agreement_says_nothing_of_the_clips(
    made: Callable[..., Here], policy: dict[str, object]
) -> None:
    halves = made("one", last=24, **policy), made("other", first=24, **policy)
    halves[1].net, halves[1].store = halves[0].net, halves[0].store
    assert [here.install(1.0, 0.0).agreement for here in halves] == [1.0, 1.0]


def test_an_owner_who_accepts_only_noise_has_none(made: Callable[..., Here]) -> None:
    here = made("device", accepts="dp")
    assert here.install(1.0, 0.9).installed
    assert here.changed == 0


@pytest.mark.parametrize(("before", "after"), [(0.0, 1.0), (1.0, 0.0), (1.0, 0.25)])
def test_a_refused_student_changes_nothing(made: Callable[..., Here], before: float, after: float) -> None:
    here = made("device")
    result = here.install(before, 0.9)
    changed, seen = here.changed, stamp(here.folder, result.current)
    refused = here.install(after, 0.9, spoilt=True)
    assert not refused.installed
    assert refused.current == result.current
    assert (here.changed, stamp(here.folder, result.current)) == (changed, seen)


def test_the_same_student_again_without_them_is_as_it_was(made: Callable[..., Here]) -> None:
    here = made("device")
    here.install(0.5, 0.9)
    here.install(0.0, 0.9)
    assert here.changed == 0


def test_a_replaced_clip_is_another_one(made: Callable[..., Here]) -> None:
    here = made("device")
    version = here.install(0.5, 0.9).current
    before = installed(here.folder, here.device.model_store.load(version)).state
    audio = np.load(here.folder / DATA_FOLDER / "audio.npy")
    np.save(here.folder / DATA_FOLDER / "audio.npy", audio[::-1] * np.float32(2))
    here.device = Device(here.folder, load_torch)
    here.install(0.5, 0.9)
    after = installed(here.folder, here.device.model_store.load(version)).state
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def test_a_file_in_the_way_hinders_no_student_that_needs_none(made: Callable[..., Here]) -> None:
    here = made("device")
    (here.folder / STATISTICS_FOLDER).write_text("in the way")
    assert here.install(0.0, 0.9).installed
    assert here.changed == 0
