"""The saving of the public bank: one outer round of Algorithm 7 with it, and as printed, on the same clips.

As printed, the teacher runs on every public clip in every outer round (line 5) and at every batch that the student
trains on (Eq. 5.4). The bank holds the same outputs, computed once. Both ways train the same student on the same
clips in the same order, in turn, and must end with the same weights. The saving depends on the meaning of an inner
epoch, so both readings are measured: a pass over the selected clips, as in fedstill, and the single batch of lines 7-9.
Networks and inputs have the sizes of the ``emotion_pairs`` experiment; the teacher is left untrained, because its
outputs do not affect the time.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from fedstill.cloud_server.distillation.compute import Compute, use_threads
from fedstill.cloud_server.distillation.distiller import Distiller, make_distiller
from fedstill.cloud_server.distillation.public_bank import PublicBank, compute_bank, outputs_of
from fedstill.cloud_server.distillation.selection import Selection, per_prototype, select_nearest
from fedstill.cloud_server.distillation.settings import DistillationSettings
from fedstill.datasets.audiovisual.capture.views import PlainViews
from fedstill.datasets.audiovisual.specs import AudioSpec, FrameSpec
from fedstill.datasets.audiovisual.store import ClipStore, build_store
from fedstill.datasets.audiovisual.synthetic import SyntheticSource
from fedstill.models.audiovisual.encoders import EncoderSpec
from fedstill.models.audiovisual.network import AudioVisualNet, Features, NetworkSpec

BUDGET = 0.28
INNER_EPOCHS = 5
PROTOTYPES = 64
FEATURE_WIDTH = 192
TEACHER = EncoderSpec("resnet18", 24)
STUDENT = EncoderSpec("resnet18", 8)
CLASSES = 6
AUDIO = AudioSpec(seconds=2.5, hop=256, mel_bins=64)  # 64 x 157
FRAMES = FrameSpec(size=48, count=1, channels=1)
TOLERANCE = 0.01
"""Largest accepted difference of the two students, as a share of how far training moved them."""

Reading = Literal["pass", "batch"]
"""The meaning of an inner epoch."""


@dataclass
class Way:
    """One way to do an outer round, and the seconds that its rounds took."""

    name: str
    distiller: Distiller
    public_probabilities: Callable[[], np.ndarray]
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(3))
    seconds: list[float] = field(default_factory=list)

    def outer_round(self, prototypes: np.ndarray, reading: Reading) -> Selection:
        """Lines 5-9: the teacher's outputs for the public clips, SelectData, distillation."""
        started = time.perf_counter()
        public = self.public_probabilities()
        takes = per_prototype(round(BUDGET * len(public)), len(prototypes))
        selection = Selection.uniform(select_nearest(prototypes, public, takes))
        for _ in range(INNER_EPOCHS):
            self.distiller.run(selection if reading == "pass" else self._batch(selection), 1)
        self.seconds.append(time.perf_counter() - started)
        return selection

    def _batch(self, selection: Selection) -> Selection:
        size = min(self.distiller.settings.optimiser.batch_size, len(selection.positions))
        return Selection.uniform(self.rng.choice(selection.positions, size, replace=False))


def main(arguments: Sequence[str]) -> None:
    """Measure, compare, print; raises SystemExit if the two ways disagree."""
    options = _options(arguments)
    rounds, per_class = (2, 6) if options.quick else (options.rounds, options.clips // CLASSES)
    console = Console(soft_wrap=True, highlight=False)
    if options.threads:
        use_threads(options.threads)
    with TemporaryDirectory() as scratch:
        source = SyntheticSource(public_per_class=per_class, private_per_class=0, frame_count=FRAMES.count)
        store = build_store(source, range(len(source.index)), AUDIO, FRAMES, Path(scratch) / "public")
        compute = Compute()
        teacher = AudioVisualNet(_spec(TEACHER)).to(compute.torch_device).eval()
        started = time.perf_counter()
        bank = compute_bank(teacher, store, compute, version="benchmark")
        console.print(
            f"one outer round on synthetic clips: {len(store)} public, {round(BUDGET * len(store))} selected, "
            f"{INNER_EPOCHS} inner epochs, {torch.get_num_threads()} threads; medians of {rounds} rounds\n"
            f"making the bank, once per teacher: {time.perf_counter() - started:.2f} s"
        )
        compare(teacher, store, bank, compute, rounds, "pass", console)
        compare(teacher, store, bank, compute, rounds, "batch", console)


def compare(
    teacher: AudioVisualNet,
    store: ClipStore,
    bank: PublicBank,
    compute: Compute,
    rounds: int,
    reading: Reading,
    console: Console,
) -> None:
    """Train one student both ways, ``rounds`` outer rounds each, interleaved."""
    count = min(PROTOTYPES, round(BUDGET * len(store)) // 4)
    prototypes = bank.probabilities()[np.linspace(0, len(store) - 1, count).astype(np.int64)]
    start = AudioVisualNet(_spec(STUDENT), torch.Generator().manual_seed(1))
    with_bank = Way("public bank", _distiller(start, store, bank, compute, rounds), bank.probabilities)
    printed = Way(
        "as printed",
        _distiller(start, store, bank, compute, rounds),
        lambda: _ask_teacher_again(teacher, store, compute),
    )
    printed.distiller.teacher_features = _per_batch(teacher, compute)
    for turn in range(rounds):
        order = (with_bank, printed) if turn % 2 == 0 else (printed, with_bank)
        one, other = (np.sort(way.outer_round(prototypes, reading).positions) for way in order)
        if not np.array_equal(one, other):
            sys.exit("the two ways selected different public clips")
    slow, fast = median(printed.seconds), median(with_bank.seconds)
    apart = _distance(with_bank.distiller.student, printed.distiller.student)
    moved = _distance(with_bank.distiller.student, start)
    console.print(
        f"inner epoch = one {reading:<6} as printed {slow:7.2f} s   public bank {fast:7.2f} s   "
        f"ratio {slow / fast:5.1f}   students differ by {apart / moved:.0e}"
    )
    if not apart <= TOLERANCE * moved:
        sys.exit(f"the two ways trained different students: {apart / moved:.0e} is above {TOLERANCE:g}")


def _distiller(
    start: AudioVisualNet, store: ClipStore, bank: PublicBank, compute: Compute, rounds: int
) -> Distiller:
    settings = DistillationSettings(inner_epochs=INNER_EPOCHS)
    return make_distiller(
        copy.deepcopy(start),
        PlainViews(store),
        bank,
        settings,
        settings.optimiser,
        compute,
        torch.Generator().manual_seed(2),
        epochs=rounds * INNER_EPOCHS,
        clips_per_epoch=round(BUDGET * len(store)),
    )


def _ask_teacher_again(teacher: AudioVisualNet, store: ClipStore, compute: Compute) -> np.ndarray:
    """Line 5 as printed: the teacher's probabilities of all public clips."""
    answers = outputs_of(teacher, PlainViews(store), np.arange(len(store)), compute)
    return torch.cat([logits.joint.cpu() for _, logits in answers]).softmax(dim=1).numpy()


def _per_batch(teacher: AudioVisualNet, compute: Compute) -> Callable[[np.ndarray, Tensor, Tensor], Features]:
    """Eq. 5.4 as printed: the teacher's features of the batch at hand."""

    @torch.no_grad()
    def ask(_positions: np.ndarray, audio: Tensor, frames: Tensor) -> Features:
        with compute.autocast():
            found = teacher.encoders(audio.to(compute.torch_device), frames.to(compute.torch_device))
        return Features(found.audio.float(), found.visual.float())

    return ask


def _distance(one: AudioVisualNet, other: AudioVisualNet) -> float:
    """Euclidean distance of all trained weights."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return float(sum(((a.cpu() - b.cpu()) ** 2).sum().item() for a, b in pairs) ** 0.5)


def _spec(encoder: EncoderSpec) -> NetworkSpec:
    return NetworkSpec(encoder, FEATURE_WIDTH, CLASSES, frame_channels=FRAMES.channels)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke test in seconds")
    parser.add_argument("--rounds", type=int, default=3, help="outer rounds per way (default 3)")
    parser.add_argument("--clips", type=int, default=3168, help="public clips (default 3168, emotion_pairs)")
    parser.add_argument(
        "--threads", type=int, default=1, help="torch threads, 0 = torch's choice (default 1)"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
