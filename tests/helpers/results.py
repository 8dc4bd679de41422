"""Made-up runs for tests: every number here is invented from a seed, none was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedstill.cloud_server.distillation.arm_names import ARMS, DEFAULT_ARMS, SCENARIOS
from fedstill.evaluation.results import (
    AccuracyRow,
    ClientClasses,
    ClipRow,
    FailureRow,
    LossRow,
    Results,
    SelectionRow,
    SweepRow,
    TeacherRow,
    TrafficRow,
)

EMOTIONS = ("neutral", "happy", "sad", "fear", "disgust", "anger")
ABILITY = dict(
    zip(ARMS, (0.60, 0.60, 0.62, 0.62, 0.61, 0.66, 0.72, 0.68, 0.66, 0.66, 0.66, 0.72, 0.70), strict=True)
)
EPOCHS = 30
ROUNDS = 3


def made_run(
    *,
    arms: Sequence[str] = DEFAULT_ARMS,
    scenarios: Sequence[str] = tuple(SCENARIOS),
    clients: int = 2,
    clips: int = 60,
    seeds: Sequence[int] = (0, 1, 2),
    dataset: str = "emotion_pairs",
    synthetic: bool = False,
    class_names: Sequence[str] = EMOTIONS,
    speakers: int = 0,
) -> tuple[Results, tuple[ClipRow, ...]]:
    """A complete invented run; in the latency-sensitive scenario every seed tests on its own half.

    speakers: by turns, two clips for each recording; 0 leaves recordings and speakers out, as older files do.
    """
    rng = np.random.default_rng(7)
    owned = [tuple(names) for names in np.array_split(np.array(class_names), clients)]
    rows: list[AccuracyRow] = []
    outcomes: list[ClipRow] = []
    for scenario in scenarios:
        for client in range(clients):
            difficulty = rng.normal(0, 0.5, clips)
            for seed in seeds:
                tested = np.arange(clips)
                if scenario == "latency_sensitive":
                    tested = np.sort(rng.permutation(clips)[: math.ceil(clips / 2)])
                bits = {}
                for arm in arms:
                    right = difficulty[tested] + rng.normal(0, 0.5, tested.size) < 1.5 * (ABILITY[arm] - 0.5)
                    bits[arm] = "".join("01"[int(hit)] for hit in right)
                    rows.append(AccuracyRow(scenario, arm, client, seed, int(right.sum()), tested.size))
                ids = tuple(f"client{client}-clip{index}" for index in tested)
                recordings = tuple(f"client{client}-sound{index // 2}" for index in tested if speakers)
                people = tuple(f"speaker{index // 2 % speakers}" for index in tested if speakers)
                outcomes.append(ClipRow(scenario, client, seed, ids, bits, recordings, people))
    grid = [(s, a, c, seed) for s in scenarios for a in arms for c in range(clients) for seed in seeds]
    results = Results(
        experiment="made_up",
        dataset=dataset,
        synthetic=synthetic,
        mode="clean",
        class_names=tuple(class_names),
        clients=tuple(
            ClientClasses(client, {str(name): clips // len(names) for name in names})
            for client, names in enumerate(owned)
        ),
        seeds=tuple(seeds),
        date="2026-01-02T03:04:05+00:00",
        hardware="made-up machine, 2 cores",
        versions={"fedstill": "0.1.0", "torch": "2.11.0"},
        git="0123abc",
        config={"run": {"seeds": list(seeds)}, "select": {"budget": 0.28}},
        seconds={"total": 754.0, "teacher": 400.0, "distill": 354.0},
        peak_memory_mb=1843.0,
        parameters={"teacher": 82_700_000, "student": 22_350_000},
        teacher=tuple(
            TeacherRow(seed, scope, client, int(right), 100)
            for seed in seeds
            for scope, client, right in (
                ("public_holdout", None, 71 + seed),
                ("client", 0, 64),
                ("client", 1, 61),
            )
        ),
        rows=tuple(rows),
        traffic=tuple(
            TrafficRow(*key, number, 1_500_000 // (1 + 9 * ("cluster" in key[1])), 89_000_000)
            for key in grid
            for number in range(ROUNDS)
        ),
        selection=tuple(
            SelectionRow(*key, number, _selected(key[1], class_names, owned[key[2]], rng))
            for key in grid
            if key[1] not in ("all_distill", "all_distill_equal_steps", "prior_corrected")
            for number in range(ROUNDS)
        ),
        losses=tuple(
            LossRow(
                *key,
                epoch,
                0.2 + (1 + 0.3 * ("select" in key[1])) * math.exp(-epoch / 8) + 0.02 * rng.random(),
            )
            for key in grid
            for epoch in range(EPOCHS)
        ),
        sweeps=_sweeps(rng, clients, clips, seeds),
        failures=(FailureRow(scenarios[0], arms[0], 1, seeds[0], 2, "client 1 did not answer within 30 s"),),
    )
    return results, tuple(outcomes)


def _selected(
    arm: str, names: Sequence[str], own: tuple[str, ...], rng: np.random.Generator
) -> tuple[int, ...]:
    even = arm == "all_distill_random"
    return tuple(
        int(rng.integers(80, 100) if even or name in own else rng.integers(10, 40)) for name in names
    )


def _sweeps(rng: np.random.Generator, clients: int, clips: int, seeds: Sequence[int]) -> tuple[SweepRow, ...]:
    points: list[tuple[str, float, str, int | None]] = []
    points += [("cluster_samples", value, "fp32", None) for value in (3.0, 6.0, 9.0, 12.0)]
    points += [("uploaded_samples", value, "fp32", None) for value in (30.0, 60.0)]
    for rate, fp32, int8 in ((1.0, 4096, 1032), (1.5, 2728, 690), (2.0, 2048, 520), (3.0, 1360, 348)):
        points += [("compression", rate, "fp32", fp32), ("compression", rate, "int8", int8)]
    return tuple(
        SweepRow(*point, "latency_sensitive", client, seed, int(rng.binomial(clips // 2, 0.65)), clips // 2)
        for point in points
        for client in range(clients)
        for seed in seeds
    )
