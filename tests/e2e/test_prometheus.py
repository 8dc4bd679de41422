"""Debian's Prometheus scrapes coordinator, agent and server, and finds samples for all that deploy/ asks."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from helpers.fleet_state import made_fleet
from helpers.infer_requests import normalised
from helpers.serving import MadeServer, serving

from fedstill.cloud_server.auth.authority import create_authority
from fedstill.cloud_server.coordinator.fleet_metrics import FleetCollector
from fedstill.cloud_server.serving.callers.rate_limits import Rate, RateLimits
from fedstill.cloud_server.serving.endpoints.access_policy import AccessPolicy
from fedstill.common.flower_cli import free_port
from fedstill.common.folder_lock import sole_user
from fedstill.common.metrics_server import metrics_serving
from fedstill.edge_client.owner.agent_metrics import AgentCollector

DEPLOY = Path(__file__).parents[2] / "deploy" / "prometheus"
COMPARED = re.compile(r"\s(?:==|>=|<=|>|<)\s")
WINDOW = re.compile(r"\[\d+[smh]\]")
RULES = sorted(DEPLOY.glob("*alerts.yaml"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("prometheus") and shutil.which("promtool")),
        reason="needs Prometheus: apt install prometheus",
    ),
]


def expressions() -> list[str]:
    """What rules and dashboards ask; of a comparison both sides, since it has samples only if it is true."""
    asked = [
        rule["expr"]
        for file in RULES
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]
    for file in sorted(DEPLOY.glob("grafana_*.json")):
        panels = json.loads(file.read_text())["panels"]
        asked += [target["expr"] for panel in panels for target in panel.get("targets", ())]
    sides = {side for one in asked for part in re.split(r"\sor\s", one) for side in split(part)}
    return sorted(WINDOW.sub("[6s]", side) for side in sides)


def split(expression: str) -> list[str]:
    """Around comparisons and ``and on(...)``, outside of brackets; numbers are left out."""
    if expression.count("(") and COMPARED.search(re.sub(r"\([^()]*\)", "", expression)) is None:
        return [expression]
    parts = [part for both in re.split(r"\sand on\(\w+\)\s", expression) for part in COMPARED.split(both)]
    return [part.strip() for part in parts if not re.fullmatch(r"[-\d.e* ]+", part.strip())]


class Prometheus:
    """One that scrapes every second."""

    def __init__(self, folder: Path, jobs: dict[str, str]) -> None:
        self._port, config = free_port(), folder / "prometheus.yml"
        config.write_text(
            yaml.safe_dump(
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                    "rule_files": [str(file) for file in RULES],
                    "scrape_configs": [
                        {"job_name": name, "static_configs": [{"targets": [target]}]}
                        for name, target in jobs.items()
                    ],
                }
            )
        )
        subprocess.run(["promtool", "check", "config", config], check=True, capture_output=True)
        self._log = (folder / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{self._port}",
            ],
            stderr=self._log,
            stdout=self._log,
        )

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()

    def ask(self, path: str, **query: str) -> Any:
        address = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return json.load(answer)["data"]

    def samples(self, expression: str) -> list[Any]:
        found: list[Any] = self.ask("query", query=expression)["result"]
        return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MadeServer]:
    """A server of a node that has a rate limit."""
    counts: list[Any] = []
    limits = RateLimits({"shop": Rate(1, 1)}, (lambda *what: [one(*what) for one in counts],))
    access = AccessPolicy(lambda token: token, frozenset(), limits)
    with serving(tmp_path_factory.mktemp("serving"), access=access) as server:
        counts += [server.metrics.limited]
        yield server


@contextmanager
def fleet(folder: Path) -> Iterator[dict[str, str]]:
    """Where the metrics of a coordinator and of an agent are."""
    create_authority(folder / "ca")
    state, ports = made_fleet(folder), (free_port(), free_port())
    (folder / "agent").mkdir()
    with ExitStack() as stack:
        stack.enter_context(sole_user(state))
        for port, collector in zip(
            ports, (FleetCollector(state, folder / "ca"), AgentCollector(folder / "agent")), strict=True
        ):
            stack.enter_context(metrics_serving(f"127.0.0.1:{port}", collector))
        yield {
            "fedstill-coordinator": f"127.0.0.1:{ports[0]}",
            "fedstill-agent": f"127.0.0.1:{ports[1]}",
        }


def ask(made: MadeServer, node: str, latency_ms: int) -> int:
    values = normalised(1)
    tensor = {
        "name": "image",
        "shape": list(values.shape),
        "datatype": "FP32",
        "data": values.ravel().tolist(),
    }
    body = {"parameters": {"latency_ms": latency_ms}, "inputs": [tensor]}
    headers = {"authorization": f"Bearer {node}"}
    return httpx.post(f"{made.rest}/v2/models/cats/infer", json=body, headers=headers, timeout=30).status_code


def test_all_that_rules_and_dashboards_ask_has_samples(served: MadeServer, tmp_path: Path) -> None:
    with fleet(tmp_path) as jobs:
        jobs["fedstill-serve"] = f"127.0.0.1:{served.ports.web}"
        prometheus = Prometheus(tmp_path, jobs)
        try:
            missing = expressions()
            assert len(missing) > 30
            end = time.monotonic() + 60
            while missing and time.monotonic() < end:
                assert ask(served, "yard", 20_000) == 200
                ask(served, "yard", 0)
                ask(served, "shop", 20_000)
                time.sleep(0.5)
                try:
                    missing = [one for one in missing if not prometheus.samples(one)]
                except OSError:
                    continue  # it does not listen yet
            assert not missing, missing
            up = {one["metric"]["job"]: one["value"][1] for one in prometheus.samples("up")}
            assert up == dict.fromkeys(jobs, "1")
            rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
            assert {rule["health"] for rule in rules} == {"ok"}
        finally:
            prometheus.close()


def test_promtool_finds_no_fault(served: MadeServer, tmp_path: Path) -> None:
    for file in RULES:
        subprocess.run(["promtool", "check", "rules", file], check=True, capture_output=True)
    with fleet(tmp_path) as jobs:
        for target in (*jobs.values(), f"127.0.0.1:{served.ports.web}"):
            text = httpx.get(f"http://{target}/metrics").text
            done = subprocess.run(
                ["promtool", "check", "metrics"], input=text, text=True, capture_output=True, check=False
            )
            assert (done.returncode, done.stderr) == (0, ""), done.stderr
