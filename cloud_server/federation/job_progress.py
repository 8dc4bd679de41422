"""The progress of one job: its record so far, and the stored state from which an interrupted job continues.

Each step is in the journal, or in a file that the journal names, before the job goes on.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field

import numpy as np

from fedstill.cloud_server.distillation.candidates import Choice
from fedstill.cloud_server.distillation.class_mix import ClassMix
from fedstill.cloud_server.distillation.selection import Selection
from fedstill.cloud_server.federation.seed_state import SeedCloud
from fedstill.cloud_server.federation.training_state import TrainingState, load_training, save_training
from fedstill.cloud_server.journal.job_key import JobKey
from fedstill.cloud_server.journal.journal import Journal


@dataclass
class JobRecord:
    """Everything that a finished job leaves behind."""

    key: JobKey
    evaluations: list[dict[str, object]] = field(default_factory=list)
    traffic: list[dict[str, int]] = field(default_factory=list)
    selection: list[dict[str, object]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    install: dict[str, object] = field(default_factory=dict)
    class_mix: ClassMix | None = None
    choice: Choice | None = None

    def as_event(self) -> dict[str, object]:
        """Flat, ready for the event log."""
        values = asdict(self)
        return {**values.pop("key"), **values}


class JobProgress:
    """The progress of one job; a ``rounds.RoundObserver`` once its training has begun.

    Attributes:
        last_selection: the public clips of the newest outer round that was trained; None if there is none.
        failures: why the device was left out of outer rounds, oldest first.
    """

    def __init__(self, key: JobKey, cloud: SeedCloud, journal: Journal) -> None:
        self.record = JobRecord(key)
        self.last_selection: Selection | None = None
        self.failures: list[str] = []
        self._key, self._cloud, self._journal = key, cloud, journal
        self._folder = cloud.directory / "progress" / key.text.replace("/", "-")
        self._training: TrainingState | None = None

    def resume(self, training: TrainingState) -> int:
        """Bring ``training`` to the state of the interrupted job, and observe it; returns how many outer rounds are
        finished."""
        self._training = training
        rounds = self._journal.rounds(self._key)
        for one in rounds:
            self.record.selection.append({"round": one.round, "class_counts": one.class_counts})
            self.record.losses += one.losses
        if not rounds:
            return 0
        self.last_selection = self._journal.selection(self._key, rounds[-1].round)
        load_training(self._folder / rounds[-1].state_file, training)
        return rounds[-1].round + 1

    def trained(self, outer_epoch: int, selection: Selection, losses: list[float]) -> None:
        """Keep the selection of one outer round, its losses, and the state to continue from."""
        self.last_selection = selection
        classes = len(self._cloud.public.class_names)
        counts = np.bincount(self._cloud.bank.labels[selection.positions], minlength=classes).tolist()
        self.record.selection.append({"round": outer_epoch, "class_counts": counts})
        self.record.losses += losses
        self._journal.select(self._key, outer_epoch, selection)
        assert self._training is not None
        state = self._folder / f"round{outer_epoch}.safetensors"
        save_training(state, self._training)
        self._journal.finish_round(self._key, outer_epoch, losses, counts, state.name)
        for older in set(self._folder.glob("*.safetensors")) - {state}:
            older.unlink()

    def failed(self, outer_epoch: int, reason: str) -> None:
        """Report a device that is left out of an outer round."""
        self.failures.append(reason)
        record = {**asdict(self._key), "round": outer_epoch, "reason": reason}
        self._journal.fail(self._key, outer_epoch, record)
        self._cloud.metrics.emit("failure", **record)

    def finish(self) -> JobRecord:
        """The job is done: keep its record, and remove the state that was kept for continuing."""
        self.record.traffic = self._journal.traffic(self._key)
        self._journal.finish_job(self._key, self.record.as_event())
        shutil.rmtree(self._folder, ignore_errors=True)
        return self.record
