"""From a run's journal and its devices' folders to ``results.json`` and ``clips.json``.

Only a simulation may do this: it owns the devices too, so it can pair every device's per-clip outcomes over the arms.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

from fedstill.cloud_server.distillation.arm_names import ARMS, REFERENCES
from fedstill.cloud_server.distillation.run_plan import read_plan
from fedstill.cloud_server.journal.event_log import read_events
from fedstill.cloud_server.journal.job_key import JobKey
from fedstill.cloud_server.journal.journal import Journal, open_journal
from fedstill.common.run_layout import REFERENCES_FOLDER
from fedstill.datasets.audiovisual.store import open_store
from fedstill.edge_client.folder import DATA_FOLDER
from fedstill.evaluation.results import (
    AccuracyRow,
    Candidate,
    ChoiceRow,
    ClipRow,
    DecisionRow,
    FailureRow,
    LossRow,
    ResultsError,
    SelectionRow,
    ShareRow,
    SweepRow,
    TeacherRow,
    TrafficRow,
)

Event = Mapping[str, Any]
SELECTING = ("all_distill_select", "all_distill_select_cluster")
"""Arms in which every prototype chooses public clips."""


def gather_rows(run_dir: Path) -> dict[str, tuple[Any, ...]]:
    """The row tables of ``Results`` by field name, each job once, sorted."""
    journal = open_journal(run_dir, read_plan(run_dir).journal)
    jobs = sorted(journal.jobs(), key=_order)
    failures = [
        FailureRow(*_where(one), one["round"], one["reason"])
        for one in journal.failures()
        if not one["sweep"] and one["arm"] in ARMS
    ]
    shares = tuple(row for job in jobs if not job["sweep"] for row in _shares(job, journal))
    journal.close()
    held_out = {
        event["seed"]: TeacherRow(event["seed"], "public_holdout", None, event["correct"], event["total"])
        for event in read_events(run_dir)
        if event["event"] == "teacher"
    }
    table = [job for job in jobs if not job["sweep"] and job["arm"] in ARMS]
    return {
        "teacher": (
            *held_out.values(),
            *(row for job in jobs if job["arm"] == "teacher" for row in _teacher(job)),
        ),
        "rows": tuple(row for job in table for row in _accuracy(job)),
        "traffic": tuple(row for job in table for row in _traffic(job)),
        "selection": tuple(
            SelectionRow(*_where(job), row["round"], tuple(row["class_counts"]))
            for job in table
            for row in job["selection"]
        ),
        "losses": tuple(
            LossRow(*_where(job), epoch, loss) for job in table for epoch, loss in enumerate(job["losses"], 1)
        ),
        "sweeps": tuple(row for job in jobs if job["sweep"] for row in _sweep(job)),
        "failures": tuple(sorted(failures, key=astuple)),
        "decisions": tuple(
            DecisionRow(*_where(job), mix["supported"], mix["reason"], mix["gain"])
            for job in table
            if (mix := job.get("class_mix"))
        ),
        "choices": tuple(_choice(job) for job in table if job.get("choice")),
        "shares": shares,
    }


def gather_clips(run_dir: Path, clients: int) -> tuple[ClipRow, ...]:
    """Per-clip outcomes of every device that kept them, the arms beside each other, with recordings and speakers.

    Raises:
        ResultsError: two arms were tested on different clips, or on clips that the device does not have.
    """
    rows = [row for client in range(clients) for row in _clips_of(run_dir / "devices" / str(client), client)]
    return tuple(sorted(rows, key=lambda row: (row.scenario, row.client, row.seed)))


def _clips_of(folder: Path, client: int) -> list[ClipRow]:
    found: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    clip_ids: dict[tuple[str, int], tuple[str, ...]] = {}
    files = [(path, ARMS) for path in sorted((folder / "evaluations").glob("*.json"))]
    files += [(path, REFERENCES) for path in sorted((folder / REFERENCES_FOLDER).glob("*.json"))]
    for path, arms in files:
        outcome = json.loads(path.read_text())
        if outcome["arm"] in arms:
            key = (outcome["scenario"], outcome["seed"])
            if clip_ids.setdefault(key, tuple(outcome["clip_ids"])) != tuple(outcome["clip_ids"]):
                raise ResultsError(f"{path} has other clips than another arm: run the experiment again")
            found[key][outcome["arm"]] = outcome["correct"]
    if not found:
        return []
    info = {clip.clip_id: clip for clip in open_store(folder / DATA_FOLDER).info}
    strange = {clip_id for ids in clip_ids.values() for clip_id in ids} - info.keys()
    if strange:
        raise ResultsError(f"{folder}: clip {min(strange)} was tested but is gone: run the experiment again")
    return [
        ClipRow(
            scenario,
            client,
            seed,
            clip_ids=clip_ids[scenario, seed],
            correct=found[scenario, seed],
            groups=tuple(info[clip_id].recording for clip_id in clip_ids[scenario, seed]),
            speakers=tuple(info[clip_id].speaker for clip_id in clip_ids[scenario, seed]),
        )
        for scenario, seed in found
    ]


def _teacher(job: Event) -> Iterable[TeacherRow]:
    for result in job["evaluations"]:
        yield TeacherRow(job["seed"], "client", job["client"], result["correct"], result["total"])


def _accuracy(job: Event) -> Iterable[AccuracyRow]:
    for result in job["evaluations"]:
        yield AccuracyRow(*_where(job), result["correct"], result["total"])


def _traffic(job: Event) -> Iterable[TrafficRow]:
    for row in job["traffic"]:
        yield TrafficRow(*_where(job), row["round"], row["up_bytes"], row["down_bytes"])


def _sweep(job: Event) -> Iterable[SweepRow]:
    compression_levels = job["sweep"] == "compression"
    for result in job["evaluations"]:
        yield SweepRow(
            job["sweep"],
            result["rate"] if compression_levels else job["value"],
            result["precision"] if compression_levels else "fp32",
            result["bytes_per_clip"] if compression_levels else None,
            job["scenario"],
            job["client"],
            job["seed"],
            result["correct"],
            result["total"],
        )


def _shares(job: Event, journal: Journal) -> Iterable[ShareRow]:
    """The most prototypes that this job's device had in an outer round, if these were more than the clips chosen."""
    if job["arm"] not in SELECTING:
        return
    key = JobKey.of(job)
    rounds = [(journal.upload(key, row["round"]), sum(row["class_counts"])) for row in job["selection"]]
    found = [(len(upload.counts), clips) for upload, clips in rounds if upload is not None]
    prototypes, clips = max(found, default=(0, 0))
    if prototypes > clips:
        yield ShareRow(*_where(job), prototypes, clips)


def _choice(job: Event) -> ChoiceRow:
    found = job["choice"]
    estimate = found["estimate"], found["low"], found["high"]
    candidates = tuple(Candidate(**one) for one in found["candidates"])
    return ChoiceRow(
        *_where(job), found["chosen"], found["reason"], *estimate, candidates, found.get("cohort", "")
    )


def _where(job: Event) -> tuple[str, str, int, int]:
    return job["scenario"], job["arm"], job["client"], job["seed"]


def _order(job: Event) -> tuple[object, ...]:
    arms = [*ARMS, "teacher"]
    return job["scenario"], arms.index(job["arm"]), job["client"], job["seed"], job["sweep"], job["value"]
