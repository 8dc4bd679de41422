"""The students that do not depend on a device: distilled on all clips that are given (Algorithm 6, line 4), and trained
further for as many steps as a personal student is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from fedstill.cloud_server.distillation.arms import budget_of, whole_set_in_turns
from fedstill.cloud_server.distillation.compute import trained
from fedstill.cloud_server.distillation.distiller import make_distiller
from fedstill.cloud_server.distillation.public_bank import PublicBank
from fedstill.cloud_server.distillation.run_plan import RunPlan
from fedstill.cloud_server.distillation.selection import Selection
from fedstill.cloud_server.distillation.settings import DistillationSettings
from fedstill.cloud_server.distillation.teacher import student_spec
from fedstill.datasets.audiovisual.capture.views import ClipViews
from fedstill.datasets.audiovisual.store import ClipStore
from fedstill.models.audiovisual.network import AudioVisualNet, Head

Positions = npt.NDArray[np.int64]
Report = Callable[[int, float], None]
"""(epochs done, mean loss)"""


def distil_on(
    positions: Positions,
    public: ClipStore,
    views: ClipViews,
    bank: PublicBank,
    plan: RunPlan,
    head: Head,
    generators: tuple[torch.Generator, torch.Generator],
    report: Report = lambda epoch, loss: None,
) -> AudioVisualNet:
    """A new student under the teacher's ``head``, distilled on the public clips at ``positions``.

    Args:
        generators: of the weights and of the training.
    """
    settings = plan.student
    student = AudioVisualNet(student_spec(public, plan.teacher, settings), generators[0])
    student.head.load_state_dict(head.state_dict())
    distiller = make_distiller(
        student,
        views,
        bank,
        replace(plan.distillation, freeze_batch_norm=False),  # there are no statistics to keep yet
        settings.optimiser,
        plan.compute,
        generators[1],
        epochs=settings.epochs,
        clips_per_epoch=len(positions),
    )
    for epoch in range(1, settings.epochs + 1):
        (loss,) = distiller.run(Selection.uniform(positions), 1)
        report(epoch, loss)
    return trained(distiller.student)


def train_further(
    student: AudioVisualNet,
    positions: Positions,
    views: ClipViews,
    bank: PublicBank,
    plan: RunPlan,
    settings: DistillationSettings,
    generator: torch.Generator,
    rng: np.random.Generator,
    report: Report = lambda turn, loss: None,
    *,
    clips: int = 0,
) -> AudioVisualNet:
    """A copy of ``student`` after as many steps as the other arms make, on the clips at ``positions`` in turn.

    Args:
        clips: in how many clips the budget is a share of; 0: of those at ``positions``.
    """
    turns = settings.outer_epochs * settings.inner_epochs
    budget = budget_of(plan, clips or len(positions))
    distiller = make_distiller(
        copy.deepcopy(student),
        views,
        bank,
        settings,
        settings.optimiser,
        plan.compute,
        generator,
        epochs=turns,
        clips_per_epoch=budget,
    )
    next_turn = whole_set_in_turns(len(positions), budget, rng)
    for turn in range(1, turns + 1):
        (loss,) = distiller.run(Selection.uniform(positions[next_turn(None, bank).positions]), 1)
        report(turn, loss)
    return trained(distiller.student)
