"""Documented commands that need no other process run in the order of a day's work; ``--set`` makes them small."""

from __future__ import annotations

import signal
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from helpers.command import CliRunner
from helpers.documented import commands
from helpers.image_folders import made_folder
from helpers.media import write_sound
from helpers.runs import write_experiment
from PIL import Image
from safetensors.torch import save_file

from fedstill.cli.main import app

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SETTINGS = {  # of tests/helpers/runs.py, as after --set
    "audio.seconds": "0.6", "audio.hop": "512", "audio.mel_bins": "32", "frames.size": "24",
    "teacher.encoder.architecture": "resnet10", "teacher.encoder.width": "4", "teacher.feature_width": "16",
    "student.encoder.architecture": "resnet10", "student.encoder.width": "2", "student.epochs": "1",
    "distillation.outer_epochs": "1", "distillation.inner_epochs": "1", "run.arms": "['all_distill', 'fedstill']",
    "run.scenarios": "['latency_insensitive']", "compute.workers": "1",
}  # fmt: skip
SMALL = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")] + [
    "--engine", "inprocess",
]  # fmt: skip
DRAWN = ["--set", "dataset.public_per_class=4", "--set", "dataset.private_per_class=4"]
MANIFEST = "--set dataset.kind=manifest --set dataset.manifest=my/manifest.csv"
TRUNK = ["--weights", "test_vit.safetensors"]

RUN: dict[str, list[str]] = {
    "fedstill certs init certs --host cloud.example.org": [],
    "fedstill certs issue certs kitchen": [],
    "fedstill certs issue certs hall": [],
    "fedstill simulate --set teacher.epochs=4 --set prototypes.kind=kmeans --out runs/mine": [*DRAWN, *SMALL],
    "fedstill export runs/mine/seed0/all_distill --out student": [],
    "fedstill export runs/mine/seed0/all_distill --out student --int8 --store runs/mine/public": [],
    f"fedstill data check quickstart {MANIFEST}": [],
    f"fedstill simulate quickstart {MANIFEST}": [
        *SMALL, "--set", "teacher.epochs=1", "--set", "partition.kind=speaker", "--set", "partition.clients=1",
    ],
    "fedstill tasks add pets --images data/pets.zip --latency-ms 600 --utility 0.3": TRUNK,
    "fedstill tasks list": [],
    "fedstill tasks list --all": [],
    "fedstill tasks activate pets 1": [],
    "fedstill tasks remove pets": [],
}  # fmt: skip
"""What is documented, and what makes it small."""


def prepare(folder: Path) -> None:
    """The files that the pages take for granted."""
    write_experiment(folder)
    (folder / "my").mkdir()
    rows = ["clip_id,split,speaker,label,audio,frames"]
    for number in range(24):
        split, speaker = ("public", f"p{number % 4}") if number < 16 else ("private", "mine")
        write_sound(folder / "my" / f"{number}.wav", level=0.1 + 0.02 * number)
        Image.new("L", (24, 24), 10 * number).save(folder / "my" / f"{number}.png")
        rows.append(f"{number},{split},{speaker},{('happy', 'sad')[number % 2]},{number}.wav,{number}.png")
    (folder / "my" / "manifest.csv").write_text("\n".join(rows))
    images = made_folder(folder / "pets")
    (folder / "data").mkdir()
    with zipfile.ZipFile(folder / "data" / "pets.zip", "w") as archive:
        for path in images.rglob("*.png"):
            archive.write(path, path.relative_to(images))
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit").state_dict(), folder / "test_vit.safetensors")


def test_every_command_of_the_table_is_on_a_page() -> None:
    documented = {one.text for one in commands()}
    assert [text for text in RUN if text not in documented] == []


def test_they_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for text, small in RUN.items():
            done = CliRunner().invoke(app, [*text.split()[1:], *small])
            assert done.exit_code == 0, f"{text}\n{done.output}\n{done.exception!r}"
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert (tmp_path / "student" / "encoders.int8.onnx").exists()
    assert (tmp_path / "certs" / "nodes" / "hall" / "token").exists()
