"""The robustness study as a markdown page for docs/results, and its headline for the console."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedstill.common.atomic_files import replace_text
from fedstill.evaluation.elastic.tables import Sheet, sheet_markdown
from fedstill.evaluation.robustness.aims import aims
from fedstill.evaluation.robustness.people import folds_sheet, speakers_sheet
from fedstill.evaluation.robustness.pooling import CellKey, Entry, cells_of
from fedstill.evaluation.robustness.questions import contract, planned
from fedstill.evaluation.robustness.records import STUDY_FILE, DataSet, Study, write_study
from fedstill.evaluation.robustness.tables import (
    TITLES,
    aims_sheet,
    arms_sheet,
    cells_sheet,
    choices_sheet,
    contract_sheet,
    costs_sheet,
    estimates_sheet,
    planned_sheet,
)
from fedstill.evaluation.summary import duration

MARK = (
    "<!-- written by fedstill robustness-study; run it again with --render --markdown instead of editing -->"
)
HOW = (
    "Devices differ by microphone, room, camera, light and classes; "
    "[decision 027](../decisions/027-robustness-protocol.md) has the protocol and what was fixed beforehand. Every arm "
    "answers the same clips of a device, so differences are paired. Intervals are at 95 %, from drawing units, then "
    "recordings ({unit}). A clip that many devices answer belongs to one recording. Tests flip the sign of whole units."
)


def headline(study: Study) -> tuple[Sheet, Sheet, Sheet]:
    """Contract, planned comparisons and aims."""
    kept, asked = contract(study), planned(study)
    return contract_sheet(kept), planned_sheet(asked), aims_sheet(aims(study, kept, asked))


def write_page(study: Study, page: Path) -> None:
    """Write the page, and its pictures and the counts into a folder of the page's name beside it."""
    from fedstill.evaluation.robustness.plots import save_figures

    folder = page.with_suffix("")
    pictures = save_figures(study, folder)
    write_study(folder, study)
    replace_text(page, robustness_page(study, folder.name, pictures))


def robustness_page(study: Study, folder: str, pictures: Sequence[Path] = ()) -> str:
    """The whole study. folder: beside the page, with the counts and ``pictures``."""
    kept, asked = contract(study), planned(study)
    sheets = [
        contract_sheet(kept),
        planned_sheet(asked),
        aims_sheet(aims(study, kept, asked)),
        cells_sheet(kept),
        arms_sheet(study),
        choices_sheet(study),
        estimates_sheet(study),
        costs_sheet(study),
        folds_sheet(study),
        speakers_sheet(study),
    ]
    parts = ["# Devices that record otherwise", MARK, _where(study)]
    if any(data.synthetic for data in study.sets):
        parts.append(
            "> Some of the data is synthetic: its figures say whether the method is safe, not how much it gains on "
            "people."
        )
    parts.append(HOW.format(unit="; ".join(f"{data.experiment}: by {data.unit}" for data in study.sets)))
    for sheet in sheets:
        if sheet.rows:
            parts += [f"## {sheet.title}", sheet_markdown(sheet), *sheet.notes]
    if pictures:
        drawn = [f"![{one.stem.replace('_', ' ')}]({folder}/{one.name})" for one in pictures]
        parts += ["## Pictures", *drawn]
    parts += ["## What was left out", "\n".join(f"- {line}" for line in left_out(study))]
    parts.append(f"The raw counts are in `{folder}/{STUDY_FILE}`.")
    return "\n\n".join(parts) + "\n"


def left_out(study: Study) -> Iterator[str]:
    """What a reader could expect and does not find: folds, failures, arms and seeds of some cells."""
    for data in study.sets:
        yield from (f"{data.experiment}: {line}" for line in data.left_out)
        yield from (f"{data.experiment}: {line}" for line in _lean_cells(data))
    shown = {arm for data in study.sets for arm in data.arms()}
    if missing := [title for arm, title in TITLES.items() if arm not in shown]:
        yield f"arms that were not run at all: {', '.join(missing)}"


def _lean_cells(data: DataSet) -> Iterator[str]:
    """Cells with fewer arms or seeds than others, by what they lack."""
    groups: dict[tuple[tuple[str, ...], int], list[CellKey]] = defaultdict(list)
    for key, entries in cells_of(Entry(data, device) for device in data.devices).items():
        present = {arm for entry in entries for arm in entry.device.right}
        lacking = tuple(title for arm, title in TITLES.items() if arm in data.arms() - present)
        groups[lacking, len({entry.device.seed for entry in entries})].append(key)
    for (lacking, seeds), keys in groups.items():
        what = [f"without {', '.join(lacking)}"] if lacking else []
        what += [f"with {seeds} of {len(data.seeds)} seeds"] if seeds < len(data.seeds) else []
        if what:
            scenarios = ", ".join(sorted({key.scenario for key in keys}))
            yield f"{len(keys)} cells of {scenarios} {' and '.join(what)}"


def _where(study: Study) -> str:
    """Command, machine, revision and time."""
    lines = [
        f"{study.date[:10]}, revision {study.git}, {study.cpu}, {study.hardware}; "
        + ", ".join(f"{name} {number}" for name, number in study.versions.items())
        + f": `{study.command}`."
    ]
    for data in study.sets:
        seconds = ", ".join(f"{part} {duration(value)}" for part, value in data.seconds.items())
        speakers = len({speaker for speaker, _ in data.recordings})
        lines.append(
            f"*{data.experiment}* ({data.dataset}): folds {_listed(data.folds)} of {data.fold_count}, seeds "
            f"{_listed(data.seeds)}, {len(data.class_names)} classes, {len(data.recordings)} recordings of {speakers} "
            f"speakers, {data.family} conditions; revision {', '.join(data.git)}; {seconds}."
        )
    return "\n\n".join(lines)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
