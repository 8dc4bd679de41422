"""The name of one piece of work: which device, arm, scenario and seed. Every row of the journal belongs to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from fedstill.protos.messages import Job


@dataclass(frozen=True)
class JobKey:
    """The parts that identify a job; ``sweep`` and ``value`` name a variant (Figures 5.12, 5.13, Table 5.3), empty
    otherwise. ``visit``: a service gives a device further students; the first one has number 0."""

    scenario: str
    arm: str
    client: int
    seed: int
    sweep: str = ""
    value: float = 0.0
    visit: int = 0

    @property
    def variant(self) -> str:
        """``all_distill_select.uploaded_samples.25``: the arm, and the sweep's value if there is one.
        ``fedstill.visit.3``: the fourth student of a device."""
        name = f"{self.arm}.{self.sweep}.{self.value:g}" if self.sweep else self.arm
        return f"{name}.visit.{self.visit}" if self.visit else name

    @property
    def text(self) -> str:
        """The key as one string, unique within a run."""
        return f"{self.scenario}/{self.variant}/client{self.client}/seed{self.seed}"

    def at(self, outer_epoch: int) -> Job:
        """The key as messages of one outer round carry it."""
        return Job(self.scenario, self.variant, self.seed, outer_epoch)

    @classmethod
    def of(cls, row: Mapping[str, object]) -> JobKey:
        """The key within a job's record; older records know no visits."""
        names = [field.name for field in fields(cls) if field.name in row]
        return cls(**{name: row[name] for name in names})  # type: ignore[arg-type]
