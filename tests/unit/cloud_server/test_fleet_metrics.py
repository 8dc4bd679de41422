"""Prometheus reads what ``fedstill status`` shows; rules and dashboard ask for what there is."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from helpers.fleet_state import made_fleet
from prometheus_client.parser import text_string_to_metric_families

from fedstill.cloud_server.auth.authority import create_authority
from fedstill.cloud_server.coordinator.fleet_metrics import FleetCollector
from fedstill.common.flower_cli import free_port
from fedstill.common.folder_lock import sole_user
from fedstill.common.metrics_server import MetricsError, metrics_serving
from fedstill.edge_client.owner.agent_metrics import AgentCollector

DEPLOY = Path(__file__).parents[3] / "deploy" / "prometheus"


def scraped(port: int) -> dict[tuple[str, str], float]:
    """Value by name and first label of what is served."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_fleet_is_scraped(tmp_path: Path) -> None:
    state, port = made_fleet(tmp_path), free_port()
    create_authority(tmp_path / "ca")
    with sole_user(state), metrics_serving(f"127.0.0.1:{port}", FleetCollector(state, tmp_path / "ca")):
        found = scraped(port)
    wanted = {
        ("fedstill_fleet_readable", ""): 1,
        ("fedstill_devices", "online"): 1,
        ("fedstill_devices", "offline"): 1,
        ("fedstill_devices", "revoked"): 1,
        ("fedstill_devices", "late"): 0,
        ("fedstill_device_up", "hall"): 1,
        ("fedstill_device_up", "kitchen"): 0,
        ("fedstill_device_served", "hall"): 1,
        ("fedstill_device_served", "kitchen"): 0,
        ("fedstill_device_failed_attempts", "kitchen"): 3,
        ("fedstill_received_bytes_total", "kitchen"): 10,
        ("fedstill_sent_bytes_total", "kitchen"): 1000,
        ("fedstill_run_failures", ""): 2,
        ("fedstill_teacher_number", ""): 1,
        ("fedstill_wire_received_bytes_total", "kitchen"): 70,
        ("fedstill_wire_sent_bytes_total", "kitchen"): 3000,
    }
    assert {key: found[key] for key in wanted} == wanted
    again = found["fedstill_device_next_attempt_timestamp_seconds", "kitchen"]
    assert again == pytest.approx(time.time() + 240, abs=60)
    assert found["fedstill_certificate_expiry_timestamp_seconds", "server"] > 1e9
    assert found["fedstill_state_free_bytes", ""] > 0
    assert ("fedstill_device_next_attempt_timestamp_seconds", "hall") not in found
    assert ("fedstill_wire_sent_bytes_total", "hall") not in found


def test_a_student_of_an_earlier_teacher_is_not_the_newest_one(tmp_path: Path) -> None:
    state, port = made_fleet(tmp_path), free_port()
    plan = json.loads((state / "plan.json").read_text()) | {"teacher_number": 2}
    (state / "plan.json").write_text(json.dumps(plan))
    with metrics_serving(f"127.0.0.1:{port}", FleetCollector(state, None)):
        found = scraped(port)
    assert (found["fedstill_teacher_number", ""], found["fedstill_device_served", "hall"]) == (2, 0)


def test_a_folder_that_cannot_be_read_is_said_so(tmp_path: Path) -> None:
    port = free_port()
    with metrics_serving(f"127.0.0.1:{port}", FleetCollector(tmp_path, None)):
        assert scraped(port)["fedstill_fleet_readable", ""] == 0
        made_fleet(tmp_path)
        assert scraped(port)["fedstill_fleet_readable", ""] == 1
        (tmp_path / "journal.db").write_bytes(b"damaged" * 1000)
        assert scraped(port)["fedstill_fleet_readable", ""] == 0
        with (
            pytest.raises(MetricsError, match="cannot serve metrics here"),
            metrics_serving(f"127.0.0.1:{port}", FleetCollector(tmp_path, None)),
        ):
            pass


def test_an_agent_is_scraped(tmp_path: Path) -> None:
    port, collector = free_port(), AgentCollector(tmp_path)
    line = {"time": 1.0, "what": "a greeting", "bytes": 40}
    (tmp_path / "uploads.jsonl").write_text(2 * (json.dumps(line) + "\n"))
    with metrics_serving(f"127.0.0.1:{port}", collector):
        assert scraped(port)["fedstill_agent_in_fleet", ""] == 0
        collector.tell(True)
        found = scraped(port)
        (tmp_path / "uploads.jsonl").replace(tmp_path / "uploads.jsonl.1")
        newest = {"time": 2.0, "what": "a summary", "bytes": 500}
        (tmp_path / "uploads.jsonl").write_text(
            json.dumps(newest) + '\n{"time": 3, "what": "", "bytes": "y"}\n'
        )
        scraped(port)
        (tmp_path / "uploads.jsonl.1").unlink()  # as the log does at the next rotation
        later = scraped(port)
    assert found["fedstill_agent_in_fleet", ""] == 1
    assert found["fedstill_agent_has_student", ""] == 0
    assert found["fedstill_agent_answers_total", ""] == 2
    assert found["fedstill_agent_sent_bytes_total", ""] == 80
    assert later["fedstill_agent_answers_total", ""] == 3
    assert later["fedstill_agent_sent_bytes_total", ""] == 580


def test_rules_and_dashboard_ask_for_metrics_that_exist(tmp_path: Path) -> None:
    state, port = made_fleet(tmp_path), free_port()
    with metrics_serving(f"127.0.0.1:{port}", FleetCollector(state, None)):
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    known = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)) | {
        "fedstill_certificate_expiry_timestamp_seconds"
    }
    rules = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"][0]["rules"]
    panels = json.loads((DEPLOY / "grafana_fleet.json").read_text())["panels"]
    asked = [rule["expr"] for rule in rules] + [one["expr"] for panel in panels for one in panel["targets"]]
    assert len(asked) > 12
    for expression in asked:
        for name in re.findall(r"fedstill_\w+", expression):
            assert name in known, expression
