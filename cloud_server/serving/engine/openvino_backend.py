"""The trunk as OpenVINO graphs for the CPU: one for each token schedule and a few batch sizes.

Merging is top-k, gather and a matrix product, so a schedule is a graph like any other. A graph of a fixed batch size is
worth up to a third of the time of a small batch. A larger batch runs as several small ones: an image costs as much in a
batch of 4 as in one of 32 (docs/results/serving_engine.md). So few graphs are needed, and no row is padding.
"""

from __future__ import annotations

import copy
import gc
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import Tensor, nn

from fedstill.cloud_server.serving.engine.int8_graphs import quantise
from fedstill.cloud_server.serving.engine.openvino_library import core, library, missing_library
from fedstill.common.errors import first_line
from fedstill.models.vit.activation_ranges import Ranges
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.schedules import TokenSchedule
from fedstill.models.vit.without_weights import weight_bytes

GROWTH = 4
"""Between the sizes of graphs: a batch of 7 is 4 + 1 + 1 + 1."""
IMAGES_PER_THREAD = 2
"""Of the largest graph. More brings nothing on two cores; with fewer, many threads would not all have work."""
WEIGHT_COPIES, KERNEL_BYTES = 2.2, 45 * 2**20
"""What a compiled graph takes: copies of the weights, laid out for its kernels, and the kernels themselves."""
MEMORY_SHARE = 0.25
"""Of the free memory, for all graphs together."""

GraphPrecision = Literal["fp32", "bf16"]
PRECISIONS: dict[GraphPrecision, str] = {"fp32": "f32", "bf16": "bf16"}
"""Ours, and OpenVINO's names of them."""

_TRACED = threading.Event()
"""Something was, since ``forget_traces``."""
_EXAMPLE_ROWS = 2
"""A batch of 1 might be traced as if it had no batch at all."""


def why_not(
    net: ElasticViT, precision: GraphPrecision, schedules: int, maximum_batch: int, memory: int | None = None
) -> str:
    """Why ``OpenVinoBackend`` cannot run so many schedules of ``net`` here, and what helps; empty if it can."""
    if missing := missing_library():
        return missing
    try:
        able = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except Exception as error:  # of whatever kind: a package that does not fit this machine
        return f"the package cannot be used here ({first_line(error)})"
    if precision == "bf16" and "BF16" not in able:
        return "this processor does not multiply bf16: use --precision fp32"
    if not _fitting_sizes(net, schedules, maximum_batch, memory):
        return f"the graphs of {schedules} schedules take too much of the free memory: name fewer --schedules"
    return ""


def has_room(net: ElasticViT, schedules: int, more: int, maximum_batch: int, memory: int | None) -> bool:
    """Whether the graphs of ``more`` schedules beside the others cost these no batch size."""
    plain = _fitting_sizes(net, schedules, maximum_batch, memory)
    return _fitting_sizes(net, schedules + more, maximum_batch, memory) == plain


class OpenVinoBackend:
    """A :class:`Backend`. Call ``why_not`` first.

    Args:
        net: with fp32 weights on the CPU; it is copied.
        precision: in which it computes; what goes in and comes out is float32.
        schedules, maximum_batch: how many and how large, for the number of graphs.
        memory: bytes that weights and graphs may take, if that is less than a share of what is free.
        ranges: of the activations, for schedules in int8.
    """

    def __init__(
        self,
        net: ElasticViT,
        precision: GraphPrecision,
        schedules: int,
        maximum_batch: int,
        memory: int | None = None,
        ranges: Ranges | None = None,
    ) -> None:
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.int8 = ranges is not None
        self._ranges = ranges
        self.graph_sizes = _fitting_sizes(net, schedules, maximum_batch, memory) or (1,)
        """Batch sizes with a graph of their own, ascending."""
        self._net = copy.deepcopy(net).eval().requires_grad_(False)
        self._options = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # the cores are not ours alone
        }
        self._graphs: dict[TokenSchedule, dict[int, Any]] = {}

    def warm_up(self, schedule: TokenSchedule, sizes: Sequence[int]) -> None:
        """Compile the schedule's graphs, unless they are there, and run each once; one warm-up serves all sizes."""
        if schedule in self._graphs:
            return
        model = self._converted(schedule)
        graphs = {}
        for size in self.graph_sizes:
            shapes = self._shapes(size, schedule)
            model.reshape(dict(enumerate(shapes)))
            graphs[size] = core().compile_model(model, "CPU", self._options).create_infer_request()
            graphs[size].infer([np.zeros(shape, dtype=np.float32) for shape in shapes])
        self._graphs[schedule] = graphs

    def features(self, images: Tensor, schedule: TokenSchedule, prompts: Tensor | None) -> Tensor:
        """See :class:`Backend`. A schedule that was never warmed up is compiled now."""
        self.warm_up(schedule, ())
        inputs = [images.float().contiguous().numpy()]
        if prompts is not None:
            inputs.append(prompts.float().contiguous().numpy())
        found: list[npt.NDArray[np.float32]] = []
        start = 0
        for size in pieces(len(images), self.graph_sizes):
            rows = [values[start : start + size] for values in inputs]
            found.append(self._graphs[schedule][size].infer(rows, share_inputs=True)[0])
            start += size
        return torch.from_numpy(np.concatenate(found))

    def _shapes(self, rows: int, schedule: TokenSchedule) -> list[list[int]]:
        """Of the inputs: images, and prompts if there are any; -1 rows are any number."""
        net = self._net
        shapes = [[rows, 3, net.image_size, net.image_size]]
        if schedule.prompts:
            shapes.append([rows, net.layers, schedule.prompts, net.width])
        return shapes

    def _converted(self, schedule: TokenSchedule) -> Any:
        """The schedule's model with any number of rows.

        Frozen here first: OpenVINO reads the graph node by node in Python, and freezing leaves a quarter of the nodes.
        """
        _TRACED.set()
        examples = tuple(torch.zeros(shape) for shape in self._shapes(_EXAMPLE_ROWS, schedule))
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # the tracer's, of shapes that are checked in Python
            traced = torch.jit.trace(_AtSchedule(self._net, schedule).eval(), examples, check_trace=False)  # type: ignore[no-untyped-call]
            frozen = torch.jit.freeze(traced)
            model = library().convert_model(frozen, example_input=examples, input=self._shapes(-1, schedule))
        if schedule.int8 and self._ranges is not None:
            quantise(model, self._net, self._ranges)
        return model


class _AtSchedule(nn.Module):
    """The trunk at one schedule, a function of tensors alone."""

    def __init__(self, net: ElasticViT, schedule: TokenSchedule) -> None:
        super().__init__()
        self._net, self._schedule = net, schedule

    def forward(self, images: Tensor, prompts: Tensor | None = None) -> Tensor:
        return self._net.features(images, self._schedule, prompts)


def pieces(rows: int, sizes: Sequence[int]) -> list[int]:
    """``rows`` as a sum of ``sizes``, which are ascending and begin with 1; the largest first."""
    found = []
    for size in reversed(sizes):
        found += [size] * (rows // size)
        rows %= size
    return found


def _fitting_sizes(
    net: ElasticViT, schedules: int, maximum_batch: int, memory: int | None
) -> tuple[int, ...]:
    """The sizes of graphs: as many as the memory allows, the largest left out first; none if not even one fits."""
    largest = min(maximum_batch, max(GROWTH, IMAGES_PER_THREAD * torch.get_num_threads()))
    sizes = [1]
    while sizes[-1] * GROWTH <= largest:
        sizes.append(sizes[-1] * GROWTH)
    most = MEMORY_SHARE * psutil.virtual_memory().available
    if memory is not None:
        most = min(most, memory - weight_bytes(net))
    return tuple(sizes[: max(0, int(most / graph_bytes(net, schedules)))])


def graph_bytes(net: ElasticViT, schedules: int) -> float:
    """What the graphs of one batch size are expected to take."""
    return schedules * (WEIGHT_COPIES * weight_bytes(net) + KERNEL_BYTES)


def forget_traces() -> None:
    """Free what tracing and converting left, if there was any: copies of the weights in cycles, and in torch's registry
    of traced classes, which only internal functions of torch 2.11 empty. Nothing traced is run by torch here."""
    if not _TRACED.is_set():
        return
    _TRACED.clear()
    with suppress(AttributeError):  # another torch: some memory stays until the end
        torch._C._jit_clear_class_registry()
        torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()
        torch.jit._state._clear_class_state()
    gc.collect()
