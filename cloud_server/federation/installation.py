"""The last step of a personalisation: the device installs its student, after a trial on a few public clips."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.distillation.public_bank import PublicBank
from fedstill.cloud_server.federation.exchange import DeviceLacks
from fedstill.cloud_server.federation.seed_state import SeedCloud
from fedstill.models.weights.canaries import Canaries
from fedstill.protos.messages import InstallRequest, InstallResult, Job, Student

Ask = Callable[[Callable[[Student], InstallRequest]], InstallResult]


def install(
    cloud: SeedCloud,
    positions: npt.NDArray[np.int64],
    job: Job,
    compressors: npt.NDArray[np.uint8],
    ask: Ask,
) -> InstallResult:
    """Have the device install a student; the canary clips travel only to a device that does not have them.

    Args:
        positions: the public clips that the student was last trained on, which resemble the device's.
        compressors: of all compression rates, as ``InstallRequest`` carries them.
        ask: sends the device the request that its argument builds from the student's update.

    Raises:
        DeviceFailure: as ``ask`` does.
    """
    settings = cloud.plan.downlink
    chosen = canary_positions(cloud.bank, positions, settings.canaries)
    clips = Canaries(
        np.ascontiguousarray(cloud.public.audio[chosen]),
        np.ascontiguousarray(cloud.public.frames[chosen]),
        cloud.bank.probabilities()[chosen],
    )

    def asking_with(count: int) -> Callable[[Student], InstallRequest]:
        return lambda student: InstallRequest(
            job,
            student,
            clips.version,
            clips.audio[:count],
            clips.frames[:count],
            clips.teacher[:count],
            compressors,
            settings.minimum_agreement,
        )

    try:
        return ask(asking_with(0))
    except DeviceLacks as lack:
        if lack.item != "canaries":
            raise
        return ask(asking_with(len(chosen)))


def canary_positions(bank: PublicBank, positions: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Up to ``count`` of ``positions``: those that the teacher is surest of, taken from its predicted classes in turn.

    Sure clips, because on these an intact student agrees with the teacher and a broken one does not.
    """
    class_probabilities = bank.probabilities()[positions]
    decided, surest_first = (
        class_probabilities.argmax(axis=1),
        np.argsort(-class_probabilities.max(axis=1), kind="stable"),
    )
    turn = np.empty(len(positions), np.int64)
    for label in np.unique(decided):
        members = surest_first[decided[surest_first] == label]
        turn[members] = np.arange(len(members))
    order = np.lexsort((-class_probabilities.max(axis=1), turn))
    return np.sort(positions[order[:count]])
