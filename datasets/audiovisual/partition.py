"""Partitions: the ways to divide a private dataset among clients.

Pure functions from labels or speakers to positions, so that a split is a few lines in an experiment file, can
be recomputed anywhere from its seed, and never copies data. Every function assigns each position exactly once.

Several clips of one recording (two faces beside one sound) are nearly the same clip. Where a class is divided, a
recording therefore stays together: its first clip decides which class it counts for, and the others follow. If every
clip is its own recording, this changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedstill.common.errors import DataError

Positions = npt.NDArray[np.int64]


def halves(labels: npt.ArrayLike, class_count: int) -> tuple[Positions, ...]:
    """Two clients that share no class: the first half of the class order, and the rest (thesis 5.5.1).

    Args:
        labels: int (clips,), in [0, class_count).
        class_count: an odd count gives the first client one class more.

    Raises:
        DataError: a label outside the range, or a half without a clip.
    """
    label = _label_array(labels)
    if label.size and label.max() >= class_count:
        raise DataError(f"label {label.max()} does not fit {class_count} classes: check the class list")
    return _dealt(
        (label >= (class_count + 1) // 2).astype(np.int64), 2, "use labels from both halves of the classes"
    )


def pathological(
    labels: npt.ArrayLike,
    clients: int,
    classes_per_client: int,
    seed: int,
    groups: Sequence[str] | None = None,
) -> tuple[Positions, ...]:
    """Each client sees ``classes_per_client`` classes; the recordings of a class are shared evenly (arXiv 1602.05629).

    Args:
        labels: int (clips,), >= 0.
        clients: how many.
        classes_per_client: distinct classes of each client.
        seed: of which client gets which classes and clips.
        groups: the recording of each clip; by default each clip is its own. Only one that spans classes can bring a
            client a class that is not its own.

    Raises:
        DataError: a class without owner, fewer classes than requested, or a client without clips.
    """
    label, recording = _recordings(_label_array(labels), groups)
    generator = np.random.default_rng(seed)
    classes = generator.permutation(np.unique(label))
    if not 1 <= classes_per_client <= len(classes):
        raise DataError(
            f"classes_per_client is {classes_per_client}: choose 1 to {len(classes)}, the classes present"
        )
    if clients * classes_per_client < len(classes):
        raise DataError(
            f"{clients} clients with {classes_per_client} classes each cannot own {len(classes)} classes: "
            "raise clients or classes_per_client"
        )
    # Assigning in turn keeps a client's classes distinct and every class owned about equally often.
    slots = np.resize(classes, clients * classes_per_client)
    owner = np.empty(len(label), dtype=np.int64)
    for name in classes:
        owners = np.flatnonzero(slots == name) // classes_per_client
        members = generator.permutation(np.flatnonzero(label == name))
        owner[members] = np.resize(owners, len(members))
    return _dealt(owner[recording], clients, "lower clients")


def dirichlet(
    labels: npt.ArrayLike, clients: int, alpha: float, seed: int, groups: Sequence[str] | None = None
) -> tuple[Positions, ...]:
    """The recordings of each class are shared in proportions drawn from Dirichlet(alpha) (arXiv 1909.06335).

    Args:
        labels: int (clips,), >= 0.
        clients: how many.
        alpha: > 0; small means that few clients hold most of a class, large means equal shares.
        seed: of the proportions and of which clip goes where.
        groups: the recording of each clip; by default each clip is its own.

    Raises:
        DataError: ``alpha`` is not positive, or a client stays empty.
    """
    label, recording = _recordings(_label_array(labels), groups)
    if not alpha > 0:
        raise DataError(f"alpha is {alpha}: choose a positive number, for instance 0.5")
    _check_clients(clients)
    generator = np.random.default_rng(seed)
    owner = np.empty(len(label), dtype=np.int64)
    for name in np.unique(label):
        members = generator.permutation(np.flatnonzero(label == name))
        share = np.cumsum(generator.dirichlet(np.full(clients, alpha)))[:-1]
        cuts = np.round(share * len(members)).astype(np.int64)
        owner[members] = np.searchsorted(cuts, np.arange(len(members)), side="right")
    return _dealt(owner[recording], clients, "raise alpha, lower clients or change the seed")


def by_speaker(speakers: Sequence[str], clients: int, seed: int) -> tuple[Positions, ...]:
    """All clips of a speaker go to one client; speakers are divided evenly in a random order.

    Args:
        speakers: the speaker of each clip.
        clients: how many, at most one per speaker.
        seed: of the order.

    Raises:
        DataError: fewer speakers than clients.
    """
    _check_clients(clients)
    names, speaker = np.unique(np.asarray(speakers, dtype=np.str_), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return _dealt(order[speaker] % clients, clients, f"choose at most {len(names)} clients, one per speaker")


def query_and_test(
    labels: npt.ArrayLike, seed: int, groups: Sequence[str] | None = None
) -> tuple[Positions, Positions]:
    """The latency-sensitive split: per class, ceil(n / 2) recordings are for testing, the rest are the queries.

    The thesis' CREMA-D clients get 189 and 185 test clips, its AVE clients 115 and 91. Labels are used only
    to build the benchmark.

    Args:
        labels: int (clips,), >= 0.
        seed: of which clips are tested.
        groups: the recording of each clip; by default each clip is its own. No recording is on both sides.

    Returns:
        (query positions, test positions).

    Raises:
        DataError: no class has two recordings, so no query is left.
    """
    label, recording = _recordings(_label_array(labels), groups)
    generator = np.random.default_rng(seed)
    tested = np.zeros(len(label), dtype=np.int64)
    for name in np.unique(label):
        members = generator.permutation(np.flatnonzero(label == name))
        tested[members[: (len(members) + 1) // 2]] = 1
    query, test = _dealt(tested[recording], 2, "give at least one class two clips of different recordings")
    return query, test


def _recordings(
    label: npt.NDArray[np.int64], groups: Sequence[str] | None
) -> tuple[npt.NDArray[np.int64], Positions]:
    """(label of each recording, by its first clip; number of each clip's recording), in the order of first clips."""
    if groups is None:
        return label, np.arange(len(label))
    if len(groups) != len(label):
        raise DataError(f"{len(groups)} groups for {len(label)} labels: give one of each per clip")
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    recording = np.array([numbers[group] for group in groups], dtype=np.int64)
    first = np.unique(recording, return_index=True)[1]
    return label[first], recording


def _dealt(owner: npt.NDArray[np.int64], clients: int, remedy: str) -> tuple[Positions, ...]:
    """The sorted positions of each owner 0 .. clients - 1."""
    _check_clients(clients)
    parts = tuple(np.flatnonzero(owner == client) for client in range(clients))
    for client, part in enumerate(parts):
        if not len(part):
            raise DataError(f"part {client + 1} of {clients} would be empty: {remedy}")
    return parts


def _check_clients(clients: int) -> None:
    if clients < 1:
        raise DataError(f"clients is {clients}: choose at least 1")


def _label_array(labels: npt.ArrayLike) -> npt.NDArray[np.int64]:
    label = np.asarray(labels)
    if label.ndim != 1 or label.size == 0:
        raise DataError(f"labels have shape {label.shape}: give one label per clip, at least one clip")
    if not np.issubdtype(label.dtype, np.integer) or label.min() < 0:
        raise DataError("labels must be whole numbers from 0: leave unlabelled clips out of the split")
    return label.astype(np.int64)
