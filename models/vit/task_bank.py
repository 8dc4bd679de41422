"""Many tasks on one trunk: their heads and prompts, gathered per row so that one batch mixes tasks.

A bank never changes. A new task, or a new version of one, is a new bank. A running batch keeps the bank that it began
with, so a hot swap needs nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedstill.models.vit.preprocess_settings import PLAIN, Preprocess
from fedstill.models.vit.task_outputs import Output


@dataclass(frozen=True)
class TaskParameters:
    """The parameters that one task adds to the trunk (thesis Table 3.3, ``TaskModel``).

    Attributes:
        class_names: in the order of the logits.
        head_weight: float (classes, width).
        head_bias: float (classes,).
        prompts: by number of prompts, float (layers, number, width).
        preprocess: of the pictures that they were trained on; answers need the same.
        output: what the task answers; an embedding has no classes, and a head of shape (0, width).

    Raises:
        ValueError: shapes that do not fit each other, NaN or infinity.
    """

    class_names: tuple[str, ...]
    head_weight: Tensor
    head_bias: Tensor
    prompts: Mapping[int, Tensor] = field(default_factory=dict)
    preprocess: Preprocess = PLAIN
    output: Output = "classes"

    def __post_init__(self) -> None:
        classes = len(self.class_names)
        if self.output == "embedding" and classes:
            raise ValueError(f"class_names: {classes} names; an embedding has none")
        if self.output != "embedding" and (classes < 2 or len(set(self.class_names)) < classes):
            raise ValueError(f"class_names: {classes} names; give at least two, all different")
        if self.head_weight.ndim != 2 or len(self.head_weight) != classes:
            raise ValueError(f"head_weight: {tuple(self.head_weight.shape)} for {classes} classes")
        if tuple(self.head_bias.shape) != (classes,):
            raise ValueError(f"head_bias: {tuple(self.head_bias.shape)} for {classes} classes")
        for count, prompts in self.prompts.items():
            if prompts.ndim != 3 or prompts.shape[1:] != (count, self.width) or count < 1:
                raise ValueError(f"prompts: {tuple(prompts.shape)} under {count}, width {self.width}")
        tensors = (self.head_weight, self.head_bias, *self.prompts.values())
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            raise ValueError("task parameters: NaN or infinity")

    @property
    def width(self) -> int:
        return int(self.head_weight.shape[1])


def embedding_task(width: int, preprocess: Preprocess) -> TaskParameters:
    """A task that answers the trunk's pooled feature, (width,)."""
    return TaskParameters((), torch.zeros(0, width), torch.zeros(0), {}, preprocess, "embedding")


class TaskBank:
    """Tasks in a fixed order, on one device and dtype.

    Args:
        tasks: by name.
        layers, width: of the trunk.

    Raises:
        ValueError: a task that was made for another trunk.
    """

    def __init__(
        self,
        tasks: Mapping[str, TaskParameters],
        layers: int,
        width: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        for name, task in tasks.items():
            depths = {len(prompts) for prompts in task.prompts.values()} | {layers}
            if task.width != width or depths != {layers}:
                raise ValueError(f"task {name}: width {task.width}, made for another trunk ({width} wide)")
        self.tasks = dict(tasks)
        self.names = tuple(tasks)
        self._index = {name: position for position, name in enumerate(self.names)}
        self._shape = (layers, width)
        self._device, self._dtype = device, dtype
        most = max((len(task.class_names) for task in tasks.values()), default=0)
        self._weights = torch.zeros(len(tasks), most, width, device=device, dtype=dtype)
        self._biases = torch.full((len(tasks), most), -torch.inf, device=device, dtype=dtype)
        for position, task in enumerate(tasks.values()):
            self._weights[position, : len(task.class_names)] = task.head_weight.to(device, dtype)
            self._biases[position, : len(task.class_names)] = task.head_bias.to(device, dtype)
        counts = sorted({count for task in tasks.values() for count in task.prompts})
        self._prompts = {count: self._stack(count) for count in counts}

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, names: Sequence[str]) -> Tensor:
        """int64 (batch,) on the CPU: the position of each row's task. Raises KeyError for one that is not here."""
        return torch.tensor([self._index[name] for name in names], dtype=torch.int64)

    def lacking(self, names: Sequence[str], prompts: int) -> tuple[str, ...]:
        """Those of ``names`` that have no set of so many prompts."""
        if not prompts:
            return ()
        return tuple(name for name in dict.fromkeys(names) if prompts not in self.tasks[name].prompts)

    def prompts(self, rows: Tensor, count: int) -> Tensor | None:
        """(batch, layers, count, width), each row its task's own; None for no prompts.

        Raises:
            ValueError: a task among ``rows`` has no set of so many.
        """
        if not count:
            return None
        missing = self.lacking([self.names[row] for row in rows.tolist()], count)
        if missing:
            raise ValueError(f"prompts: task {missing[0]} has no set of {count}")
        return self._prompts[count][rows.to(self._device)]

    def logits(self, features: Tensor, rows: Tensor) -> Tensor:
        """(batch, width) -> float32 (batch, most classes of any task); classes that a task lacks are -infinity."""
        here = rows.to(self._device)
        products = torch.bmm(self._weights[here], features.to(self._dtype).unsqueeze(-1)).squeeze(-1)
        return (products + self._biases[here]).float()

    def _stack(self, count: int) -> Tensor:
        layers, width = self._shape
        empty = torch.zeros(layers, count, width)
        sets = [self.tasks[name].prompts.get(count, empty) for name in self.names]
        return torch.stack([one.to(self._device, self._dtype) for one in sets])
