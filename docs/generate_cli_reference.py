"""Writes docs/reference/cli.md from the commands themselves: usage, arguments, options, defaults.

What ``--help`` says is the page. ``NOTES`` adds what a line of help has no room for, and links.

    python docs/generate_reference.py
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import fill
from typing import get_type_hints

import click
import typer
from typer.models import ParameterInfo

from fedstill.cli.main import app

PAGE = Path(__file__).parent / "reference" / "cli.md"

INTRO = """\
# Command line

<!-- written by docs/generate_reference.py; run it after a change to a command -->

    fedstill COMMAND [OPTIONS]

`fedstill --help` and `fedstill COMMAND --help` print this in short. Values of `--set` are explained in the
[experiment reference](experiment.md), what a run leaves behind in [the run directory](run-directory.md).
"""

NOTES = {
    "simulate": "The default experiment is `demo`. Ctrl-C ends a run at once. What is finished is kept, and "
    "the last line tells how to resume. `--engine inprocess` runs the same apps in this process, for debugging, with "
    "the same numbers.",
    "report": "`docs/results/` is made with `--markdown`.",
    "reproduce": "Pictures go to `RUN_DIR/plots`. Table 5.3 and Figures 5.12 and 5.13 need a run with `run.sweeps`; "
    "a run without says what to set.",
    "experiments": "| name | data | size |\n|---|---|---|\n"
    "| `demo` | synthetic, nothing to download: devices with other microphones and cameras "
    "| small networks, for a CPU |\n"
    "| `quickstart` | synthetic: devices with half of the classes, all arms; or your own clips "
    "| small networks, for a CPU |\n"
    "| `emotion_pairs` | a manifest: RAVDESS speech paired by emotion with FER-2013 faces "
    "| small networks, for a CPU |\n"
    "| `emotion_pairs_paper` | the same | the thesis' networks and inputs, for a GPU |\n"
    "| `cremad` | prepared CREMA-D, `dataset.root` | the thesis' networks and inputs, for a GPU |\n"
    "| `ave` | prepared AVE, `dataset.root` | the thesis' networks and inputs, for a GPU |",
    "data prepare": "See [Prepare CREMA-D](../how-to/prepare-cremad.md).",
    "coordinator": "See [Run a fleet](../how-to/run-a-fleet.md).",
    "agent": "See [Run a fleet](../how-to/run-a-fleet.md) "
    "and [Run on a small device](../how-to/run-on-a-small-device.md).",
    "agent infer": "See [Classify on a device](../how-to/classify-on-a-device.md).",
    "certs": "See [Run a fleet](../how-to/run-a-fleet.md).",
    "privacy": "In a simulation a device's folder is `RUN_DIR/devices/N`. "
    "See [Limit what a device uploads](../how-to/limit-what-a-device-uploads.md).",
    "robustness-study": "Runs every fold of the experiments as a run directory `OUT/EXPERIMENT/foldN`, with the "
    "engine `inprocess`, and then the published methods on the same clips. What is finished is skipped, so folds, "
    "seeds or cells can be added later with the same `--out`. Full cells get all arms, seeds and published methods; "
    "all others get `all_distill_equal_steps`, `prior_corrected` and `fedstill` with one seed. Writes "
    "`OUT/results.json`, raw counts by recording, from which `--render` makes tables, pictures and page again. The "
    "protocol is in [decision 027](../decisions/027-robustness-protocol.md).",
    "redteam": "Attacks every kind of upload on public clips, split by speaker: rebuilds sounds and pictures, tells "
    "which clips a device holds, names speakers. From capture cards it names speakers, their sex and the classes, and "
    "links two cards of one device. Beside it stands what an attacker without an upload achieves. Writes "
    "`redteam.json`, `redteam.md` and `redteam.png`, the same for the same seed. What the figures mean: "
    "[privacy](../explanation/privacy.md).",
    "serve": "See [Serve image tasks](../how-to/serve.md).",
    "import": "See [Serve a model that you have](../how-to/import-weights.md).",
    "tasks": "See [Add an image task](../how-to/add-an-image-task.md).",
    "loadtest": "See [Try serving policies on a load](../how-to/load-test.md).",
    "elastic": "Linear probes on the frozen trunk, the same test images at every token schedule. Writes "
    "`elastic_vit.json`, prints the tables.",
    "warmup": "Writes `warmed.json`, `models/SHA256.safetensors` and `profile.json`. "
    "See [Make a model elastic](../how-to/make-a-model-elastic.md).",
    "warmup-study": "Writes `warmup.json`; a killed study goes on in its folder.",
}
"""By command, under its help."""

OUTRO = """\
## Exit codes

| code | meaning |
|---|---|
| 0 | done |
| 1 | the run failed, `data check` found problems, or `data prepare` could prepare no clip at all |
| 2 | a mistake in what was asked: unknown key, missing file, unusable table. One line says what to type instead |
| 130 | interrupted |

## Environment

| variable | meaning |
|---|---|
| `FEDSTILL_DATA` | where relative dataset paths are looked up after the current folder; default `../shared/data` |
| `OMP_NUM_THREADS` | threads of the numeric libraries; default: as many as cores |
| `KMP_BLOCKTIME` | set to 0 unless it is set, so that idle threads do not spin beside simulated devices |
"""

WIDTH = 110
NAMES = {"integer": "N", "float": "X", "text": "TEXT", "path": "PATH"}


def page() -> str:
    """The whole page as markdown."""
    return "\n".join([INTRO, *_sections(typer.main.get_command(app), ""), OUTRO])


def _sections(command: click.Command, name: str) -> Iterator[str]:
    """A command and all below it, in the order of ``--help``."""
    if name:
        yield _section(command, name)
    if isinstance(command, click.Group):
        for below in command.list_commands(click.Context(command)):
            yield from _sections(command.commands[below], f"{name} {below}".strip())


def _section(command: click.Command, name: str) -> str:
    lines = [f"## {name}", ""]
    runs_alone = not isinstance(command, click.Group) or command.invoke_without_command
    if runs_alone:
        lines += [f"    {_usage(command, name)}", ""]
    lines += [_wrapped(" ".join((command.help or "").split())), ""]
    if name in NOTES:
        lines += [_wrapped(NOTES[name]), ""]
    told = _help_texts(command)
    rows = [_row(one, told) for one in command.params if one.name != "help"]
    if rows and runs_alone:
        lines += ["| argument or option | meaning | default |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _wrapped(text: str) -> str:
    if text.startswith("|"):
        return text
    return fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _usage(command: click.Command, name: str) -> str:
    parts = [f"fedstill {name}"]
    options = False
    for one in command.params:
        if isinstance(one, click.Argument):
            parts.append(_metavar(one) if one.required else f"[{_metavar(one)}]")
        elif one.required:
            parts.append(f"{one.opts[0]} {_metavar(one)}")
        else:
            options = True
    return " ".join([*parts, *(["[OPTIONS]"] if options else [])])


def _help_texts(command: click.Command) -> dict[str, str]:
    """By parameter, from the command's function: Typer's arguments lose theirs under click 8.5."""
    function = inspect.unwrap(command.callback) if command.callback else None
    if function is None:
        return {}
    return {
        name: info.help
        for name, hint in get_type_hints(function, include_extras=True).items()
        for info in getattr(hint, "__metadata__", ())
        if isinstance(info, ParameterInfo) and info.help
    }


def _row(one: click.Parameter, told: Mapping[str, str]) -> str:
    name = _metavar(one) if isinstance(one, click.Argument) else one.opts[0]
    if isinstance(one, click.Option) and not one.is_flag:
        name = f"{name} {_metavar(one)}"
    said = told.get(one.name or "")
    if not said:
        raise SystemExit(f"{one.name}: give the option or argument a help text")
    meaning = said if said.endswith("...") else said.removesuffix(".")
    cells = (f"`{name}`", meaning, _default(one))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _metavar(one: click.Parameter) -> str:
    if one.metavar:
        return one.metavar
    if isinstance(one.type, click.Choice):
        return "|".join(str(getattr(choice, "value", choice)) for choice in one.type.choices)
    if isinstance(one, click.Argument):
        return (one.name or "").upper()
    return NAMES.get(one.type.name.removesuffix(" range"), one.type.name.upper())


def _default(one: click.Parameter) -> str:
    if one.required:
        return "required"
    told = getattr(one, "show_default", None)
    if isinstance(told, str):
        return told
    value = one.default
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None or value is False or value in ("", (), []):
        return ""
    return f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
