"""``fedstill serve --ray``: mistakes that are found before Ray is asked, and a cluster that is not there."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from helpers.command import CliRunner

from fedstill.cli.main import app
from fedstill.cloud_server.grpc.listen import ServerError
from fedstill.cloud_server.serving.replicas import cluster
from fedstill.cloud_server.serving.replicas.cluster import join_cluster
from fedstill.cloud_server.serving.replicas.replica_plan import ReplicaPlan, WeightsPlan, replica_plan
from fedstill.common.errors import ConfigError


@pytest.mark.parametrize(("options", "said"), [
    (("--ray", "nowhere"), "--ray: 'nowhere' is no HOST:PORT"),
    (("--ray", "ray://head:10001"), "write the head's HOST:PORT"),
    (("--ray", "auto", "--replicas", "many"), "--replicas 'many': write a whole number, or two such as 2:4"),
    (("--ray", "auto", "--replicas", "4:2"), "the least not above the most"),
    (("--ray", "auto", "--replicas", "0"), "need whole numbers from 1"),
    (("--ray", "auto", "--replica-cpus", "0"), "cpus: needs a number above 0"),
    (("--ray", "auto", "--replica-cost", "-1"), "cost: needs a number that is not below 0"),
    (("--ray", "auto", "--memory-budget", "4GB"), "--memory-budget: not with --ray: replicas load all"),
    (("--replicas", "2"), "need --ray"),
])  # fmt: skip
def test_a_mistake_is_one_line(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    words = ["serve", "--insecure", "--state", str(tmp_path), *options]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "300"})
    assert done.exit_code == 2
    assert said in done.output.replace("\n", " ")


def test_relative_paths_become_absolute_for_replicas_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("vit.safetensors", "cats.zip"):
        (tmp_path / name).touch()
    weights = (
        WeightsPlan("vit.safetensors", profile="profile.json"),
        WeightsPlan("weights/in_data.safetensors"),
    )
    typed = ReplicaPlan("tasks", weights, images=("cats=cats.zip", "dogs=/elsewhere/dogs"), warmed="warm")
    found = replica_plan(typed.serve_plan(), 1, 1, 1.0, 0.0)
    assert found.weights == (
        WeightsPlan(f"{tmp_path}/vit.safetensors", profile=f"{tmp_path}/profile.json"),
        WeightsPlan("weights/in_data.safetensors"),
    )
    assert found.images == (f"cats={tmp_path}/cats.zip", "dogs=/elsewhere/dogs")
    assert (found.state, found.warmed) == (f"{tmp_path}/tasks", f"{tmp_path}/warm")


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"install fedstill with the extra \[ray\]"):
        join_cluster("127.0.0.1:1")


def test_a_cluster_that_is_not_there_is_one_line() -> None:
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install '.[ray]'")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        with pytest.raises(ServerError, match=r"nothing answers there .*ray start --head"):
            join_cluster(f"127.0.0.1:{port}")


def test_what_answers_but_is_no_head_of_a_cluster_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install '.[ray]'")
    monkeypatch.setattr(cluster, "HEAD_SECONDS", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ServerError, match=r"no head of a Ray cluster"):
            join_cluster(f"127.0.0.1:{port}")
