"""Whom the study serves: the same differences speaker by speaker, and fold by fold."""

from __future__ import annotations

from collections.abc import Iterator

from fedstill.cloud_server.federation.seed_state import GENERIC
from fedstill.evaluation.elastic.tables import Sheet
from fedstill.evaluation.robustness.pooling import Entry, difference, entries_of, with_arms
from fedstill.evaluation.robustness.questions import FULL, at_middle, shifted, unshifted
from fedstill.evaluation.robustness.records import DataSet, DeviceRun, Study, counts_of
from fedstill.evaluation.robustness.tables import NONE, TITLES
from fedstill.evaluation.statistics import signed


def speakers_sheet(study: Study) -> Sheet:
    """Speaker by speaker, on shifted devices and on the others."""
    entries = with_arms(entries_of(study), FULL, GENERIC)
    rows = []
    for data in study.sets:
        counted: dict[tuple[str, bool], list[int]] = {}
        for entry in (one for one in entries if one.data is data):
            for speaker, values in _by_speaker(entry):
                totals = counted.setdefault((speaker, shifted(entry)), [0, 0, 0])
                counted[speaker, shifted(entry)] = [a + b for a, b in zip(totals, values, strict=True)]
        for speaker in sorted({name for name, _ in counted}):
            cells = [_speaker_cell(counted.get((speaker, moved))) for moved in (True, False)]
            rows.append((data.experiment, speaker, *cells[0], *cells[1]))
    return Sheet(
        "By speaker",
        ("data", "speaker", "shifted: generic", "full", "gain", "not shifted: generic", "full", "gain"),
        tuple(rows),
        ("In %, and gains in points. A speaker's recordings only, so there is no interval.",),
    )


def folds_sheet(study: Study) -> Sheet:
    """Fold by fold: speakers who were looked at before are in one of them."""
    rows = []
    for data in study.sets:
        for fold in data.folds:
            cells = []
            for keep in (at_middle, shifted, unshifted):
                mine = [
                    one for one in entries_of(study, keep) if one.data is data and one.device.fold == fold
                ]
                figure = difference(mine, FULL, GENERIC)
                cells.append(figure.difference if figure else NONE)
            names = sorted({name for one in data.devices if one.fold == fold for name in _names(data, one)})
            rows.append((data.experiment, str(fold), f"{names[0]} to {names[-1]}", *cells))
    return Sheet(
        "By fold",
        ("data", "fold", "speakers", "A at the middle severity", "all shifted cells", "D and G"),
        tuple(rows),
        (f"{TITLES[FULL]} - {TITLES[GENERIC]}, in points. Few speakers: intervals are rough.",),
    )


def _names(data: DataSet, device: DeviceRun) -> set[str]:
    return {data.recordings[recording][0] for recording in data.tests[device.test].recordings}


def _by_speaker(entry: Entry) -> Iterator[tuple[str, list[int]]]:
    """(speaker, [clips, right with the generic student, right with ours]) of each recording."""
    test = entry.data.tests[entry.device.test]
    columns = zip(
        test.recordings,
        counts_of(test.clips).tolist(),
        counts_of(entry.device.right[GENERIC]).tolist(),
        counts_of(entry.device.right[FULL]).tolist(),
        strict=True,
    )
    for recording, *values in columns:
        yield entry.data.recordings[recording][0], values


def _speaker_cell(values: list[int] | None) -> tuple[str, str, str]:
    if values is None:
        return NONE, NONE, NONE
    clips, generic, full = values
    return f"{100 * generic / clips:.1f}", f"{100 * full / clips:.1f}", signed(100 * (full - generic) / clips)
