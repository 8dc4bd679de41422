"""Which reduction loses least at equal cost: token merging as it is, with layer-wise schedules, or from larger patches.

``--split val`` searches schedules for the cost (multiply-accumulates) of the constant ones -15, -20 and -30, per task
and on validation images alone; it keeps what it chose in docs/results/reductions/chosen.json. Commit that file, then
``--split test`` compares the choices on the test images, times them, and writes docs/results/reductions.md. Both
families are searched alike; larger patches have one more choice, their number. Nothing is trained but the usual heads.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from fedstill.cloud_server.serving.engine.backend import Backend
from fedstill.cloud_server.serving.engine.openvino_backend import OpenVinoBackend, why_not
from fedstill.cloud_server.serving.engine.torch_backend import TorchBackend
from fedstill.cloud_server.serving.engine.trunk import load_trunk
from fedstill.cloud_server.serving.tasks.learn_task import LearnSettings, learn_task
from fedstill.common.atomic_files import replace_text
from fedstill.common.paths import data_path
from fedstill.common.provenance import cpu_model, git_revision
from fedstill.datasets.images.image_tasks import ImageTask, find_images
from fedstill.evaluation.elastic.reductions_page import BUDGETS, FAMILIES, TASKS, page
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.preprocess import image_batch
from fedstill.models.vit.schedules import (
    TokenSchedule,
    constant_schedule,
    first_patches,
    forward_macs,
    parse_schedule,
)

ROOT = Path(__file__).parents[2]
FOLDER, PAGE = ROOT / "docs/results/reductions", ROOT / "docs/results/reductions.md"
WEIGHTS = "weights/vit_tiny_patch16_224_augreg_in21k_ft_in1k.fp16.safetensors"
LEARN = LearnSettings(train_images=800, val_images=200)
SCREENED, COMPARED, FINALISTS, DECIDED = 30, 120, 3, 400
"""Validation images per task of the first look and of the second, how many schedules reach that, and images of the last
look, at the best of each family."""
GRIDS = (8, 9, 10, 11, 12)
POWERS, FLOORS, COARSE_FLOORS = (0.7, 1.0), (4, 8, 16, 24), (8, 24)
BATCH, ROUNDS = 8, 15

Head = tuple[Tensor, Tensor]


def main(arguments: Sequence[str]) -> None:
    """Search or compare; raises SystemExit if there is nothing chosen to compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--split", choices=("val", "test"), default="test", help="search, or compare (default)"
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test of both, without data, in seconds")
    parser.add_argument(
        "--heads", type=Path, help="safetensors that keeps the heads from one call to the next"
    )
    parser.add_argument(
        "--page", action="store_true", help="measure nothing, write the page of what there is"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console = Console(soft_wrap=True, highlight=False)
    with torch.inference_mode():
        if options.quick:
            _quick(console)
        elif options.split == "val":
            _search(options.heads, console)
        else:
            _compare(options.heads, options.page, console)


def layer_wise(net: ElasticViT, macs: int, power: float, floor: int, grid: int = 0) -> TokenSchedule:
    """The schedule that keeps most tokens, of those that cost at most ``macs``.

    After a share x of some depth, 1 - x^power of the tokens above ``floor`` are left: a line if power is 1, more
    merging in the first layers below that. The merges are then put in descending order, which costs no more.
    """
    low, high = 0.5, 400.0
    for _ in range(50):
        depth = (low + high) / 2
        if cost(net, _falling(net, depth, power, floor, grid)) <= macs:
            low = depth
        else:
            high = depth
    return _falling(net, low, power, floor, grid)


def _falling(net: ElasticViT, depth: float, power: float, floor: int, grid: int) -> TokenSchedule:
    left = start = first_patches(TokenSchedule((), grid=grid), net.patches)
    merges = []
    for layer in range(net.layers):
        share = min(1.0, (layer + 1) / depth) ** power
        merges.append(max(0, min(left // 2, left - round(floor + max(0, start - floor) * (1 - share)))))
        left -= merges[-1]
    return TokenSchedule(tuple(sorted(merges, reverse=True)), grid=grid)


def cost(net: ElasticViT, schedule: TokenSchedule) -> int:
    """Multiply-accumulates per image."""
    return forward_macs(schedule, net.patches, net.width, net.hidden, protected=net.protected)


def candidates(net: ElasticViT, macs: int, grids: Sequence[int] = GRIDS) -> dict[str, list[TokenSchedule]]:
    """By family, schedules that cost (almost) ``macs``."""
    merging = [layer_wise(net, macs, power, floor) for power in POWERS for floor in FLOORS]
    coarse = []
    for grid in grids:
        plain = TokenSchedule((0,) * net.layers, grid=grid)
        if cost(net, plain) > macs:
            coarse += [
                layer_wise(net, macs, power, floor, grid) for power in POWERS for floor in COARSE_FLOORS
            ]
        elif cost(net, plain) > 0.9 * macs:
            coarse.append(plain)
    return {
        FAMILIES[1]: list(dict.fromkeys(merging)),
        FAMILIES[2]: list(dict.fromkeys(coarse)),
    }


def choose(
    net: ElasticViT, head: Head, images: Tensor, schedules: Sequence[TokenSchedule], console: Console
) -> list[tuple[str, int, float]]:
    """(Name, images, divergence) of each; those that diverge least are tried on more images than the others.

    Divergence: mean Kullback-Leibler divergence of the head's probabilities from those without reduction. It needs no
    labels, and tells schedules of one family apart on far fewer images than accuracy does.
    """
    weight, bias = head
    wanted = (net.features(images) @ weight.T + bias).log_softmax(dim=1)
    tried: list[tuple[str, int, float]] = []
    left = list(schedules)
    for count in sorted({min(SCREENED, len(images)), len(images)}):
        scores = {}
        for schedule in left:
            features = torch.cat(
                [net.features(part, schedule) for part in torch.split(images[:count], BATCH)]
            )
            found = (features @ weight.T + bias).log_softmax(dim=1)
            scores[schedule] = float(F.kl_div(found, wanted[:count], log_target=True, reduction="batchmean"))
            tried.append((schedule.name, count, scores[schedule]))
            console.print(f"{count} images, {schedule.name}: {scores[schedule]:.3f}")
        left = sorted(left, key=lambda schedule: scores[schedule])[:FINALISTS]
    return tried


def _search(kept_heads: Path | None, console: Console) -> None:
    """Keeps what it has tried in chosen.json, and goes on from there if it is run again.

    Within a family the nearest answers win. Between the families the right ones do, by the cross-entropy of the labels:
    larger patches change the probabilities more, and the answers less.
    """
    file = FOLDER / "chosen.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"tried": {}}
    kept |= {"chosen": {}, "losses": kept.get("losses", {}), "revision": git_revision(), "cpu": cpu_model()}
    net = load_trunk(data_path(WEIGHTS)).net
    for name in TASKS:
        task = find_images(name, None)
        weight, bias = head = _head(net, task, kept_heads)
        val = task.load("val", DECIDED, LEARN.seed)
        labels = torch.as_tensor(val.labels)
        decisive = image_batch(val.images, net.image_size, net.preprocess)
        few = image_batch(task.load("val", COMPARED, LEARN.seed).images, net.image_size, net.preprocess)
        for budget in BUDGETS:
            losses = {}
            for family, schedules in candidates(
                net, cost(net, constant_schedule(int(budget), net.layers))
            ).items():
                key = f"{name} {budget} {family}"
                if key not in kept["tried"]:
                    kept["tried"][key] = choose(net, head, few, schedules, console)
                best = min(kept["tried"][key], key=lambda one: (-one[1], one[2]))[0]
                if key not in kept["losses"]:
                    features = _features(net, decisive, best)
                    kept["losses"][key] = best, float(F.cross_entropy(features @ weight.T + bias, labels))
                    console.print(f"{key}: {best}, cross-entropy {kept['losses'][key][1]:.3f}")
                losses[best] = kept["losses"][key][1]
                kept["chosen"][key] = min(losses, key=lambda one: losses[one])
            replace_text(file, json.dumps(kept, indent=1) + "\n")


def _features(net: ElasticViT, images: Tensor, schedule: str) -> Tensor:
    backend, parsed = _backend(net), parse_schedule(schedule, net.layers)
    return torch.cat([backend.features(part, parsed, None) for part in torch.split(images, 40)])


def _compare(kept_heads: Path | None, page_only: bool, console: Console) -> None:
    """Keeps what each schedule answered in answers.json, and goes on from there if it is run again."""
    chosen_file, answers_file = FOLDER / "chosen.json", FOLDER / "answers.json"
    if not chosen_file.exists():
        sys.exit(f"{chosen_file}: nothing is chosen yet: run with --split val and commit it")
    commit, changed = (
        subprocess.run(
            ("git", *words, str(chosen_file)), capture_output=True, text=True, cwd=ROOT, check=True
        )
        for words in (("log", "-1", "--format=%h", "--"), ("status", "--porcelain", "--"))
    )
    if not commit.stdout or changed.stdout:
        sys.exit(f"{chosen_file}: commit it before the test images are looked at")
    content = chosen_file.read_bytes()
    chosen, settings = json.loads(content)["chosen"], hashlib.sha256(content).hexdigest()
    kept = json.loads(answers_file.read_text(encoding="utf-8")) if answers_file.exists() else {}
    if kept.get("settings") != settings:
        kept = {"settings": settings, "right": {}}
    net = load_trunk(data_path(WEIGHTS)).net
    kept |= {"cpu": cpu_model(), "torch": torch.__version__, "backend": type(_backend(net)).__name__}
    if "ratios" not in kept and not page_only:
        kept["ratios"] = _time_all(net, chosen, console)
        replace_text(answers_file, json.dumps(kept, indent=1) + "\n")
    for name in () if page_only else TASKS:
        plan = {"0": "0"} | {
            f"{budget} {family}": budget if family == FAMILIES[0] else chosen[f"{name} {budget} {family}"]
            for budget in BUDGETS
            for family in FAMILIES
        }
        task = find_images(name, None)
        if all(f"{name} {key}" in kept["right"] for key in plan):
            continue
        weight, bias = _head(net, task, kept_heads)
        loaded = task.load("test")
        images = image_batch(loaded.images, net.image_size, net.preprocess)
        for key, schedule in plan.items():
            if f"{name} {key}" in kept["right"]:
                continue
            same = [other for other in plan if plan[other] == schedule and f"{name} {other}" in kept["right"]]
            if same:
                digits = kept["right"][f"{name} {same[0]}"]
            else:
                best = (_features(net, images, schedule) @ weight.T + bias).argmax(dim=1).numpy()
                digits = "".join("01"[int(right)] for right in np.equal(best, loaded.labels))
            kept["right"][f"{name} {key}"] = digits
            console.print(f"{name} {key} ({schedule}): {100 * digits.count('1') / len(digits):.1f} %")
            replace_text(answers_file, json.dumps(kept, indent=1) + "\n")
    replace_text(PAGE, page(kept, chosen, commit.stdout.strip()))


def _head(net: ElasticViT, task: ImageTask, kept: Path | None) -> Head:
    """The usual linear probe on plain features; read from ``kept`` if that has it, else written to it."""
    held = load_file(kept) if kept is not None and kept.exists() else {}
    if f"{task.name}.weight" not in held:
        learnt = learn_task(net, task, LEARN).parameters
        held |= {f"{task.name}.weight": learnt.head_weight, f"{task.name}.bias": learnt.head_bias}
        if kept is not None:
            save_file(held, kept)
    return held[f"{task.name}.weight"], held[f"{task.name}.bias"]


def _time_all(net: ElasticViT, chosen: dict[str, str], console: Console) -> dict[str, float]:
    """By "task budget family" with larger patches, the time over that of the constant schedule of that budget."""
    ratios: dict[str, float] = {}
    for budget in BUDGETS:
        keys = [f"{name} {budget} {family}" for name in TASKS for family in FAMILIES[2:]]
        names = dict.fromkeys((budget, *(chosen[key] for key in keys)))
        schedules = [parse_schedule(name, net.layers) for name in names]
        found = dict(
            zip(names, time_ratios(_backend(net, len(schedules)), net, schedules, ROUNDS), strict=True)
        )
        ratios |= {key: found[chosen[key]] for key in keys}
        console.print(f"{budget}: {', '.join(f'{name} {ratio:.2f}' for name, ratio in found.items())}")
    return ratios


def time_ratios(
    backend: Backend, net: ElasticViT, schedules: Sequence[TokenSchedule], rounds: int
) -> list[float]:
    """Median over the rounds of each schedule's time for a batch over that of the first; all take turns."""
    images = torch.randn(BATCH, 3, net.image_size, net.image_size, generator=torch.Generator().manual_seed(0))
    for schedule in schedules:
        backend.warm_up(schedule, (BATCH,))
    seconds = np.empty((rounds, len(schedules)))
    for turn in range(rounds):
        for place in np.roll(np.arange(len(schedules)), turn).tolist():
            started = time.perf_counter()
            backend.features(images, schedules[place], None)
            seconds[turn, place] = time.perf_counter() - started
    return [float(ratio) for ratio in np.median(seconds / seconds[:, :1], axis=0)]


def _backend(net: ElasticViT, schedules: int = 1) -> Backend:
    if why_not(net, "fp32", schedules, BATCH):
        return TorchBackend(net, torch.device("cpu"), torch.float32)
    return OpenVinoBackend(net, "fp32", schedules, BATCH)


def _quick(console: Console) -> None:
    """Random weights and images: the search finds something that costs what it should, and it can be timed."""
    trunk = timm.create_model("deit_tiny_patch16_224", num_classes=4).eval()
    assert isinstance(trunk, VisionTransformer)
    net = ElasticViT(trunk)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    head = torch.eye(4, net.width), torch.zeros(4)
    macs = cost(net, constant_schedule(-20, net.layers))
    for family, schedules in candidates(net, macs, (9, 10)).items():
        if not all(0.9 * macs <= cost(net, schedule) <= macs for schedule in schedules):
            sys.exit(f"{family}: a schedule has another cost than was asked for")
        best = parse_schedule(choose(net, head, images, schedules[:2], console)[-1][0], net.layers)
        backend = TorchBackend(net, torch.device("cpu"), torch.float32)
        ratio = time_ratios(backend, net, [constant_schedule(-20, net.layers), best], 2)[1]
        console.print(f"{family}: {best.name}, ratio of its time to that of -20: {ratio:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
