"""Guards deploy/: it is valid, runs commands that we have, and gives a device nothing that is the cloud's."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

from fedstill.cli.main import app

DEPLOY = Path(__file__).parents[3] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
DOCKERFILES = sorted(DEPLOY.glob("*.Dockerfile"))
HIGHEST_EXPOSURE = 2.5
"""Of ``systemd-analyze security``, 0 (safe) to 10."""


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services of both compose files: of the cloud and of a device."""
    return {
        name: service
        for file in ("compose.yaml", "agent.compose.yaml")
        for name, service in yaml.safe_load((DEPLOY / file).read_text())["services"].items()
    }


def compose() -> list[str]:
    """``docker compose``, or its older self."""
    docker = shutil.which("docker")
    if (
        docker
        and subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode == 0
    ):
        return [docker, "compose"]
    old = shutil.which("docker-compose")
    return [old] if old else []


@pytest.mark.skipif(not compose(), reason="neither docker compose nor docker-compose is installed")
def test_docker_compose_accepts_the_file(tmp_path: Path) -> None:
    cloud = subprocess.run(
        [*compose(), "-f", str(DEPLOY / "compose.yaml"), "config"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert cloud.returncode == 0, cloud.stderr
    command = [*compose(), "-p", "hall", "-f", str(DEPLOY / "agent.compose.yaml"), "config"]
    given = {**os.environ, "CREDENTIALS": str(tmp_path), "DATA": str(tmp_path)}
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    del given["DATA"]
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "set DATA to a folder" in done.stderr


def test_every_service_is_reaped_stopped_slowly_and_without_privileges(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        if name != "certs":
            assert service["init"] is True, name
            assert service["stop_grace_period"] == "60s", name
            assert "healthcheck" in service, name


def test_a_device_publishes_nothing_and_sees_its_own_bundle(services: dict[str, Any]) -> None:
    assert [name for name, service in services.items() if "ports" in service] == ["coordinator"]
    volumes = services["agent"]["volumes"]
    assert not any(volume.startswith("certs:") for volume in volumes)
    read_only = {volume.rsplit(":", 2)[1] for volume in volumes if volume.endswith(":ro")}
    assert read_only == {"/credentials", "/data", "/watch"}


def command_lines(services: dict[str, Any]) -> list[list[str]]:
    """What units and compose file start, as arguments of ``fedstill``."""
    lines = [services["coordinator"]["command"], ["agent", *services["agent"]["command"]]]
    for unit in UNITS:
        started = re.search(r"^ExecStart=\S+/fedstill (.*)$", unit.read_text(), re.MULTILINE)
        assert started is not None, unit
        lines.append(shlex.split(started[1]))
    lines += [
        shlex.split(line)
        for line in re.findall(r"fedstill (certs .*)", "\n".join(services["certs"]["command"]))
    ]
    return lines


def test_all_of_them_are_commands_of_ours(services: dict[str, Any]) -> None:
    lines = command_lines(services)
    assert {line[0] for line in lines} == {"coordinator", "agent", "certs", "serve"}
    for line in lines:
        command: click.Command = typer.main.get_command(app)
        rest = list(line)
        while isinstance(command, click.Group) and not rest[0].startswith("-"):
            name = rest.pop(0)
            assert name in command.commands, line
            command = command.commands[name]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options, line
        given = {word for word in rest if word.startswith("--")}
        assert not isinstance(command, click.Group) or command.invoke_without_command, line
        required = {parameter.opts[0] for parameter in command.params if parameter.required}
        assert {option for option in required if option.startswith("--")} <= given, line


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_are_valid_and_hardened(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    installed = tmp_path / unit.name
    fedstill = str(Path(sys.executable).with_name("fedstill"))
    installed.write_text(unit.read_text().replace("/opt/fedstill/bin/fedstill", fedstill))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(installed)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.strip()) == (0, "")
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(installed)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    level = re.search(r"Overall exposure level .*: ([\d.]+)", judged.stdout)
    assert level is not None, judged.stderr
    assert float(level[1]) <= HIGHEST_EXPOSURE


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_come_back_whatever_happened(unit: Path) -> None:
    """Passing faults (a clock without a battery, a late mount) end with the exit code of a mistake."""
    lines = unit.read_text().splitlines()
    assert {"Restart=always", "RestartSec=15", "StartLimitIntervalSec=0"} <= set(lines)
    assert not any(line.startswith("RestartPreventExitStatus") for line in lines)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_images_hold_every_room_and_install_known_extras(dockerfile: Path) -> None:
    text = dockerfile.read_text()
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())
    rooms = {path.name for path in (DEPLOY.parent / "importroot" / "fedstill").iterdir() if path.is_symlink()}
    copied = set(re.findall(r"^COPY (\w+) /build/\w+$", text, re.MULTILINE))
    assert copied == rooms | {"importroot"}
    assert "setup.py" in text
    allowed = set(re.findall(r"^!(.+)$", (DEPLOY.parent / ".dockerignore").read_text(), re.MULTILINE))
    assert allowed == {
        source
        for line in re.findall(r"^COPY (.+) /build/\S*$", text, re.MULTILINE)
        for source in line.split()
    }
    (extras,) = re.findall(r"pip install .*'\.\[(.*)\]'", text)
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])
    assert re.search(r"^USER fedstill$", text, re.MULTILINE)
