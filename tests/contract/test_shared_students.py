"""Two devices of a cohort share one training and its bytes; a restart trains nothing again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers.command import CliRunner
from helpers.runs import prepared_run

from fedstill.cli.main import app
from fedstill.cli.shared.console import console
from fedstill.cloud_server.distillation.candidates import Candidate, Training
from fedstill.cloud_server.federation import personal_student, worlds
from fedstill.cloud_server.journal.event_log import read_events
from fedstill.cloud_server.journal.journal import open_journal
from fedstill.common.run_layout import JOURNAL_FILE
from fedstill.simulation.gather import gather_rows
from fedstill.simulation.inprocess import run_inprocess

pytestmark = pytest.mark.slow

ONE_ARM = ("run.arms=['fedstill']", "run.scenarios=['latency_insensitive']", "compute.workers=2")
DEVICES = 2


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry per training of a personal student; nothing but rendered sound and pictures comes into question."""
    made: list[bool] = []
    train = personal_student.train_further

    def counted(*arguments: Any, **options: Any) -> Any:
        made.append(True)
        return train(*arguments, **options)

    def only_rendered(rendered: bool, mix: object, **asked: bool) -> tuple[Candidate, ...]:
        assert rendered  # without tests, every card is believed
        return (Candidate(Training(rendered=True)),)

    monkeypatch.setattr(personal_student, "train_further", counted)
    monkeypatch.setattr(personal_student, "candidates_for", only_rendered)
    monkeypatch.setattr(worlds, "WORLDS", ((True, True),))
    return made


def served(run_dir: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The choices of the devices in their order, and the versions of their students."""
    run_inprocess(run_dir, DEVICES)
    journal = open_journal(run_dir)
    jobs = [one for one in read_events(run_dir) if one["event"] == "job" and one["arm"] == "fedstill"]
    versions = [row["version"] for row in journal.students()]
    journal.close()
    last = {one["client"]: one["choice"] for one in jobs}
    return [last[client] for client in range(DEVICES)], versions


def test_members_of_a_cohort_share_trainings_and_bytes(
    tmp_path: Path, trained: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = prepared_run(tmp_path, [*ONE_ARM, "cohorts.distance=1000"])
    choices, versions = served(run_dir)
    assert len(trained) == 2  # the checked student and the final one
    assert len(versions) == DEVICES
    assert len(set(versions)) == 1
    assert list(Counter(one["cohort"] for one in choices).values()) == [DEVICES]
    monkeypatch.setattr(console, "width", 300)
    shown = CliRunner().invoke(app, ["status", "--state", str(run_dir)])
    assert shown.output.count(f"rendered (shared by {DEVICES})") == DEVICES
    assert {row.cohort for row in gather_rows(run_dir)["choices"]} == {choices[0]["cohort"]}
    (run_dir / JOURNAL_FILE).unlink()
    again, same = served(run_dir)
    assert len(trained) == 2
    assert same == versions
    assert again == choices


def test_devices_that_differ_and_devices_without_cohorts_are_on_their_own(
    tmp_path: Path, trained: list[bool]
) -> None:
    for distance, cohorts in (("1e-6", DEVICES), ("0", 0)):
        (folder := tmp_path / distance).mkdir()
        before = len(trained)
        run_dir = prepared_run(folder, [*ONE_ARM, f"cohorts.distance={distance}"])
        choices, versions = served(run_dir)
        assert len(trained) - before == 2 * DEVICES
        assert len(set(versions)) == DEVICES
        assert len({one["cohort"] for one in choices} - {""}) == cohorts
        assert (run_dir / "seed0" / "cohorts").exists() == bool(cohorts)
