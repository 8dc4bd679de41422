"""A device that has no torch: in these processes an import of torch fails, and everything that a device does works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.exports import Exported, make_export
from helpers.media import write_sound, write_video

from fedstill.datasets.audiovisual.clip_tensors import frame_tensor
from fedstill.datasets.audiovisual.manifest import ManifestSource
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.audiovisual.spectrogram import audio_features
from fedstill.datasets.audiovisual.store import build_store, open_store
from fedstill.datasets.decoding.decode import read_audio, read_video_frames
from fedstill.edge_client.node.device import Device, seed_of
from fedstill.edge_client.privacy.privacy_policy import PrivacyPolicy, write_policy
from fedstill.edge_client.privacy.prototypes import Prototypes, summarise
from fedstill.edge_client.students.torch_runtime import TorchRuntime, load_torch
from fedstill.models.audiovisual.specs import network_to_json
from fedstill.models.weights.delta import content_hash, encode_update
from fedstill.models.weights.packing import arrays
from fedstill.protos.messages import EvaluationRequest, Job, PrototypeRequest, Student

pytestmark = pytest.mark.slow

LEFT_OUT = (
    "torch",
    "torchvision",
    "torchaudio",
    "ray",
    "matplotlib",
    "tensorboard",
    "onnx",
    "scipy",
    "sklearn",
)
"""What the small install does not have."""
BLOCK = """
import json, sys
from pathlib import Path

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if any(name == one or name.startswith(one + ".") for one in {blocked!r}):
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, NotInstalled())
"""
CLASSIFY = """
from fedstill.datasets.decoding.decode import read_audio, read_video_frames
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.audiovisual.spectrogram_numpy import audio_features
from fedstill.datasets.audiovisual.clip_tensors import frame_tensor
from fedstill.edge_client.students.runtime import ExportFolder

folder = ExportFolder.open(Path(sys.argv[1]))
about, runtime = folder.described, folder.runtime()
audio, frames = AudioSpec(**about.audio), FrameSpec(**about.frames)
heard = audio_features(*read_audio(Path(sys.argv[2])), audio)
seen = frame_tensor(read_video_frames(Path(sys.argv[3]), frames.count), frames)
shares = runtime.probabilities(runtime.logits(runtime.features(heard[None], seen[None])))
print(json.dumps({"shares": shares[0].tolist(), "scipy": "scipy" in sys.modules}))
"""
PREPARE = """
from fedstill.datasets.audiovisual.manifest import ManifestSource
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.audiovisual.store import build_store

source = ManifestSource(Path(sys.argv[1]), frame_count=1)
build_store(source, range(len(source.index)), AudioSpec(seconds=0.6), FrameSpec(size=24), Path(sys.argv[2]))
print(json.dumps("torch" in sys.modules))
"""
SUMMARISE = """
import numpy as np
from fedstill.edge_client.node.device import Device
from fedstill.edge_client.students.runtime import ExportFolder
from fedstill.protos.messages import EvaluationRequest, Job, PrototypeRequest, Student

device = Device(Path(sys.argv[2]), ExportFolder.open(Path(sys.argv[1])).load)
given = json.loads(Path(sys.argv[3]).read_text())
student = Student(
    np.fromfile(given["weights"], np.uint8), given["spec"], tuple(given["class_names"]), given["version"]
)
job = Job("latency_insensitive", "fedstill", 3, 1)
sent = {}
for kind in ("samples", "kmeans", "constrained", "histogram"):
    upload = device.prototypes(PrototypeRequest(job, student, kind, 3, 3, 0, 0.5))
    sent[kind] = {"probabilities": upload.probabilities.tolist(), "counts": upload.counts.tolist()}
right = device.evaluate(EvaluationRequest(job, student, np.empty(0, np.uint8), ""))
print(json.dumps({"prototypes": sent, "correct": right.correct, "total": right.total}))
"""
APP = """
import numpy as np
from flwr.app import Context, Message, RecordDict
from fedstill.edge_client.node import client_app
from fedstill.edge_client.node.device import Device

context = Context(1, 1, {"partition-id": 0}, RecordDict(), {"run-dir": sys.argv[1]})
print(json.dumps({"loader": type(client_app._device(context)._load.__self__).__name__}))
"""

API = """
import fedstill

student = fedstill.load_student(sys.argv[1])
found = student.classify_file(sys.argv[2], sys.argv[3])
try:
    fedstill.load_student(sys.argv[4])
except fedstill.UserError as error:
    refused = str(error)
print(json.dumps({"shares": found.probabilities.tolist(), "refused": refused, "torch": "torch" in sys.modules}))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return make_export(tmp_path_factory.mktemp("exported"))


def run(
    script: str, *arguments: object, blocked: Sequence[str] = LEFT_OUT, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The script in a process that cannot import what a small device does not have."""
    return subprocess.run(
        [sys.executable, "-c", BLOCK.format(blocked=blocked) + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


def without_torch(script: str, *arguments: object) -> Any:
    """What the script prints as JSON, from a process in which the cloud's room cannot be imported, either."""
    done = run(script, *arguments, blocked=(*LEFT_OUT, "fedstill.cloud_server"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_blocker_blocks() -> None:
    for name in LEFT_OUT[:3]:
        with pytest.raises(AssertionError, match=f"No module named '{name}'"):
            without_torch(f"import {name}")


def test_the_public_api_classifies_and_says_what_a_checkpoint_needs(
    exported: Exported, tmp_path: Path
) -> None:
    sound, film = write_sound(tmp_path / "a.wav", seconds=1.0, rate=44_100), write_video(tmp_path / "a.mp4")
    answer = without_torch(API, exported.folder, sound, film, exported.stem)
    assert (
        answer["refused"]
        == f"{exported.stem}: this student needs torch: install fedstill with the extra [full]"
    )
    assert not answer["torch"]
    assert answer["shares"] == without_torch(CLASSIFY, exported.folder, sound, film)["shares"]


def test_a_clip_is_decoded_transformed_and_classified(exported: Exported, tmp_path: Path) -> None:
    sound, film = write_sound(tmp_path / "a.wav", seconds=1.0, rate=44_100), write_video(tmp_path / "a.mp4")
    answer = without_torch(CLASSIFY, exported.folder, sound, film)
    described = json.loads((exported.folder / "meta.json").read_text())
    waveform, rate = read_audio(sound)
    frame_spec = FrameSpec(**described["frames"])
    audio = audio_features(waveform, rate, AudioSpec(**described["audio"]))
    frames = frame_tensor(read_video_frames(film, frame_spec.count), frame_spec)
    reference = TorchRuntime(exported.net, exported.store.class_names, "x")
    logits = reference.logits(reference.features(audio[None], frames[None]))
    np.testing.assert_allclose(answer["shares"], reference.probabilities(logits)[0], atol=1e-3)
    assert not answer["scipy"]  # 60 MB of memory that classifying can do without


def test_a_manifest_becomes_the_same_store(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav", rate=48_000)
    write_video(tmp_path / "a.mp4")
    table = tmp_path / "manifest.csv"
    table.write_text("clip_id,split,speaker,label,audio,frames\na,private,anna,happy,a.wav,a.mp4\n")
    assert without_torch(PREPARE, table, tmp_path / "light") is False
    source = ManifestSource(table, frame_count=1)
    build_store(source, [0], AudioSpec(seconds=0.6), FrameSpec(size=24), tmp_path / "reference")
    light, reference = open_store(tmp_path / "light"), open_store(tmp_path / "reference")
    np.testing.assert_allclose(light.audio, reference.audio, atol=5e-4)
    np.testing.assert_array_equal(light.frames, reference.frames)


def test_a_device_summarises_and_evaluates(exported: Exported, tmp_path: Path) -> None:
    home = tmp_path / "device"
    home.mkdir()
    (home / "data").symlink_to(exported.store.directory)
    write_policy(home, PrivacyPolicy(accepts="samples"))  # its owner allows every kind
    spec, names = network_to_json(exported.net.spec), exported.store.class_names
    update = encode_update(arrays(exported.net), None, "exact")
    weights, version = np.frombuffer(update.payload, np.uint8), content_hash(update.state, (spec, *names))
    weights.tofile(tmp_path / "weights")
    given = {"weights": str(tmp_path / "weights"), "spec": spec, "class_names": names, "version": version}
    (tmp_path / "given.json").write_text(json.dumps(given))
    answer = without_torch(SUMMARISE, exported.folder, home, tmp_path / "given.json")

    device = Device(home, load_torch)
    student = Student(weights, spec, names, version)
    job = Job("latency_insensitive", "fedstill", 3, 1)
    found = {
        kind: Prototypes(np.array(sent["probabilities"], np.float32), np.array(sent["counts"]))
        for kind, sent in answer["prototypes"].items()
    }
    for kind, sent in found.items():
        request = PrototypeRequest(job, student, kind, 3, 3, 0, 0.5)
        with_torch = device.prototypes(request)
        assert sent.probabilities.shape == with_torch.probabilities.shape
        assert sent.counts.sum() == with_torch.counts.sum()
        if kind in ("samples", "histogram"):
            np.testing.assert_allclose(sent.probabilities, with_torch.probabilities, atol=1e-4)
            assert sent.counts.tolist() == with_torch.counts.tolist()
        # A last digit may move a clip between two clusters, so only equal probabilities give equal clusters.
        same = summarise(found["samples"].probabilities, request, seed_of(job))
        np.testing.assert_array_equal(sent.probabilities, same.probabilities)
        np.testing.assert_array_equal(sent.counts, same.counts)
    right = device.evaluate(EvaluationRequest(job, student, np.empty(0, np.uint8), ""))
    assert (answer["correct"], answer["total"]) == (right.correct, right.total)


@pytest.mark.parametrize("command", [["export", "student", "--out", "onnx"], ["simulate"]])
def test_a_command_of_the_full_install_says_so_in_one_line(command: list[str], tmp_path: Path) -> None:
    done = run(f"from fedstill.cli.main import main\nsys.argv[1:] = {command!r}\nmain()", cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install '.[full]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_client_app_takes_the_exported_student(exported: Exported, tmp_path: Path) -> None:
    folder = tmp_path / "devices" / "0"
    folder.mkdir(parents=True)
    (folder / "onnx").symlink_to(exported.folder)
    assert without_torch(APP, tmp_path)["loader"] == "ExportFolder"
