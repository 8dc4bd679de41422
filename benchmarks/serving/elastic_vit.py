"""The speed-up of the elastic ViT and its engine: timm's eager forward against ours at every token schedule.

All contenders take turns in every round, so that other load on the machine slows all of them; ratios are medians of the
ratios within a round. ``--environments`` runs the whole comparison twice more, in processes that were started with and
without the settings of ``serving/engine/environment.py``, taking turns as well. At schedule 0 the logits must equal
timm's, or the benchmark stops. Weights are random: time does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import timm
import torch
from rich.console import Console
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fedstill.cloud_server.serving.engine.engine import Engine
from fedstill.cloud_server.serving.engine.engine_settings import EngineSettings
from fedstill.cloud_server.serving.engine.environment import CPU_SETTINGS, serving_environment
from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.schedules import (
    TokenSchedule,
    constant_schedule,
    decreasing_schedule,
    forward_macs,
    layer_wise_schedule,
)
from fedstill.models.vit.task_bank import TaskParameters

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5}
"""Largest accepted difference of logits at schedule 0, by the precision that the engine chose."""

Seconds = dict[tuple[str, int], list[float]]


def main(arguments: Sequence[str]) -> None:
    """Measure and print; raises SystemExit if our answer is not timm's."""
    options = _options(arguments)
    console = Console(soft_wrap=True, highlight=False)
    if options.environments:
        compare_environments(options, console)
        return
    torch.set_num_threads(options.threads or torch.get_num_threads())
    sizes = (1, 2) if options.quick else tuple(options.batches)
    rounds = 2 if options.quick else options.rounds
    model = "deit_tiny_patch16_224" if options.quick else options.model
    trunk = timm.create_model(model, pretrained=False, num_classes=10).eval()
    assert isinstance(trunk, VisionTransformer)
    net = ElasticViT(trunk)
    schedules = _schedules(net.layers, options.quick)
    engine = _engine(net, schedules, sizes)
    if not options.json:
        console.print(
            f"{model}, engine {engine.variant} on {engine.device}, {torch.get_num_threads()} threads, "
            f"settings missing from the environment: {_missing()}; medians of {rounds} rounds"
        )
    seconds = measure(trunk, engine, schedules, sizes, rounds)
    if options.json:
        plain = [[name, size, times] for (name, size), times in seconds.items()]
        sys.stdout.write(json.dumps(plain))
        return
    show(net, schedules, sizes, seconds, console)


def measure(
    trunk: torch.nn.Module,
    engine: Engine,
    schedules: Sequence[TokenSchedule],
    sizes: Sequence[int],
    rounds: int,
) -> Seconds:
    """Wall-clock seconds by (name, batch size), one per round: ``timm``, and ours by schedule name."""
    device = engine.device
    eager = trunk.to(device)
    seconds: Seconds = {}
    batches = {size: torch.randn(size, 3, engine.net.image_size, engine.net.image_size) for size in sizes}
    for images in batches.values():
        _check_equal(eager, engine, images.to(device), schedules[0])
    for turn in range(rounds + 1):
        for size, images in batches.items():
            runs: dict[str, Callable[[], object]] = {"timm": lambda x=images: eager(x.to(device)).cpu()}  # type: ignore[misc]
            for schedule in schedules:
                runs[schedule.name] = lambda x=images, s=schedule: engine.infer(x, ["task"] * len(x), s)  # type: ignore[misc]
            order = list(runs)
            for name in order[turn % len(order) :] + order[: turn % len(order)]:
                started = time.perf_counter()
                with torch.inference_mode():
                    runs[name]()
                if turn:  # the first is warm-up
                    seconds.setdefault((name, size), []).append(time.perf_counter() - started)
    return seconds


def show(
    net: ElasticViT,
    schedules: Sequence[TokenSchedule],
    sizes: Sequence[int],
    seconds: Seconds,
    console: Console,
) -> None:
    """One line per schedule and batch size."""
    macs = {s.name: forward_macs(s, net.patches, net.width, net.hidden) for s in schedules}
    plain = schedules[0].name
    for size in sizes:
        eager = seconds["timm", size]
        console.print(f"batch {size:>3}  timm eager             {1e3 * median(eager):8.1f} ms")
        for schedule in schedules:
            ours = seconds[schedule.name, size]
            over_plain = _ratio(seconds[plain, size], ours)
            ideal = macs[plain] / macs[schedule.name]
            console.print(
                f"batch {size:>3}  {schedule.name:<22} {1e3 * median(ours):8.1f} ms   "
                f"ratio to timm {_ratio(eager, ours):5.2f}   to schedule 0 {over_plain:5.2f}   "
                f"by FLOPs {ideal:5.2f}   share of it {100 * over_plain / ideal:4.0f} %"
            )


def compare_environments(options: argparse.Namespace, console: Console) -> None:
    """The same measurement in processes with and without the serving environment, taking turns."""
    bare = {name: value for name, value in os.environ.items() if name not in CPU_SETTINGS}
    environments = {"default": bare, "tuned": serving_environment(bare)}
    collected: dict[str, Seconds] = {name: {} for name in environments}
    command = [sys.executable, str(Path(__file__)), "--json", "--rounds", str(options.rounds)]
    command += ["--model", options.model, "--batches", *map(str, options.batches)]
    command += ["--threads", str(options.threads)] + (["--quick"] if options.quick else [])
    for _ in range(1 if options.quick else options.processes):
        for name, environment in environments.items():
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"the {name} process failed: {done.stderr.strip().splitlines()[-1]}")
            for run, size, times in json.loads(done.stdout):
                collected[name].setdefault((run, size), []).append(median(times))
    for key in collected["default"]:
        default, tuned = (collected[name][key] for name in environments)
        console.print(
            f"batch {key[1]:>3}  {key[0]:<22} default {1e3 * median(default):8.1f} ms   "
            f"tuned {1e3 * median(tuned):8.1f} ms   ratio {_ratio(default, tuned):5.2f}"
        )


def _engine(net: ElasticViT, schedules: tuple[TokenSchedule, ...], sizes: tuple[int, ...]) -> Engine:
    head = net.trunk.head
    assert isinstance(head, nn.Linear)
    names = tuple(f"class {number}" for number in range(head.out_features))
    task = TaskParameters(names, head.weight.detach(), head.bias.detach())
    engine = Engine(net, {"task": task}, EngineSettings(schedules, sizes))
    engine.warm_up()
    return engine


def _check_equal(eager: torch.nn.Module, engine: Engine, images: Tensor, plain: TokenSchedule) -> None:
    with torch.inference_mode():
        wanted = eager(images).cpu()
    answers = engine.infer(images, ["task"] * len(images), plain)
    found = torch.stack([torch.from_numpy(a.logits) for a in answers if isinstance(a, Prediction)])
    apart = float((found - wanted).abs().max())
    if not apart <= TOLERANCE[engine.dtype]:
        sys.exit(f"ours is not timm's answer: logits differ by {apart:.2g}")


def _schedules(layers: int, quick: bool) -> tuple[TokenSchedule, ...]:
    constant = tuple(
        constant_schedule(delta, layers) for delta in ((0, -10) if quick else (0, -5, -10, -15, -20))
    )
    if quick or layers != 12:
        return constant
    return (*constant, layer_wise_schedule(4), decreasing_schedule(10, layers))


def _ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    return median(a / b for a, b in zip(slow, fast, strict=True))


def _missing() -> str:
    return ", ".join(name for name in CPU_SETTINGS if name not in os.environ) or "none"


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke test in seconds")
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="timm model (default ViT-Tiny)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="batch sizes, ascending")
    parser.add_argument("--rounds", type=int, default=9, help="rounds (default 9)")
    parser.add_argument("--threads", type=int, default=0, help="torch threads, 0 = torch's choice (default)")
    parser.add_argument("--environments", action="store_true", help="compare process environments instead")
    parser.add_argument("--processes", type=int, default=3, help="--environments: processes each (default 3)")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
