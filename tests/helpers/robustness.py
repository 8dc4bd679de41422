"""Made-up robustness studies for tests: outcomes with gains that are known, none measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedstill.cloud_server.distillation.arm_names import REFERENCES
from fedstill.cloud_server.federation.seed_state import GENERIC
from fedstill.evaluation.results import (
    AccuracyRow,
    Candidate,
    ChoiceRow,
    ClipRow,
    TrafficRow,
    write_clips,
    write_results,
)
from fedstill.evaluation.robustness.reading import read_set
from fedstill.evaluation.robustness.records import DataSet, Study
from helpers.results import made_run

SCENARIO = "latency_sensitive"
FAMILY = "test"


def cell(scenario: str, condition: str = "none", severity: int = 0, classes: str = "all", query: int = 0):
    """A line of ``devices.json`` without its device."""
    return {
        "scenario": scenario,
        "condition": condition,
        "severity": severity,
        "classes": classes,
        "query": query,
    }


CELLS = (
    cell("A", "reverberation+side_light", 1),
    cell("A", "reverberation+side_light", 2),
    cell("B", "reverberation+side_light", 2, "first"),
    cell("D"),
    cell("G", classes="first"),
)


def write_fold(
    folder: Path,
    gains: Mapping[str, Mapping[str, float]],
    *,
    fold: int = 0,
    folds: int = 2,
    seeds: tuple[int, ...] = (0,),
    speakers: int = 6,
    recordings: int = 20,
    copies: int = 2,
    name: str = "made_up",
    cells: tuple[Mapping[str, object], ...] = CELLS,
    estimated: float | None = 0.02,
) -> Path:
    """A finished run of one fold.

    Args:
        gains: by arm and scenario, the share of a speaker's recordings that it gets right and the generic student does
            not; negative: the other way round. All clips of a recording are alike.
        copies: clips of each recording.
        estimated: the error of every device's estimated accuracy; None: no estimates.
    """
    owners = [
        (f"speaker{fold}-{speaker}", f"sound{number}")
        for speaker in range(speakers)
        for number in range(recordings)
    ]
    clips, rows, traffic, choices = [], [], [], []
    for client, one in enumerate(cells):
        for seed in seeds:
            rng = np.random.default_rng((fold, seed))
            base = np.tile(np.arange(recordings) < recordings // 2, speakers)
            bits = {}
            for arm in (GENERIC, *gains):
                right = base.copy()
                share = gains.get(arm, {}).get(str(one["scenario"]), 0.0)
                for speaker in range(speakers):
                    mine = np.arange(speaker * recordings, (speaker + 1) * recordings)
                    pool = mine[right[mine] == (share < 0)]
                    changed = min(len(pool), rng.binomial(recordings, abs(share)) if share else 0)
                    right[rng.permutation(pool)[:changed]] = share > 0
                bits[arm] = "".join("01"[hit] * copies for hit in right.astype(int))
                total = len(bits[arm])
                if arm not in REFERENCES:
                    rows.append(AccuracyRow(SCENARIO, arm, client, seed, bits[arm].count("1"), total))
                    traffic.append(TrafficRow(SCENARIO, arm, client, seed, 3, 700, 1000))
                if arm == "fedstill":
                    traffic.append(TrafficRow(SCENARIO, arm, client, seed, 0, 400, 1000))
            ids = tuple(f"{owner}-{sound}-{copy}" for owner, sound in owners for copy in range(copies))
            groups = tuple(sound for _, sound in owners for _ in range(copies))
            people = tuple(owner for owner, _ in owners for _ in range(copies))
            clips.append(ClipRow(SCENARIO, client, seed, ids, bits, groups, people))
            if estimated is not None and "fedstill" in bits:
                estimate = bits["fedstill"].count("1") / total + estimated
                choices.append(
                    ChoiceRow(
                        SCENARIO,
                        "fedstill",
                        client,
                        seed,
                        chosen="rendered" if one["severity"] else "generic",
                        reason="it is better on public clips",
                        estimate=estimate,
                        low=estimate - 0.03,
                        high=estimate + 0.03,
                        candidates=(Candidate("generic", 0.0, 0.0), Candidate("rendered", 0.05, 0.01)),
                    )
                )
    results, _ = made_run(arms=(GENERIC,), scenarios=(SCENARIO,), clients=len(cells), seeds=seeds)
    config = {
        "name": name,
        "robustness": {"fold": fold, "folds": folds, "middle": 2, "family": FAMILY},
        "run": {"seeds": len(seeds), "first_seed": seeds[0]},
    }
    results = replace(
        results,
        experiment=name,
        config=config,
        rows=tuple(rows),
        traffic=tuple(traffic),
        choices=tuple(choices),
        selection=(),
        losses=(),
        sweeps=(),
        failures=(),
    )
    lines = [
        {"client": client, "fold": fold, "family": FAMILY, "strengths": {}, **one}
        for client, one in enumerate(cells)
    ]
    write_results(folder, results)
    write_clips(folder, clips)
    (folder / "devices.json").write_text(json.dumps(lines))
    return folder


def made_set(folder: Path, gains: Mapping[str, Mapping[str, float]], **options: object) -> DataSet:
    """Two folds of one experiment."""
    return read_set([write_fold(folder / f"fold{fold}", gains, fold=fold, **options) for fold in (0, 1)])


def made_study(*sets: DataSet) -> Study:
    return Study(
        command="fedstill robustness-study made_up",
        date="2026-01-02T03:04:05+00:00",
        git="0123abc",
        cpu="made-up processor",
        hardware="made-up machine, 2 cores",
        versions={"torch": "2.11.0"},
        sets=sets,
    )
