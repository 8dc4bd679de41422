"""How strong must a condition be for the generic student to lose 8, 16 and 24 points? Severities for [robustness].

    python benchmarks/students/capture_severity.py RUN_DIR --conditions robustness

RUN_DIR is a finished run whose private speakers may be looked at: development data, or the fold that was looked at
before. The conditions are those of the experiment that --conditions names (default: the run's own), and the answer is
for its file. The strength is found by bisection, on the same clips with the same room and noise at every step.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from fedstill.cloud_server.federation.seed_state import GENERIC
from fedstill.common.run_layout import seed_folder
from fedstill.datasets.audiovisual.capture.captured import CapturedSource
from fedstill.datasets.audiovisual.capture.conditions import Condition
from fedstill.datasets.audiovisual.capture.effects import SoundEffects, with_babble
from fedstill.datasets.audiovisual.capture.talkers import babble_of
from fedstill.datasets.audiovisual.clip import ClipSource
from fedstill.datasets.audiovisual.clip_tensors import clip_tensors
from fedstill.datasets.audiovisual.spectrogram import audio_features
from fedstill.datasets.audiovisual.store import open_store
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.models.vit.preprocess import to_tensors
from fedstill.models.weights.checkpoint import load_checkpoint
from fedstill.simulation.config import Experiment, load_experiment
from fedstill.simulation.launcher import load_run
from fedstill.simulation.robustness_devices import HeldSource
from fedstill.simulation.robustness_settings import ConditionSettings
from fedstill.simulation.sources import open_source, split_positions

TARGETS = (8.0, 16.0, 24.0)  # points
STRONGEST = 4.0
STEPS = 7  # of the bisection: to within 0.03
DEVICE_SEED = 1


@dataclass(frozen=True)
class Evaluator:
    """Counts a student's right answers on clips that are recorded anew.

    Attributes:
        source: of the clips, which are held.
        rows: their positions.
    """

    net: AudioVisualNet
    experiment: Experiment
    source: ClipSource
    rows: npt.NDArray[np.int64]
    effects: SoundEffects

    def accuracy(self, condition: Condition) -> float:
        """In percent, if one device with this condition had recorded the clips."""
        captured = CapturedSource(self.source, condition, DEVICE_SEED, self.effects)
        clips = [captured.load(row) for row in self.rows.tolist()]
        specs = self.experiment.audio, self.experiment.frames
        made = [clip_tensors(clip, *specs, audio_features) for clip in clips]
        sounds, pictures = np.stack([one.audio for one in made]), np.stack([one.frames for one in made])
        labels = np.array([clip.info.label for clip in clips])
        self.net.eval()
        with torch.inference_mode():
            audio, frames = to_tensors(sounds, pictures)
            decided = self.net.head(self.net.encoders(audio, frames)).joint.argmax(dim=1).numpy()
        return 100 * float((decided == labels).mean())


def open_evaluator(run_dir: Path, clips: int) -> Evaluator:
    """The generic student of a run's first seed, and some of its private clips, spread evenly."""
    experiment = load_run(run_dir)
    source = open_source(experiment)
    _, private = split_positions(source)
    rows = private[np.unique(np.linspace(0, len(private) - 1, min(clips, len(private))).round().astype(int))]
    net, _ = load_checkpoint(seed_folder(run_dir, experiment.run.first_seed) / GENERIC)
    effects = with_babble(babble_of(open_store(run_dir / "public")))
    return Evaluator(net, experiment, HeldSource(source), rows, effects)


def severity_for(target: float, loss: Callable[[float], float], steps: int) -> float | None:
    """The severity at which ``loss`` reaches ``target``; None if even the strongest does not."""
    low, high = 0.0, STRONGEST
    if loss(high) < target:
        return None
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if loss(middle) < target else (low, middle)
    return round(high, 2)


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--conditions", default="", help="experiment whose conditions are measured")
    parser.add_argument("--clips", type=int, default=264, help="on which the student is judged (default 264)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of the bisection (default {STEPS})")
    options = parser.parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False)
    evaluator = open_evaluator(options.run_dir, options.clips)
    settings = (
        load_experiment(options.conditions) if options.conditions else evaluator.experiment
    ).robustness
    plain = evaluator.accuracy(Condition("none", settings.family))
    console.print(f"as public clips: {plain:.1f} % of {len(evaluator.rows)} clips")
    for condition in settings.conditions:

        @cache
        def loss(severity: float, condition: ConditionSettings = condition) -> float:
            return plain - evaluator.accuracy(condition.at(severity, settings.family))

        found = [severity_for(target, loss, options.steps) for target in TARGETS]
        reached = ", ".join(f"{loss(one):.1f}" if one is not None else "-" for one in found)
        written = ", ".join(str(one) for one in found if one is not None)
        console.print(f"{condition.label()}: severities = [{written}] # loses {reached} points")


if __name__ == "__main__":
    main(sys.argv[1:])
