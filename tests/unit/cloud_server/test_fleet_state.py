"""What an operator reads of a fleet is what the journal says, and no more than is known."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.command import CliRunner
from sqlalchemy import create_engine, delete

from fedstill.cli.main import app
from fedstill.cloud_server.journal import fleet_state
from fedstill.cloud_server.journal.fleet_state import LOOKED_SECONDS, clients_named, plan_of, read_fleet
from fedstill.cloud_server.journal.job_key import JobKey
from fedstill.cloud_server.journal.journal import Journal
from fedstill.cloud_server.journal.tables import TEACHERS
from fedstill.cloud_server.journal.traffic import TrafficCounters
from fedstill.cloud_server.journal.visit import FAILED, LOST, NEW, REQUESTED, SERVED, TEACHER, Visit
from fedstill.common.errors import ConfigError, RunError
from fedstill.common.folder_lock import sole_user
from fedstill.common.run_layout import LOOKED_FILE, TRAFFIC_FILE

KEY = JobKey("latency_insensitive", "fedstill", 1, 0)
DEVICES = ["hall", "kitchen", ""]


@dataclass(frozen=True)
class Fleet:
    state: Path
    journal: Journal

    def device(self, client: int) -> dict[str, Any]:
        row = read_fleet(self.state)["devices"][client]
        assert row["client"] == client
        return dict(row)


@pytest.fixture(params=["sqlite", "postgresql"])
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fleet]:
    url = "" if request.param == "sqlite" else request.getfixturevalue("postgresql")
    write_plan(tmp_path, url)
    made = Journal(url or f"sqlite:///{tmp_path / 'journal.db'}")
    yield Fleet(tmp_path, made)
    made.close()


def write_plan(state: Path, journal: str = "") -> None:
    plan = {"clients": len(DEVICES), "devices": DEVICES, "journal": journal, "pause_scale": 1.0}
    (state / "plan.json").write_text(json.dumps(plan))


def test_it_adds_up_and_a_changed_state_begins_anew(fleet: Fleet) -> None:
    journal = fleet.journal
    journal.see_node(1, "42", "kitchen", "0.1.0", "connected")
    before = fleet.device(1)
    journal.see_node(1, "42", "kitchen", "0.1.0", "connected")
    same = fleet.device(1)
    journal.see_node(1, "42", "kitchen", "0.1.0", "dead")
    for up, down in ((10, 1000), (5, 500)):
        journal.spend(KEY, 2, "query.prototypes", up, down)
    journal.finish_job(KEY, {"evaluations": [{"correct": 3, "total": 4}]})
    after = fleet.device(1)
    assert same["since"] == before["since"] < after["since"]
    assert (after["state"], after["up_bytes"], after["down_bytes"], after["round"]) == ("dead", 15, 1500, 2)
    assert (after["accuracy"], after["jobs_done"], after["name"]) == (0.75, 1, "kitchen")
    assert journal.traffic(KEY) == [
        {"round": 2, "up_bytes": 10, "down_bytes": 1000}, {"round": 2, "up_bytes": 5, "down_bytes": 500}
    ]  # fmt: skip


def test_a_tag_names_several_devices(tmp_path: Path) -> None:
    write_plan(tmp_path)
    Journal(f"sqlite:///{tmp_path / 'journal.db'}").close()
    plan = plan_of(tmp_path) | {"tags": [["ground-floor", "old"], ["ground-floor"], []]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert clients_named(plan, (), "ground-floor") == [0, 1]
    assert clients_named(plan, (), "old") == [0]
    with pytest.raises(ConfigError, match="no device has it; known: ground-floor, old"):
        clients_named(plan, (), "attic")
    assert read_fleet(tmp_path)["devices"][0]["tags"] == ["ground-floor", "old"]
    shown = CliRunner().invoke(app, ["status", "--state", str(tmp_path), "--tag", "old", "--json"])
    assert [row["name"] for row in json.loads(shown.stdout)["devices"]] == ["hall"]


def test_a_link_is_known_only_while_a_coordinator_looks_after_it(fleet: Fleet) -> None:
    fleet.journal.see_node(1, "42", "kitchen", "0.1.0", "connected")
    assert [row["link"] for row in read_fleet(fleet.state)["devices"]] == [
        "never online",
        "unknown",
        "revoked",
    ]
    looked = fleet.state / LOOKED_FILE
    with sole_user(fleet.state):
        assert fleet.device(1)["link"] == "unknown", "the coordinator's Flower process has not looked yet"
        looked.touch()
        assert fleet.device(1)["link"] == "online"
        assert fleet.device(0)["link"] == "never online"
        for seconds in (LOOKED_SECONDS + 1, -LOOKED_SECONDS - 1):
            then = time.time() - seconds
            os.utime(looked, (then, then))
            assert fleet.device(1)["link"] == "unknown", "it has died since then, or the clock was set"
        looked.touch()
        for state, link in (("late", "late"), ("dead", "offline"), ("revived", "online")):
            fleet.journal.see_node(1, "42", "kitchen", "0.1.0", state)
            assert fleet.device(1)["link"] == link


def test_a_visit_is_told_with_its_reason_and_its_next_attempt(fleet: Fleet) -> None:
    visits = fleet.journal.visits
    assert fleet.device(1)["doing"] == "no student yet"
    begun = visits.begin(Visit(1, 0, NEW, "kitchen"))
    assert fleet.device(1)["doing"] == "interrupted"
    with sole_user(fleet.state):
        assert fleet.device(1)["doing"] == "being personalised"
    ended = visits.end(begun, FAILED, "no reply within 300 s", "")
    row = fleet.device(1)
    assert row["doing"] == "failed: no reply within 300 s"
    assert row["next_attempt"] == ended.next_attempt() == pytest.approx(row["visit"]["ended"] + 60)
    visits.end(visits.begin(ended), SERVED, "", "ab" * 32)
    row = fleet.device(1)
    assert (row["doing"], row["next_attempt"], row["visit"]["attempts"]) == ("served", None, 0)


def test_a_student_is_told_with_its_number_and_its_teacher(fleet: Fleet) -> None:
    """What was given last stays in use while another one fails, unless it was lost or was another device's."""
    visits, plan = fleet.journal.visits, fleet.state / "plan.json"
    shown = ["status", "--state", str(fleet.state)]
    assert fleet.device(1)["in_use"] is None
    assert "teacher: 1, not made yet\n" in CliRunner().invoke(app, shown).output
    assert fleet.journal.teachers.note(1, "ab" * 8)
    assert not fleet.journal.teachers.note(1, "cd" * 8), "the first note stays"
    visits.end(visits.begin(Visit(1, 0, NEW, "kitchen")), SERVED, "", "a" * 64)
    visits.end(visits.begin(Visit(1, 1, REQUESTED, "kitchen")), SERVED, "", "b" * 64)
    has = {"number": 2, "teacher": 1, "version": "b" * 64}
    assert fleet.device(1)["in_use"] == has
    with fleet.journal.teachers._engine.begin() as connection:  # an older fedstill noted none
        connection.execute(delete(TEACHERS))
    assert "teacher: 1\n" in CliRunner().invoke(app, shown).output
    fleet.journal.teachers.note(1, "ab" * 8)
    told = CliRunner().invoke(app, shown).output
    assert "student 2, teacher 1" in told
    assert f"teacher: 1 ({'ab' * 6})\n" in told

    plan.write_text(json.dumps(plan_of(fleet.state) | {"teacher_number": 2}))
    fleet.journal.teachers.note(2, "ef" * 8)
    third = visits.begin(Visit(1, 2, TEACHER, "kitchen", teacher=2))
    assert fleet.device(1)["in_use"] == has
    for known in ("b" * 64, ""):
        third = visits.end(third, FAILED, "no reply", known)
        assert fleet.device(1)["in_use"] == has
    assert f"teacher: 2 ({'ef' * 6}); 1 device has a student of an earlier one\n" in (
        CliRunner().invoke(app, shown).output
    )
    assert read_fleet(fleet.state)["teacher"]["digest"] == "ef" * 8
    visits.end(third, SERVED, "", "c" * 64)
    assert fleet.device(1)["in_use"] == {"number": 3, "teacher": 2, "version": "c" * 64}
    assert "student 3, teacher 2" in CliRunner().invoke(app, shown).output

    lost = visits.begin(Visit(1, 3, LOST, "kitchen", teacher=2))
    assert fleet.device(1)["in_use"] is None
    visits.end(lost, SERVED, "", "d" * 64)
    plan.write_text(json.dumps(plan_of(fleet.state) | {"devices": ["hall", "kitchen-2", ""]}))
    assert fleet.device(1)["in_use"] is None, "another device was not given it"


def test_bytes_with_overhead_are_those_of_all_keys_that_the_client_has_had(fleet: Fleet) -> None:
    shown = ["status", "--state", str(fleet.state)]
    assert [row["wire_up_bytes"] for row in read_fleet(fleet.state)["devices"]] == [None] * 3
    plan = fleet.state / "plan.json"
    plan.write_text(json.dumps(plan_of(fleet.state) | {"keys": [["SHA256:a"], ["SHA256:b", "SHA256:c"], []]}))
    counters = TrafficCounters(fleet.state / TRAFFIC_FILE)
    counters.add("SHA256:b", "pull-messages", 1_000_000, 2_000_000, 500, 600)
    counters.add("SHA256:c", "push-object", 1_000_000, 0)
    counters.add("SHA256:stranger", "push-object", 7, 7)
    counters.save()
    row = fleet.device(1)
    assert (row["wire_up_bytes"], row["wire_down_bytes"]) == (2_000_500, 2_000_600)
    assert (fleet.device(0)["wire_up_bytes"], row["up_bytes"]) == (None, None)
    told = CliRunner().invoke(app, shown).output
    assert "with overhead" in told
    assert "2 MB / 2 MB" in told
    (fleet.state / TRAFFIC_FILE).write_text("damaged")
    assert fleet.device(1)["wire_up_bytes"] is None


def test_the_command_shows_all_that_and_writes_nothing(fleet: Fleet) -> None:
    fleet.journal.see_node(1, "42", "kitchen", "0.1.0", "connected")
    fleet.journal.visits.end(
        fleet.journal.visits.begin(Visit(1, 0, NEW, "kitchen")), FAILED, "its disk is full", ""
    )
    found = CliRunner().invoke(app, ["status", "--state", str(fleet.state)], env={"COLUMNS": "140"})
    assert found.exit_code == 0, found.output
    assert "kitchen" in found.output
    assert "kitchen: its disk is full" in found.output
    assert "1 of 3 devices have never been online" in found.output
    asked = CliRunner().invoke(app, ["status", "--state", str(fleet.state), "--json"])
    assert json.loads(asked.output)["devices"][1]["doing"] == "failed: its disk is full"


def test_bad_clips_are_told_by_kind_and_the_newest_numbers_count(fleet: Fleet) -> None:
    fleet.journal.see_node(1, "42", "kitchen", "0.1.0", "connected")
    assert fleet.device(1)["bad_clips"] == {}
    for faults in ({"empty": 3}, {"empty": 1, "no sound": 2}):
        fleet.journal.see_bad_clips(1, faults)
        assert fleet.device(1)["bad_clips"] == faults
    assert fleet.device(0)["bad_clips"] == {}
    found = CliRunner().invoke(app, ["status", "--state", str(fleet.state)], env={"COLUMNS": "140"})
    assert (
        "kitchen: 3 clips left out: empty file (1), no sound (2); the device's log names them" in found.output
    )
    fleet.journal.see_bad_clips(1, {})
    found = CliRunner().invoke(app, ["status", "--state", str(fleet.state)], env={"COLUMNS": "140"})
    assert "left out" not in found.output


def test_tables_that_a_newer_fedstill_has_are_empty_in_an_older_journal(
    tmp_path: Path, postgresql: str
) -> None:
    for url in ("", postgresql):
        write_plan(tmp_path, url)
        made = Journal(url or f"sqlite:///{tmp_path / 'journal.db'}")
        made.see_node(1, "42", "kitchen", "0.1.0", "connected")
        made.close()
        with create_engine(url or f"sqlite:///{tmp_path / 'journal.db'}").begin() as connection:
            connection.exec_driver_sql("DROP TABLE visits")
            connection.exec_driver_sql("DROP TABLE bad_clips")
            connection.exec_driver_sql("DROP TABLE teachers")
        fleet = read_fleet(tmp_path)
        row = fleet["devices"][1]
        assert fleet["teacher"] == {"number": 1, "digest": None, "made": None}
        assert (row["name"], row["visit"], row["bad_clips"]) == ("kitchen", None, {})


@pytest.mark.parametrize("columns", [200, 80, 60])
def test_no_cell_is_broken_in_a_narrow_terminal(columns: int, fleet: Fleet) -> None:
    choice = {"chosen": "rendered", "estimate": 0.8, "low": 0.74, "high": 0.86}
    fleet.journal.see_node(1, "42", "kitchen", "0.1.0", "connected")
    fleet.journal.spend(KEY, 2, "query.prototypes", 1234, 3_456_789)
    fleet.journal.finish_job(KEY, {"evaluations": [{"correct": 3, "total": 4}], "choice": choice})
    found = CliRunner().invoke(app, ["status", "--state", str(fleet.state)], env={"COLUMNS": str(columns)})
    assert found.exit_code == 0
    for cell in ("unknown", "rendered", "80% (74% to 86%)", "75.0%", "1 jobs", "1.23 kB", "3.46 MB"):
        assert cell in found.output
    assert max(map(len, found.output.splitlines())) <= columns


def test_free_space_of_the_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_plan(tmp_path)
    Journal(f"sqlite:///{tmp_path / 'journal.db'}").close()
    monkeypatch.setattr(fleet_state.shutil, "disk_usage", lambda _: SimpleNamespace(free=12_300_000_000))
    assert read_fleet(tmp_path)["free_bytes"] == 12_300_000_000
    done = CliRunner().invoke(app, ["status", "--state", str(tmp_path)])
    assert "disk: 12.3 GB free\n" in done.output


def test_a_pipe_gets_one_line_per_device(fleet: Fleet) -> None:
    fleet.journal.see_node(1, "42", "kitchen", "0.1.0", "connected")
    fleet.journal.visits.end(fleet.journal.visits.begin(Visit(1, 0, NEW, "kitchen")), FAILED, "disk", "")
    found = CliRunner().invoke(app, ["status", "--state", str(fleet.state)], env={"COLUMNS": None})
    (line,) = [line for line in found.output.splitlines() if line.startswith(" kitchen")]
    assert "failed, again in" in line
    assert line.split()[-4:] == ["0", "B", "0", "B"]


def test_a_journal_of_an_older_fedstill_is_read_and_not_changed(tmp_path: Path) -> None:
    write_plan(tmp_path)
    old = Path(__file__).parents[2] / "data" / "state_without_revisions" / "journal.sqlite.sql"
    with sqlite3.connect(tmp_path / "journal.db") as connection:
        connection.executescript(old.read_text())
    connection.close()
    before = (tmp_path / "journal.db").read_bytes()
    rows = read_fleet(tmp_path)["devices"]
    assert [(row["name"], row["state"], row["up_bytes"]) for row in rows[:2]] == [
        ("kitchen", "connected", 642), ("hall", "dead", 321)
    ]  # fmt: skip
    assert [row["visit"] for row in rows] == [None, None, None]
    assert (tmp_path / "journal.db").read_bytes() == before


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a coordinator's folder; start one with"):
        read_fleet(tmp_path)
    write_plan(tmp_path)
    with pytest.raises(RunError, match="unable to open database file"):
        read_fleet(tmp_path)
    write_plan(tmp_path, "postgresql+psycopg://me:secret@127.0.0.1:1/x")
    with pytest.raises(RunError) as refused:
        read_fleet(tmp_path)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("plan", [
        "no JSON", "[]", "{}", '{"clients": 3}', '{"clients": 3, "devices": ["hall"], "journal": ""}',
        '{"clients": "3", "devices": ["hall"], "journal": ""}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", [["status"], ["fleet", "personalise", "hall"]])
def test_a_damaged_plan_is_one_line(plan: str, command: list[str], tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(plan)
    found = CliRunner().invoke(app, [*command, "--state", str(tmp_path)])
    assert found.exit_code == 2
    assert "plan.json: damaged" in found.output.replace("\n", "")


def test_a_file_and_a_damaged_journal_are_one_line(tmp_path: Path) -> None:
    (file := tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="not a coordinator's folder"):
        read_fleet(file)
    write_plan(tmp_path)
    (tmp_path / "journal.db").write_text("no database")
    with pytest.raises(RunError, match="not a database"):
        read_fleet(tmp_path)


def test_a_coordinator_that_starts_is_not_called_stopped(tmp_path: Path) -> None:
    with sole_user(tmp_path), pytest.raises(ConfigError, match="is starting"):
        read_fleet(tmp_path)
    write_plan(tmp_path)
    Journal(f"sqlite:///{tmp_path / 'journal.db'}").close()
    (tmp_path / "coordinator.json").write_text('{"run": "stopped"}')
    assert read_fleet(tmp_path)["run"] == "stopped"
    with sole_user(tmp_path):
        assert read_fleet(tmp_path)["run"] == "starting"


def test_a_quiet_folder_is_not_followed_for_ever(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["fleet", "events", "--state", str(tmp_path), "--follow"])
    assert found.exit_code == 2
    assert "is it a coordinator's folder" in found.output.replace("\n", " ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_only_be_read_is_enough(tmp_path: Path) -> None:
    write_plan(tmp_path)
    Journal(f"sqlite:///{tmp_path / 'journal.db'}").close()
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert len(read_fleet(tmp_path)["devices"]) == 3
    tmp_path.chmod(stat.S_IRWXU)


def test_devices_are_named_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    write_plan(tmp_path)
    plan = plan_of(tmp_path)
    assert clients_named(plan, ["kitchen"]) == [1]
    assert clients_named(plan, []) == [0, 1]
    assert clients_named(plan | {"devices": []}, ["2", "0"]) == [2, 0]
    with pytest.raises(ConfigError, match=r"^attic: no such device; known: hall, kitchen$"):
        clients_named(plan, ["attic"])


def test_an_operator_asks_for_students(fleet: Fleet) -> None:
    def ask(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["fleet", "personalise", "--state", str(fleet.state), *arguments])

    assert ask("kitchen").output == "asked for a new student for 1 device\n"
    assert set(fleet.journal.visits.asked()) == {1}
    assert ask("--all").output == "asked for a new student for 2 devices\n"
    assert set(fleet.journal.visits.asked()) == {0, 1}
    for mistake in ((), ("kitchen", "--all"), ("attic",)):
        assert ask(*mistake).exit_code == 2


def test_events_are_told_in_words(tmp_path: Path) -> None:
    tried = {"event": "visited", "client": 1, "visit": 2, "reason": "", "student": "", "next_attempt": None}
    failed = {"outcome": "failed", "reason": "no reply", "next_attempt": 90.0}
    events: list[dict[str, Any]] = [
        {"event": "device", "time": 0, "client": 1, "node": "7", "state": "connected"},
        {"event": "teacher_epoch", "time": 1, "epoch": 3, "loss": 0.5},
        {"event": "visit", "time": 2, "client": 1, "visit": 2, "cause": "asked for"},
        tried | {"time": 3, "outcome": "kept", "reason": "no student is estimated better"},
        tried | {"time": 3} | failed,
        tried | {"time": 4, "outcome": "served", "student": "ab" * 32},
        tried | {"time": 4, "outcome": "served", "student": "cd" * 32, "teacher": 2},
        {"event": "teacher_ready", "time": 4, "number": 2, "digest": "ef" * 8},
        {"event": "refused", "time": 5, "node": "9", "reason": "runs fedstill 0.0.1"},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in events))
    found = CliRunner().invoke(app, ["fleet", "events", "--state", str(tmp_path)], env={"TZ": "UTC"})
    assert [line[20:] for line in found.output.splitlines()] == [
        "client 1 connected",
        "client 1 is being personalised (asked for, for the 3. time)",
        "client 1 keeps its student: no student is estimated better",
        "client 1 failed: no reply; again after 1970-01-01 00:01:30",
        "client 1 uses its new student abababababab",
        "client 1 uses its new student cdcdcdcdcdcd (student 3, teacher 2)",
        "teacher 2 is made (efefefefefef)",
        "node 9 refused: runs fedstill 0.0.1",
    ]
    assert CliRunner().invoke(app, ["fleet", "events", "--state", str(tmp_path / "no")]).exit_code == 2
