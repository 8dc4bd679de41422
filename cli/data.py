"""``fedstill data``: prepare a raw dataset, check the dataset of an experiment."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from fedstill.cli.shared.console import FAILED, console, one_line_errors
from fedstill.cli.shared.options import AllowOutside
from fedstill.cli.shared.progress import counting_bar
from fedstill.common.cores import usable_cores

if TYPE_CHECKING:
    from fedstill.datasets.audiovisual.clip import ClipSource
    from fedstill.datasets.audiovisual.prepare import PrepareReport
    from fedstill.datasets.audiovisual.specs import AudioSpec
    from fedstill.datasets.inspection.dataset_check import DatasetCheck
    from fedstill.simulation.config import Experiment

app = typer.Typer(help="Prepare and check datasets.", no_args_is_help=True)
BAD_CLIPS_SHOWN = 20


class Crop(StrEnum):
    """What prepared frames show."""

    NONE = "none"
    FACE = "face"


class RawDataset(StrEnum):
    """Datasets with an official layout to prepare."""

    CREMAD = "cremad"
    AVE = "ave"


@app.command()
def prepare(
    dataset: Annotated[RawDataset, typer.Argument(help="Which dataset.")],
    root: Annotated[Path, typer.Option(help="Folder with the official layout.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the arrays (default: ROOT/prepared).")] = None,
    workers: Annotated[
        int, typer.Option(help="Decoding processes.", min=1, show_default="as many as cores")
    ] = usable_cores(),
    size: Annotated[int, typer.Option(help="Frame side in pixels.", min=16)] = 224,
    crop: Annotated[
        Crop,
        typer.Option(help="face: cut frames to the face; set frames.crop likewise. Needs the extra speech."),
    ] = Crop.NONE,
    split: Annotated[
        Path | None, typer.Option(help="cremad: clip_id,label,split (default: ROOT/split.csv).")
    ] = None,
    checksums: Annotated[
        Path | None, typer.Option(help="CSV of path,sha256,bytes to verify against.")
    ] = None,
) -> None:
    """Decode a raw dataset once into compact arrays; run it again to resume."""
    from fedstill.common.errors import DataError
    from fedstill.datasets.audiovisual.prepare import prepare_ave, prepare_cremad

    target = out or root / "prepared"
    with one_line_errors(), counting_bar(f"decoding {dataset.value}") as show:
        if dataset is RawDataset.CREMAD:
            outcome = prepare_cremad(
                root,
                target,
                split_csv=split,
                checksums=checksums,
                size=size,
                crop=crop.value,
                workers=workers,
                progress=show,
            )
        elif split is not None:
            raise DataError("--split is for cremad; AVE's lists are in its root folder")
        else:
            outcome = prepare_ave(
                root,
                target,
                checksums=checksums,
                size=size,
                crop=crop.value,
                workers=workers,
                progress=show,
            )
    _show(outcome, target)
    if len(outcome.bad) == len(outcome.clips):
        raise typer.Exit(FAILED)


@app.command()
def check(
    experiment: Annotated[str, typer.Argument(help="Experiment whose dataset is checked.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override a key; repeatable.")
    ] = None,
    allow_outside: AllowOutside = False,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write a page with a few clips of every class.")
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Decoding threads.", min=1, show_default="as many as cores")
    ] = usable_cores(),
) -> None:
    """Count the clips of every class, decode and measure all of them, and list the dataset's problems."""
    from fedstill.common.errors import ConfigError
    from fedstill.datasets.audiovisual.clip_tensors import FocusCount, focus, require_detectors
    from fedstill.datasets.inspection.dataset_check import check_dataset
    from fedstill.simulation.config import load_experiment
    from fedstill.simulation.sources import open_source

    with one_line_errors():
        overrides = [*(set_ or []), *(["dataset.allow_outside=true"] if allow_outside else [])]
        plan = load_experiment(experiment, overrides)
        require_detectors(plan.audio, plan.frames)
        if sheet is not None and not sheet.absolute().parent.is_dir():
            raise ConfigError(f"--sheet {sheet}: no such folder {sheet.absolute().parent}: make it first")
        source, focused = open_source(plan), FocusCount()
        for line in _class_lines(source):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        with counting_bar(f"checking {source.name}", "bad") as show:
            found = check_dataset(
                source, show, workers, lambda clip: focused.add(focus(clip, plan.audio, plan.frames))
            )
    console.print(_split_grid(found, plan.audio))
    for line in focused.lines():
        console.print(line, highlight=False)
    for problem in found.problems:
        console.print(problem, highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"{source.name}: {len(source.index)} clips, {len(found.problems)} problems",
        highlight=False,
        markup=False,
    )
    if sheet is not None:
        with one_line_errors():
            _write_sheet(sheet, source, found, plan)
        console.print(f"sheet: {sheet}", highlight=False, markup=False, soft_wrap=True)
    if found.problems:
        raise typer.Exit(FAILED)


def _split_grid(found: DatasetCheck, spec: AudioSpec) -> Table:
    from fedstill.datasets.inspection.dataset_check import SPLITS, split_table

    grid = Table("", *SPLITS, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name, cells in split_table(found, spec):
        grid.add_row(name, *map(escape, cells))
    return grid


def _write_sheet(path: Path, source: ClipSource, found: DatasetCheck, plan: Experiment) -> None:
    from fedstill.common.atomic_files import replace_text
    from fedstill.common.errors import ConfigError
    from fedstill.datasets.inspection.dataset_check import feature_steps
    from fedstill.datasets.inspection.picture_sheet import picture_sheet

    page = picture_sheet(source, plan.audio, plan.frames, feature_steps(found, plan.audio))
    try:
        replace_text(path, page)
    except OSError as error:
        raise ConfigError(f"--sheet {path}: cannot be written ({error.strerror})") from error


def _class_lines(source: ClipSource) -> list[str]:
    """One line per class with its clips in each split, then the unlabelled ones, then look-alikes."""
    from fedstill.datasets.files.class_names import look_alikes, look_alikes_line

    counts = Counter((info.label, info.split) for info in source.index)
    labels: list[tuple[int | None, str]] = [*enumerate(source.class_names), (None, "without a label")]
    lines = [
        f"{name}: {counts[label, 'public']} public, {counts[label, 'private']} private clips"
        for label, name in labels
        if label is not None or counts[None, "private"]
    ]
    return lines + [look_alikes_line(group) for group in look_alikes(source.class_names)]


def _show(outcome: PrepareReport, folder: Path) -> None:
    """The first bad clips and why, then the counts."""
    for clip in outcome.bad[:BAD_CLIPS_SHOWN]:
        console.print(
            f"{clip.clip_id}: {clip.outcome}, {clip.reason}", highlight=False, markup=False, soft_wrap=True
        )
    if len(outcome.bad) > BAD_CLIPS_SHOWN:
        console.print(f"... {len(outcome.bad) - BAD_CLIPS_SHOWN} more", highlight=False)
    if outcome.faces is not None:
        console.print("face found in {} of {} clips".format(*outcome.faces), highlight=False)
    counts = ", ".join(f"{count} {name}" for name, count in outcome.counts.items() if count)
    console.print(f"{counts}; full list: {folder / 'report.json'}", highlight=False, soft_wrap=True)
