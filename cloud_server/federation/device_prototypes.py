"""The source of a job's prototypes: an upload that is already in the journal, else the device."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.distillation.arms import Arm, distillation_of, upload_kind
from fedstill.cloud_server.distillation.centres import one_cell
from fedstill.cloud_server.distillation.rounds import DeviceFailure
from fedstill.cloud_server.distillation.run_plan import RunPlan
from fedstill.cloud_server.federation.device_session import DeviceSession
from fedstill.cloud_server.federation.journal import PrivacyGuarantee
from fedstill.cloud_server.federation.seed_state import SeedCloud
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.protos.messages import PrototypeUpload

NO_PRIOR = np.empty(0, np.float32)
NO_CENTRES = np.empty((0, 0), np.float32)


class DevicePrototypes:
    """Lines 2-4 of Algorithm 7, which happen on the device: a ``rounds.PrototypeSource``.

    Args:
        plan: the job's, with the value that its sweep sets.
    """

    def __init__(self, arm: Arm, plan: RunPlan, cloud: SeedCloud, session: DeviceSession) -> None:
        self._arm, self._plan, self._cloud, self._session = arm, plan, cloud, session
        self._key, self._journal = session.key, session.journal
        self._first: PrototypeUpload | None = None
        if arm.upload_once:
            epochs = distillation_of(arm, plan).outer_epochs
            kept = (self._journal.upload(self._key, outer_epoch) for outer_epoch in range(epochs))
            self._first = next((upload for upload in kept if upload is not None), None)

    def __call__(self, student: AudioVisualNet, outer_epoch: int) -> PrototypeUpload | None:
        """The device's prototypes; None if the arm asks nothing of it. Raises DeviceFailure."""
        if self._arm.upload is None or (self._arm.upload_once and self._first is not None):
            return self._first
        accepted = self._journal.upload(self._key, outer_epoch)
        if accepted is not None:
            return accepted
        guarantee = self._guarantee()
        private, histogram = guarantee.kind == "dp", self._arm.upload == "histogram"
        upload = self._session.request_prototypes(
            student,
            outer_epoch,
            self._plan.prototypes,
            guarantee=guarantee,
            temperature=1.0 if histogram or self._arm.calibrated else self._plan.selection.temperature,
            training_prior=(
                self._cloud.bank.class_prior() if self._arm.calibrated and not private else NO_PRIOR
            ),
            centres=self._centres(histogram) if private else NO_CENTRES,
        )
        if upload.class_names != self._cloud.public.class_names:
            raise DeviceFailure(f"means other classes: {list(upload.class_names)}")
        upload = self._journal.accept_upload(self._key, outer_epoch, upload, guarantee)
        self._first = self._first or upload
        return upload

    def _guarantee(self) -> PrivacyGuarantee:
        settings = self._plan.prototypes
        kind = upload_kind(self._arm, settings)
        return (
            PrivacyGuarantee(kind, settings.epsilon, settings.delta)
            if kind == "dp"
            else PrivacyGuarantee(kind)
        )

    def _centres(self, histogram: bool) -> npt.NDArray[np.float32]:
        return one_cell(len(self._cloud.public.class_names)) if histogram else self._cloud.centres
