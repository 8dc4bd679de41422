"""One run as a self-contained page, as markdown for the docs and as a table for the console.

The page is one file: pictures are inlined and nothing is fetched, so it looks the same by mail or years later.
All three show the numbers of ``summary`` and hold no arithmetic of their own.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from fedstill.cloud_server.distillation.arm_names import ARMS, SCENARIOS
from fedstill.common.atomic_files import replace_text
from fedstill.evaluation import summary
from fedstill.evaluation.capture_cost import NOTE as CAPTURE_NOTE
from fedstill.evaluation.capture_cost import CaptureCost, capture_costs, lesson
from fedstill.evaluation.federated import plots
from fedstill.evaluation.results import ClipRow, Results, check_agreement, read_clips, read_results
from fedstill.evaluation.statistics import Accuracy, Comparison, signed
from fedstill.evaluation.summary import ArmLine, ScenarioTable

REPORT_FILE = "report.html"
PLOTS_FOLDER = "plots"
LONG = 12  # more devices than this make a second table too long for a console
SMALLEST_MB = 0.1
WIDE = 4  # more clients than this make a table too wide for a console or a docs page
CAPTIONS = {
    "accuracy_by_arm": "Accuracy of every arm with its 95 % interval.",
    "loss_per_epoch": "Distillation loss per epoch: mean and range over seeds (Figs 5.6 to 5.9).",
    "selected_classes": "Public clips that were selected, per class and round (Figs 5.10, 5.11).",
    "cluster_samples": "Accuracy by the number of samples in a cluster (Fig. 5.12).",
    "uploaded_samples": "Accuracy by the number of uploaded samples (Fig. 5.13).",
    "compression_ladder": "Accuracy by bytes per clip on the wire (Table 5.3).",
    "traffic": "What one client sends and receives in a whole run.",
}


def write_report(run_dir: Path) -> Path:
    """Draw RUN/plots and write RUN/report.html; raises ResultsError if the run cannot be read."""
    results, clips = read_results(run_dir), read_clips(run_dir)
    check_agreement(results, clips)
    drawn = plots.save_all(results, run_dir / PLOTS_FOLDER, clips)
    page = run_dir / REPORT_FILE
    page.write_text(html_report(results, clips, drawn), encoding="utf-8")
    return page


def html_report(results: Results, clips: Sequence[ClipRow], drawn: Sequence[Path]) -> str:
    """The page as text; `drawn` are the PNG files that `plots.save_all` returned."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    costs = capture_costs(results, clips)
    environment.filters["moved"] = moved_text
    environment.filters["accuracy"] = lambda value: _unbroken(accuracy_text(value))
    environment.filters["difference"] = lambda value: _unbroken(difference_text(value))
    return environment.get_template(REPORT_FILE).render(
        results=results,
        what_ran=summary.what_ran(results),
        note=summary.shares_line(results) + summary.differences_note(results, clips),
        costs=costs,
        costs_note=CAPTURE_NOTE,
        lesson=lesson(costs),
        several_scenarios=len(results.scenarios()) > 1,
        many=len(results.clients) > WIDE,
        tables=summary.scenario_tables(results, clips),
        key_comparisons=summary.key_comparisons(results, clips),
        teacher=summary.teacher_accuracy(results, clips),
        pretrained=summary.pretrained_note(results),
        traffic=summary.traffic_totals(results),
        students=summary.student_rows(results),
        students_note=summary.STUDENTS_NOTE,
        models=model_sizes(results),
        seconds=[(part, summary.duration(seconds)) for part, seconds in results.seconds.items()],
        config=json.dumps(results.config, indent=2, default=str),
        arms=ARMS,
        scenarios=SCENARIOS,
        figures=[_inlined(path) for path in drawn],
    )


def _unbroken(cell: str) -> str:
    """Non-breaking spaces, except around the interval: there a narrow screen may break the line."""
    hard = "\u00a0"
    return cell.replace(" ", hard).replace(f"{hard}[", " [").replace(f"],{hard}", "], ")


def _inlined(path: Path) -> tuple[str, str]:
    """(data URI, caption) of a PNG."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:image/png;base64,{data}", CAPTIONS[path.stem]


def markdown_summary(results: Results, clips: Sequence[ClipRow] = ()) -> str:
    """The page's numbers as markdown, for docs/results; without `clips` there are no paired differences."""
    parts = [f"# {results.experiment}", summary.what_ran(results)]
    if results.synthetic:
        parts.append(
            "> **Synthetic data.** These numbers say that the code works, not how well the method does."
        )
    if costs := capture_costs(results, clips):
        heads = ["scenario", "client", "microphone and camera", "generic", "lost", "fedstill", "back"]
        parts += ["## What a microphone and a camera cost", lesson(costs), CAPTURE_NOTE]
        parts.append(_markdown_table(heads, [_cost_cells(one) for one in costs]))
    for table in summary.scenario_tables(results, clips):
        rows = [[ARMS[line.arm], *cells(line, _shown(table))] for line in table.lines]
        parts += [f"## {SCENARIOS[table.scenario].capitalize()}", _markdown_table(headings(table), rows)]
    parts.append(summary.shares_line(results) + summary.differences_note(results, clips))
    asked = [
        [
            SCENARIOS[one.scenario],
            f"{ARMS[one.arm]} vs {ARMS[one.baseline]}",
            difference_text(one.comparison),
            one.note,
        ]
        for one in summary.key_comparisons(results, clips)
    ]
    if asked:
        heads = ["scenario", "comparison", "difference", "note"]
        parts += ["## Key comparisons", _markdown_table(heads, asked)]
    if results.teacher or results.pretrained:
        parts += ["## Teacher", *filter(None, [summary.pretrained_note(results)])]
    if results.teacher:
        taught = [[name, accuracy_text(value)] for name, value in summary.teacher_accuracy(results, clips)]
        parts.append(_markdown_table(["clips", "accuracy"], taught))
    moved = [
        [SCENARIOS[one.scenario], ARMS[one.arm], moved_text(one.up_mb), moved_text(one.down_mb)]
        for one in summary.traffic_totals(results)
    ]
    if moved:
        heads = ["scenario", "arm", "up", "down"]
        parts += ["## Traffic of one client in a whole run", _markdown_table(heads, moved)]
    if students := summary.student_rows(results):
        heads = [
            "scenario",
            "arm",
            "client",
            "seed",
            "student",
            "expected",
            "found",
            "over generic",
            "reason",
        ]
        parts += ["## Students", summary.STUDENTS_NOTE, _markdown_table(heads, students)]
    decided = [
        [SCENARIOS[one.scenario], ARMS[one.arm], f"{one.used} of {one.devices}", one.reasons]
        for one in summary.class_mix_totals(results)
    ]
    if decided:
        heads = ["scenario", "arm", "used for", "why not for the others"]
        parts += ["## Class mixes", summary.CLASS_MIX_NOTE, _markdown_table(heads, decided)]
    parts += ["## Models", _markdown_table(["model", "parameters", "MB (fp32)"], model_sizes(results))]
    parts += [
        f"- failed: {row.arm}, client {row.client}, seed {row.seed}: {row.reason}" for row in results.failures
    ]
    return "\n\n".join(parts) + "\n"


def write_markdown(run_dir: Path, page: Path) -> None:
    """Write ``page`` with the run's numbers, and its plots into a folder of the page's name beside it."""
    results, clips = read_results(run_dir), read_clips(run_dir)
    folder = page.with_suffix("")
    drawn = plots.save_all(results, folder, clips)
    pictures = "\n\n".join(f"![{path.stem.replace('_', ' ')}]({folder.name}/{path.name})" for path in drawn)
    replace_text(page, f"{markdown_summary(results, clips)}\n## Plots\n\n{pictures}\n")


def console_table(results: Results, clips: Sequence[ClipRow] = ()) -> Table:
    """The headline table for a terminal of 80 columns, one section per scenario; the page has every interval."""
    tables = summary.scenario_tables(results, clips)
    title = f"{escape(results.experiment)} on {summary.data_name(results)}: accuracy in %"
    shown = tables[0] if len({table.clients for table in tables}) == 1 else None
    clients = _shown(shown) if shown else ()
    lines = (summary.student_line, summary.class_mix_line, summary.shares_line)
    grid = Table(
        title=title,
        caption="gain: over AllDistill. "
        + "".join(line(results) for line in lines)
        + summary.differences_note(results, clips),
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for place, name in enumerate(["arm", "all clients", "gain", *(f"client {c}" for c in clients)]):
        grid.add_column(name, justify="right" if place else "left", no_wrap=True)
    for table in tables:
        grid.add_section()
        grid.add_row(f"[bold]{SCENARIOS[table.scenario]}[/bold]")
        for line in table.lines:
            each = [_percent(value) for value in line.clients] if clients else []
            grid.add_row(ARMS[line.arm], _short_accuracy(line.pooled), _short_difference(line), *each)
    return grid


def console_costs(results: Results, clips: Sequence[ClipRow] = ()) -> Table | None:
    """What each device's microphone and camera cost, for a terminal of 80 columns; None if that is not simulated."""
    costs = capture_costs(results, clips)
    if not costs:
        return None
    grid = Table(
        title="What a microphone and a camera cost: accuracy in %",
        caption=lesson(costs),
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for place, name in enumerate(["device records", "generic", "lost", "fedstill", "back"]):
        grid.add_column(name, justify="right" if place else "left", no_wrap=bool(place))
    for one in costs if len(results.clients) <= LONG else ():
        generic, personal = _percent(one.generic), _percent(one.personal)
        device = f"client {one.client}: {one.capture}"
        grid.add_row(device, generic, _short_comparison(one.lost), personal, _short_comparison(one.back))
    return grid


def _cost_cells(one: CaptureCost) -> list[str]:
    lost = "" if one.lost is None else difference_text(one.lost)
    return [SCENARIOS[one.scenario], str(one.client), one.capture, accuracy_text(one.generic), lost,
            accuracy_text(one.personal), difference_text(one.back)]  # fmt: skip


def _short_accuracy(value: Accuracy) -> str:
    return f"{100 * value.fraction:.1f} {escape(f'[{100 * value.low:.0f},{100 * value.high:.0f}]')}"


def _short_difference(line: ArmLine) -> str:
    return "" if line.arm == summary.BASELINE else _short_comparison(line.difference)


def _short_comparison(value: Comparison | None) -> str:
    return "" if value is None else f"{signed(value.difference_points)} {value.short_label.replace(' ', '')}"


def _percent(value: Accuracy | None) -> str:
    return "not run" if value is None else f"{100 * value.fraction:.1f}"


def headings(table: ScenarioTable) -> list[str]:
    """Column headings that go with `cells`."""
    return ["arm", "all clients", "vs AllDistill", *(f"client {client}" for client in _shown(table))]


def cells(line: ArmLine, clients: Sequence[int]) -> list[str]:
    """One table row: all clients, difference to AllDistill, then each client if clients are shown."""
    difference = "" if line.arm == summary.BASELINE else difference_text(line.difference)
    each = [accuracy_text(value) for value in line.clients] if clients else []
    return [accuracy_text(line.pooled), difference, *each]


def _shown(table: ScenarioTable) -> tuple[int, ...]:
    return table.clients if len(table.clients) <= WIDE else ()


def accuracy_text(value: Accuracy | None) -> str:
    """ "66.3 % [61.4, 70.9]", or "not run"."""
    return "not run" if value is None else str(value)


def difference_text(value: Comparison | None) -> str:
    """ "+2.4 [-1.0, +5.8], n.s.", or why there is none."""
    return "no paired clips" if value is None else str(value)


def moved_text(megabytes: float) -> str:
    """ "1.33 MB"; "0.55 kB" of what would be 0.00 MB."""
    return f"{megabytes:,.2f} MB" if megabytes >= SMALLEST_MB else f"{1e3 * megabytes:,.2f} kB"


def model_sizes(results: Results) -> list[list[str]]:
    """Name, parameters and fp32 megabytes of every model."""
    return [
        [name, f"{count:,}", f"{count * summary.FLOAT_BYTES / summary.MB:,.1f}"]
        for name, count in results.parameters.items()
    ]


def _markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
