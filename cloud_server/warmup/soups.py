"""Averaged models on demand: a weighted sum of warmed models' weights, kept while in use.

A soup costs no storage and hardly any time (one read and one sum per parameter). So soups are not stored on disk; the
most recently used ones stay in memory.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedstill.cloud_server.warmup.warmed_models import Recipe, WarmedModels
from fedstill.models.vit.elastic_vit import ElasticViT


def average(states: Sequence[tuple[float, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """Weighted mean of state dicts (Wortsman et al., "Model soups", arXiv 2203.05482); weights above 0 that sum to 1.

    Raises:
        ValueError: states of different networks, or of another number of classes.
    """
    (first_weight, first), *others = states
    shapes = {name: value.shape for name, value in first.items()}
    for _, state in others:
        if {name: value.shape for name, value in state.items()} != shapes:
            raise ValueError(
                "soup: the models differ in their parameters; only models of one task can be averaged"
            )
    if not others:
        return dict(first)
    mixed, total = dict(first), first_weight
    for weight, state in others:  # as a running mean, which reads and writes every parameter once per model
        total += weight
        mixed = {name: torch.lerp(value, state[name], weight / total) for name, value in mixed.items()}
    return mixed


class SoupCache:
    """Networks by recipe, the most recently used in memory.

    Args:
        store: holds the source models.
        plain: a network of the task, whose weights do not matter.
        capacity: networks to keep. source_models: single models' weights to keep.
    """

    def __init__(
        self, store: WarmedModels, plain: ElasticViT, capacity: int = 4, source_models: int = 8
    ) -> None:
        self._store = store
        # Copied once without its weights: a network is this skeleton and a soup's own tensors, nothing is copied twice.
        self._skeleton = copy.deepcopy(plain).eval().requires_grad_(False).to("meta")
        self._capacity, self._source_models = capacity, source_models
        self._nets: OrderedDict[str, ElasticViT] = OrderedDict()
        self._states: OrderedDict[int, dict[str, Tensor]] = OrderedDict()

    @torch.no_grad()
    def net(self, recipe: Recipe) -> ElasticViT:
        """The network, ready for inference. Raises WarmedModelError if a source model is missing or altered."""
        if recipe.name not in self._nets:
            parts = [(weight, self.source_model(int(model))) for model, weight in recipe.weights.items()]
            net = copy.deepcopy(self._skeleton)
            net.load_state_dict(average(parts), assign=True)
            self._nets[recipe.name] = net
        self._nets.move_to_end(recipe.name)
        while len(self._nets) > self._capacity:
            self._nets.popitem(last=False)
        return self._nets[recipe.name]

    def source_model(self, model: int) -> dict[str, Tensor]:
        """A single model's weights. Raises WarmedModelError if its file is missing or altered."""
        if model not in self._states:
            self._states[model] = self._store.load(model)
        self._states.move_to_end(model)
        while len(self._states) > self._source_models:
            self._states.popitem(last=False)
        return self._states[model]
