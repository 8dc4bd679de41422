"""Guards deploy/ray/: the fields of a RayService that KubeRay knows, Ray Serve's own schema, and our own options."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml
from packaging.requirements import Requirement

from fedstill.cli.main import app
from fedstill.cli.shared.config_file import read_config
from fedstill.cloud_server.serving.replicas.replica_plan import read_replica_plan

ROOT = Path(__file__).parents[3]
FIELDS = {  # of ray.io/v1, KubeRay 1.4, as far as they are useful here
    "RayService": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {"serveConfigV2", "rayClusterConfig", "upgradeStrategy", "serveService", "excludeHeadPodFromServeSvc"},
    "rayClusterConfig": {
        "rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs",
        "gcsFaultToleranceOptions", "suspend",
    },
    "headGroupSpec": {"rayStartParams", "template", "serviceType", "headService", "enableIngress"},
    "workerGroupSpecs": {
        "groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template", "numOfHosts",
        "idleTimeoutSeconds", "suspend",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    """By kind."""
    text = (ROOT / "deploy" / "ray" / "fedstill.yaml").read_text()
    return {one["kind"]: one for one in yaml.safe_load_all(text)}


@pytest.fixture(scope="module")
def serve_config(manifests: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(manifests["RayService"]["spec"]["serveConfigV2"])
    return found


def test_every_field_is_one_that_kuberay_knows(manifests: dict[str, Any]) -> None:
    service = manifests["RayService"]
    cluster = service["spec"]["rayClusterConfig"]
    parts = {
        "RayService": [service], "spec": [service["spec"]], "rayClusterConfig": [cluster],
        "headGroupSpec": [cluster["headGroupSpec"]], "workerGroupSpecs": cluster["workerGroupSpecs"],
    }  # fmt: skip
    for name, those in parts.items():
        for one in those:
            assert set(one) <= FIELDS[name], name
    assert service["apiVersion"] == "ray.io/v1"
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"].keys() == {"cpu", "memory"}  # Ray takes its size from them
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        volumes = {one["name"] for one in group["template"]["spec"]["volumes"]}
        assert {one["name"] for one in container["volumeMounts"]} == volumes


def test_the_versions_of_ray_are_those_of_the_extra(manifests: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {one.name: one for one in map(Requirement, project["optional-dependencies"]["ray"])}["ray"]
    said = manifests["RayService"]["spec"]["rayClusterConfig"]["rayVersion"]
    assert str(wanted.specifier) == f"=={said}"
    (pinned,) = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned == said


def test_the_application_is_the_one_that_exists_and_takes_these_arguments(
    serve_config: dict[str, Any],
) -> None:
    (application,) = serve_config["applications"]
    module, _, function = application["import_path"].partition(":")
    path = ROOT.joinpath(*module.removeprefix("fedstill.").split(".")).with_suffix(".py")
    assert f"def {function}(" in path.read_text()
    plan = read_replica_plan(application["args"])
    assert application["name"] in (ROOT / "cloud_server/serving/replicas/cluster.py").read_text()
    assert application["route_prefix"] is None  # clients come over the fronts
    assert plan.least < plan.most
    assert plan.database.startswith("postgresql+psycopg://")
    assert "@" in plan.database
    assert ":" not in plan.database.partition("://")[2].partition("@")[0]  # no password in a manifest


def test_ray_serve_itself_reads_the_configuration(serve_config: dict[str, Any]) -> None:
    schema = pytest.importorskip(
        "ray.serve.schema", reason="Ray Serve is not installed: pip install '.[ray]'"
    )
    read = schema.ServeDeploySchema.model_validate(serve_config)
    assert [one.name for one in read.applications] == ["fedstill"]


def test_replicas_fit_the_workers_and_paths_are_mounted(
    manifests: dict[str, Any], serve_config: dict[str, Any]
) -> None:
    plan = read_replica_plan(serve_config["applications"][0]["args"])
    (group,) = manifests["RayService"]["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert float(container["resources"]["limits"]["cpu"]) == plan.cpus
    assert (group["minReplicas"], group["maxReplicas"]) == (plan.least, plan.most)
    mounted = [one["mountPath"] for one in container["volumeMounts"]]
    for path in (plan.state, plan.weights[0].weights, plan.weights[0].profile):
        assert any(Path(str(path)).is_relative_to(place) for place in mounted), path


def test_the_fronts_fit_their_configuration_and_their_service(
    manifests: dict[str, Any], tmp_path: Path
) -> None:
    serve: click.Command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    file = tmp_path / "serve.toml"
    file.write_text(manifests["ConfigMap"]["data"]["serve.toml"])
    config = read_config(file, serve, click.Context(serve))
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    (front,) = pod["containers"]
    assert config["lame_duck"] + config["drain_seconds"] < pod["terminationGracePeriodSeconds"]
    ports = {one["name"]: one["containerPort"] for one in front["ports"]}
    wanted = {"rest": "rest", "grpc": "listen", "web": "web"}
    assert ports == {name: int(config[option].rpartition(":")[2]) for name, option in wanted.items()}
    head = f"{manifests['RayService']['metadata']['name']}-head-svc:6379"
    assert head in front["command"][2]
    assert config["ray"] == "auto"
    paths = {front[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"/startupz", "/readyz", "/livez"}
    labels = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert manifests["Service"]["spec"]["selector"] == labels
    services = {one["name"]: one["targetPort"] for one in manifests["Service"]["spec"]["ports"]}
    assert services == {"rest": "rest", "grpc": "grpc"}
    volumes = {one["name"] for one in pod["volumes"]}
    assert {one["name"] for one in front["volumeMounts"]} == volumes


def test_rays_ports_are_closed_to_all_but_its_own(manifests: dict[str, Any]) -> None:
    policy = manifests["NetworkPolicy"]["spec"]
    own = policy["podSelector"]["matchLabels"]
    cluster = manifests["RayService"]["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert own.items() <= group["template"]["metadata"]["labels"].items()
    allowed = [one["podSelector"]["matchLabels"] for rule in policy["ingress"] for one in rule["from"]]
    assert own in allowed
    assert manifests["Deployment"]["spec"]["template"]["metadata"]["labels"] in allowed
    assert len(allowed) == 3
