"""Should a device let its student take batch norm statistics of the device's own clips? Played by public speakers.

Statistics of a device's own clips adapt a student to its voice, microphone, room and camera, without any label (AdaBN,
Li et al. 2016, arXiv 1603.04779). But if some classes are missing, they spread the rest over all of them. The device
alone can see that, by what the adapted student decides: so public speakers show how seldom a class is decided where
half of the classes are missing, and a device in which any class is decided as seldom keeps its student as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import softmax
from torch import Tensor

from fedstill.cloud_server.distillation.candidates import ERRORS, LEAST_GAIN, OWN_STATISTICS, Estimate
from fedstill.cloud_server.federation.seed_state import SeedCloud
from fedstill.cloud_server.federation.worlds import World
from fedstill.models.audiovisual.batch_statistics import with_statistics_of
from fedstill.models.audiovisual.network import AudioVisualNet
from fedstill.models.audiovisual.own_clips import least_share, most_clips
from fedstill.models.vit.preprocess import to_tensors

Positions = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Logits = npt.NDArray[np.float32]
Worth = Callable[[str, Floats, Positions], Estimate]

WEIGHTS = (0.25, 0.5)
"""Of the clips' statistics against the student's own: of those that help, the one that helps most."""
BATCH = 64
FEWEST_CLIPS = 16
"""Of a device that is played: fewer have hardly any statistics."""
HALVES = 3
"""Of the classes, drawn for every speaker."""
MARGIN = 0.1
"""Above the largest share that a device with half of the classes had."""
MOST_REFUSED = 0.5
"""Of the devices with all classes: if more would be refused, it is not worth a question."""


@dataclass(frozen=True)
class OwnStatistics:
    """What a device may do.

    Attributes:
        weight, least_share: see ``messages.Student``.
        surer: how much surer of their clips the students of public speakers became.
        worth: what these gained over the student as it is.
    """

    weight: float
    least_share: float
    surer: float
    worth: Estimate


@dataclass(frozen=True)
class _Played:
    """One device: the least share that it saw, and by clip how much righter and surer it became."""

    share: float
    righter: Floats
    surer: Floats


class OwnStatisticsTrial:
    """Of one device.

    Args:
        world: in which it is believed to record.
        held: clips of the judging speakers.
        clips: how many it has.
    """

    def __init__(self, cloud: SeedCloud, world: World, held: Positions, clips: int) -> None:
        self._temperature = cloud.class_mixes.temperature
        width = cloud.plan.student.encoder.width
        shapes = cloud.public.audio.shape[1:], cloud.public.frames.shape[1:]
        self._most = min(max(clips, FEWEST_CLIPS), most_clips(*shapes, width))
        self._labels = cloud.bank.labels[held]
        self._audio, self._frames = to_tensors(*world.views.fixed(held))
        _, speakers = np.unique(np.array(cloud.public.speakers)[held], return_inverse=True)
        rng = np.random.default_rng((cloud.seed, len(held), self._most))
        alone = [np.flatnonzero(speakers == one) for one in range(int(speakers.max()) + 1)]
        players = [*alone, np.arange(len(held))]
        self._alone = [part for members in alone for part in self._device(members, rng)]
        self._together = list(self._device(np.arange(len(held)), rng))
        self._halves = [part for members in players for part in self._lacking(members, rng)]

    def judged(self, net: AudioVisualNet, worth: Worth) -> OwnStatistics | None:
        """See ``Judging.own_statistics``."""
        net = copy.deepcopy(net).cpu().eval()
        parts = [slice(start, start + BATCH) for start in range(0, len(self._labels), BATCH)]
        before = np.concatenate([_logits(net, self._audio[part], self._frames[part]) for part in parts])
        found = [self._with_weight(net, weight, before, worth) for weight in WEIGHTS]
        return max((one for one in found if one), key=lambda one: one.worth.gain, default=None)

    def _with_weight(
        self, net: AudioVisualNet, weight: float, before: Logits, worth: Worth
    ) -> OwnStatistics | None:
        alone, together, halves = (
            [self._play(net, part, weight, before[part]) for part in parts]
            for parts in (self._alone, self._together, self._halves)
        )
        if not alone or not halves:
            return None
        played = np.concatenate(self._alone)
        gain = worth(OWN_STATISTICS, np.concatenate([one.righter for one in alone]), played)
        least = max(one.share for one in halves) + MARGIN
        refused = float(np.mean([one.share < least for one in (*alone, *together)]))
        if least > 1 or refused > MOST_REFUSED or gain.gain <= max(LEAST_GAIN, ERRORS * gain.error):
            return None
        surer = float(np.mean([one.surer.mean() for one in (*alone, *together)]))
        return OwnStatistics(weight, least, surer, gain)

    def _device(self, members: Positions, rng: np.random.Generator) -> Iterator[Positions]:
        """One with as many of these clips as it has, if they are enough."""
        if len(members) >= FEWEST_CLIPS:
            yield np.sort(rng.permutation(members)[: self._most])

    def _lacking(self, members: Positions, rng: np.random.Generator) -> Iterator[Positions]:
        """Devices with half of the classes each."""
        classes = np.unique(self._labels[members])
        for _ in range(HALVES):
            present = rng.permutation(classes)[: len(classes) // 2]
            yield from self._device(members[np.isin(self._labels[members], present)], rng)

    def _play(self, net: AudioVisualNet, clips: Positions, weight: float, before: Logits) -> _Played:
        sound, pictures = self._audio[clips], self._frames[clips]
        after = _logits(with_statistics_of(net, sound, pictures, weight), sound, pictures)
        labels = self._labels[clips]
        right = [(logits.argmax(axis=1) == labels).astype(np.float64) for logits in (before, after)]
        sure = [softmax(logits / self._temperature, axis=1).max(axis=1) for logits in (before, after)]
        share = least_share(after.argmax(axis=1), after.shape[1])
        return _Played(share, right[1] - right[0], sure[1] - sure[0])


@torch.no_grad()
def _logits(net: AudioVisualNet, sound: Tensor, pictures: Tensor) -> Logits:
    return np.asarray(net(sound, pictures).joint.numpy())
