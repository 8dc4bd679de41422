"""AdaBN: the device's own batch norm statistics in place of the training set's (Li et al. 2016, arXiv 1603.04779).

The paper holds that a network's weights know the classes and its statistics know the domain. So it computes the mean
and variance of every neuron over all target clips, and changes nothing else. Applied to a teacher, this is the
reference "teacher with the device's statistics".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedstill.evaluation.robustness.baselines.query_clips import network_inputs
from fedstill.models.audiovisual.batch_statistics import with_statistics_of
from fedstill.models.audiovisual.network import AudioVisualNet


def adapt(
    net: AudioVisualNet, audio: npt.NDArray[np.float32], frames: npt.NDArray[np.uint8]
) -> AudioVisualNet:
    """A copy of ``net`` in evaluation mode whose running statistics are those of the given unlabelled clips.

    Args:
        net: on any device; unchanged.
        audio: float32 (n, bins, steps), as in a clip store.
        frames: uint8 (n, count, channels, size, size).

    Raises:
        ValueError: if there are fewer than two clips, or no batch norm.
    """
    return with_statistics_of(net, *network_inputs(net, audio, frames))
