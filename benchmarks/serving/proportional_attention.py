"""Proportional attention by a mask, as the elastic ViT has it, against an extra column of queries and keys.

A merged token counts by its size: log(size) is added to the scores of its key. As a mask this may keep torch from a
faster kernel. As a column, 1 in the queries and log(size) in the keys, it needs no mask, but wider heads: values are
widened too, or torch leaves its fused kernel. Both give the same result, or the benchmark stops. One thread, CPU time,
medians of the ratios within a round.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from fedstill.common.provenance import cpu_model
from fedstill.models.vit.token_merging import size_bias

WIDTH = 64
"""Of a head, in every ViT of timm."""

Form = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def mask(queries: Tensor, keys: Tensor, values: Tensor, size: Tensor) -> Tensor:
    """As ``ElasticViT`` does it; (batch, heads, n, width) three times, (batch, n - 1) -> (batch, heads, n, width)."""
    bias = size_bias(size, 1, queries.dtype)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)


def unweighted(queries: Tensor, keys: Tensor, values: Tensor, size: Tensor) -> Tensor:
    """Without sizes: what no form can beat."""
    return F.scaled_dot_product_attention(queries, keys, values)


def column(width: int, wide_values: bool) -> Form:
    """Heads of ``width`` more columns, of which one is used."""

    def attend(queries: Tensor, keys: Tensor, values: Tensor, size: Tensor) -> Tensor:
        scale = queries.shape[-1] ** -0.5
        bias = (
            (size_bias(size, 1, queries.dtype) / scale).transpose(-1, -2).expand(-1, queries.shape[1], -1, 1)
        )
        rest = queries.new_zeros(*queries.shape[:3], width - 1)
        mixed = F.scaled_dot_product_attention(
            torch.cat((queries, torch.ones_like(bias), rest), dim=-1),
            torch.cat((keys, bias, rest), dim=-1),
            F.pad(values, (0, width)) if wide_values else values,
            scale=scale,
        )
        return mixed[..., : values.shape[-1]]

    return attend


FORMS: dict[str, Form] = {
    "mask": mask,
    "1 column": column(1, wide_values=True),
    "8 columns": column(8, wide_values=True),
    "16 columns": column(16, wide_values=True),
    "1 column, values as they are": column(1, wide_values=False),
    "no sizes": unweighted,
}


def main(arguments: Sequence[str]) -> None:
    """Measure and print; raises SystemExit if two forms disagree."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke test in seconds")
    quick = parser.parse_args(arguments).quick
    torch.set_num_threads(1)
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"fp32, {cpu_model()}, torch {torch.__version__}; ratio: CPU time to that of the mask")
    console.print(f"| batch, heads, tokens | mask, ms | {' | '.join(list(FORMS)[1:])} |")
    console.print(f"|{'---|' * (len(FORMS) + 1)}")
    for batch in (1,) if quick else (1, 8, 32):
        for heads in (3,) if quick else (3, 6):
            for tokens in (60,) if quick else (187, 97, 60):
                seconds = _measured(batch, heads, tokens, 2 if quick else 11)
                ratios = [
                    f"{median(a / b for a, b in zip(seconds[name], seconds['mask'], strict=True)):.2f}"
                    for name in list(FORMS)[1:]
                ]
                typical = 1e3 * median(seconds["mask"])
                console.print(f"| {batch}, {heads}, {tokens} | {typical:.2f} | {' | '.join(ratios)} |")


@torch.inference_mode()
def _measured(batch: int, heads: int, tokens: int, rounds: int) -> dict[str, list[float]]:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(batch, tokens, 3, heads, WIDTH, generator=generator).permute(2, 0, 3, 1, 4)
    queries, keys, values = qkv.unbind(0)
    size = torch.randint(1, 9, (batch, tokens - 1), generator=generator).float()
    wanted = mask(queries, keys, values, size)
    for name, form in FORMS.items():
        apart = float((form(queries, keys, values, size) - wanted).abs().max())
        if name != "no sizes" and not apart <= 1e-5:
            sys.exit(f"{name} is not the mask's result: they differ by {apart:.2g}")
    seconds: dict[str, list[float]] = {name: [] for name in FORMS}
    for _ in range(rounds):
        for name, form in FORMS.items():
            started = time.thread_time()
            form(queries, keys, values, size)
            seconds[name].append(time.thread_time() - started)
    return seconds


if __name__ == "__main__":
    main(sys.argv[1:])
