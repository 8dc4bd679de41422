"""Published methods on the devices of a finished run: the same network to start from, the same clips to learn and test.

AdaBN, TENT, SHOT and EM adapt the robust generic student as the device has it. The teacher, and the teacher with the
device's own statistics, are what a device could have if it had room for them. Only a simulation can do this: the
methods work on a device's clips, while students come from the cloud. Each outcome is a file beside the device's
evaluations, so what is there is not done again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.distillation.arm_names import REFERENCES
from fedstill.cloud_server.distillation.compute import use_threads
from fedstill.cloud_server.distillation.cross_fit import CrossFit, open_cross_fit
from fedstill.cloud_server.distillation.randomness import generator
from fedstill.cloud_server.distillation.run_plan import RunPlan, read_plan
from fedstill.cloud_server.federation.downlink import Downlink
from fedstill.cloud_server.federation.seed_state import GENERIC
from fedstill.common.atomic_files import replace_text
from fedstill.common.errors import ConfigError
from fedstill.common.run_layout import REFERENCES_FOLDER, seed_folder
from fedstill.edge_client.node.device import Device
from fedstill.edge_client.students.torch_runtime import TorchRuntime, load_torch
from fedstill.evaluation.results import write_clips
from fedstill.evaluation.robustness.baselines import adabn, shot, tent
from fedstill.evaluation.robustness.baselines.label_shift import em
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.models.audiovisual.own_clips import FEWEST_CLIPS
from fedstill.models.weights.checkpoint import CheckpointMeta, checkpoint_exists, load_checkpoint
from fedstill.protos.messages import Job
from fedstill.simulation.folders import device_folder
from fedstill.simulation.gather import gather_clips

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SeedModels:
    """What the cloud has of one seed of a run."""

    plan: RunPlan
    seed: int

    @cached_property
    def teacher(self) -> AudioVisualNet | None:
        """None if it has pretrained encoders, which need inputs that a device's store does not hold."""
        return None if self.plan.teacher.pretrained else self._kept("teacher")[0]

    @cached_property
    def generic(self) -> AudioVisualNet:
        """With the weights that a device receives."""
        net, meta = self._kept(GENERIC)
        return Downlink(self.plan.downlink.precision, meta.class_names).received(net)

    @cached_property
    def cross_fit(self) -> CrossFit | None:
        return open_cross_fit(self._folder / "cross_fit")

    @property
    def _folder(self) -> Path:
        return seed_folder(Path(self.plan.work), self.seed)

    def _kept(self, name: str) -> tuple[AudioVisualNet, CheckpointMeta]:
        stem = self._folder / name
        if not checkpoint_exists(stem):
            raise ConfigError(f"{stem.parent}: has no {name}: finish the run first")
        net, meta = load_checkpoint(stem)
        return net.eval(), meta


def evaluate_published(
    run_dir: Path,
    clients: Sequence[int],
    arms: Sequence[str] = tuple(REFERENCES),
    on_progress: Callable[[str], None] = lambda _: None,
) -> tuple[str, ...]:
    """Evaluate ``arms`` for these clients with every seed of the run, and write ``clips.json`` anew.

    Returns:
        What could not be evaluated, in words.

    Raises:
        ConfigError: the run lacks a model; ResultsError: its clips do not fit together.
    """
    plan = read_plan(run_dir)
    left_out: list[str] = []
    for seed in plan.seeds:
        models = SeedModels(plan, seed)
        _ = models.teacher, models.generic, models.cross_fit  # read once, before devices share them

        def serve(client: int, models: SeedModels = models) -> list[str]:
            use_threads(1)
            return list(_serve(run_dir, client, models, arms))

        with ThreadPoolExecutor(plan.compute.workers) as pool:
            for client, reasons in zip(clients, pool.map(serve, clients), strict=True):
                on_progress(f"published methods, seed {seed}, device {client}")
                left_out += reasons
    write_clips(run_dir, gather_clips(run_dir, plan.clients))
    return tuple(left_out)


def _serve(run_dir: Path, client: int, models: SeedModels, arms: Sequence[str]) -> Iterator[str]:
    """What could not be evaluated for one device."""
    device = Device(device_folder(run_dir, client), load_torch)
    for scenario in models.plan.scenarios:
        for arm in arms:
            job = Job(scenario, arm, models.seed, 0)
            reason = None if _file(device, job).exists() else _evaluate(device, job, client, models)
            if reason:
                yield f"{REFERENCES[arm]} of client {client}, seed {models.seed}: {reason}"


def _evaluate(device: Device, job: Job, client: int, models: SeedModels) -> str | None:
    """Adapt, classify the labelled test clips, keep the outcome; or why that is not possible."""
    store = device.store
    query, test = device.roles(job)
    test = test[store.labels[test] >= 0]
    if len(query) < FEWEST_CLIPS and job.arm not in ("teacher", "em"):
        return f"{len(query)} query clips have no statistics"
    net = models.teacher if job.arm.startswith("teacher") else models.generic
    if net is None:
        return "a teacher with pretrained encoders does not run on a device's clips"
    if job.arm == "em" and models.cross_fit is None:
        return "no speakers that a student never heard, so no calibrated posteriors"
    sound, pictures = store.audio[query], store.frames[query]
    rng = generator(job.seed, job.arm, job.scenario, client)
    bias = np.zeros(len(store.class_names), np.float32)
    if job.arm in ("teacher_own_statistics", "adabn"):
        net = adabn.adapt(net, sound, pictures)
    elif job.arm == "tent":
        net = tent.adapt(net, sound, pictures, rng)
    elif job.arm == "shot":
        net = shot.adapt(net, sound, pictures, rng)
    elif job.arm == "em" and models.cross_fit is not None:
        logits = _logits(net, device, query)
        bias = em(models.cross_fit.logits, models.cross_fit.labels, logits).bias
    decided = (_logits(net, device, test) + bias).argmax(axis=1)
    _remember(device, job, test, decided)
    return None


def _logits(net: AudioVisualNet, device: Device, positions: npt.NDArray[np.int64]) -> Floats:
    store = device.store
    runtime = TorchRuntime(net, store.class_names, version="")
    return runtime.logits(runtime.features(store.audio[positions], store.frames[positions]))


def _remember(
    device: Device, job: Job, positions: npt.NDArray[np.int64], decided: npt.NDArray[np.int64]
) -> None:
    """Keep the per-clip outcome, in the form of a device's own evaluations."""
    store = device.store
    right = decided == store.labels[positions]
    outcome = {
        "scenario": job.scenario,
        "arm": job.arm,
        "seed": job.seed,
        "clip_ids": [store.info[position].clip_id for position in positions],
        "decided": [store.class_names[label] for label in decided],
        "correct": "".join("1" if one else "0" for one in right),
    }
    replace_text(_file(device, job), json.dumps(outcome))


def _file(device: Device, job: Job) -> Path:
    return device.directory / REFERENCES_FOLDER / f"{job.scenario}.{job.arm}.{job.seed}.json"
