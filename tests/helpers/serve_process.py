"""``fedstill serve`` as a process: what it starts from, and a running one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

from fedstill.client.serving_client import ServingAddress
from fedstill.cloud_server.serving.engine.environment import CPU_SETTINGS, serving_environment
from fedstill.cloud_server.serving.engine.trunk import load_trunk
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule, profile_to_plain
from fedstill.cloud_server.serving.tasks.registry import TaskRegistry
from helpers.serving import png
from helpers.vit import task

ARCHITECTURE, LAYERS, WIDTH, SIZE = "test_vit", 6, 64, 160  # timm's own tiny ViT for tests
START_SECONDS = 120.0
SERVE = [sys.executable, "-c", "from fedstill.cli.main import main; main()", "serve"]


@dataclass(frozen=True)
class Place:
    """What a server starts from."""

    folder: Path
    trunk: str

    @property
    def state(self) -> Path:
        return self.folder / "tasks"

    @property
    def options(self) -> list[str]:
        weights = str(self.folder / "test_vit.safetensors")
        return ["--state", str(self.state), "--weights", weights, "--backend", "torch"]

    @property
    def profile(self) -> list[str]:
        """Instead of measuring."""
        return ["--profile", str(self.folder / "profile.json")]

    def register(self, name: str, classes: int, seed: int) -> None:
        registry = TaskRegistry(self.state)
        made = task(classes, seed, prompts=(), layers=LAYERS, width=WIDTH)
        registry.register(name, made, self.trunk, accuracy=0.9, latency_ms=20_000)
        registry.close()


def make_place(folder: Path) -> Place:
    """A tiny trunk, two tasks on it, and a profile made by hand."""
    torch.manual_seed(0)
    state = timm.create_model(ARCHITECTURE).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "test_vit.safetensors")
    made = Place(folder, load_trunk(folder / "test_vit.safetensors").fingerprint)
    made.register("cats", 3, seed=0)
    made.register("dogs", 2, seed=1)
    schedules = tuple(
        Schedule(name, delta, 0.002, seconds, (0.9 + delta / 200,) * 2, 32)
        for name, delta, seconds in (("0", 0, 0.006), ("-20", -20, 0.003))
    )
    plain = profile_to_plain(Profile("made", "by hand", ("cats", "dogs"), schedules))
    (folder / "profile.json").write_text(json.dumps(plain))
    return made


@dataclass
class Serve:
    """A running server."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    rest_port: int | None

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def address(self) -> ServingAddress:
        return ServingAddress(self.target)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def announced(file: Path) -> dict[str, Any]:
    """What a server says of itself."""
    return json.loads(file.read_text()) if file.exists() else {"ready": False, "pid": None}


@contextmanager
def serving(
    place: Place, *options: str, folder: Path | None = None, launched: bool = True, measured: bool = True
) -> Iterator[Serve]:
    """Started, and gone at the end whatever happened.

    folder: where it keeps its files, if not with the registry. launched: in the environment that launchers give it;
    else as typed in a shell, so that it begins again as the same process. measured: ready; else as soon as it listens.
    """
    file, log = (folder or place.state) / "serve" / "server.json", place.folder / "serve.log"
    shell = {name: value for name, value in os.environ.items() if name not in CPU_SETTINGS}
    environment = (serving_environment(shell) if launched else shell) | {"OMP_NUM_THREADS": "1"}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*SERVE, *place.options, "--listen", "127.0.0.1:0", "--lame-duck", "0", *options],
            stdout=output, stderr=output, env=environment,
        )  # fmt: skip
    try:
        end = time.monotonic() + START_SECONDS
        while not (said := announced(file))["ready"] and (measured or said["pid"] != process.pid):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        assert said["pid"] == process.pid  # it began again with another environment, as the same process
        yield Serve(process, said["port"], log, said["rest_port"])
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(30)


def draw_pictures(folder: Path, classes: tuple[str, ...]) -> None:
    """Ten training pictures per class, and two to test with."""
    for seed in range(12 * len(classes)):
        split = "train" if seed < 10 * len(classes) else "test"
        place = folder / split / classes[seed % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{seed}.png").write_bytes(png(seed, 12))
