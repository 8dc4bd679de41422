"""A command's options in a file: they reach it, what is typed wins, and every mistake is one line."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import pytest
import typer
from helpers.command import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedstill.cli import main as cli
from fedstill.cli.shared.config_file import ConfigFile, configuration, options_of

made = typer.Typer()


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@made.command()
def paint(
    context: typer.Context,
    config: ConfigFile = None,
    most_coats: Annotated[int, typer.Option(min=1)] = 2,
    hours: float = 1.5,
    wet: Annotated[bool, typer.Option("--wet")] = False,
    colour: Colour = Colour.RED,
    wall: Annotated[list[str] | None, typer.Option(metavar="NAME")] = None,
    house: Path = Path("home"),
) -> None:
    typer.echo(configuration(context))
    typer.echo(f"{most_coats!r} {hours!r} {wet!r} {colour!r} {wall!r} {house!r} {config is None!r}")


@made.command()
def other() -> None:
    """So that both have a name."""


def said(file: Path, *typed: str) -> list[str]:
    done = CliRunner().invoke(made, ["paint", "--config", str(file), *typed])
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


def test_keys_are_options_and_what_is_typed_wins(tmp_path: Path) -> None:
    file = tmp_path / "paint.toml"
    file.write_text(
        'most-coats = 3\nhours = 2\nwet = true\ncolour = "blue"\nwall = ["north", "east"]\nhouse = "shed"\n'
    )
    shown, values = said(file)
    assert values == "3 2.0 True <Colour.BLUE: 'blue'> ['north', 'east'] PosixPath('shed') False"
    assert shown == ('most-coats=3 hours=2.0 wet=true colour="blue" wall=["north", "east"] house="shed"')
    _, values = said(file, "--most-coats", "9", "--wall", "west", "--colour", "red")
    assert values == "9 2.0 True <Colour.RED: 'red'> ['west'] PosixPath('shed') False"
    file.write_text("hours = 4\n")
    shown, values = said(file)
    assert values == "2 4.0 False <Colour.RED: 'red'> None PosixPath('home') False"
    assert shown.startswith("most-coats=2 hours=4.0 wet=false")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("most-coats = 0", "most-coats: 0 is not in the range x>=1."),
        ("most-coats = true", "most-coats: needs a whole number, not true"),
        ("most-coats = 2.0", "most-coats: needs a whole number, not 2.0"),
        ('hours = "2"', 'hours: needs a number, not "2"'),
        ("wet = 1", "wet: needs true or false, not 1"),
        ('colour = "green"', "colour: 'green' is not one of 'red', 'blue'."),
        ('wall = "north"', 'wall: needs a list of texts in quotes, not "north"'),
        ('wall = ["north", 2]', 'wall: needs a list of texts in quotes, not ["north", 2]'),
        ("house = 1979-05-27", 'house: needs text in quotes, not "1979-05-27"'),
        ('house = "a\\u0000b"', "house: text holds a NUL"),
        ("most_coats = 3", "'most_coats' is no option of paint; did you mean most-coats?"),
        ("[paint]\nwet = true", "'paint' is no option of paint"),
        ('config = "other.toml"', "'config' is no option of paint"),
        ("help = true", "'help' is no option of paint"),
        ("wet", "not TOML: "),
        ("wet = true\nwet = false", "not TOML: "),
        pytest.param(f"hours = 1{400 * '0'}", "hours: int too large to convert to float", id="large"),
        pytest.param(f"hours = 1{5000 * '0'}", "not TOML: ", id="larger"),
        pytest.param(f"wall = {5000 * '['}", "not TOML: ", id="deep"),
    ],
)
def test_a_mistake_is_one_line_with_exit_code_2(
    text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "paint.toml"
    file.write_text(text)
    refused(file, reason, monkeypatch)


def refused(file: Path, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedstill.cli.shared.console.errors.width", 300)
    done = CliRunner().invoke(made, ["paint", "--config", str(file)])
    assert done.exit_code == 2, done.output
    assert done.output.startswith(f"error: --config {file}: {reason}")
    assert len(done.output.splitlines()) == 1


def test_what_is_no_text_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(tmp_path, "not a file", monkeypatch)
    refused(Path("/dev/null"), "not a file", monkeypatch)
    refused(tmp_path / "missing.toml", "No such file or directory", monkeypatch)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    refused(tmp_path / "bytes.toml", "not UTF-8 text", monkeypatch)
    (tmp_path / "large.toml").write_bytes(b"#" * (2**20 + 1))
    refused(tmp_path / "large.toml", "more than 1048576 bytes", monkeypatch)


PLAIN = st.one_of(
    st.booleans(),
    st.integers(-(10**400), 10**400),
    st.floats().map(repr),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8).map(json.dumps),
)
VALUES = PLAIN | st.lists(PLAIN, max_size=3).map(lambda found: f"[{', '.join(map(str, found))}]")


@given(key=st.sampled_from(["most-coats", "hours", "wet", "colour", "wall", "house"]), value=VALUES)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_is_taken_or_refused_in_one_line(key: str, value: object, tmp_path: Path) -> None:
    file = tmp_path / "paint.toml"
    file.write_text(f"{key} = {str(value).lower() if isinstance(value, bool) else value}\n")
    done = CliRunner().invoke(made, ["paint", "--config", str(file)])
    assert done.exit_code in (0, 2), done.exception
    if done.exit_code == 2:
        assert done.output.startswith("error: --config ")


def test_every_option_of_serve_is_a_key() -> None:
    serve = typer.main.get_command(cli.app).commands["serve"]  # type: ignore[attr-defined]
    keys = options_of(serve)
    assert {"state", "listen", "drain-seconds", "val-images", "insecure"} <= keys.keys()
    assert len(keys) == len({one.name for one in serve.params} - {"config", "help"})
