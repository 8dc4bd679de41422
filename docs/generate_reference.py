"""Writes docs/reference/experiment.md from the code, so that the page cannot say anything else than the code does.

Keys, types and defaults come from the dataclasses that parse an experiment file; a key's meaning is the comment
or docstring beside its field. ``MEANINGS`` adds to it if the source says little or nothing.

    python docs/generate_reference.py
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import runpy
import tempfile
import tokenize
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from textwrap import dedent
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fedstill.simulation.config import Experiment, load_experiment

PAGE = Path(__file__).parent / "reference" / "experiment.md"

INTRO = """\
# Experiment keys

<!-- written by docs/generate_reference.py; run it after a change to a settings dataclass -->

One TOML file is one experiment. `fedstill experiments` lists those that are shipped; any other file is given by its
path. A file says only what differs from the defaults of its `mode`, and `--set table.key=value` says what differs
from the file. The value is TOML; text needs no quotes. A nested key is reached with dots
(`--set teacher.optimiser.learning_rate=1e-3`). An unknown key or a value of the wrong type ends the command before
anything runs, and the message names the key.

The resolved experiment is kept in the run directory as `experiment.json` and in `results.json` as `config`.
Where the two modes agree, the last default column is empty.
"""

TABLES = {
    "": "At the top of the file.",
    "audio": "From waveform to a matrix of (bins, steps). Ready feature matrices (`.npy`) are only brought to one "
    "length, if they have several: the columns of a spectrogram of `audio.seconds`.",
    "fedstill": "How the `fedstill` arm trains; the keys of `[distillation]`, with defaults of their own.",
}
"""What to say of a table instead of its dataclass' docstring."""

MEANINGS = {
    "name": "short name, used for the run directory",
    "title": "one line about the experiment, shown by `fedstill experiments`",
    "mode": "which defaults apply: `clean` closes the gaps of the thesis, `faithful` follows it",
    "dataset.kind": "`synthetic` needs no file; `manifest` is your own CSV; `cremad` and `ave` are prepared sets",
    "dataset.seed": "of the synthetic people and clips",
    "dataset.class_count": "the six emotions, fewer of them, or further classes without a name",
    "dataset.public_per_class": "synthetic clips per class",
    "dataset.private_per_class": "synthetic clips per class",
    "dataset.difficulty": "0 shows every emotion fully, 1 is as ambiguous as acted emotion, at most 5",
    "audio.representation": "`spectrogram` is the thesis' (n_fft 512, hop 159); `log_mel` is the light one",
    "audio.sample_rate": "Hz; other recordings are resampled",
    "audio.seconds": "length of a clip; a shorter one is repeated, a longer one cut",
    "audio.n_fft": "samples per window (log_mel)",
    "audio.hop": "samples between windows (log_mel)",
    "audio.mel_bins": "mel bands (log_mel)",
    "frames.size": "side in pixels",
    "frames.count": "frames per clip, uniformly spaced in time",
    "frames.channels": "1 is grey, 3 is colour",
    "partition.kind": "`halves` of the classes, `pathological`, `dirichlet`, by `speaker`, or the devices of "
    "`[robustness]`",
    "partition.clients": "number of devices; `halves` is for 2, and `robustness` counts for itself",
    "partition.alpha": "a small value gives each device few classes",
    "partition.classes_per_client": "classes that one device holds",
    "partition.seed": "of the random partitions, and of rooms and noise with `robustness`",
    "teacher.fusion": "how the two modalities are joined",
    "teacher.feature_width": "features per modality, of teacher and student alike",
    "teacher.epochs": "passes over the public training clips",
    "teacher.label_smoothing": "of the cross-entropy",
    "teacher.augment": "train on masked and moved sound, mirrored and moved frames",
    "student.epochs": "passes of AllDistill over all public clips",
    "optimiser.kind": "SGD (momentum 0.9) or AdamW",
    "optimiser.learning_rate": "of `step` the first rate, of `one_cycle` the highest",
    "optimiser.weight_decay": "of the optimiser",
    "optimiser.batch_size": "clips per step",
    "optimiser.schedule": "`one_cycle` warms up and cools down; `step` divides the rate by 10 once",
    "optimiser.step_epoch": "`step` only: the epoch of the division",
    "distillation.outer_epochs": "times that the device is asked and clips are selected again",
    "distillation.inner_epochs": "passes over the selected clips in each outer epoch",
    "prototypes.kind": "`constrained` is k-means with a smallest cluster size, `dp` adds noise "
    "([privacy](../explanation/privacy.md))",
    "prototypes.upload_limit": "largest number of the device's clips that take part",
    "prototypes.samples_per_prototype": "clips per cluster that is aimed at (thesis: 3)",
    "compute.device": "`auto` (CUDA where there is one), `cpu` or `cuda`",
    "compute.precision": "`bf16` is autocast, weights stay fp32",
    "run.seeds": "how many seeds; `--seeds` sets it",
    "run.first_seed": "the seeds count up from here",
    "run.scenarios": "test on the query clips (`latency_insensitive`) or on the other half (`latency_sensitive`)",
    "run.arms": "rows of the table, see [the method](../explanation/method.md)",
    "run.sweeps": "`compression` (Table 5.3), `cluster_samples` (Fig. 5.12), `uploaded_samples` (Fig. 5.13)",
    "run.sweep_seeds": "the sweeps run on the first so many seeds",
}
"""By ``table.key``, or ``record.key`` for a record that several tables contain."""


def page() -> str:
    """The whole page as markdown."""
    clean, faithful = _defaults("clean"), _defaults("faithful")
    parts = [INTRO, _section("", Experiment, clean, faithful, tables=False)]
    for field in fields(Experiment):
        kind = get_type_hints(Experiment)[field.name]
        if is_dataclass(kind):
            parts.append(
                _section(field.name, kind, getattr(clean, field.name), getattr(faithful, field.name))
            )
            parts += [_list_section(f"{field.name}.{key}", entry) for key, entry in _lists(kind)]
    return "\n".join(parts)


def _section(table: str, kind: Any, clean: Any, faithful: Any, *, tables: bool = True) -> str:
    title = f"## [{table}]" if table else "## Top level"
    about = TABLES[table] if table in TABLES else _summary(kind)
    lines = [title, "", about, "", "| key | type | `clean` | `faithful` | meaning |", "|---|---|---|---|---|"]
    for key, hint, ours, theirs, meaning in _rows(table, "", kind, clean, faithful):
        if tables or not is_dataclass(hint):
            other = "" if ours == theirs else f"`{_literal(theirs)}`"
            lines.append(f"| `{key}` | {_type(hint)} | `{_literal(ours)}` | {other} | {meaning} |")
    return "\n".join(lines) + "\n"


def _lists(kind: Any) -> Iterator[tuple[str, Any]]:
    """(key, record) of each field that is a list of records."""
    for key, hint in get_type_hints(kind).items():
        if get_origin(hint) is tuple and is_dataclass(get_args(hint)[0]):
            yield key, get_args(hint)[0]


def _list_section(key: str, kind: Any) -> str:
    lines = [
        f"## [[{key}]]",
        "",
        _summary(kind),
        "",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
    ]
    for field in fields(kind):
        default = "" if field.default is MISSING else f"`{_literal(field.default)}`"
        kind_of = _type(get_type_hints(kind)[field.name])
        lines.append(f"| `{field.name}` | {kind_of} | {default} | {_meaning(key, field.name, _said(kind))} |")
    return "\n".join(lines) + "\n"


def _rows(
    table: str, prefix: str, kind: Any, clean: Any, faithful: Any
) -> Iterator[tuple[str, Any, Any, Any, str]]:
    """(dotted key, type, clean default, faithful default, meaning), nested records flattened."""
    hints, said = get_type_hints(kind), _said(kind)
    for field in fields(kind):
        hint, key = hints[field.name], prefix + field.name
        ours, theirs = getattr(clean, field.name), getattr(faithful, field.name)
        if is_dataclass(hint) and table:
            yield from _rows(field.name, f"{key}.", hint, ours, theirs)
        elif is_dataclass(hint):
            yield key, hint, None, None, ""
        else:
            yield key, hint, ours, theirs, _meaning(table, field.name, said)


def _meaning(table: str, name: str, said: dict[str, str]) -> str:
    known = f"{table}.{name}" if table else name
    ours = MEANINGS.get(known.replace("fedstill.", "distillation."), "")  # the same keys in both tables
    parts = [part for part in (ours, said.get(name, "").strip().rstrip(".")) if part]
    if not parts:
        raise SystemExit(f"{known}: write a comment beside the field, or an entry in MEANINGS")
    return _cell("; ".join(parts))


@cache
def _said(kind: Any) -> dict[str, str]:
    """What the source says of each field: a docstring below it, a comment beside it, or ``Attributes:``."""
    source = dedent(inspect.getsource(kind))
    comments = _comments(source)
    found = _attributes(inspect.getdoc(kind) or "")
    (record,) = ast.parse(source).body
    assert isinstance(record, ast.ClassDef)
    for statement, following in zip(record.body, [*record.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        lines = range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
        comment = " ".join(comments[line] for line in lines if line in comments)
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            comment = str(following.value.value)
        if comment:
            found[statement.target.id] = comment
    return found


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(StringIO(source).readline)
    return {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def _attributes(doc: str) -> dict[str, str]:
    """``name: text`` entries below ``Attributes:``; an entry's further lines are indented."""
    _, _, below = doc.partition("Attributes:\n")
    entries = re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", below, flags=re.MULTILINE)
    return {name: text for names, text in entries for name in names.split(", ")}


def _summary(kind: Any) -> str:
    """First paragraph of the docstring, on one line."""
    return _cell((inspect.getdoc(kind) or "").split("\n\n")[0]).replace("\\|", "|")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def _type(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " \\| ".join(f"`{_literal(choice)}`" for choice in get_args(hint))
    if get_origin(hint) is tuple and is_dataclass(get_args(hint)[0]):
        return "list of tables"
    if get_origin(hint) is tuple:
        return f"list of {_type(get_args(hint)[0])}"
    return {str: "text", bool: "true \\| false"}.get(hint, getattr(hint, "__name__", str(hint)))


def _literal(value: object) -> str:
    """As TOML writes it."""
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _defaults(mode: str) -> Experiment:
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "empty.toml"
        file.write_text(f'name = ""\nmode = "{mode}"\n')
        return load_experiment(str(file))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    runpy.run_path(str(Path(__file__).with_name("generate_cli_reference.py")), run_name="__main__")
