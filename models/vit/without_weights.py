"""A network's shape without its weights: a server knows the sizes of a trunk that it has not loaded."""

from __future__ import annotations

import copy
from itertools import chain

from torch import nn

from fedstill.models.vit.elastic_vit import ElasticViT


def without_weights(net: ElasticViT) -> ElasticViT:
    """A copy whose parameters and buffers are on torch's ``meta`` device: they have shapes, and take no memory."""
    empty: dict[int, object] = {
        id(one): nn.Parameter(one.detach().to("meta"), requires_grad=False)
        if isinstance(one, nn.Parameter)
        else one.to("meta")
        for one in chain(net.parameters(), net.buffers())
    }
    return copy.deepcopy(net, empty)


def weight_bytes(net: ElasticViT) -> int:
    """Of its parameters."""
    return sum(one.numel() * one.element_size() for one in net.parameters())
