"""Comparison of live policies on this CPU: ViT-Tiny, three real tasks, load from 0.3x to 3x of its capacity.

Servers run on one core and the load generator on another, policies take turns within one run, and all meet the same
queries (see ``live_sweep.py``). The rate at load 1 is what a server that changes nothing answers per second to clients
that wait for their answers. Heads are linear probes on the frozen trunk; images are the tasks' test images.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from fedstill.cloud_server.serving.tasks.learn_task import LearnSettings
from fedstill.cloud_server.serving.tasks.prompt_training import PromptSettings
from fedstill.common.provenance import git_revision, hardware
from fedstill.evaluation.serving.learnt_state import learn_missing
from fedstill.evaluation.serving.live_loadtest import LiveSettings
from fedstill.evaluation.serving.live_sweep import Sweep, run_sweep
from fedstill.evaluation.serving.plots import save_figures
from fedstill.evaluation.serving.report import console_report, write_serving_markdown
from fedstill.evaluation.serving.results import ServingResults, write_serving_results
from fedstill.evaluation.serving.served_process import ServerOptions
from fedstill.evaluation.serving.served_setting import (
    ServedSetting,
    add_setting_options,
    real_setting,
    split_cores,
    tiny_setting,
)
from fedstill.evaluation.serving.summary import BASELINE, OURS, paired_ratio
from fedstill.evaluation.serving.task_images import held_out_images
from fedstill.evaluation.serving.virtual import LoadTest


def main(arguments: Sequence[str]) -> None:
    """Run the sweep, print its tables, keep its results."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.prompt_epochs < 0:
        parser.error("--prompt-epochs: needs a number from 0")
    if options.quick:
        options.policies, options.loads, options.seeds = "faithful,fedstill", "2", 1
        options.seconds, options.rate = 2.0, 60.0
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 160)
    with tempfile.TemporaryDirectory() as scratch:
        state = options.state or (Path(scratch) / "state" if options.quick else Path("runs") / "serving_live")
        setting = (
            tiny_setting(Path(scratch))
            if options.quick
            else real_setting(options.val_images, options.schedules, options.batches)
        )
        machine = hardware()  # of which this process keeps one core
        server_cores, client_cores = split_cores()
        if client_cores is not None:
            os.sched_setaffinity(0, client_cores)
        images = 40 if options.quick else options.train_images
        status = Console(stderr=True)
        with status.status("tasks") as shown:
            prompts = PromptSettings(epochs=options.prompt_epochs) if options.prompt_epochs else None
            learning = LearnSettings(images, images // 4, prompts)
            learn_missing(state, setting.tasks, setting.weights, learning, shown.update)
            sweep = Sweep(
                test=LoadTest(
                    traces=("synthetic",),
                    policies=tuple(options.policies.split(",")),
                    loads=tuple(float(load) for load in options.loads.split(",")),
                    seeds=options.seeds,
                    seconds=options.seconds,
                    rate=options.rate,
                    equal=options.equal,
                ),
                settings=LiveSettings(latency_scale=options.latency_scale),
                server=ServerOptions(state, setting.arguments, server_cores),
                pictures=tuple(held_out_images(task, options.pictures) for task in setting.tasks),
                measured_on=f"{machine}; server and client on one core each" if server_cores else machine,
                kept=options.kept,
                command=" ".join(
                    ["python", "benchmarks/serving/serving_live.py", *map(shlex.quote, arguments)]
                ),
            )
            results = run_sweep(sweep, shown.update)
    console.print(console_report(results))
    for line in ratios(results):
        console.print(line)
    if options.out is not None:
        write_serving_results(results, options.out)
        save_figures(results, options.out / "plots")
        console.print(f"results: {options.out}")
    if options.markdown is not None:
        write_serving_markdown(results, options.markdown, _facts(setting))
        console.print(f"page: {options.markdown}")


def ratios(results: ServingResults) -> list[str]:
    """fedstill against each of the others, per load."""
    lines = []
    for trace, load in results.places():
        for policy in results.policies():
            found = paired_ratio(results, OURS, policy, trace, load) if policy != OURS else None
            if found is not None:
                lines.append(
                    f"load {load:g}: utility ratio of {OURS} to {policy} {found.value:.3f} "
                    f"[{found.low:.3f}, {found.high:.3f}]"
                )
    return lines


def _facts(setting: ServedSetting) -> str:
    names = ", ".join(task.name for task in setting.tasks)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, revision {git_revision()}: {setting.weights.stem}, tasks {names}. Load 1 is "
        f"what a server answers per second, unchanged, to 16 clients that wait. {BASELINE} is OTAS as in the thesis."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--policies", default="pets,tome,clipper,slackfit,faithful,fedstill", help="tome: the best"
    )
    parser.add_argument("--loads", default="0.3,0.6,1,1.5,2,3")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of arrivals, per policy, load and seed")
    parser.add_argument("--equal", action="store_true", help="every query is worth 1")
    parser.add_argument("--latency-scale", type=float, default=1.0)
    add_setting_options(parser)
    parser.add_argument(
        "--prompt-epochs", type=int, default=0,
        help="train 2 and 4 prompts for so many epochs each, for tasks that --state does not hold yet, which is slow",
    )  # fmt: skip
    parser.add_argument(
        "--kept", type=Path, help="folder of what is done: the same command goes on from there"
    )
    parser.add_argument("--out", type=Path, help="folder of results.json and plots")
    parser.add_argument(
        "--markdown", type=Path, help="page to write, for instance docs/results/serving_live.md"
    )
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
