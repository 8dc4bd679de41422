"""The stage of the attacks: public clips split by speaker, and a trained student seen from both sides.

The attacker is the cloud: it has the student, and the clips of its own speakers. The victims are other public speakers,
whose clips stand for those of devices. For an experiment, teacher and student are trained without the victims' clips,
as they are for real devices. A run directory's student has seen all public clips, and the report says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fedstill.cloud_server.distillation.centres import public_centres
from fedstill.cloud_server.distillation.compression_training import train_level
from fedstill.cloud_server.distillation.randomness import generator, stream
from fedstill.cloud_server.distillation.run_plan import RunPlan, read_plan
from fedstill.cloud_server.federation.seed_state import SeedCloud
from fedstill.cloud_server.journal.event_log import Metrics
from fedstill.common.errors import ConfigError
from fedstill.common.paths import data_path
from fedstill.common.run_layout import PLAN_FILE, seed_folder
from fedstill.datasets.audiovisual.manifest import speaker_sexes
from fedstill.datasets.audiovisual.store import ClipStore, build_store, open_store
from fedstill.edge_client.students.torch_runtime import TorchRuntime
from fedstill.evaluation.redteam.stage import Positions, Stage, View
from fedstill.models.audiovisual.compression import CompressionNet, dequantise, quantise
from fedstill.models.audiovisual.network import AudioVisualNet, Features
from fedstill.models.weights.checkpoint import checkpoint_exists
from fedstill.simulation.config import Experiment
from fedstill.simulation.launcher import load_run
from fedstill.simulation.pretrained import with_checked_encoders
from fedstill.simulation.sources import open_source

VICTIM_SHARE = 3
"""One speaker in so many is a victim."""
FEWEST_SPEAKERS = 4
COMPRESSED_RATE = 3.0


def stage_from_experiment(experiment: Experiment, seed: int, work: Path, say: Callable[[str], None]) -> Stage:
    """Split the public speakers, then train teacher and student on the attacker's clips only.

    Raises:
        ConfigError, DataError: the experiment cannot be used, or has too few public speakers.
    """
    experiment = with_checked_encoders(experiment)
    source = open_source(experiment)
    public = [position for position, clip in enumerate(source.index) if clip.split == "public"]
    is_victim = victims_among(tuple(source.index[position].speaker for position in public), seed)
    say(f"decoding {len(public)} public clips of {source.name}")
    stores: list[ClipStore] = []
    for name, wanted in (("attacker", False), ("victims", True)):
        stores.append(
            build_store(
                source,
                [position for position, victim in zip(public, is_victim, strict=True) if victim is wanted],
                experiment.audio,
                experiment.frames,
                work / name,
                keep_sound=True,
                feature_steps=stores[0].audio.shape[-1] if stores else None,
            )
        )
    plan = RunPlan(
        public=str(work / "attacker"),
        work=str(work),
        clients=0,
        seeds=(seed,),
        scenarios=(),
        arms=(),
        oracle_classes=(),
        teacher=experiment.teacher,
        student=experiment.student,
        distillation=experiment.distillation,
        selection=experiment.selection,
        prototypes=experiment.prototypes,
        ours=experiment.fedstill,
        compute=experiment.compute,
        holdout=0.0,
        teacher_reference=False,
    )
    return _stage(experiment, plan, seed, (stores[0], stores[1]), say, saw_victims=False)


def stage_from_run(run_dir: Path, seed: int, say: Callable[[str], None]) -> Stage:
    """The AllDistill student of a run, attacked on the public clips that it was distilled on.

    Raises:
        ConfigError: the folder holds no run, or its student is not trained for this seed.
    """
    experiment = load_run(run_dir)
    if not (run_dir / PLAN_FILE).exists():
        raise ConfigError(
            f"{run_dir}: its run never began; finish it with fedstill simulate --resume {run_dir}"
        )
    plan = replace(read_plan(run_dir), work=str(run_dir), public=str(run_dir / "public"))
    if not checkpoint_exists(seed_folder(run_dir, seed) / "all_distill"):
        raise ConfigError(
            f"{run_dir}: has no trained student for seed {seed}; finish the run, or choose one of its seeds "
            f"({', '.join(map(str, plan.seeds))}) with --seed"
        )
    store = open_store(run_dir / "public")
    is_victim = np.array(victims_among(store.speakers, seed))
    parts = part_of(store, np.flatnonzero(~is_victim)), part_of(store, np.flatnonzero(is_victim))
    return _stage(experiment, plan, seed, parts, say, saw_victims=True)


def victims_among(speakers: tuple[str, ...], seed: int) -> list[bool]:
    """Which clips belong to a victim: a third of the speakers, chosen by ``seed``.

    Raises:
        ConfigError: fewer than four speakers.
    """
    names = sorted(set(speakers))
    if len(names) < FEWEST_SPEAKERS:
        raise ConfigError(
            f"the public clips name {len(names)} speakers; redteam needs {FEWEST_SPEAKERS} or more to split them"
        )
    drawn = np.random.default_rng(seed).permutation(names)[: max(2, len(names) // VICTIM_SHARE)]
    chosen = set(drawn.tolist())
    return [name in chosen for name in speakers]


def part_of(store: ClipStore, positions: Positions) -> ClipStore:
    """Some clips of a store, copied into memory."""
    return replace(
        store,
        info=tuple(store.info[position] for position in positions),
        audio=store.audio[positions],
        frames=store.frames[positions],
        profiles=None if store.profiles is None else store.profiles[positions],
        sound=None,
    )


def _stage(
    experiment: Experiment,
    plan: RunPlan,
    seed: int,
    stores: tuple[ClipStore, ClipStore],
    say: Callable[[str], None],
    *,
    saw_victims: bool,
) -> Stage:
    metrics = Metrics(Path(plan.work))
    try:
        cloud = SeedCloud(plan, seed, metrics)
        say("training teacher and student, unless they are there")
        net = cloud.all_distill.cpu().eval()
        rate3 = _compressor(net, stores[0], seed)
        say("looking at the clips through the student")
        sexes = _sexes(experiment)
        attacker, victims = (_view(net, rate3, store, sexes) for store in stores)
        centres = public_centres(
            attacker.probabilities,
            plan.prototypes.centres or len(stores[0].class_names),
            stream(seed, "centres") % 2**32,
        )
    finally:
        metrics.close()
    return Stage(
        name=experiment.name,
        dataset=stores[0].dataset,
        synthetic=experiment.dataset.kind == "synthetic",
        class_names=stores[0].class_names,
        prototypes=experiment.prototypes,
        seed=seed,
        attacker=attacker,
        victims=victims,
        centres=centres,
        correct=int((victims.probabilities.argmax(axis=1) == stores[1].labels).sum()),
        student_saw_victims=saw_victims,
    )


def _sexes(experiment: Experiment) -> dict[str, str]:
    """Of the speakers, if the experiment has a manifest that says them and is still there."""
    settings = experiment.dataset
    if settings.kind != "manifest":
        return {}
    try:
        manifest = data_path(settings.manifest)
    except ConfigError:  # a finished run may have outlived its data
        return {}
    return speaker_sexes(manifest)


def _compressor(net: AudioVisualNet, store: ClipStore, seed: int) -> CompressionNet:
    found = _features(net, store)
    labels = torch.from_numpy(store.labels)
    return train_level(
        found, labels, COMPRESSED_RATE, len(store.class_names), generator(seed, "redteam", "rung")
    )


@torch.no_grad()
def _view(net: AudioVisualNet, level: CompressionNet, store: ClipStore, sexes: dict[str, str]) -> View:
    found = _features(net, store)
    reduced: Features = level.compressor(found)
    arrived = Features(*(dequantise(*quantise(part)) for part in reduced))
    picture = store.frames[:, 0].astype(np.float32).mean(axis=1) / 255
    _, speaker = np.unique(np.array(store.speakers), return_inverse=True)
    heard = [hashlib.sha256(clip.tobytes()).digest() for clip in store.audio]
    known = {digest: number for number, digest in enumerate(dict.fromkeys(heard))}
    names = sorted(set(sexes.values()))
    told = all(one in sexes for one in store.speakers)
    return View(
        sound=np.array(store.audio, np.float32),
        picture=picture,
        features=found.joined().numpy(),
        compressed=arrived.joined().numpy(),
        probabilities=net.head(found).joint.softmax(dim=1).numpy(),
        speaker=speaker.astype(np.int64),
        recording=np.array([known[digest] for digest in heard], np.int64),
        label=store.labels,
        profiles=None if store.profiles is None else np.array(store.profiles, np.float32),
        sex=np.array([names.index(sexes[one]) for one in store.speakers], np.int64) if told else None,
    )


def _features(net: AudioVisualNet, store: ClipStore) -> Features:
    """The probabilities as a device computes them."""
    found = TorchRuntime(net, store.class_names, version="").features(store.audio, store.frames)
    return Features(*map(torch.from_numpy, found))
