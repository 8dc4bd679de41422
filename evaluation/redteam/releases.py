"""Everything that a device may upload, made by the same functions that devices use, and the devices that upload it.

A device here is one speaker with the clips of half of that speaker's recordings; the other half are clips of the
same person, in the same emotions, that the device does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedstill.edge_client.privacy.privacy import sigma_for
from fedstill.edge_client.privacy.private_prototypes import private_prototypes
from fedstill.edge_client.privacy.prototypes import DeviceError, Prototypes, summarise
from fedstill.evaluation.redteam.stage import Floats, Positions, Stage, View
from fedstill.protos.messages import Job, PrototypeRequest, Student

EPSILONS = (1.0, 4.0, 8.0)
THESIS_SAMPLES = 3


@dataclass(frozen=True)
class Upload:
    """The cloud's view of an upload: float32 rows (r, width) and the stated number of clips behind each, int64 (r,)."""

    rows: Floats
    counts: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Channel:
    """One kind of upload.

    Attributes:
        seen: the values of a clip that the channel is made from; float32 (n, width).
        upload: from those rows of a device's clips to the upload.
        mu: Gaussian privacy of one upload, None if nothing is guaranteed.
    """

    key: str
    title: str
    seen: Callable[[View], Floats]
    upload: Callable[[Floats, int], Upload]
    mu: float | None = None


@dataclass(frozen=True)
class DeviceClips:
    """One device of one draw: positions of its clips and of the same speaker's other clips."""

    speaker: int
    seed: int
    members: Positions
    others: Positions


def channels(stage: Stage) -> tuple[Channel, ...]:
    """All kinds of upload, from the most revealing to the least."""
    sharing = (
        Channel("features_fp32", "inference features, rate 1 fp32", lambda view: view.features, _as_they_are),
        Channel("features_int8", "inference features, rate 3 int8", lambda view: view.compressed, _as_they_are),
        Channel("samples", "probabilities of every clip", _probabilities, _as_they_are),
        Channel("thesis", "thesis prototypes (k = n/3)", _probabilities, _summary(stage, "kmeans")),
        Channel("constrained", f"constrained prototypes (>= {stage.prototypes.min_size} clips)", _probabilities,
                _summary(stage, "constrained")),
    )  # fmt: skip
    delta = stage.prototypes.delta
    private = (
        Channel(f"dp_{epsilon:g}", f"dp prototypes, epsilon {epsilon:g}", _probabilities, _noisy(stage, epsilon),
                1 / sigma_for(epsilon, delta))
        for epsilon in sorted(EPSILONS, reverse=True)
    )  # fmt: skip
    return (*sharing, *private)


def devices(view: View, draws: int, rng: np.random.Generator) -> Iterator[DeviceClips]:
    """``draws`` devices per speaker. Clips that share a recording are all members or all others."""
    for _ in range(draws):
        for speaker in np.unique(view.speaker):
            clips = np.flatnonzero(view.speaker == speaker)
            recordings = rng.permutation(np.unique(view.recording[clips]))
            inside = np.isin(view.recording[clips], recordings[: (len(recordings) + 1) // 2])
            yield DeviceClips(int(speaker), int(rng.integers(2**31)), clips[inside], clips[~inside])


def nearest(rows: Floats, upload: Upload) -> tuple[npt.NDArray[np.float64], Positions]:
    """Per row of (n, width) the two smallest distances to uploaded rows (n, 2), and the nearest row's number (n,).

    Without uploaded rows distances are infinite and the number is -1; with a single one the second is infinite.
    """
    if len(upload.rows) == 0:
        return np.full((len(rows), 2), np.inf), np.full(len(rows), -1)
    ours, theirs = rows.astype(np.float64), upload.rows.astype(np.float64)
    squares = (ours**2).sum(axis=1)[:, None] + (theirs**2).sum(axis=1) - 2 * ours @ theirs.T
    distance = np.sqrt(np.clip(squares, 0, None))
    order = np.argsort(distance, axis=1, kind="stable")[:, :2]
    two = np.full((len(rows), 2), np.inf)
    two[:, : order.shape[1]] = np.take_along_axis(distance, order, axis=1)
    return two, order[:, 0].astype(np.int64)


def _probabilities(view: View) -> Floats:
    return view.probabilities


def _as_they_are(rows: Floats, seed: int) -> Upload:
    return Upload(rows, np.ones(len(rows), np.int64))


def _summary(stage: Stage, kind: str) -> Callable[[Floats, int], Upload]:
    request = _request(stage, kind)

    def upload(rows: Floats, seed: int) -> Upload:
        try:
            return _upload(summarise(rows, request, seed))
        except DeviceError:  # too few clips: the device refuses, the attacker gets nothing
            return Upload(rows[:0], np.empty(0, np.int64))

    return upload


def _noisy(stage: Stage, epsilon: float) -> Callable[[Floats, int], Upload]:
    request = replace(
        _request(stage, "samples"),
        kind="dp",
        epsilon=epsilon,
        delta=stage.prototypes.delta,
        centres=stage.centres,
    )

    def upload(rows: Floats, seed: int) -> Upload:
        return _upload(private_prototypes(rows, request, np.random.default_rng(seed)))

    return upload


def _upload(made: Prototypes) -> Upload:
    return Upload(made.probabilities, made.counts)


def _request(stage: Stage, kind: str) -> PrototypeRequest:
    """The cloud's request; the student itself is not needed once its probabilities are there."""
    return PrototypeRequest(
        job=Job("latency_insensitive", "redteam", stage.seed, 0),
        student=Student(np.empty(0, np.uint8), "", stage.class_names, version="0" * 64),
        kind=kind,
        samples_per_prototype=THESIS_SAMPLES if kind == "kmeans" else stage.prototypes.samples_per_prototype,
        min_size=stage.prototypes.min_size,
        upload_limit=0,
        temperature=1.0,
    )
