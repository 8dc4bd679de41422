"""``fedstill serve`` with two trunks as a process: ViT-Tiny with real weights beside a random one, by gRPC and REST."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from helpers.command import CliRunner
from helpers.serve_process import Place, serving
from helpers.serving import png
from helpers.two_trunks import LATENCY_MS, Weights, opened, random_weights

from fedstill.cli import main as cli
from fedstill.client.serving_client import ServingClient
from fedstill.cloud_server.serving.server.request_images import ImageForm, encoded
from fedstill.common.paths import VIT_WEIGHTS
from fedstill.models.vit.schedules import constant_schedule
from fedstill.models.vit.task_bank import TaskParameters

pytestmark = pytest.mark.slow


class TwoTrunks(Place):
    """Served by a configuration file that lists the weights."""

    @property
    def options(self) -> list[str]:
        return ["--config", str(self.folder / "serve.toml"), "--state", str(self.state)]


def answers(weights: Weights, task: TaskParameters, content: bytes, schedule: str) -> np.ndarray:
    net = weights.trunk.net
    image = encoded(content, ImageForm(net.image_size, task.preprocess))()
    with torch.inference_mode():
        features = net.features(image[None], constant_schedule(int(schedule), net.layers), None)
    return (features @ task.head_weight.T + task.head_bias)[0].numpy()


@pytest.fixture
def tiny(data_dir: Path) -> Weights:
    file = data_dir / VIT_WEIGHTS
    if not file.exists():
        pytest.skip(f"the data folder has no {VIT_WEIGHTS}")
    return opened(file)


@pytest.mark.data
def test_real_and_random_weights_share_a_process(tiny: Weights, tmp_path: Path) -> None:
    small = opened(random_weights(tmp_path, "test_vit"))
    place = TwoTrunks(tmp_path, "")
    heads = {"flowers": (tiny, 5), "birds": (tiny, 3), "cars": (small, 4)}
    tasks = {
        name: (weights, weights.register(place.state, name, classes, seed))
        for seed, (name, (weights, classes)) in enumerate(heads.items())
    }
    copy = Weights(tmp_path / "tiny.safetensors", tiny.trunk)  # the profile is written beside it
    profiles = [
        f"{weights.file}={written.partition('=')[2]}"
        for weights, written in (
            (tiny, copy.profile(("flowers", "birds"), 0.02)),
            (small, small.profile(("cars",), 0.004)),
        )
    ]
    (tmp_path / "serve.toml").write_text(
        f"weights = {json.dumps([str(tiny.file), str(small.file)])}\nprofile = {json.dumps(profiles)}\n"
        'backend = "torch"\nprecision = "fp32"\nbatches = "1,4"\ninsecure = true\n'
    )
    with serving(place, "--rest", "127.0.0.1:0") as server, ServingClient(server.address) as client:
        asked = [(name, png(seed)) for seed in range(6) for name in tasks]
        with ThreadPoolExecutor(6) as threads:
            grpc_answers = list(
                threads.map(lambda one: client.make_query(*one, latency_ms=LATENCY_MS), asked)
            )
        rest = httpx.Client(base_url=f"http://127.0.0.1:{server.rest_port}")
        for (name, content), answer in zip(asked, grpc_answers, strict=True):
            assert np.allclose(answer.logits, answers(*tasks[name], content, answer.schedule), atol=1e-3)
        for name, content in asked[:3]:
            data = base64.b64encode(content).decode()
            tensor = {
                "name": "encoded", "datatype": "BYTES", "shape": [1], "data": [data],
                "parameters": {"content_type": "base64"},
            }  # fmt: skip
            said = rest.post(
                f"/v2/models/{name}/infer",
                json={"inputs": [tensor], "parameters": {"latency_ms": LATENCY_MS}},
            )
            assert said.status_code == 200, said.text
            outputs = {one["name"]: one["data"] for one in said.json()["outputs"]}
            schedule = said.json()["parameters"]["schedule"]
            assert np.allclose(outputs["logits"], answers(*tasks[name], content, schedule), atol=1e-3)
        rest.close()
        assert server.end() == 0
    lines = [
        json.loads(line) for line in (place.state / "serve" / "decisions.jsonl").read_text().splitlines()
    ]
    assert {line["trunk"] for line in lines} == {tiny.name, "test_vit"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--policy", "otas"], "--policy faithful: serves one trunk; leave it out, or give one --weights"),
        (["--warmed", "x"], "--warmed: its models are of one trunk; give one --weights"),
        (["--architecture", "test_vit"], "--architecture test_vit: of which --weights?"),
        (["--weights", "a"], "--weights a: given twice"),
        (
            ["--memory-budget", "much"],
            "--memory-budget: 'much' is no number of bytes: write a size such as 50MB",
        ),
    ],
)
def test_a_mistake_about_several_is_one_line(
    options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedstill.cli.shared.console.errors.width", 300)
    command = ["serve", "--insecure", "--weights", "a", "--weights", "b", "--state", str(tmp_path)]
    done = CliRunner().invoke(cli.app, [*command, *options])
    assert done.exit_code == 2, done.output
    assert said in done.output
    assert len(done.output.strip().splitlines()) == 1
