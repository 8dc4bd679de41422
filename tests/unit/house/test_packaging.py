"""The parts of fedstill install and start apart from each other; .ci/wheel.sh does the same with a wheel."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from fedstill.cli.shared.missing_package import EDGE, FULL, SERVE, VIDEO, what_to_install

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORT_NAMES = {"grpcio-reflection": "grpc_reflection", "scikit-learn": "sklearn"}
HEAVY = ("scipy", "torch", "onnxruntime", "sklearn", "k_means_constrained", "matplotlib", "sqlalchemy", "av")


def checkout(folder: Path) -> Path:
    """What a build begins with: the links, and one folder behind them."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "importroot", folder / "importroot", symlinks=True)
    for link in linked(folder):
        (folder / link.name).mkdir()
    return folder


def linked(folder: Path) -> list[Path]:
    return [path for path in (folder / "importroot" / "fedstill").iterdir() if path.is_symlink()]


def setup(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "--name"], cwd=folder, capture_output=True, text=True, check=False
    )


def test_a_checkout_with_links_builds(tmp_path: Path) -> None:
    done = setup(checkout(tmp_path))
    assert (done.returncode, done.stdout.strip()) == (0, "fedstill")


@pytest.mark.parametrize("broken", ["text", "dangling"])
def test_a_checkout_without_links_stops_in_one_line(tmp_path: Path, broken: str) -> None:
    checkout(tmp_path)
    link = tmp_path / "importroot" / "fedstill" / "models"
    if broken == "text":
        target = link.readlink()
        link.unlink()
        link.write_text(str(target))  # as git writes it where it cannot make links
    else:
        (tmp_path / "models").rmdir()
    done = setup(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("importroot/fedstill/models is no link to a folder")
    assert done.stderr.count("\n") == 1


def import_names(requirements: list[str]) -> set[str]:
    names = {Requirement(text).name for text in requirements} - {"fedstill"}
    return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}


def test_the_packages_of_every_extra_are_known_to_the_command_line() -> None:
    extras = PROJECT["optional-dependencies"]
    assert import_names(extras["edge"]) == EDGE
    assert import_names(extras["serve"]) == SERVE
    assert import_names(extras["video"]) == VIDEO
    assert import_names(extras["full"]) | EDGE | SERVE | VIDEO == FULL
    assert not SERVE & {"av", "flwr"}
    assert not EDGE & {"av", "scipy", "sklearn", "timm", "torch"}
    assert not import_names(PROJECT["dependencies"]) & FULL


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        ("agent", "flwr.app", "edge"),
        ("agent", "torch", "full"),
        ("serve", "uvicorn", "serve"),
        ("simulate", "torch", "full"),
        ("", "onnx", "full"),
    ],
)
def test_a_missing_package_names_the_extra(command: str, module: str, extra: str) -> None:
    line = what_to_install(command, module)
    assert line is not None
    assert f"pip install '.[{extra}]'" in line
    assert f"'FILE.whl[{extra}]'" in line
    assert module.partition(".")[0] in line


def test_an_agent_says_what_to_install_before_what_else_is_missing() -> None:
    script = (
        "import sys; sys.modules.update(dict.fromkeys(['flwr'])); from fedstill.cli.main import main; "
        "sys.argv[:] = 'fedstill agent --coordinator localhost:1 --credentials none --data none.csv --state none'"
        ".split(); main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install '.[edge]'" in done.stderr


@pytest.mark.parametrize(
    ("missing", "code", "said"),
    [
        ("sqlalchemy", 2, "this command needs sqlalchemy; install fedstill with the extra [full]"),
        ("psycopg2", 1, "the run failed: journal: import of psycopg2 halted"),
    ],
)
def test_the_state_of_a_fleet_in_postgresql_says_what_reads_it(missing: str, code: int, said: str) -> None:
    """``status`` starts by itself, without the other commands."""
    script = (
        f"import sys; sys.modules.update(dict.fromkeys(['{missing}'])); from fedstill.cli.start import main; "
        "from fedstill.cloud_server.journal import fleet_state; sys.argv[1:] = ['status', '--state', 'x']; "
        "fleet_state.plan_of = lambda state: fleet_state._by_sqlalchemy('postgresql+psycopg2://x/y').__enter__(); "
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert said in done.stderr


def test_a_missing_module_of_ours_is_a_bug() -> None:
    assert what_to_install("serve", "fedstill.nothing") is None


def loaded(module: str) -> set[str]:
    """Top-level packages that importing a module loads, in a process of its own."""
    script = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


def test_the_client_app_starts_light() -> None:
    """In a fleet, every message to a device starts this module in a process of its own."""
    packages = loaded("fedstill.edge_client.node.client_app")
    assert "flwr" in packages
    assert not packages & {*HEAVY, "PIL", "soundfile", "safetensors"}


def test_a_device_that_has_its_clips_loads_neither_codecs_nor_clustering() -> None:
    packages = loaded("fedstill.edge_client.node.device")
    assert "numpy" in packages
    assert not packages & {*HEAVY, "soundfile", "flwr"}


def test_a_device_imports_nothing_that_its_install_leaves_out() -> None:
    """Wherever in a file the import stands. FFmpeg comes with another extra, and torch may be there."""
    left_out = {"k_means_constrained", "joblib", "ortools", "pandas", "scipy", "sklearn"}
    files = [*(ROOT / "edge_client").rglob("*.py"), *(ROOT / "protos").glob("*.py")]
    assert len(files) > 50
    for file in files:
        assert not imported(file) & left_out, file


def imported(file: Path) -> set[str]:
    """Top-level packages that any line of a file imports."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    whole = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    parts = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in whole | parts}


def test_every_part_of_a_device_can_be_imported_without_ffmpeg() -> None:
    script = (
        "import sys; sys.modules.update(dict.fromkeys(['av', 'scipy', 'sklearn', 'torch']))\n"
        "import importlib, pkgutil, fedstill.edge_client as device\n"
        "names = [one.name for one in pkgutil.walk_packages(device.__path__, 'fedstill.edge_client.')]\n"
        "for name in names:\n"
        "    if not name.endswith('.torch_runtime'): importlib.import_module(name)\n"
        "print(len(names))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40


def test_the_command_line_starts_light() -> None:
    packages = loaded("fedstill.cli.main")
    assert "typer" in packages
    assert not packages & {*HEAVY, "numpy", "grpc", "flwr", "PIL"}
