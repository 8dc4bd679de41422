"""What a student would be worth to one device: judged by labelled clips of speakers whom no judged student has heard.

The clips are rendered as the device is believed to record, and their classes count as the device seems to have them.
Both follow from its newest summary, so one and the same student is worth another amount when the device has changed.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import softmax

from fedstill.cloud_server.distillation.candidates import (
    Estimate,
    class_weights,
    estimated,
    expected_accuracy,
    right,
)
from fedstill.cloud_server.distillation.class_mix import ClassMix
from fedstill.cloud_server.distillation.cross_fit import CrossFit
from fedstill.cloud_server.distillation.public_bank import outputs_of
from fedstill.cloud_server.federation.own_statistics import OwnStatistics, OwnStatisticsTrial
from fedstill.cloud_server.federation.seed_state import SeedCloud
from fedstill.cloud_server.federation.student_in_use import CHECK_FOLD
from fedstill.cloud_server.federation.worlds import MOST_JUDGED, World
from fedstill.models.audiovisual.confidence import CONFIDENCE_BINS, confidence_bins, mean_confidence
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.protos.messages import PrototypeUpload

Floats = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]


class Judging:
    """Of one device.

    Args:
        world: in which it is believed to record.
        mix: of its classes, there.
        summary: of its clips.
    """

    def __init__(self, cloud: SeedCloud, world: World, mix: ClassMix, summary: PrototypeUpload) -> None:
        self._cloud, self._world, self._mix, self._summary = cloud, world, mix, summary

    @cached_property
    def held(self) -> Positions:
        """Clips of the speakers who judge."""
        found = np.flatnonzero(self._cloud.folds == CHECK_FOLD)
        return np.sort(np.random.default_rng(self._cloud.seed).permutation(found)[:MOST_JUDGED])

    @property
    def labels(self) -> Positions:
        """Of these clips."""
        return self._cloud.bank.labels[self.held]

    def logits_of(self, net: AudioVisualNet) -> Floats:
        """What a student says of these clips, recorded as the device does; float32 (clips, classes)."""
        outputs = outputs_of(net, self._world.views, self.held, self._cloud.plan.compute)
        return np.asarray(torch.cat([found.joint.cpu() for _, found in outputs]).numpy())

    def right(self, logits: Floats, bias: Floats | None = None) -> npt.NDArray[np.float64]:
        """1.0 for each of these clips that is decided as labelled, else 0.0."""
        return right(logits, np.zeros(logits.shape[1], np.float32) if bias is None else bias, self.labels)

    def worth(self, name: str, gains: npt.NDArray[np.float64], rows: Positions | None = None) -> Estimate:
        """The gain of one student over another, from its differences clip by clip, -1, 0 or 1 each; of all clips, or of
        those at these places."""
        chosen = np.arange(len(self.held)) if rows is None else rows
        recordings = np.array(self._cloud.public.recordings)[self.held[chosen]]
        numbers = np.unique(recordings, return_inverse=True)[1]
        return estimated(name, gains, self.labels[chosen], numbers, self._mix.shares)

    def own_statistics(self, net: AudioVisualNet, clips: int) -> OwnStatistics | None:
        """Whether a device with so many clips should let its student take batch norm statistics of these; None: no.

        The judging speakers play the device, each one alone and all together, with all classes and with halves of
        them, and try it without labels; then their labels say what it was worth. Where classes are missing, it does
        harm. So it is tied to a sign by which no device with half of the classes would have passed.

        Args:
            net: the student of the device's training that was not told of these speakers.
        """
        return OwnStatisticsTrial(self._cloud, self._world, self.held, clips).judged(net, self.worth)

    def expected(self, best: Estimate | None) -> tuple[float, float, float]:
        """(accuracy, low, high) of a student that is worth so much more than the generic one; None: of that one."""
        fit, shares = self._world.cross_fit, self._mix.shares
        assert fit is not None
        gain, error = (best.gain, best.error) if best else (0.0, 0.0)
        correct = right(fit.logits, np.zeros(len(shares), np.float32), fit.labels)
        surer = self._surer_than(fit)
        return expected_accuracy(correct, fit.labels, fit.speakers, shares, gain, error, surer)

    def sureness(self, logits: Floats) -> float:
        """Mean confidence of a student that says so of these clips, with the classes as the device has them."""
        return self._sureness(logits, self.labels)

    def _sureness(self, logits: Floats, labels: Positions) -> float:
        confident = softmax(logits / self._cloud.class_mixes.temperature, axis=1)
        bins = np.eye(CONFIDENCE_BINS)[confidence_bins(confident)]
        return mean_confidence(class_weights(labels, self._mix.shares) @ bins)

    def _surer_than(self, fit: CrossFit) -> float:
        """How much surer the generic student is of the device's clips than of public speakers', in accuracy."""
        if not len(self._summary.confidence):
            return 0.0
        surer = mean_confidence(self._summary.confidence) - self._sureness(fit.logits, fit.labels)
        return surer * (1 - 1 / len(self._mix.shares))
