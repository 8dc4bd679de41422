"""A coordinator's folder as a service leaves it, without a service."""

from __future__ import annotations

import json
from pathlib import Path

from fedstill.cloud_server.journal.job_key import JobKey
from fedstill.cloud_server.journal.journal import Journal
from fedstill.cloud_server.journal.traffic import TrafficCounters
from fedstill.cloud_server.journal.visit import FAILED, NEW, SERVED, Visit
from fedstill.common.run_layout import LOOKED_FILE, STATUS_FILE, TRAFFIC_FILE

KEY = JobKey("latency_insensitive", "fedstill", 1, 0)


def made_fleet(folder: Path) -> Path:
    """A device that is served, one that fails, one that was revoked."""
    plan = {"clients": 3, "devices": ["hall", "kitchen", ""], "journal": "", "keys": [[], ["SHA256:k"], []]}
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / STATUS_FILE).write_text(json.dumps({"run": "running", "failures": 2, "time": 1.0}))
    journal = Journal(f"sqlite:///{folder / 'journal.db'}")
    journal.see_node(0, "41", "hall", "0.1.0", "connected")
    journal.see_node(1, "42", "kitchen", "0.1.0", "dead")
    journal.spend(KEY, 2, "query.prototypes", 10, 1000)
    journal.finish_job(KEY, {"evaluations": [], "choice": {"chosen": "rendered", "estimate": 0.8}})
    visits = journal.visits
    visits.end(visits.begin(Visit(0, 0, NEW, "hall")), SERVED, "", "a" * 64)
    failing = visits.begin(Visit(1, 0, NEW, "kitchen"))
    for _ in range(3):
        failing = visits.end(failing, FAILED, "no clips", "")
    journal.close()
    counters = TrafficCounters(folder / TRAFFIC_FILE)
    counters.add("SHA256:k", "pull-messages", 10, 1000, 60, 2000)
    counters.save()
    (folder / LOOKED_FILE).touch()
    return folder
