"""Guards the serving tier's part of deploy/: its options, paths, ports, times and metrics are those that exist."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml
from prometheus_client.parser import text_string_to_metric_families

from fedstill.cli.main import app
from fedstill.cli.shared.config_file import read_config
from fedstill.cloud_server.serving.callers.rate_limits import parse_rates
from fedstill.cloud_server.serving.monitoring.alarms import RULES
from fedstill.cloud_server.serving.monitoring.web import make_app
from fedstill.cloud_server.serving.server.serving_metrics import ServingMetrics

DEPLOY = Path(__file__).parents[3] / "deploy"
SERVE: click.Command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]


def options(text: str, folder: Path) -> dict[str, Any]:
    """Of a configuration file, checked as ``fedstill serve`` checks it."""
    file = folder / "serve.toml"
    file.write_text(text)
    found = read_config(file, SERVE, click.Context(SERVE))
    parse_rates(found["rate_limit"])
    return found


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    """By kind."""
    text = (DEPLOY / "kubernetes" / "serve.yaml").read_text()
    return {one["kind"]: one for one in yaml.safe_load_all(text)}


def test_the_example_is_a_configuration(tmp_path: Path) -> None:
    found = options((DEPLOY / "serve.toml").read_text(), tmp_path)
    unit = (DEPLOY / "systemd" / "fedstill-serve.service").read_text()
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert found["lame_duck"] + found["drain_seconds"] < int(seconds)
    (state,) = re.findall(r"^StateDirectory=(\S+)$", unit, re.MULTILINE)
    for name in ("state", "weights", "profile", "authority"):  # all that the unit may write or needs
        assert found[name].startswith(f"/var/lib/{state}/"), name
    image = (DEPLOY / "serve.Dockerfile").read_text()
    (command,) = re.findall(r"^CMD (.*)$", image, re.MULTILINE)
    started = re.search(r"^ExecStart=\S+/fedstill (.*)$", unit, re.MULTILINE)
    assert started is not None
    assert json.loads(command) == shlex.split(started[1])


def test_the_container_fits_the_example(tmp_path: Path) -> None:
    found = options((DEPLOY / "serve.toml").read_text(), tmp_path)
    composed = yaml.safe_load((DEPLOY / "serve.compose.yaml").read_text())
    serve = composed["services"]["serve"]
    assert (serve["cap_drop"], serve["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
    assert found["lame_duck"] + found["drain_seconds"] < int(serve["stop_grace_period"].removesuffix("s"))
    published = {int(port.rpartition(":")[2]) for port in serve["ports"]}
    assert published == {int(found[name].rpartition(":")[2]) for name in ("rest", "listen")}
    mounted = [volume.split(":")[1] for volume in serve["volumes"]]
    assert mounted == ["/etc/fedstill/serve.toml", "/var/lib/fedstill/serve"]
    assert f"http://{found['web']}/readyz" in serve["healthcheck"]["test"][-1]


def test_the_manifests_fit_each_other_and_the_server(manifests: dict[str, Any], tmp_path: Path) -> None:
    assert manifests.keys() == {"ConfigMap", "Deployment", "Service", "PodDisruptionBudget"}
    config = options(manifests["ConfigMap"]["data"]["serve.toml"], tmp_path)
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    assert config["lame_duck"] + config["drain_seconds"] < pod["terminationGracePeriodSeconds"]
    (serve,) = pod["containers"]
    assert serve["args"][0] == "serve"
    ports = {port["name"]: port["containerPort"] for port in serve["ports"]}
    assert ports == {
        name: int(config[option].rpartition(":")[2])
        for name, option in (("rest", "rest"), ("grpc", "listen"), ("web", "web"))
    }
    services = {
        port["name"]: (port["port"], port["targetPort"]) for port in manifests["Service"]["spec"]["ports"]
    }
    assert services == {name: (ports[name], name) for name in ("rest", "grpc")}  # the page stays inside
    labels = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert manifests["Service"]["spec"]["selector"] == labels
    assert manifests["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    mounted = {one["mountPath"] for one in serve["volumeMounts"]}
    for option in ("state", "weights", "profile", "authority"):
        assert any(Path(config[option]).is_relative_to(place) for place in mounted), option
    volumes = {one["name"] for one in pod["volumes"]}
    for container in (*pod["initContainers"], serve):
        assert {one["name"] for one in container["volumeMounts"]} <= volumes
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["image"] == "fedstill-serve"


def test_probes_ask_paths_that_exist_and_each_its_own(manifests: dict[str, Any]) -> None:
    (serve,) = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    asked = {name: serve[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert asked == {"startup": "/startupz", "readiness": "/readyz", "liveness": "/livez"}
    known = {getattr(route, "path", "") for route in make_app(ServingMetrics("fedstill"), bool).routes}
    assert set(asked.values()) <= known
    assert all(serve[f"{name}Probe"]["httpGet"]["port"] == "web" for name in asked)


def test_the_runtime_of_kserve_fits_the_server() -> None:
    """KServe's own models read the file by ``test_foreign_clients.py``."""
    runtime, service = yaml.safe_load_all((DEPLOY / "kserve" / "fedstill.yaml").read_text())
    (serve,) = runtime["spec"]["containers"]
    assert (serve["name"], serve["image"]) == ("kserve-container", "fedstill-serve")
    command, *words = serve["args"]
    assert command == "serve"
    found = SERVE.make_context("serve", list(words)).params
    assert found["insecure"]
    assert (
        found["lame_duck"] + found["drain_seconds"]
        < service["spec"]["predictor"]["terminationGracePeriodSeconds"]
    )
    places = {one["mountPath"] for one in serve["volumeMounts"]} | {"/mnt/models"}
    given = [found["state"], *found["weights"], *found["profile"]]
    assert all(any(Path(one).is_relative_to(place) for place in places) for one in given), given
    assert {port["containerPort"] for port in serve["ports"]} == {int(found["rest"].rpartition(":")[2])}
    paths = {serve[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"/startupz", "/readyz", "/livez"}
    web = {serve[f"{name}Probe"]["httpGet"]["port"] for name in ("startup", "readiness", "liveness")}
    assert web == {int(found["web"].rpartition(":")[2])}
    assert runtime["spec"]["annotations"]["prometheus.kserve.io/port"] == found["web"].rpartition(":")[2]
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in {one["name"] for one in runtime["spec"]["supportedModelFormats"]}
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]


def test_rules_and_dashboard_ask_for_metrics_that_exist() -> None:
    families = text_string_to_metric_families(ServingMetrics("fedstill").text().decode())
    text = ServingMetrics("fedstill").text().decode()
    known = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    for family in families:
        if family.type == "histogram":
            known |= {f"{family.name}_{end}" for end in ("bucket", "sum", "count")}
    folder = DEPLOY / "prometheus"
    rules = yaml.safe_load((folder / "serve_alerts.yaml").read_text())["groups"][0]["rules"]
    panels = json.loads((folder / "grafana_serve.json").read_text())["panels"]
    asked = [rule["expr"] for rule in rules] + [one["expr"] for panel in panels for one in panel["targets"]]
    assert len(asked) > 15
    for expression in asked:
        names = re.findall(r"\b(?:fedstill_serving|process)_\w+", expression)
        assert names or expression.startswith("up{"), expression
        assert set(names) <= known, expression
        assert expression.count("(") == expression.count(")"), expression
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_the_page_has_the_alarms_of_the_rules() -> None:
    """All but those that the process itself cannot know: that it is down, and that it restarts."""
    rules = yaml.safe_load((DEPLOY / "prometheus" / "serve_alerts.yaml").read_text())["groups"][0]["rules"]
    known = {rule["alert"]: rule for rule in rules}
    assert {rule.name for rule in RULES} == known.keys() - {"FedstillServeDown", "FedstillServeRestarts"}
    seconds = {"s": 1, "m": 60, "h": 3600}
    for rule in RULES:
        theirs = known[rule.name]
        hold = theirs.get("for", "0s")
        assert rule.hold_seconds == int(hold[:-1]) * seconds[hold[-1]], rule.name
        assert rule.severity == theirs["labels"]["severity"], rule.name
        code = inspect.getsource(rule.check)
        for number in re.findall(r"> (0\.\d+)", theirs["expr"]):
            assert f"> {number} * " in code, rule.name
        if rule.name in (
            "FedstillServeFails",
            "FedstillServeDrops",
            "FedstillServeLate",
            "FedstillServeLatencyModel",
        ):
            for window in re.findall(r"\[(\d+)m\]", theirs["expr"]):
                assert f", {60 * int(window)})" in code, rule.name
