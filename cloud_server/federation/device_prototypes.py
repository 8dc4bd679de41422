"""The source of a job's prototypes: an upload that is already in the journal, else the device."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.distillation.arms import Arm, asks_card, upload_kind
from fedstill.cloud_server.distillation.centres import one_cell
from fedstill.cloud_server.distillation.rounds import DeviceFailure
from fedstill.cloud_server.distillation.run_plan import RunPlan
from fedstill.cloud_server.federation.device_session import DeviceSession
from fedstill.cloud_server.federation.seed_state import SeedCloud
from fedstill.cloud_server.journal.journal import PrivacyGuarantee
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.protos.messages import PrototypeUpload

NO_CENTRES = np.empty((0, 0), np.float32)


class DevicePrototypes:
    """Lines 2-4 of Algorithm 7, which happen on the device: a ``rounds.PrototypeSource``.

    Args:
        plan: the job's, with the value that its sweep sets.
        coarse: prototypes in 8 bits a share are enough.
    """

    def __init__(
        self, arm: Arm, plan: RunPlan, cloud: SeedCloud, session: DeviceSession, *, coarse: bool = False
    ) -> None:
        self._arm, self._plan, self._cloud, self._session = arm, plan, cloud, session
        self._coarse = coarse
        self._key, self._journal = session.key, session.journal

    def __call__(self, student: AudioVisualNet, outer_epoch: int) -> PrototypeUpload | None:
        """The device's prototypes; None if the arm asks nothing of it. Raises DeviceFailure."""
        if self._arm.upload is None:
            return None
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
            temperature=self._temperature(histogram),
            centres=self._centres(histogram) if private else NO_CENTRES,
            card=outer_epoch == 0 and asks_card(self._arm, self._plan),
            coarse=self._coarse,
        )
        if upload.class_names != self._cloud.public.class_names:
            raise DeviceFailure(f"means other classes: {list(upload.class_names)}")
        return self._journal.accept_upload(self._key, outer_epoch, upload, guarantee)

    def _temperature(self, histogram: bool) -> float:
        if self._arm.class_mix or self._arm.personal:
            return self._cloud.class_mixes.temperature
        return 1.0 if histogram else self._plan.selection.temperature

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
