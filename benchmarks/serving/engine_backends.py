"""Ways to run a Vision Transformer on a CPU: the engine's backends beside what a user would pick without fedstill.

timm's own network runs eagerly, by torch.compile with frozen weights, by onnxruntime and by OpenVINO; ours by both
backends at several token schedules, heads and checks included. All take turns in every round, in an order that is drawn
anew, so that other load on the machine slows all of them. Ratios are medians of the ratios within a round, to the
fastest of timm's at the same batch size. CPU time is of all threads together; a neighbour does not change it. At
schedule 0 all give timm's features, or the benchmark stops; those in int8 need not. Weights are random: time does not
depend on them.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
from rich.console import Console
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from fedstill.cloud_server.serving.engine import openvino_library
from fedstill.cloud_server.serving.engine.engine import Engine
from fedstill.cloud_server.serving.engine.engine_settings import EngineSettings
from fedstill.cloud_server.serving.engine.environment import missing_settings, serving_environment
from fedstill.cloud_server.serving.engine.openvino_backend import PRECISIONS, GraphPrecision
from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.common.provenance import cpu_model, hardware
from fedstill.models.vit.activation_ranges import measure_ranges, write_ranges
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.schedules import TokenSchedule, constant_schedule
from fedstill.models.vit.task_bank import TaskParameters

TOLERANCES = {"fp32": 1e-2, "bf16": 0.25}
"""Largest accepted difference of a feature at schedule 0; features are about 1."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
INT8 = "int8"
"""In the names of those that round to 8 bits."""
FORWARD = "timm"
"""Begins the names of what a user has without fedstill."""

Forward = Callable[[], Any]
Times = dict[str, list[tuple[float, float]]]
"""(wall, CPU) seconds per round, by contender."""


def main(arguments: Sequence[str]) -> None:
    """Measure and print; raises SystemExit if two ways disagree."""
    options = _options(arguments)
    if missing_settings(os.environ) and not options.quick:
        os.execve(sys.executable, sys.orig_argv, serving_environment(os.environ))
    warnings.simplefilter("ignore")  # of the tracers, about shapes that do not change here
    torch.set_num_threads(1 if options.quick else options.threads)
    console = Console(soft_wrap=True, highlight=False)
    sizes, rounds = ((1, 2), 2) if options.quick else (tuple(options.batches), options.rounds)
    model = "test_vit" if options.quick else options.model
    trunk = timm.create_model(model, pretrained=False, num_classes=0).eval().requires_grad_(False)
    assert isinstance(trunk, VisionTransformer)
    names = ("torch", "timm", "onnxruntime", "openvino")
    console.print(
        f"{model}, {options.precision}, {torch.get_num_threads()} threads; {cpu_model()}, {hardware()}; "
        + ", ".join(f"{name} {version(name) if find_spec(name) else 'not installed'}" for name in names)
        + f"; medians of {rounds} rounds, all in turn"
    )
    net = ElasticViT(trunk)
    schedules = tuple(constant_schedule(delta, net.layers) for delta in (0, -10, -20))
    engines = _engines(net, schedules, sizes, options.precision)
    for size in sizes:
        images = torch.randn(
            size, 3, net.image_size, net.image_size, generator=torch.Generator().manual_seed(0)
        )
        without = set(options.without) | ({"torch.compile"} if options.quick else set())
        contenders = _timm(trunk, images, options.precision, without)
        _check_equal(trunk, contenders, engines, images, schedules[0], TOLERANCES[options.precision])
        for name, engine in engines.items():
            for schedule in engine.settings.schedules:
                contenders[f"fedstill {name} {schedule.name}"] = _ours(engine, images, schedule)
        _show(_measured(contenders, rounds), size, console)


def _measured(contenders: dict[str, Forward], rounds: int) -> Times:
    """In another order every round, each twice; the second time counts. Threads of the one before may still spin during
    the first, and its own are asleep."""
    times: Times = {name: [] for name in contenders}
    shuffled = random.Random(0)
    for turn in range(rounds + 2):
        for name in shuffled.sample(list(contenders), len(contenders)):
            with torch.inference_mode():
                contenders[name]()
                wall, cpu = time.perf_counter(), time.process_time()
                contenders[name]()
            if turn > 1:  # the first two are warm-up
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return times


def _show(times: Times, size: int, console: Console) -> None:
    """A table in Markdown; the fastest of timm's is 1.00."""
    middle = {name: [median(column) for column in zip(*rows, strict=True)] for name, rows in times.items()}
    fastest = min((name for name in times if name.startswith(FORWARD)), key=lambda name: middle[name][0])
    console.print(f"\n| batch {size} | ms | ratio | CPU ms | ratio |\n|---|---|---|---|---|")
    for name, rows in times.items():
        ratios = [
            median(mine[at] / theirs[at] for mine, theirs in zip(rows, times[fastest], strict=True))
            for at in (0, 1)
        ]
        wall, cpu = (1e3 * value for value in middle[name])
        console.print(f"| {name} | {wall:.1f} | {ratios[0]:.2f} | {cpu:.1f} | {ratios[1]:.2f} |")


def _engines(
    net: ElasticViT, schedules: tuple[TokenSchedule, ...], sizes: tuple[int, ...], precision: str
) -> dict[str, Engine]:
    """Torch's with packed layers where it can; OpenVINO's in int8, too."""
    task = TaskParameters(("a", "b"), torch.zeros(2, net.width), torch.zeros(2))
    settings = EngineSettings(schedules, sizes, "cpu", precision)  # type: ignore[arg-type]  # checked
    engines = {"torch": Engine(net, {"task": task}, settings)}
    if find_spec("openvino"):
        images = torch.randn(4, 3, net.image_size, net.image_size, generator=torch.Generator().manual_seed(1))
        with TemporaryDirectory() as folder:
            write_ranges(ranges := Path(folder) / "ranges", measure_ranges(net, [images]), net)
            rounded = tuple(replace(schedule, int8=True) for schedule in schedules)
            settings = replace(settings, backend="openvino", schedules=schedules + rounded, ranges=ranges)
            engines["openvino"] = Engine(net, {"task": task}, settings)
    for engine in engines.values():
        engine.warm_up()
    return engines


def _ours(engine: Engine, images: Tensor, schedule: TokenSchedule) -> Forward:
    return lambda: engine.infer(images, ["task"] * len(images), schedule)


def _timm(
    trunk: VisionTransformer, images: Tensor, precision: GraphPrecision, without: set[str]
) -> dict[str, Forward]:
    """What a user can run without fedstill, for batches like ``images``; each gives the features. onnxruntime has no
    bf16 on CPUs."""
    typed, batch = copy.deepcopy(trunk).to(DTYPES[precision]), images.to(DTYPES[precision])
    ways: dict[str, Callable[[], Forward]] = {
        "eager": lambda: lambda: typed(batch).float(),
        "torch.compile": lambda: _compiled(typed, batch),
        "onnxruntime": lambda: _onnxruntime(trunk, images),
        f"onnxruntime {INT8}": lambda: _onnxruntime(trunk, images, int8=True),
    }
    if find_spec("openvino"):
        ways["OpenVINO"] = lambda: _openvino(trunk, images, precision)
    return {f"{FORWARD} {name}": make() for name, make in ways.items() if name not in without}


def _compiled(trunk: VisionTransformer, images: Tensor) -> Forward:
    import torch._inductor.config as inductor

    inductor.freezing = True
    torch._dynamo.reset()
    compiled = torch.compile(trunk, dynamic=False)
    with torch.inference_mode():
        compiled(images)
    return lambda: compiled(images).float()


def _onnxruntime(trunk: VisionTransformer, images: Tensor, int8: bool = False) -> Forward:
    """int8: weights and, each time anew, activations."""
    import onnxruntime

    with TemporaryDirectory() as folder:
        file = Path(folder) / "trunk.onnx"
        torch.onnx.export(trunk, (images,), file, input_names=["x"], dynamo=False, opset_version=17)
        if int8:
            from onnxruntime.quantization import QuantType, quantize_dynamic

            root = logging.getLogger()
            level = root.level
            root.setLevel(logging.ERROR)  # it would rather have another kind of file
            quantize_dynamic(
                file, file, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"]
            )
            root.setLevel(level)
        content = file.read_bytes()
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # as the server's OpenMP threads
    session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    values = images.numpy()
    return lambda: session.run(None, {"x": values})[0]


def _openvino(trunk: VisionTransformer, images: Tensor, precision: GraphPrecision) -> Forward:
    library = openvino_library.library()
    model = library.convert_model(trunk, example_input=images, input=[list(images.shape)])
    options = {"INFERENCE_PRECISION_HINT": PRECISIONS[precision], "PERFORMANCE_HINT": "LATENCY"}
    options["INFERENCE_NUM_THREADS"] = str(torch.get_num_threads())
    request = library.Core().compile_model(model, "CPU", options).create_infer_request()
    values = images.numpy()
    return lambda: request.infer([values], share_inputs=True)[0]


def _check_equal(
    trunk: VisionTransformer,
    contenders: dict[str, Forward],
    engines: dict[str, Engine],
    images: Tensor,
    plain: TokenSchedule,
    tolerance: float,
) -> None:
    with torch.inference_mode():
        wanted = trunk(images).numpy()
        for name, forward in contenders.items():
            if INT8 not in name:
                _check_close(name, np.asarray(forward()), wanted, tolerance)
    heads = {
        "task": TaskParameters(
            tuple(map(str, range(wanted.shape[1]))), torch.eye(wanted.shape[1]), torch.zeros(wanted.shape[1])
        )
    }
    for name, engine in engines.items():
        served = engine.bank.tasks
        engine.swap(heads)  # whose logits are the features
        answers = engine.infer(images, ["task"] * len(images), plain)
        engine.swap(served)
        found = np.stack([one.logits for one in answers if isinstance(one, Prediction)])
        _check_close(name, found, wanted, tolerance)


def _check_close(
    name: str, found: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32], tolerance: float
) -> None:
    apart = float(np.abs(found - wanted).max())
    if not apart <= tolerance:
        sys.exit(f"{name} does not give timm's features: they differ by {apart:.2g}")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke test in seconds")
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="timm model (default ViT-Tiny)")
    parser.add_argument(
        "--precision", choices=tuple(DTYPES), default="fp32", help="of all but onnxruntime and int8"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="batch sizes, ascending")
    parser.add_argument("--rounds", type=int, default=9, help="rounds (default 9)")
    parser.add_argument("--threads", type=int, default=2, help="threads of every contender (default 2)")
    parser.add_argument("--without", nargs="*", default=[], help="leave out: torch.compile takes minutes")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
