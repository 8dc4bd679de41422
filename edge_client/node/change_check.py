"""Looks whether a device's clips have changed since its student was made, so that it should get another one.

Two things count: a share of the clips is new, or gone; or the newer ones, though few, differ from the others (see
``drift.py``). Both are decided here, from the device's own clips and its own student. A process of its own does it,
since it may decode clips and loads a student:

    python -m fedstill.edge_client.node.change_check FOLDER SHARE
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedstill.datasets.audiovisual.store import ClipStore
from fedstill.edge_client.node.agent_data import own_clips
from fedstill.edge_client.node.change_note import ChangeNote, mark_of, read_note
from fedstill.edge_client.node.drift import FEWEST, drift_between, level_of
from fedstill.edge_client.node.known_clips import read_known_clips
from fedstill.edge_client.node.loading import loader
from fedstill.edge_client.privacy.privacy_ledger import may_release_again
from fedstill.edge_client.privacy.privacy_policy import read_policy
from fedstill.edge_client.privacy.yearly_budget import may_announce
from fedstill.edge_client.students.own_statistics import student_in_use
from fedstill.edge_client.students.runtime_api import LoadStudent
from fedstill.protos.messages import CLIPS_CHANGED, DRIFTED

POLITE = 10
"""The priority that the process takes: everything else on the device goes first."""
GROWTH = 2.0
"""Drift is tested for again when there are so many times as many newer recordings: few looks have few false alarms."""


def find_change(folder: Path, share: float, load: LoadStudent) -> str:
    """Look, note what was found, and return it: one of ``messages.CHANGES``, or nothing.

    Args:
        folder: the device's.
        share: of the known clips, with those left behind; so many new ones, or so many that are gone, are a change.
        load: makes a runtime of the device's student.

    Raises:
        DeviceError: its clips or its policy cannot be used.
    """
    policy, known = read_policy(folder), read_known_clips(folder)
    if known is None or not policy.changes:
        return ""
    note = read_note(folder, mark_of(folder))
    if note.change or not (may_release_again(folder, policy) and may_announce(folder, policy)):
        return note.change
    store = own_clips(folder)
    newer, left = known.parts(store)
    if newer.any() and max(int(newer.sum()), known.gone(store)) >= share * known.count:
        found = replace(note, change=CLIPS_CHANGED)
    else:
        found = _look_for_drift(folder, note, store, newer, left, load)
    if found != note:
        found.write(folder)
    return found.change


def _look_for_drift(
    folder: Path,
    note: ChangeNote,
    store: ClipStore,
    newer: npt.NDArray[np.bool_],
    left: npt.NDArray[np.bool_],
    load: LoadStudent,
) -> ChangeNote:
    """What is to be noted after a look, if it is time for one."""
    recordings = len({name for name, new in zip(store.recordings, newer, strict=True) if new})
    if recordings < max(FEWEST, GROWTH * note.newer):
        return note
    student = student_in_use(folder)
    if student is None or student.class_names != store.class_names:
        return note
    runtime = load(student.state, student.spec, student.class_names, student.version)
    compared = np.flatnonzero(~left)
    rows = runtime.probabilities(
        runtime.logits(runtime.features(store.audio[compared], store.frames[compared]))
    )
    profiles = None if store.profiles is None else store.profiles[compared]
    names = tuple(store.recordings[place] for place in compared)
    rng = np.random.default_rng(int(note.known[:16], 16) + note.looks)
    drift = drift_between(rows, profiles, names, newer[compared], level_of(note.looks), rng)
    if drift is None:
        return note
    change = DRIFTED if drift.drifted else ""
    return replace(note, change=change, looks=note.looks + 1, newer=recordings)


def main() -> None:
    """Of the process; its exit code is 0 unless the look could not be made."""
    os.nice(POLITE)
    folder, share = Path(sys.argv[1]), float(sys.argv[2])
    find_change(folder, share, loader(folder))


if __name__ == "__main__":
    main()
