"""A student on one core, one clip at a time: torch fp32 against ONNX fp32 and ONNX int8.

Size on disk, latency (all runtimes in turn, so that a busy moment hits all of them), peak memory of a process of its
own that decodes a clip and classifies it, and accuracy on held-out clips. Without ``--student`` and ``--store`` a
student is trained for about a minute on synthetic clips, of which some speakers are held out. ``--full-size`` adds a
ResNet-18 of width 64 on 3 s of the thesis' spectrogram and two 224-pixel frames, untrained: for latency and memory.
"""

from __future__ import annotations

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch and onnxruntime are loaded

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from rich.console import Console

if TYPE_CHECKING:
    from fedstill.datasets.audiovisual.store import ClipStore

KINDS = ("torch fp32", "ONNX fp32", "ONNX int8")
SLOWEST_OF_TWENTY = 95
HELD_OUT = 0.3


@dataclass(frozen=True)
class Clips:
    """audio float32 (n, bins, steps), frames uint8 (n, count, channels, size, size), labels int64 (n,)."""

    audio: npt.NDArray[np.float32]
    frames: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Case:
    """A checkpoint with its export, and clips that it was not trained on; ``trained`` ones show their accuracy."""

    name: str
    stem: Path
    export: Path
    held_out: Clips
    trained: bool


def main(arguments: Sequence[str]) -> None:
    """Print one table per student."""
    options = _options(arguments)
    if options.child:
        _classify_in_this_process(*options.child)
        return
    console = Console(soft_wrap=True, highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        cases = [given_student(options, work) if options.student else trained_student(options.quick, work)]
        if options.full_size:
            cases.append(full_size_student(work))
        for case in cases:
            for line in measure(case, options.rounds):
                console.print(line)


def given_student(options: argparse.Namespace, work: Path) -> Case:
    """``--student``, its int8 calibrated on ``--store``, and the labelled clips of ``--test``."""
    from fedstill.cloud_server.export.students import export_student
    from fedstill.datasets.audiovisual.store import open_store

    export_student(options.student, work / "given", store=open_store(options.store), int8=True)
    parts = [_clips(store, np.flatnonzero(store.labels >= 0)) for store in map(open_store, options.test)]
    merged = Clips(
        np.concatenate([part.audio for part in parts]),
        np.concatenate([part.frames for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )
    return Case(str(options.student), options.student, work / "given", merged, True)


def trained_student(quick: bool, work: Path) -> Case:
    """A student of the quickstart's shape, trained on some synthetic speakers and measured on the others."""
    import torch

    from fedstill.cloud_server.distillation.compute import Compute
    from fedstill.cloud_server.distillation.settings import OptimiserSettings, TeacherSettings
    from fedstill.cloud_server.distillation.teacher import train_teacher
    from fedstill.cloud_server.export.students import export_student
    from fedstill.cloud_server.federation.seed_state import hold_out
    from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
    from fedstill.datasets.audiovisual.store import build_store
    from fedstill.datasets.audiovisual.synthetic import SyntheticSource
    from fedstill.models.audiovisual.specs import EncoderSpec
    from fedstill.models.weights.checkpoint import CheckpointMeta, save_checkpoint

    source = SyntheticSource(public_per_class=8 if quick else 200, private_per_class=0)
    audio, frames = AudioSpec(seconds=2.0, hop=512), FrameSpec()
    store = build_store(source, range(len(source.index)), audio, frames, work / "store")
    training, held_out = hold_out(store.speakers, HELD_OUT, 0)
    settings = TeacherSettings(
        encoder=EncoderSpec("resnet18", 8),
        feature_width=128,
        epochs=1 if quick else 14,
        optimiser=OptimiserSettings(learning_rate=3e-3, batch_size=16 if quick else 64),
    )
    net = train_teacher(
        store, training, settings, Compute("cpu", "fp32"), torch.Generator().manual_seed(0), lambda *_: None
    )
    stem = work / "trained"
    save_checkpoint(stem, net, CheckpointMeta(net.spec, store.class_names, asdict(audio), asdict(frames)))
    calibration = replace(store, info=tuple(store.info[row] for row in training), audio=store.audio[training],
                          frames=store.frames[training])  # fmt: skip
    export_student(stem, work / "trained.onnx", store=calibration, int8=True)
    name = f"ResNet-18 of width 8, {len(training)} synthetic clips, {settings.epochs} epochs"
    return Case(name, stem, work / "trained.onnx", _clips(store, held_out), True)


def full_size_student(work: Path) -> Case:
    """The paper's student with random weights; its accuracy means nothing and is not shown."""
    import torch

    from fedstill.cloud_server.export.students import export_student
    from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
    from fedstill.datasets.audiovisual.store import build_store
    from fedstill.datasets.audiovisual.synthetic import SyntheticSource
    from fedstill.models.audiovisual.network import AudioVisualNet
    from fedstill.models.audiovisual.specs import EncoderSpec, NetworkSpec
    from fedstill.models.vit.preprocess import to_tensors
    from fedstill.models.weights.checkpoint import CheckpointMeta, save_checkpoint

    source = SyntheticSource(public_per_class=2, private_per_class=0, frame_size=224, frame_count=2)
    audio = AudioSpec(representation="spectrogram", seconds=3.0)
    frames = FrameSpec(size=224, count=2, channels=3)
    store = build_store(source, range(len(source.index)), audio, frames, work / "full_store")
    spec = NetworkSpec(EncoderSpec("resnet18", 64, "standard"), 512, len(store.class_names), "concat", 3)
    net = AudioVisualNet(spec, torch.Generator().manual_seed(0)).train()
    with torch.no_grad():
        net(
            *to_tensors(store.audio[:4], store.frames[:4])
        )  # so that the batch norms have the clips' statistics
    stem = work / "full"
    save_checkpoint(stem, net, CheckpointMeta(spec, store.class_names, asdict(audio), asdict(frames)))
    export_student(stem, work / "full.onnx", store=store, int8=True)
    clips = _clips(store, np.arange(len(store), dtype=np.int64))
    return Case("ResNet-18 of width 64, 512-d, untrained", stem, work / "full.onnx", clips, False)


def measure(case: Case, rounds: int) -> list[str]:
    """The table of one student. Ratios are of processor time, which a busy machine does not distort."""
    import torch

    from fedstill.edge_client.students.runtime import ExportFolder
    from fedstill.edge_client.students.runtime_api import Runtime
    from fedstill.edge_client.students.torch_runtime import TorchRuntime
    from fedstill.models.weights.checkpoint import load_checkpoint

    torch.set_num_threads(1)
    folder, clips = ExportFolder.open(case.export), case.held_out
    net, meta = load_checkpoint(case.stem)
    runtimes: dict[str, Runtime] = {
        "torch fp32": TorchRuntime(net, meta.class_names, ""),
        "ONNX fp32": folder.runtime(),
        "ONNX int8": folder.runtime(int8=True),
    }
    wall: dict[str, list[float]] = {kind: [] for kind in KINDS}
    processor: dict[str, list[float]] = {kind: [] for kind in KINDS}
    guesses: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for turn in range(max(rounds, len(clips.labels) if case.trained else 0)):
        row = turn % len(clips.labels)
        for kind, runtime in runtimes.items():
            started, busy = time.perf_counter(), time.process_time()
            logits = runtime.logits(runtime.features(clips.audio[row : row + 1], clips.frames[row : row + 1]))
            processor[kind].append(time.process_time() - busy)
            wall[kind].append(time.perf_counter() - started)
            if turn < len(clips.labels):
                guesses[kind].append(int(logits.argmax()))
    lines = [f"{case.name}: {turn + 1} clips, one at a time, one thread"]
    reference = float(np.median(processor[KINDS[0]]))
    for kind in KINDS:
        middle, slow = np.percentile(wall[kind], (50, SLOWEST_OF_TWENTY)) * 1e3
        line = (
            f"  {kind:<10} {_bytes_on_disk(kind, case) / 1e6:6.2f} MB, p50 {middle:6.2f} ms, p95 {slow:6.2f} ms, "
            f"ratio {reference / np.median(processor[kind]):.2f}, peak RSS {_peak_megabytes(kind, case):.0f} MB"
        )
        if case.trained:
            right = np.array(guesses[kind]) == clips.labels
            line += f", accuracy {100 * right.mean():.1f} % of {len(right)}"
        lines.append(line)
    return lines


def _clips(store: ClipStore, rows: npt.NDArray[np.int64]) -> Clips:
    return Clips(store.audio[rows], store.frames[rows], store.labels[rows])


def _bytes_on_disk(kind: str, case: Case) -> int:
    from fedstill.common.export_manifest import ENCODERS, HEAD, INT8_ENCODERS, WEIGHTS

    if kind == "torch fp32":
        return case.stem.with_name(f"{case.stem.name}.safetensors").stat().st_size
    if kind == "ONNX fp32":
        return sum((case.export / name).stat().st_size for name in (WEIGHTS, ENCODERS, HEAD))
    from safetensors.numpy import load_file

    head = sum(
        value.nbytes
        for name, value in load_file(case.export / WEIGHTS).items()
        if name.startswith("head.joint")
    )
    return head + sum((case.export / name).stat().st_size for name in (INT8_ENCODERS, HEAD))


def _peak_megabytes(kind: str, case: Case) -> float:
    """Of a fresh process that decodes a sound and a picture, and classifies them a few times."""
    arguments = ["--child", kind, str(case.stem), str(case.export)]
    done = subprocess.run(
        [sys.executable, __file__, *arguments], check=True, capture_output=True, text=True, env=_environment()
    )
    said = json.loads(done.stdout)
    if said["torch"] != (kind == "torch fp32"):
        sys.exit(f"{kind}: torch was {'' if said['torch'] else 'not '}loaded")
    return float(said["peak"])


def _classify_in_this_process(kind: str, stem: str, export: str) -> None:
    """The child's part; imports only the modules that the kind needs."""
    import soundfile
    from PIL import Image

    from fedstill.datasets.audiovisual.clip_tensors import frame_tensor
    from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
    from fedstill.datasets.audiovisual.spectrogram_numpy import audio_features
    from fedstill.datasets.decoding.decode import read_audio
    from fedstill.datasets.decoding.image_files import read_image
    from fedstill.edge_client.students.runtime import ExportFolder
    from fedstill.edge_client.students.runtime_api import Runtime

    folder = ExportFolder.open(Path(export))
    about = folder.described
    runtime: Runtime
    if kind == "torch fp32":
        from fedstill.edge_client.students.torch_runtime import TorchRuntime, use_one_thread
        from fedstill.models.weights.checkpoint import load_checkpoint

        use_one_thread()
        runtime = TorchRuntime(load_checkpoint(Path(stem))[0], about.class_names, "")
    else:
        runtime = folder.runtime(int8=kind == "ONNX int8")
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        sound, picture = Path(place) / "a.wav", Path(place) / "a.png"
        soundfile.write(sound, rng.normal(0, 0.1, 3 * 48_000), 48_000)
        Image.fromarray(rng.integers(0, 255, (240, 320, 3), np.uint8)).save(picture)
        for _ in range(5):
            heard = audio_features(*read_audio(sound), AudioSpec(**about.audio))
            seen = frame_tensor(read_image(picture)[None], FrameSpec(**about.frames))
            runtime.logits(runtime.features(heard[None], seen[None]))
    status = Path(
        "/proc/self/status"
    ).read_text()  # not getrusage: its maximum includes the parent's before exec
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    sys.stdout.write(json.dumps({"peak": peak, "torch": "torch" in sys.modules}))


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--student", type=Path, help="checkpoint without suffix, such as RUN/seed0/all_distill"
    )
    parser.add_argument("--store", type=Path, help="clip store whose public clips calibrate int8: RUN/public")
    parser.add_argument(
        "--test", type=Path, nargs="+", help="clip stores to measure accuracy on: RUN/devices/*/data"
    )
    parser.add_argument(
        "--speakers", default="", help="without --test: speakers of --store held out, with commas"
    )
    parser.add_argument("--full-size", action="store_true", help="also ResNet-18 of width 64, untrained")
    parser.add_argument("--rounds", type=int, default=200, help="clips to time (default 200)")
    parser.add_argument("--quick", action="store_true", help="a smoke test in seconds")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if len({options.student is None, options.store is None, options.test is None}) > 1:
        parser.error("--student, --store and --test belong together")
    if options.quick:
        options.rounds = 10
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
