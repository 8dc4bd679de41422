"""Guards the command line: a user's mistake ends with exit code 2 and one line that says what to type instead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.command import CliRunner
from helpers.runs import prepared_run, silent_console, tiny_experiment, write_experiment

from fedstill.cli import main as cli
from fedstill.cli.shared import console
from fedstill.datasets.audiovisual.store import build_store
from fedstill.simulation import folders, launcher

FEDSTILL = Path(sys.executable).with_name("fedstill")


def fedstill(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The installed command, in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "FEDSTILL_DATA": "/nowhere"}
    return subprocess.run(
        [str(FEDSTILL), *arguments],
        cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def mistake(*arguments: str, cwd: Path | None = None) -> str:
    """The one line that ``fedstill`` answers with, after the word error."""
    done = fedstill(*arguments, cwd=cwd)
    assert "Traceback" not in done.stdout + done.stderr, done.stderr[-2000:]
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a run that has begun."""
    return prepared_run(tmp_path_factory.mktemp("begun"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[CliRunner]:
    """The command inside this process, where starting Python again would prove nothing more."""
    monkeypatch.setattr(console.errors, "_width", 300)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield CliRunner()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def quick_mistake(quick: CliRunner, *arguments: str) -> str:
    done = quick.invoke(cli.app, arguments)
    assert done.exit_code == 2, repr(done.exception)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0].removeprefix("error: ")


def test_help_names_every_command() -> None:
    done = fedstill("--help")
    assert done.returncode == 0
    for command in ("simulate", "report", "reproduce", "experiments", "data"):
        assert command in done.stdout
    text = fedstill("simulate", "--help").stdout
    for option in ("--seeds", "--set", "--out", "--resume", "--engine"):
        assert option in text


def test_experiments_are_listed() -> None:
    done = fedstill("experiments")
    assert done.returncode == 0
    assert {"quickstart", "emotion_pairs", "cremad", "ave"} <= {
        line.split()[0] for line in done.stdout.splitlines()
    }


@pytest.mark.parametrize(
    "arguments", [["simulate", "--sead", "3"], ["simulat"], ["simulate", "--seeds", "0"]]
)
def test_a_wrong_flag(arguments: list[str]) -> None:
    done = fedstill(*arguments)
    assert done.returncode == 2
    assert arguments[1 if len(arguments) > 1 else 0] in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_experiment(tmp_path: Path) -> None:
    line = mistake("simulate", "quickstar", cwd=tmp_path)
    assert "quickstar: no such experiment" in line
    assert "quickstart" in line
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_key(quick: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = quick_mistake(quick, "simulate", "--set", "selection.budgt=0.3")
    assert line == "selection.budgt: unknown key, did you mean budget?"
    assert list(tmp_path.iterdir()) == []


def test_a_missing_manifest(tmp_path: Path) -> None:
    sets = ["--set", "dataset.kind=manifest", "--set", "dataset.manifest=none/m.csv"]
    assert "none/m.csv: not found" in mistake("simulate", "quickstart", *sets, cwd=tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_wrong_class_list(quick: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = tmp_path / "m.csv"
    table.write_text("clip_id,split,speaker,label,audio,frames\na,public,ann,sad,a.wav,a.png\n")
    sets = ["dataset.kind=manifest", f"dataset.manifest={table}", 'dataset.classes=["happy", "angry"]']
    line = quick_mistake(quick, "simulate", "quickstart", *[part for one in sets for part in ("--set", one)])
    assert "sad" in line
    assert "line 2" in line


def test_an_out_folder_that_holds_a_run(quick: CliRunner, run_dir: Path) -> None:
    line = quick_mistake(quick, "simulate", "quickstart", "--out", str(run_dir))
    assert str(run_dir) in line
    assert "--resume" in line


def test_an_unknown_target(quick: CliRunner, run_dir: Path) -> None:
    launcher.collect(tiny_experiment(run_dir.parent), run_dir, {"prepare": 1.0}, 0.0)
    line = quick_mistake(quick, "reproduce", "table9.9", str(run_dir))
    assert "table9.9" in line
    assert "table5.2" in line


@pytest.mark.parametrize("dataset", ["cremad", "ave"])
def test_a_missing_root(dataset: str, quick: CliRunner, tmp_path: Path) -> None:
    assert "none" in quick_mistake(quick, "data", "prepare", dataset, "--root", str(tmp_path / "none"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["report"], ["reproduce", "table5.2"]])
def test_a_folder_without_results(command: list[str], quick: CliRunner, tmp_path: Path) -> None:
    assert str(tmp_path) in quick_mistake(quick, *command, str(tmp_path))
    assert "none" in quick_mistake(quick, *command, str(tmp_path / "none"))


def test_nothing_to_resume(quick: CliRunner, tmp_path: Path) -> None:
    assert "no run to resume" in quick_mistake(quick, "simulate", "--resume", str(tmp_path))


def test_resume_takes_no_other_settings(quick: CliRunner, run_dir: Path) -> None:
    line = quick_mistake(quick, "simulate", "--resume", str(run_dir), "--set", "run.seeds=2")
    assert "--set" in line


@pytest.mark.parametrize("damaged", ["experiment.json", "plan.json"])
@pytest.mark.parametrize("text", ["{", "[]", '{"name": "x", "strange": 1}'])
def test_a_damaged_run(damaged: str, text: str, quick: CliRunner, run_dir: Path, tmp_path: Path) -> None:
    for name in ("experiment.json", "plan.json"):
        (tmp_path / name).write_bytes((run_dir / name).read_bytes())
    (tmp_path / damaged).write_text(text)
    assert damaged in quick_mistake(quick, "simulate", "--resume", str(tmp_path), "--engine", "inprocess")


@pytest.mark.parametrize("name", ["my[set]", "[/tmp/x]", "[red]"])
def test_brackets_are_shown_as_typed(name: str, quick: CliRunner) -> None:
    """The console knows markup; a path is no markup."""
    assert name in quick_mistake(quick, "simulate", name)


def test_a_cloud_that_fails_is_one_line(
    quick: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends a run: exit code 1 and one line, through either engine."""

    def nobody(*_: object) -> None:
        raise RuntimeError("no device is usable; the reasons are in metrics.jsonl")

    monkeypatch.setattr("fedstill.cloud_server.federation.server_app.run_plan", nobody)
    path = write_experiment(tmp_path)
    done = quick.invoke(
        cli.app, ["simulate", str(path), "--out", str(tmp_path / "run"), "--engine", "inprocess"]
    )
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit), repr(done.exception)
    assert "no device is usable" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_interrupted_while_decoding(
    quick: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing to resume yet: the last line does not promise it, and the same command begins anew."""
    calls = iter([build_store, build_store])

    def interrupted(*arguments: object, **options: object) -> object:
        make = next(calls, None)
        if make is None:
            raise KeyboardInterrupt
        return make(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(folders, "build_store", interrupted)
    out = tmp_path / "run"
    command = ["simulate", str(write_experiment(tmp_path)), "--out", str(out), "--engine", "inprocess"]
    done = quick.invoke(cli.app, command)
    assert done.exit_code == 130
    assert len(done.stderr.strip().splitlines()) == 1
    assert "--resume" not in done.stderr
    monkeypatch.undo()
    launcher.prepare_run(tiny_experiment(tmp_path), out, silent_console())
    assert launcher.load_run(out) == tiny_experiment(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_training(
    number: signal.Signals, quick: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C and a polite kill: exit code 130 and one line with the command that goes on."""

    def pressed(*_: object) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr("fedstill.cloud_server.federation.server_app.run_plan", pressed)
    out = tmp_path / "run"
    command = ["simulate", str(write_experiment(tmp_path)), "--out", str(out), "--engine", "inprocess"]
    done = quick.invoke(cli.app, command)
    assert done.exit_code == 130
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.strip().endswith(f"fedstill simulate --resume {out}")
    assert launcher.load_run(out) == tiny_experiment(tmp_path)
