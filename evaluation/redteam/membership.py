"""Membership: is this clip among those of the device? The attacker holds the clip itself, and the upload.

It trains on devices that it simulates with its own speakers' clips. Its clues are the clip's distance to the uploaded
rows, the count of the nearest row, and how typical the clip is. Members and others are clips of the same speaker, in
the same emotions, so only membership tells them apart.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from fedstill.evaluation.redteam.intervals import Measured, Numbers, over_devices
from fedstill.evaluation.redteam.releases import Channel, DeviceClips, nearest
from fedstill.evaluation.redteam.stage import Floats, View

FARTHEST, NEAREST = 1e3, 1e-6


def auc_bound(mu: float) -> float:
    """No attack tells N(0, 1) from N(mu, 1) with a larger area under its curve: Phi(mu / sqrt 2).

    That trade-off bounds every attack on whether *one* clip was added to a mu-Gaussian private upload (Dong, Roth and
    Su 2019).
    """
    return float(ndtr(mu / math.sqrt(2)))


def game_bound(mu: float, view: View) -> float:
    """The same for the game used here, in which clips are in or out together, and replace others.

    Clips that share a recording go together, g at most, and as many others make room. That moves the noiseless
    release by g times sqrt(2) sensitivities at most (both cells change; within one cell it is less).
    """
    together = int(np.bincount(view.recording).max())
    return auc_bound(math.sqrt(2) * together * mu)


def membership(
    channel: Channel,
    attacker: View,
    shadows: list[DeviceClips],
    victims: View,
    devices: list[DeviceClips],
    seed: int,
) -> Measured:
    """Area under the curve of telling the victims' members from their other clips; 0.5 is guessing."""
    usual = channel.seen(attacker).mean(axis=0)
    clues, inside = zip(*(_clues(channel, attacker, device, usual) for device in shadows), strict=True)
    model = HistGradientBoostingClassifier(
        max_iter=80, max_leaf_nodes=8, min_samples_leaf=40, early_stopping=False, random_state=seed % 2**32
    )
    model.fit(np.concatenate(clues), np.concatenate(inside))
    judged = []
    for device in devices:
        clue, inside_one = _clues(channel, victims, device, usual)
        judged.append((model.decision_function(clue), inside_one))

    def area(some: Numbers) -> float:
        scores, truth = (np.concatenate([judged[one][part] for one in some]) for part in (0, 1))
        return float(roc_auc_score(truth, scores))

    return over_devices(area, len(devices), seed)


def _clues(
    channel: Channel, view: View, device: DeviceClips, usual: Floats
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """(members + others, 5) clues and which are members."""
    seen = channel.seen(view)
    upload = channel.upload(seen[device.members], device.seed)
    asked = np.concatenate([device.members, device.others])
    distance, owner = nearest(seen[asked], upload)
    logs = np.log(np.clip(distance, NEAREST, FARTHEST))
    counts = np.append(upload.counts, 0)[owner]  # -1, no row, reads the appended 0
    oddness = np.linalg.norm(seen[asked] - usual, axis=1)
    clues = np.column_stack([logs, counts, view.probabilities[asked].max(axis=1), oddness])
    return clues, np.arange(len(asked)) < len(device.members)
