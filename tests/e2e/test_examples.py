"""Every example runs as it is, from another folder, and says what its page promises."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.quick import quick_environment

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS = 900


def run(script: str, folder: Path, *arguments: str) -> str:
    """What an example prints; it runs elsewhere, so it must find everything through ``fedstill``."""
    command = [sys.executable, str(EXAMPLES / script), "--out", str(folder / "out"), *arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        stdin=subprocess.DEVNULL,
        env=quick_environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_elastic_vit(tmp_path: Path) -> None:
    printed = run("elastic_vit/elastic_vit.py", tmp_path, "--merged", "0", "16", "--images", "1")
    with (tmp_path / "out" / "elastic.csv").open(newline="") as file:
        plain, merged = csv.DictReader(file)
    assert (plain["tokens_left"], float(plain["output_moves_by"])) == ("196", 0.0)
    assert (merged["tokens_left"], float(merged["output_moves_by"]) > 0) == ("10", True)
    assert "tokens left" in printed


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
def test_personalise_my_clips(tmp_path: Path) -> None:
    printed = run("personalise_my_clips/personalise.py", tmp_path)
    assert "60 clips, classes calm, cross" in printed
    assert "device 1, fedstill: " in printed
    assert "new clip: " in printed
    assert (tmp_path / "out" / "run" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
def test_serve_and_query(tmp_path: Path) -> None:
    printed = run("serve_and_query/serve_and_query.py", tmp_path)
    assert "sea: sea, schedule" in printed
    assert "sand: sand, schedule" in printed
    assert "the server ended with 0" in printed


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
def test_fleet_on_one_machine(tmp_path: Path) -> None:
    printed = run("fleet_on_one_machine/fleet.py", tmp_path)
    assert "the kitchen hears and sees: " in printed
    assert "Traceback" not in "".join(log.read_text() for log in (tmp_path / "out").glob("*.log"))


def test_every_example_is_tested_and_listed() -> None:
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir()}
    listed = (EXAMPLES / "README.md").read_text()
    tests = Path(__file__).read_text()
    for name in folders:
        assert f"({name}/)" in listed
        assert f'run("{name}/' in tests
        assert (EXAMPLES / name / "README.md").exists()
