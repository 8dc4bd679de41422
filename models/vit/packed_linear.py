"""Linear layers whose weights are laid out for oneDNN once, with GELU fused if one follows; for inference on a CPU.

torch's own linear lays the weights out again, or uses a slower library, on every call. The operators are those that
torch's compiler emits. They are not a stable interface, so :func:`can_pack` checks before they are used.
"""

from __future__ import annotations

from typing import cast

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from fedstill.models.vit.elastic_vit import ElasticViT


class PackedLinear(nn.Module):
    """A frozen copy of ``linear``, optionally followed by exact GELU: (..., inputs) -> (..., outputs)."""

    def __init__(self, linear: nn.Linear, gelu: bool = False) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self._bias = None if linear.bias is None else linear.bias.detach()
        self._after = "gelu" if gelu else "none"

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(
            values, self._weight, self._bias, self._after, [], "none" if self._after == "gelu" else ""
        )
        return result


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch and this CPU know the packed operators for ``dtype``."""
    if not torch._C._has_mkldnn:
        return False
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(
        torch.ops.mkldnn, "_reorder_linear_weight"
    )


def pack_linears(net: ElasticViT) -> ElasticViT:
    """Replace all linear layers of the blocks in place; the result is for inference only and has no state dict."""
    for block in net.trunk.blocks:
        attention, mlp = cast(nn.Module, block.attn), cast(Mlp, block.mlp)
        attention.qkv = PackedLinear(cast(nn.Linear, attention.qkv))
        attention.proj = PackedLinear(cast(nn.Linear, attention.proj))
        plain_gelu = isinstance(mlp.act, nn.GELU) and mlp.act.approximate == "none"
        mlp.fc1 = cast(nn.Linear, PackedLinear(cast(nn.Linear, mlp.fc1), gelu=plain_gelu))
        if plain_gelu:
            mlp.act = nn.Identity()
        mlp.fc2 = cast(nn.Linear, PackedLinear(cast(nn.Linear, mlp.fc2)))
    return net
