"""The places of a seed's models in a run directory: the cloud writes there, users of a student read there."""

from __future__ import annotations

from pathlib import Path

EXPERIMENT_FILE = "experiment.json"
"""The resolved experiment; a folder with it is a run directory."""
DEVICES_FILE = "devices.json"
"""What distinguishes the devices of a robustness run: scenario, condition, severity, classes, clips."""
REFERENCES_FOLDER = "references"
"""In a device's folder: what published methods decide about its test clips; the form is that of its evaluations."""
PLAN_FILE = "plan.json"
"""The run plan (``cloud_server/distillation/run_plan.py``)."""
JOURNAL_FILE = "journal.db"
"""The journal, if it is a SQLite file (``cloud_server/journal/journal.py``)."""
STATUS_FILE = "coordinator.json"
"""In a coordinator's folder: what it says of its run."""
LOOKED_FILE = "looked"
"""In a coordinator's folder: its time is that of the last look at who is online."""
TRAFFIC_FILE = "proxy/traffic.json"
"""In a coordinator's folder: the bytes that its proxy has counted."""
TEACHERS_FOLDER = "teachers"
"""In a coordinator's folder: the shared models of every teacher after the first, by number."""
PERSONAL_ARM = "fedstill"
"""The arm whose students have no prefix in their names."""


def teacher_folder(run_dir: Path, number: int) -> Path:
    """The folder of the shared models of a service's teacher; the first one's are where a study has its own."""
    return run_dir if number == 1 else run_dir / TEACHERS_FOLDER / str(number)


def fold_folder(run_dir: Path, fold: int) -> Path:
    """Of one fold of a run over folds; a run of its own."""
    return run_dir / f"fold{fold}"


def seed_folder(run_dir: Path, seed: int) -> Path:
    """The folder of one seed: teacher, shared students, ``students/``."""
    return run_dir / f"seed{seed}"


def personal_students(run_dir: Path, seed: int) -> Path:
    """The folder of the students that were personalised."""
    return seed_folder(run_dir, seed) / "students"


def cohorts_folder(run_dir: Path, seed: int) -> Path:
    """The folder of what devices that record alike share: one folder for each cohort, and its members."""
    return seed_folder(run_dir, seed) / "cohorts"


def student_name(scenario: str, client: int, arm: str = PERSONAL_ARM) -> str:
    """The name of one device's student, which is its checkpoint without suffix."""
    prefix = "" if arm == PERSONAL_ARM else f"{arm}-"
    return f"{prefix}{scenario}-client{client}"
