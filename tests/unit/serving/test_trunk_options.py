"""Several --weights: whose an architecture or a profile is, or one line that asks; a config file has one or a list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import click
import pytest
import typer
from helpers.command import CliRunner

from fedstill.cli.shared.config_file import ConfigFile, read_config
from fedstill.cloud_server.serving.app.trunk_options import TrunkOptions, trunk_options
from fedstill.common.errors import ConfigError


def test_one_trunk_takes_what_is_typed() -> None:
    assert trunk_options(["a"], [], []) == (TrunkOptions("a"),)
    assert trunk_options(["a"], ["vit"], ["p=q.json"]) == (TrunkOptions("a", "vit", Path("p=q.json")),)
    assert trunk_options(["a"], ["a=vit"], ["a=p.json"]) == (TrunkOptions("a", "vit", Path("p.json")),)


def test_of_several_each_value_says_whose_it_is() -> None:
    found = trunk_options(["a", "b", "a=b"], ["b=vit"], ["a=p.json", "a=b=q.json"])
    assert found == (
        TrunkOptions("a", None, Path("p.json")),
        TrunkOptions("b", "vit"),
        TrunkOptions("a=b", None, Path("q.json")),
    )


@pytest.mark.parametrize(
    ("weights", "architectures", "profiles", "said"),
    [
        (["a", "b", "a"], [], [], "--weights a: given twice"),
        (["a", "b"], ["vit"], [], "--architecture vit: of which --weights? write --architecture a=vit"),
        (["a", "b"], [], ["c=p.json"], "--profile c=p.json: of which --weights?"),
        (["a", "b"], ["a=vit", "a=deit"], [], "--architecture: given twice for a"),
        (["a"], ["vit", "deit"], [], "--architecture: given twice for a"),
    ],
)
def test_what_is_ambiguous_is_asked(
    weights: list[str], architectures: list[str], profiles: list[str], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        trunk_options(weights, architectures, profiles)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "weights"),
    [('weights = "a.safetensors"', ["a.safetensors"]), ('weights = ["a", "b"]', ["a", "b"])],
)
def test_a_file_of_before_has_one(text: str, weights: list[str], tmp_path: Path) -> None:
    app = typer.Typer()

    @app.command()
    def show(weights: Annotated[list[str], typer.Option()], config: ConfigFile = None) -> None:
        typer.echo(repr(weights))

    file = tmp_path / "serve.toml"
    file.write_text(text)
    assert CliRunner().invoke(app, ["--config", str(file)]).output.strip() == repr(weights)
    file.write_text("weights = 1")
    command = typer.main.get_command(app)
    with pytest.raises(ConfigError, match="weights: needs a list of texts in quotes, not 1"):
        read_config(file, command, click.Context(command))
