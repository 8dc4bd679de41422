"""A service's next teacher: the operator has other public clips or other settings, and the fleet stays.

What devices share is made once from both and kept, so a change reaches nobody by itself. This writes a plan with the
next teacher's number. The coordinator makes its models at the next start, and then every device is due.
"""

from __future__ import annotations

import filecmp
import json
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from fedstill.cloud_server.distillation.run_plan import RunPlan, write_plan
from fedstill.cloud_server.distillation.teacher import student_spec
from fedstill.common.atomic_files import replace_text
from fedstill.common.dataclass_codec import to_plain
from fedstill.common.errors import ConfigError, DataError
from fedstill.common.folder_lock import sole_user
from fedstill.common.run_layout import EXPERIMENT_FILE, PLAN_FILE, teacher_folder
from fedstill.datasets.audiovisual.store import ClipStore, build_store, open_store
from fedstill.simulation.config import Experiment
from fedstill.simulation.launcher import load_plan, load_run, make_plan
from fedstill.simulation.pretrained import with_checked_encoders
from fedstill.simulation.sources import open_source

SETTINGS = (
    "teacher", "student", "distillation", "selection", "prototypes", "ours", "guard", "capture", "holdout"
)  # fmt: skip
"""Of a plan: what its shared models are made with, and what devices are asked about them."""
WORKINGS = "compute", "reply_timeout"
"""Of a plan: how its cloud works. Other ones hold from the next start on, and make no other teacher."""
STORE_FILES = "index.csv", "audio.npy", "frames.npy"


def retrain(state: Path, experiment: Experiment | None, console: Console) -> int | None:
    """Have the next teacher made from the public clips as they are now.

    Args:
        state: a coordinator's folder, while no coordinator runs.
        experiment: with other settings; None: the folder's own.

    Returns:
        The number of the next teacher; None if clips and settings are those of the present one.

    Raises:
        FolderInUse: a coordinator runs.
        ConfigError, DataError: there is no service, something does not fit its devices, or a clip cannot be used;
            nothing was changed.
    """
    if not (state / PLAN_FILE).exists():
        raise ConfigError(f"{state}: not a coordinator's folder; start one with: fedstill coordinator")
    with sole_user(state):
        plan = _service_in(state)
        chosen = experiment or load_run(state)
        if chosen.run.first_seed != plan.seeds[0]:
            raise ConfigError("run.first_seed: a fleet keeps its seed; choose another --state")
        number = plan.teacher_number + 1
        folder = teacher_folder(state, number)
        _remove(folder)  # of an attempt that was cut off
        try:
            made = _next_plan(plan, chosen, folder, console)
        except BaseException:
            _remove(folder)
            raise
        if made != plan:
            write_plan(made)
        replace_text(state / EXPERIMENT_FILE, json.dumps(to_plain(chosen), indent=1))
    return number if made.teacher_number == number else None


def _service_in(state: Path) -> RunPlan:
    plan = load_plan(state)
    if not plan.service:
        raise ConfigError(f"{state}: a study (--arms) is finished with the teachers that it began with")
    return plan


def _next_plan(plan: RunPlan, experiment: Experiment, folder: Path, console: Console) -> RunPlan:
    """The plan of the next teacher, if clips or settings are others; otherwise nothing is left in ``folder``."""
    with_weights, old = with_checked_encoders(experiment), _present_clips(plan)
    source = open_source(experiment)
    public = np.flatnonzero([info.split == "public" for info in source.index])
    if not len(public):
        raise ConfigError(f"{source.name}: has no public clips to teach from")
    with console.status(f"decoding {len(public)} public clips of {source.name}"):
        new = build_store(
            source, public.tolist(), experiment.audio, experiment.frames, folder / "public", keep_sound=True
        )
    wanted = make_plan(with_weights, source, (), Path(plan.work))
    _require_same_devices(plan, old, wanted, new)
    plan = replace(plan, **{name: getattr(wanted, name) for name in WORKINGS})
    following = replace(
        plan, **{name: getattr(wanted, name) for name in SETTINGS}, teacher_number=plan.teacher_number + 1
    )
    if not _same_clips(old, new):
        return replace(following, public=str(new.directory))
    _remove(folder)
    same_settings = all(getattr(plan, name) == getattr(following, name) for name in SETTINGS)
    return plan if same_settings else following


def _present_clips(plan: RunPlan) -> ClipStore:
    try:
        return open_store(Path(plan.public))
    except DataError as error:
        raise ConfigError(
            f"{plan.public}: the clips of the present teacher cannot be read, so nothing can be compared with "
            f"them ({error}); put back a copy of {plan.work} (fedstill fleet restore)"
        ) from error


def _remove(folder: Path) -> None:
    """The folder of a teacher that is not to be, and then that of all later teachers if it was alone there."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()


def _require_same_devices(plan: RunPlan, old: ClipStore, wanted: RunPlan, new: ClipStore) -> None:
    """Raises ConfigError unless devices can go on with their clips and with the graphs that they run."""
    if new.class_names != old.class_names:
        raise ConfigError(
            f"the classes are others ({', '.join(new.class_names)}; here {', '.join(old.class_names)}): "
            "choose another --state"
        )
    forms = [
        (one.audio_spec, one.frame_spec, one.audio.shape[1:], one.frames.shape[1:]) for one in (old, new)
    ]
    if forms[0] != forms[1]:
        raise ConfigError(
            "[audio], [frames]: devices have their clips in another form; choose another --state"
        )
    if student_spec(new, wanted.teacher, wanted.student) != student_spec(old, plan.teacher, plan.student):
        raise ConfigError(
            "student.encoder, teacher.feature_width, teacher.fusion: devices have another network; "
            "choose another --state"
        )


def _same_clips(old: ClipStore, new: ClipStore) -> bool:
    return all(filecmp.cmp(old.directory / one, new.directory / one, shallow=False) for one in STORE_FILES)
