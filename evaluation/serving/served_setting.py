"""The setting of the live benchmarks: real tasks on ViT-Tiny, or a tiny model with random weights for a smoke test."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from fedstill.common.paths import VIT_WEIGHTS, data_path
from fedstill.datasets.images.image_tasks import ImageTask, find_images, open_image_task
from fedstill.models.vit.schedules import decreasing_schedule, layer_wise_schedule

TASKS = ("cifar10", "tinyimagenet100", "mnist")
_MERGING = ("-15", "-20", decreasing_schedule(15, 12).name)
SCHEDULES = ",".join(
    ("0", "-5", "-10", *_MERGING, layer_wise_schedule(2).name, *(f"{name}q" for name in ("0", *_MERGING)))
)
"""Those in int8 are left out where torch serves."""
BATCHES = "1,2,4,8,16"


@dataclass(frozen=True)
class ServedSetting:
    """The setting: images, trunk, and further arguments of the server."""

    tasks: tuple[ImageTask, ...]
    weights: Path
    arguments: tuple[str, ...]


def real_setting(val_images: int, schedules: str = SCHEDULES, batches: str = BATCHES) -> ServedSetting:
    """ViT-Tiny and the three tasks of the data folder. Raises ConfigError if that is not found."""
    arguments = ("--weights", VIT_WEIGHTS, f"--schedules={schedules}", "--batches", batches)
    tasks = tuple(find_images(name, None) for name in TASKS)
    return ServedSetting(tasks, data_path(VIT_WEIGHTS), (*arguments, "--val-images", str(val_images)))


def tiny_setting(folder: Path) -> ServedSetting:
    """timm's tiny ViT for tests, with random weights, and two synthetic tasks."""
    weights = folder / "test_vit.safetensors"
    torch.manual_seed(0)
    save_file({k: v.contiguous() for k, v in timm.create_model("test_vit").state_dict().items()}, weights)
    generator = np.random.default_rng(0)
    tasks = []
    for name in ("left", "right"):
        for split, count in (("train", 25), ("test", 10)):
            for label, shade in (("dark", 60), ("light", 190)):
                place = folder / name / split / label
                place.mkdir(parents=True)
                for number in range(count):
                    pixels = generator.integers(shade - 50, shade + 50, (16, 16, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(place / f"{number}.png")
        tasks.append(open_image_task(name, folder / name))
    arguments = [
        "--weights",
        str(weights),
        "--schedules=0,-10,-20",
        "--batches",
        "1,2,4",
        "--val-images",
        "8",
    ]
    for task in tasks:
        arguments += ["--images", f"{task.name}={task.place}"]
    return ServedSetting(tuple(tasks), weights, tuple(arguments))


def split_cores() -> tuple[list[int] | None, list[int] | None]:
    """One core for the server and another one for the client; None if there is only one."""
    mine = sorted(os.sched_getaffinity(0))
    return (None, None) if len(mine) < 2 else ([mine[0]], [mine[1]])


def add_setting_options(parser: argparse.ArgumentParser) -> None:
    """The options of a live benchmark: which model, which tasks, how fast."""
    parser.add_argument("--quick", action="store_true", help="a smoke test with a tiny random model")
    parser.add_argument(
        "--rate", type=float, help="queries per second at load 1 (default: the measured capacity)"
    )
    parser.add_argument("--train-images", type=int, default=500, help="per task, for the heads")
    parser.add_argument("--val-images", type=int, default=100, help="per task, for the profile")
    parser.add_argument("--schedules", default=SCHEDULES, help="of the server, as of fedstill serve")
    parser.add_argument("--batches", default=BATCHES, help="of the server, as of fedstill serve")
    parser.add_argument("--pictures", type=int, default=1000, help="test images per task, at most")
    parser.add_argument("--state", type=Path, help="tasks and profile, kept (default: runs/serving_live)")
