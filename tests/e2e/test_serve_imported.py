"""A model of transformers, imported and served as a process: its own head and logits, beside another trunk's task."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from helpers.command import CliRunner
from helpers.infer_requests import logits, request
from helpers.serve_process import Place, draw_pictures, serving
from helpers.vit import task
from safetensors.numpy import load_file

from fedstill.cli.main import app
from fedstill.cloud_server.serving.tasks.registry import TaskRegistry
from fedstill.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub

pytestmark = pytest.mark.slow

KEPT = Path(__file__).parents[1] / "data" / "huggingface_vit" / "vit_other"
CLASSES = ("tabby, tabby cat", "crane (1)", "crane (2)")


class Imported(Place):
    """Served from imported weights."""

    @property
    def options(self) -> list[str]:
        weights = str(self.folder / "mine.safetensors")
        return ["--state", str(self.state), "--weights", weights, "--backend", "torch"]


def fedstill(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return done.output


def test_a_model_of_transformers_is_served_with_its_own_head(tmp_path: Path) -> None:
    weights, registry, pictures = (str(tmp_path / name) for name in ("mine.safetensors", "tasks", "pictures"))
    draw_pictures(tmp_path / "pictures", CLASSES[:2])  # a class of the head may have no pictures
    said = fedstill("import", str(KEPT), "--out", weights)
    assert f"next: fedstill tasks add NAME --own-head --weights {weights}" in said
    own = ["--own-head", "--weights", weights, "--registry", registry]
    assert "pets version 1: 3 classes, not measured" in fedstill("tasks", "add", "pets", *own)
    assert "% of the validation images" in fedstill("tasks", "add", "pets", *own, "--images", pictures)
    store = TaskRegistry(tmp_path / "tasks")
    store.register("alien", task(2, seed=0), "f" * 64)
    store.close()
    rows = [line.split() for line in fedstill("tasks", "list", "--registry", registry).splitlines()]
    assert [row[-2] for row in rows if row[0] == "alien"] == ["f" * 8]

    kept = load_file(KEPT / "answers.safetensors")
    options = ["--insecure", "--images", f"pets={pictures}", "--val-images", "4", "--schedules=0,-2"]
    place = Imported(tmp_path, "")
    with serving(place, *options, "--batches", "1,4", "--policy", "pets") as server:
        with grpc.insecure_channel(server.target) as channel:
            answer = GRPCInferenceServiceStub(channel).ModelInfer(
                request(kept["pixel_values"], model="pets", latency_ms=20_000)
            )
        assert abs(logits(answer) - kept["logits"]).max() < 1e-3
        assert server.end() == 0
    log = (tmp_path / "serve.log").read_text()
    assert "event=task_left_out task=alien version=1 trunk=ffffffffffff" in log
