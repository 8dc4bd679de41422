"""Tokens merged in every layer of a Vision Transformer: what is left, how far the output moves, what it takes."""

# %% What is used
from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer

from fedstill.cloud_server.serving.engine.trunk import load_trunk
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.schedules import constant_schedule, effective_merges

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, required=True, help="folder for elastic.csv")
parser.add_argument("--weights", type=Path, help="timm ViT weights, safetensors (default: random ones)")
parser.add_argument("--merged", type=int, nargs="+", default=[0, 4, 8, 12, 16], help="tokens per layer")
parser.add_argument("--images", type=int, default=4, help="in a batch")
options = parser.parse_args()

# %% One network; nothing in it changes when tokens are merged
torch.manual_seed(0)
if options.weights is None:
    net = ElasticViT(VisionTransformer(embed_dim=192, num_heads=3).eval())  # ViT-Tiny
else:
    net = load_trunk(options.weights).net
images = torch.rand(options.images, 3, net.image_size, net.image_size) * 2 - 1


def timed(merged: int, repeats: int = 3) -> tuple[torch.Tensor, float]:
    """Logits (images, classes), and the fastest of some passes in milliseconds per image."""
    schedule = constant_schedule(-merged, net.layers)
    took = []
    with torch.inference_mode():
        for _ in range(repeats):
            began = time.perf_counter()
            logits = net(images, schedule)
            took.append(time.perf_counter() - began)
    return logits, 1e3 * min(took) / len(images)


# %% Merge more and more
timed(0)  # warm up
plain, _ = timed(0)
rows = []
for merged in options.merged:
    logits, milliseconds = timed(merged)
    left = net.patches - sum(effective_merges(constant_schedule(-merged, net.layers), net.patches))
    moved = ((logits - plain).norm(dim=1) / plain.norm(dim=1)).mean().item()
    rows.append((merged, left, moved, milliseconds))

# %% Look at it
print("merged per layer   tokens left   output moves by   ms per image")
for merged, left, moved, milliseconds in rows:
    print(f"{merged:16d} {left:13d} {moved:16.1%} {milliseconds:14.2f}")
options.out.mkdir(parents=True, exist_ok=True)
with (options.out / "elastic.csv").open("w", newline="", encoding="utf-8") as file:
    table = csv.writer(file)
    table.writerow(["merged_per_layer", "tokens_left", "output_moves_by", "ms_per_image"])
    table.writerows(rows)
