"""``--config FILE``: the options of a command in a TOML file, under their own names without the dashes.

The file's values become the command's defaults, so whatever is typed beside ``--config`` wins.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from fedstill.cli.shared.console import one_line_errors
from fedstill.common.errors import ConfigError
from fedstill.common.option_values import shown_url

NO_KEYS = ("config", "help")
LARGEST_BYTES = 2**20
KINDS: Mapping[type[click.ParamType[Any]], tuple[tuple[type, ...], str]] = {
    click.types.BoolParamType: ((bool,), "true or false"),
    click.types.IntParamType: ((int,), "a whole number"),
    click.types.FloatParamType: ((int, float), "a number"),
}
"""Of an option's type: the values of TOML that fit, and their name. All others are texts."""
URLS = ("database",)
"""Options whose value may hold a password, which no log may."""
ONCE_SINGLE = ("weights", "architecture", "profile")
"""Options that could not be repeated before: files that are there have one text, not a list."""


def read_config(file: Path, command: click.Command, context: click.Context) -> dict[str, Any]:
    """The file's values by the names of the command's parameters.

    Raises ConfigError for a file that cannot be read, an unknown key, and a value that the option does not take.
    """
    options, found = options_of(command), {}
    for key, value in _read_toml(file).items():
        option = options.get(key)
        if option is None:
            near = "".join(f"; did you mean {name}?" for name in get_close_matches(key, options, 1))
            raise ConfigError(f"--config {file}: {key!r} is no option of {command.name}{near}")
        try:
            _checked(option, _listed(key, option, value), context)
            found[str(option.name)] = value
        except (ValueError, OverflowError, click.BadParameter) as error:
            text = error.message if isinstance(error, click.BadParameter) else str(error)
            raise ConfigError(f"--config {file}: {key}: {text}") from None
    return found


def options_of(command: click.Command) -> dict[str, click.Option]:
    """By their long names without the dashes; of two names of a switch, the first."""
    found = {one.opts[0].removeprefix("--"): one for one in command.params if isinstance(one, click.Option)}
    return {key: one for key, one in found.items() if key not in NO_KEYS}


def configuration(context: click.Context) -> str:
    """Every option of the command and its value, however it came to it, as ``name=JSON`` in one line."""
    values = {key: context.params[str(one.name)] for key, one in options_of(context.command).items()}
    values |= {key: shown_url(values[key]) for key in URLS if values.get(key)}
    return " ".join(f"{key}={json.dumps(value, default=str)}" for key, value in values.items())


def _read_toml(file: Path) -> dict[str, Any]:
    if file.exists() and not file.is_file():
        # A pipe could be read once only; a command that restarts itself reads it again.
        raise ConfigError(f"--config {file}: not a file")
    try:
        with file.open("rb") as opened:
            content = opened.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"--config {file}: {error.strerror}") from None
    if len(content) > LARGEST_BYTES:
        raise ConfigError(f"--config {file}: more than {LARGEST_BYTES} bytes")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise ConfigError(f"--config {file}: not UTF-8 text") from None
    except RecursionError:
        raise ConfigError(f"--config {file}: not TOML: lists within lists without end") from None
    except ValueError as error:  # tomllib's own, and Python's of a number of thousands of digits
        raise ConfigError(f"--config {file}: not TOML: {error}") from None


def _checked(option: click.Option, value: Any, context: click.Context) -> None:
    """Raises ValueError or click.BadParameter for one that the option does not take."""
    found = (one for kind, one in KINDS.items() if isinstance(option.type, kind))
    types, text = next(found, ((str,), "text in quotes"))
    if option.multiple:
        text = "a list of texts in quotes"
    values = value if option.multiple and isinstance(value, list) else [value]
    listed = isinstance(value, list) == option.multiple
    if not listed or not all(_is(one, types) for one in values):
        raise ValueError(f"needs {text}, not {_short(value)}")
    if any(isinstance(one, str) and "\0" in one for one in values):
        raise ValueError("text holds a NUL")
    option.type_cast_value(context, value)


def _listed(key: str, option: click.Option, value: Any) -> Any:
    """The value as the option takes it."""
    return [value] if option.multiple and key in ONCE_SINGLE and isinstance(value, str) else value


def _is(value: object, types: tuple[type, ...]) -> bool:
    """Whether it is of one of the types; to Python, true is a number."""
    return isinstance(value, types) and isinstance(value, bool) == (bool in types)


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _take(context: typer.Context, file: Path | None) -> Path | None:
    """Before any other option is read."""
    if file is not None:
        with one_line_errors():
            read = read_config(file, context.command, context)
        named = {str(one.name): (key, one) for key, one in options_of(context.command).items()}
        found = {name: _listed(*named[name], value) for name, value in read.items()}
        context.default_map = {**(context.default_map or {}), **found}
    return file


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        is_eager=True,
        callback=_take,
        help="TOML whose keys are these options without the dashes; options typed here win.",
    ),
]
