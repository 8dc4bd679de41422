"""The cloud's run plan for one run: which seeds, devices, scenarios and arms, with which settings.

The launcher writes it as ``plan.json`` into the run directory and the ServerApp reads it there, so that
both engines, and a resumed run, do the same work.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedstill.cloud_server.distillation.compute import Compute
from fedstill.cloud_server.distillation.settings import (
    CaptureSettings,
    CohortSettings,
    DistillationSettings,
    DownlinkSettings,
    GuardSettings,
    PrototypeSettings,
    SelectionSettings,
    StudentSettings,
    TeacherSettings,
)
from fedstill.common.atomic_files import replace_text
from fedstill.common.dataclass_codec import from_plain, to_plain
from fedstill.common.run_layout import PLAN_FILE, teacher_folder
from fedstill.datasets.audiovisual.capture.conditions import DeviceCapture


@dataclass(frozen=True)
class RunPlan:
    """See the module.

    Attributes:
        public: folder of the public clip store.
        work: folder for teachers, banks, students and metrics; anything finished there is not done again.
        clients: how many clients the run has, one per device; they are numbered 0 .. clients - 1.
        oracle_classes: per client the classes that it really holds, for the ``oracle_classes`` control only.
        other_cards: per client the bytes of another device's capture card, which differs by its condition alone, for
            the ``other_card`` control only; empty for a client without such a device, and if there is no such control.
        oracle_conditions: per client how it really records, for the ``oracle_capture`` reference only; None: as the
            public clips.
        holdout: share of the public clips that the teacher's training does not see, for its own accuracy.
        sweep_seeds: the sweeps (Figures 5.12, 5.13, Table 5.3) run on the first so many seeds.
        reply_timeout: seconds to wait for one device's reply, asking again included.
        join_timeout: seconds to wait for a device that is not there yet; the others do not wait for it.
        devices: the registered name of each client's device if nodes are authenticated, else empty.
        keys: fingerprints of all keys that each client's devices have had, by which the proxy counts their bytes.
        tags: of each client's device, by which an operator names several at once.
        teacher_reference: devices count how many clips the teacher gets right, for the table; it is a large download,
            and devices cannot run one with pretrained encoders.
        lean: clients that get the arms of ``lean_arms`` only, and these for the first seed only.
        service: give every device its student as soon as it is there, and again whenever it needs one, and never end;
            otherwise compare arms, and end.
        teacher_number: of a service: which of its teachers, from 1, this plan is of; see ``models``.
        every: seconds after which a service gives a device a new student in any case; 0: never.
        pause_scale: of the pauses before a service tries again what failed.
        journal: SQLAlchemy URL of the journal; empty: a SQLite file in ``work``.
    """

    public: str
    work: str
    clients: int
    seeds: tuple[int, ...]
    scenarios: tuple[str, ...]
    arms: tuple[str, ...]
    oracle_classes: tuple[tuple[int, ...], ...]
    teacher: TeacherSettings
    student: StudentSettings
    distillation: DistillationSettings
    selection: SelectionSettings
    prototypes: PrototypeSettings
    ours: DistillationSettings
    compute: Compute
    guard: GuardSettings = field(default_factory=GuardSettings)
    capture: CaptureSettings = field(default_factory=CaptureSettings)
    cohorts: CohortSettings = field(default_factory=CohortSettings)
    other_cards: tuple[tuple[int, ...], ...] = ()
    oracle_conditions: tuple[DeviceCapture | None, ...] = ()
    downlink: DownlinkSettings = field(default_factory=DownlinkSettings)
    sweeps: tuple[str, ...] = ()
    sweep_seeds: int = 1
    holdout: float = 0.1
    reply_timeout: float = 300.0
    join_timeout: float = 120.0
    devices: tuple[str, ...] = ()
    tags: tuple[tuple[str, ...], ...] = ()
    keys: tuple[tuple[str, ...], ...] = ()
    journal: str = ""
    teacher_reference: bool = True
    lean: tuple[int, ...] = ()
    lean_arms: tuple[str, ...] = ()
    service: bool = False
    pause_scale: float = 1.0
    every: float = 0.0
    teacher_number: int = 1

    @property
    def models(self) -> Path:
        """The folder of the teacher and of all that is made once from it and the public clips."""
        return teacher_folder(Path(self.work), self.teacher_number)

    def wants(self, arm: str, client: int, seed: int) -> bool:
        """Whether this client has a job of this arm for this seed."""
        return client not in self.lean or (arm in self.lean_arms and seed == self.seeds[0])

    def __post_init__(self) -> None:
        if self.teacher_reference and self.teacher.pretrained:
            raise ValueError("teacher_reference: devices cannot run a teacher with pretrained encoders")
        if self.devices and len(self.devices) < self.clients:
            raise ValueError(f"devices: {len(self.devices)} names for {self.clients} clients")


def write_plan(plan: RunPlan) -> None:
    """Write the plan into its own work folder."""
    replace_text(Path(plan.work) / PLAN_FILE, json.dumps(to_plain(plan), indent=1))


def read_plan(work: Path) -> RunPlan:
    """The plan of a run directory, which may have been moved or copied since it was written."""
    plan = from_plain(RunPlan, json.loads((work / PLAN_FILE).read_text()))
    here, before = work.absolute(), Path(plan.work)
    public = Path(plan.public)
    if public.is_relative_to(before):
        public = here / public.relative_to(before)
    return replace(plan, work=str(here), public=str(public))
