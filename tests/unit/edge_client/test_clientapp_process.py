"""The light ``flwr-clientapp`` takes Flower's options, starts from any folder, and stays light."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from fedstill.edge_client.node import clientapp_process
from fedstill.edge_client.node.clientapp_process import NAME, install_command, parser

ADDRESS = ["--runtime-api-address", "127.0.0.1:9094"]
TYPED = (
    [*ADDRESS, "--token", "t", "--insecure", "--parent-pid", "7"],
    [
        *ADDRESS,
        "--token-file",
        "t.txt",
        "--root-certificates",
        "ca.crt",
        "--allow-runtime-dependency-installation",
    ],
)


@pytest.mark.parametrize("typed", TYPED)
def test_its_options_are_those_of_flowers_command(typed: list[str]) -> None:
    flowers = importlib.import_module("flwr.supernode.cli.flwr_clientapp")
    assert vars(parser().parse_args(typed)) == vars(
        flowers._parse_args_run_flwr_clientapp().parse_args(typed)
    )


def test_it_calls_what_flowers_command_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    flowers = importlib.import_module("flwr.supernode.cli.flwr_clientapp")
    runtime = importlib.import_module("flwr.supernode.runtime.run_clientapp")
    calls: list[dict[str, object]] = []
    for module in (runtime, flowers):
        monkeypatch.setattr(module, "run_clientapp", lambda **options: calls.append(options))
    monkeypatch.setattr(sys, "argv", [NAME, *TYPED[0]])
    clientapp_process.main()
    flowers.flwr_clientapp()
    ours, theirs = calls
    assert ours == theirs


def test_it_starts_from_a_folder_with_a_space(tmp_path: Path) -> None:
    install_command(tmp_path / "my device")
    done = subprocess.run(
        [tmp_path / "my device" / NAME], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 2
    assert f"usage: {NAME}" in done.stderr


def test_it_does_not_import_the_supernode() -> None:
    program = (
        "import sys; from fedstill.edge_client.node.clientapp_process import parser; parser()\n"
        "import flwr.supernode.runtime.run_clientapp; print(*{'sqlalchemy', 'alembic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
