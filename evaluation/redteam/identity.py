"""Speaker identity: whose device is this? The attacker has other recordings of each victim, and learns their uploads.

For each draw, it simulates a device of every victim with the clips that the real device does not have, makes a few
uploads with other random choices, and fits a linear model from row to speaker. It then names the speaker of each row
that the real devices upload, and of each whole upload by the sum of its rows' log probabilities. It chooses the linear
model beforehand, in the same game with its own speakers.
"""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from fedstill.evaluation.redteam.intervals import Measured, Numbers, over_devices
from fedstill.evaluation.redteam.releases import Channel, DeviceClips, Upload
from fedstill.evaluation.redteam.stage import Positions, View

REHEARSALS = 5
"""Uploads that the attacker makes from its knowledge of each victim."""
FEWEST_ROWS = 2
"""Of a speaker, to learn from; one with fewer is never named."""
TRIED = (
    lambda: LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
    lambda: LogisticRegression(C=1.0, max_iter=300),
    lambda: LogisticRegression(C=100.0, max_iter=300),
)


def identify(
    channel: Channel,
    attacker: View,
    shadows: list[DeviceClips],
    victims: View,
    devices: list[DeviceClips],
    draws: int,
    seed: int,
) -> tuple[Measured, Measured]:
    """Share of rows, and of whole uploads, whose speaker is named; guessing is 1 / speakers.

    A device that uploads nothing counts as a guess.
    """
    rehearsed = [
        _one_draw(channel, attacker, shadows[: len(shadows) // draws], number) for number in range(len(TRIED))
    ]
    best = int(np.argmax([tallies[:, 0].sum() for tallies in rehearsed]))
    tallies = np.zeros((len(devices), 3))  # rows named, rows, uploads named
    share = len(devices) // draws
    for draw in range(draws):
        numbers = range(draw * share, (draw + 1) * share)
        tallies[numbers] = _one_draw(channel, victims, [devices[number] for number in numbers], best)

    def by_row(some: Numbers) -> float:
        rows = tallies[some, 1].sum()
        return float(tallies[some, 0].sum() / rows) if rows else 1 / share

    def by_upload(some: Numbers) -> float:
        return float(tallies[some, 2].mean())

    return over_devices(by_row, len(devices), seed), over_devices(by_upload, len(devices), seed)


def _one_draw(
    channel: Channel, view: View, devices: list[DeviceClips], tried: int
) -> npt.NDArray[np.float64]:
    seen = channel.seen(view)
    rows, owners = [], []
    for device in devices:
        for rehearsal in range(REHEARSALS):
            upload = channel.upload(seen[device.others], device.seed + 1 + rehearsal)
            rows.append(_described(upload))
            owners.append(np.full(len(upload.rows), device.speaker))
    once = np.unique(np.column_stack([np.concatenate(rows), np.concatenate(owners)]), axis=0)
    known, speaker = once[:, :-1], once[:, -1].astype(np.int64)
    names, times = np.unique(speaker, return_counts=True)
    learnt = np.isin(speaker, names[times >= FEWEST_ROWS])
    guess = np.array([0.0, 0.0, 1 / len(devices)])
    if len(np.unique(speaker[learnt])) < 2:
        return np.tile(guess, (len(devices), 1))
    model: Pipeline = make_pipeline(StandardScaler(), TRIED[tried]())
    with warnings.catch_warnings():  # a fit that stops early is still an attack
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(known[learnt], speaker[learnt])
    tallies = np.tile(guess, (len(devices), 1))
    for number, device in enumerate(devices):
        upload = channel.upload(seen[device.members], device.seed)
        if len(upload.rows):
            scores = model.predict_log_proba(_described(upload))
            named: Positions = model.classes_[scores.argmax(axis=1)]
            together = model.classes_[scores.sum(axis=0).argmax()]
            tallies[number] = (named == device.speaker).sum(), len(named), float(together == device.speaker)
    return tallies


def _described(upload: Upload) -> npt.NDArray[np.float64]:
    return np.column_stack([upload.rows, np.log1p(upload.counts)])
