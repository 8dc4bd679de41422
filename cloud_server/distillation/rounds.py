"""Algorithm 7 of the thesis, selective distillation, as one readable function.

``personalise`` is the algorithm. It needs only two protocols from the rest of the package: a device that summarises its
clips, and a rule that chooses public clips for such a summary.
"""

from __future__ import annotations

from typing import Protocol

from fedstill.cloud_server.distillation.distiller import Distiller
from fedstill.cloud_server.distillation.public_bank import PublicBank
from fedstill.cloud_server.distillation.selection import Selection, SelectionError
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.protos.messages import PrototypeUpload


class DeviceFailure(RuntimeError):
    """A device did not answer usefully; the text is the reason, one line."""


class PrototypeSource(Protocol):
    """A device, seen from the cloud. Implemented by ``federation.device_prototypes.DevicePrototypes``."""

    def __call__(self, student: AudioVisualNet, outer_epoch: int) -> PrototypeUpload | None:
        """The device's prototypes under this student; None if the arm needs nothing from the device."""
        ...


def nothing_asked(student: AudioVisualNet, outer_epoch: int) -> PrototypeUpload | None:
    """The PrototypeSource of a device that has said all that is needed."""
    return None


class SelectData(Protocol):
    """Chooses the public clips to distil on (lines 12-18, or another rule).

    Implemented by the functions that ``arms.select_rule`` and ``arms.whole_set_in_turns`` make.
    """

    def __call__(self, prototypes: PrototypeUpload | None, bank: PublicBank) -> Selection: ...


class RoundObserver(Protocol):
    """Is informed of the outcome of each outer round. Implemented by ``federation.job_progress.JobProgress``."""

    def trained(self, outer_epoch: int, selection: Selection, losses: list[float]) -> None: ...

    def failed(self, outer_epoch: int, reason: str) -> None: ...


def personalise(
    distiller: Distiller,
    device: PrototypeSource,
    select_data: SelectData,
    observer: RoundObserver,
    *,
    outer_epochs: int,
    inner_epochs: int,
    done: int = 0,
) -> AudioVisualNet:
    """Algorithm 7: distil the student on public clips that look like the device's own.

    Line 5, the teacher's outputs for the public clips, is the public bank. The returned student is line 11's;
    downloading it (line 10) is the caller's next message to the device. An outer round is reported and left out if the
    device does not answer in it, or asks for something that the public set cannot give. The distiller has already
    finished ``done`` outer rounds.
    """
    for outer_epoch in range(done, outer_epochs):  # line 1
        try:
            prototypes = device(distiller.student, outer_epoch)  # lines 2-4
            selection = select_data(prototypes, distiller.bank)  # lines 5-6, 12-18
        except (DeviceFailure, SelectionError) as failure:
            observer.failed(outer_epoch, str(failure))
            continue
        losses = distiller.run(selection, inner_epochs)  # lines 7-9
        observer.trained(outer_epoch, selection, losses)
    return distiller.student  # lines 10-11
