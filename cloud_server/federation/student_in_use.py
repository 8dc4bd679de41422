"""The student that a device has, as the cloud can judge it again when the device has told of other clips.

What it was worth on the clips of then says nothing about those of now. So the student without the judging speakers is
kept beside it, and both are there when the device is served the next time.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.distillation.teacher import student_spec
from fedstill.cloud_server.federation.seed_state import GENERIC, SeedCloud
from fedstill.cloud_server.journal.job_key import JobKey
from fedstill.common.atomic_files import replace_text
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.models.weights.checkpoint import CheckpointError, load_checkpoint
from fedstill.protos.messages import Hello

LOG = logging.getLogger(__name__)

IN_USE_FOLDER = "in_use"
NOTE_FILE, NET, CHECKED = "note.json", "student", "checked"
CHECK_FOLD = 0
"""The speakers of this fold judge students."""


@dataclass(frozen=True)
class StudentInUse:
    """One device's.

    Attributes:
        version: by which the device names it.
        name: of the candidate that it was.
        net: without its class bias; None: the generic student.
        checked: the one of the same training without the judging speakers; None: the generic one of their fold.
        bias: float32 (classes,).
    """

    version: str
    name: str
    net: AudioVisualNet | None
    checked: AudioVisualNet | None
    bias: npt.NDArray[np.float32]

    def network(self, cloud: SeedCloud) -> AudioVisualNet:
        """Without its class bias."""
        return self.net or cloud.shared(GENERIC)

    def judged(self, cloud: SeedCloud) -> AudioVisualNet:
        """The one that never heard the judging speakers."""
        return self.checked or cloud.fold_generic(CHECK_FOLD)


def keep_in_use(cloud: SeedCloud, key: JobKey, student: StudentInUse | None) -> None:
    """Keep the student that a job has given its device, in place of the one before. None: only forget that one.

    A disk that takes no more costs a later comparison, and not the visit.
    """
    folder = _folder(cloud, key)
    try:
        (folder / NOTE_FILE).unlink(missing_ok=True)  # until all of it is there, nothing is
        if student is None:
            return
        for name, net in ((NET, student.net), (CHECKED, student.checked)):
            if net is not None:
                cloud.keep(folder / name, net)
        note = {
            "version": student.version,
            "job": key.text,
            "name": student.name,
            "bias": student.bias.tolist(),
        }
        replace_text(folder / NOTE_FILE, json.dumps(note | {"trained": student.net is not None}))
    except OSError as error:
        LOG.warning(
            "event=student_not_kept client=%d reason=%s", key.client, json.dumps(error.strerror or str(error))
        )


def open_in_use(cloud: SeedCloud, key: JobKey, hello: Hello | None) -> StudentInUse | None:
    """The student that a job's device uses; None if it cannot be judged.

    That is one that was not kept, as of an older fedstill, another teacher or a cohort, that is damaged, or that this
    job has made before it was interrupted; and any, if estimates are not tested.

    Args:
        hello: what the device says of itself; None if it is away.
    """
    if hello is None or not (cloud.plan.service and cloud.plan.guard.test):
        return None
    folder = _folder(cloud, key)
    try:
        note = json.loads((folder / NOTE_FILE).read_text())
        if not hello.student or note["version"] != hello.student or note["job"] == key.text:
            return None
        bias = np.array(note["bias"], np.float32)
        if bias.shape != (len(cloud.public.class_names),) or not np.isfinite(bias).all():
            return None
        nets = (
            [load_checkpoint(folder / name)[0] for name in (NET, CHECKED)] if note["trained"] is True else []
        )
        spec = student_spec(cloud.public, cloud.plan.teacher, cloud.plan.student)
        if any(net.spec != spec for net in nets):
            return None
        net, checked = nets or (None, None)
        return StudentInUse(hello.student, str(note["name"]), net, checked, bias)
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError, CheckpointError):
        return None


def _folder(cloud: SeedCloud, key: JobKey) -> Path:
    return cloud.plan.models / IN_USE_FOLDER / str(key.client)
