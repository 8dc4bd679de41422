"""The downlink cost of students: whole and as updates, at every precision, beside 15 plain fp32 copies.

Algorithm 7 as printed sends the device a whole fp32 student in each of its 15 outer rounds. The fedstill arm sends
two: the AllDistill student, then the final one as an update of it. Both are measured here, packed and unpacked as on
the wire, with the largest error of a weight at the end. "every epoch" is the cost of 15 such synchronisations.

Without ``--run`` the two students are made up: random weights, and the same after some AdamW steps (distance to the
features of a random network, random inputs; every weight moves). Trained weights pack about as well, because the cost
is in the lower bits. With ``--run RUN_DIR`` the students are those of a finished run, and the accuracy is that on the
devices' labelled clips with the student as the device has it.
"""

from __future__ import annotations

import argparse
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from rich.console import Console

from fedstill.cloud_server.distillation.compute import Compute
from fedstill.cloud_server.distillation.run_plan import read_plan
from fedstill.cloud_server.distillation.teacher import count_correct
from fedstill.datasets.audiovisual.store import ClipStore, open_store
from fedstill.models.audiovisual.encoders import EncoderSpec
from fedstill.models.audiovisual.network import AudioVisualNet, NetworkSpec
from fedstill.models.weights.checkpoint import load_checkpoint
from fedstill.models.weights.delta import Update, apply_update, content_hash, encode_update
from fedstill.models.weights.delta_coding import SMALL, UpdatePrecision
from fedstill.models.weights.packing import arrays, load_arrays

THESIS_SYNCS = 15
GOAL = 20
MB = 1e6
PRECISIONS: tuple[UpdatePrecision, ...] = get_args(UpdatePrecision)
SPECS = {
    "resnet18, width 64": NetworkSpec(EncoderSpec("resnet18", 64), 512, 6),
    "emotion_pairs student": NetworkSpec(EncoderSpec("resnet18", 8), 192, 6, frame_channels=1),
}

State = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Row:
    """One precision: bytes of the whole first and of the updated second student, and how it went."""

    precision: UpdatePrecision
    whole: int
    update: int
    largest_error: float
    seconds: float
    reached: tuple[State, State]

    @property
    def run(self) -> int:
        """Bytes of the fedstill arm's two synchronisations."""
        return self.whole + self.update


def main(arguments: Sequence[str]) -> None:
    """Measure and print; raises SystemExit if a device would not end with the version that the cloud announced."""
    options = _options(arguments)
    console = Console(soft_wrap=True, highlight=False)
    if options.run:
        _measure_run(options.run, console)
        return
    steps = 1 if options.quick else options.steps
    for name, spec in SPECS.items():
        if options.quick and spec.encoder.width > 8:
            continue
        first, second = made_up(spec, steps)
        console.print(
            f"{name}: {_plain_bytes(first) / MB:.2f} MB in fp32, {steps} AdamW steps between the two"
        )
        report([measured(first, second, precision) for precision in PRECISIONS], first, console)
        compare_scales(first, second, console)


def measured(first: State, second: State, precision: UpdatePrecision) -> Row:
    """Both synchronisations, packed and unpacked."""
    started = time.perf_counter()
    whole = _through(encode_update(first, None, precision), None)
    update = _through(encode_update(second, whole.state, precision), whole.state)
    seconds = time.perf_counter() - started
    errors = [np.abs(update.state[name].astype(np.float64) - second[name]).max(initial=0) for name in second]
    if precision == "exact" and content_hash(update.state) != content_hash(second):
        sys.exit("an exact update ended with other weights")
    return Row(
        precision, len(whole.payload), len(update.payload), max(errors), seconds, (whole.state, update.state)
    )


def _through(update: Update, base: State | None) -> Update:
    """The update, after a check that the device unpacks it to exactly the announced state."""
    if content_hash(apply_update(update.payload, base)) != content_hash(update.state):
        sys.exit("a device ended with another state than the cloud promised")
    return update


def report(
    rows: list[Row], first: State, console: Console, accuracy: Mapping[UpdatePrecision, str] | None = None
) -> None:
    """One line per precision."""
    thesis = THESIS_SYNCS * _plain_bytes(first)
    for row in rows:
        every = row.whole + (THESIS_SYNCS - 1) * row.update
        console.print(
            f"  {row.precision:<6} whole {row.whole / MB:7.2f} MB   update {row.update / MB:7.2f} MB   "
            f"run {row.run / MB:7.2f} MB, ratio 1/{thesis / row.run:4.1f} {_verdict(thesis, row.run)}   "
            f"every epoch 1/{thesis / every:4.1f}   largest error {row.largest_error:.1e}   {row.seconds:5.1f} s"
            + (f"   {accuracy[row.precision]}" if accuracy else "")
        )


def _verdict(thesis: int, ours: int) -> str:
    return f"({'meets' if ours * GOAL <= thesis else 'misses'} 1/{GOAL})"


def compare_scales(first: State, second: State, console: Console) -> None:
    """int8 with one scale per output channel, as the wire has it, beside one scale per tensor."""
    packed, squares = {"channel": 0, "tensor": 0}, {"channel": 0.0, "tensor": 0.0}
    for name, value in second.items():
        if value.ndim < 2 or value.size < SMALL:
            continue
        change = value.astype(np.float64) - first[name]
        for kind, axes in (("channel", tuple(range(1, change.ndim))), ("tensor", None)):
            scale = np.abs(change).max(axis=axes, keepdims=True) / 127
            whole = np.rint(np.divide(change, scale, out=np.zeros_like(change), where=scale > 0))
            packer = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
            packed[kind] += (
                len(packer.compress(whole.astype(np.int8).tobytes()) + packer.flush()) + 4 * scale.size
            )
            squares[kind] += float(((whole * scale - change) ** 2).sum())
    error = (squares["channel"] / squares["tensor"]) ** 0.5 if squares["tensor"] else 1.0
    console.print(
        f"  int8 update, one scale per channel beside one per tensor: error (rms) ratio {error:.2f}, "
        f"bytes ratio {packed['channel'] / packed['tensor']:.2f}"
    )


def made_up(spec: NetworkSpec, steps: int) -> tuple[State, State]:
    """A student with random weights, and the same after ``steps`` AdamW steps."""
    generator = torch.Generator().manual_seed(1)
    net = AudioVisualNet(spec, generator)
    aim = AudioVisualNet(spec, generator).eval()
    first = {name: value.copy() for name, value in arrays(net).items()}
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.05)
    for _ in range(steps):
        audio = torch.randn(4, 1, 64, 157, generator=generator)
        frames = torch.randn(4, 1, spec.frame_channels, 48, 48, generator=generator)
        with torch.no_grad():
            wanted = aim.encoders(audio, frames)
        found = net.encoders(audio, frames)
        loss = F.mse_loss(found.audio, wanted.audio) + F.mse_loss(found.visual, wanted.visual)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return first, arrays(net)


def _measure_run(run_dir: Path, console: Console) -> None:
    """Every personal student of a finished run, with the AllDistill student from which it started."""
    plan = read_plan(run_dir)
    found = sorted(run_dir.glob("seed*/students/*.safetensors"))
    if not found:
        sys.exit(f"{run_dir}: no personal students here; run an experiment with the fedstill arm first")
    right = {(precision, stage): 0 for precision in PRECISIONS for stage in (0, 1)}
    total = 0
    for path in found:
        folder, stem = path.parents[1], path.with_suffix("")
        nets = [load_checkpoint(one)[0] for one in (folder / "all_distill", stem)]
        store = open_store(run_dir / "devices" / stem.name.rpartition("client")[2] / "data")
        first, second = (arrays(net) for net in nets)
        rows = [measured(first, second, precision) for precision in PRECISIONS]
        labelled = np.flatnonzero(store.labels >= 0)
        said = {}
        for row in rows:
            counts = [_count_right(nets[0], state, store, labelled) for state in row.reached]
            for stage, count in enumerate(counts):
                right[row.precision, stage] += count
            said[row.precision] = f"right {counts[0]}, then {counts[1]} of {len(labelled)}"
        total += len(labelled)
        console.print(f"{folder.name}/{stem.name}: {_plain_bytes(first) / MB:.2f} MB in fp32")
        report(rows, first, console, said)
    for stage, name in enumerate(("AllDistill", "personal")):
        shares = ", ".join(f"{one} {100 * right[one, stage] / total:.2f} %" for one in PRECISIONS)
        worst = max(right["exact", stage] - right[one, stage] for one in PRECISIONS)
        console.print(
            f"accuracy of the {name} students over {total} answers: {shares}; "
            f"lost at most {100 * worst / total:.2f} points"
        )
    console.print(f"seeds {', '.join(map(str, plan.seeds))}; all answers without prior correction")


def _count_right(
    net: AudioVisualNet, state: State, store: ClipStore, positions: npt.NDArray[np.int64]
) -> int:
    load_arrays(net, state)
    return count_correct(net.eval(), store, positions, Compute("cpu", "fp32"))


def _plain_bytes(state: State) -> int:
    return sum(4 * value.size for value in state.values())


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke test in seconds")
    parser.add_argument(
        "--steps", type=int, default=20, help="AdamW steps between the two students (default 20)"
    )
    parser.add_argument("--run", type=Path, help="measure the students of this finished run directory")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
