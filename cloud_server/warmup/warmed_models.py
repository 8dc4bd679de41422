"""The warmed models of one task on disk: a catalogue, and weights in files named by the SHA-256 of their content.

The catalogue also keeps all measurements, right answers image by image, so that a killed run measures nothing twice. A
file whose content does not match its name is refused; a server then takes the next best model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fedstill.common.atomic_files import replace_file, replace_text
from fedstill.common.dataclass_codec import from_plain, to_plain
from fedstill.common.errors import DataError
from fedstill.models.vit.preprocess_settings import PLAIN, Preprocess
from fedstill.models.weights.packing import pack, unpack

FORMAT = 1
CATALOGUE = "warmed.json"


class WarmedModelError(DataError):
    """A warmed model, or a whole catalogue, cannot be used; one line that says why."""


@dataclass(frozen=True, slots=True)
class WarmedModel:
    """One fine-tuned model.

    Attributes:
        reduction: that it was fine-tuned at; 0 is the vanilla model.
        sha256, bytes: of its file.
        seconds: spent in training steps.
        accuracies: on the profiling images at its own reduction, before training and after each epoch.
    """

    reduction: int
    sha256: str
    bytes: int
    seconds: float
    accuracies: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Which models are averaged, with what weights: by reduction, as text for JSON's sake. They sum to 1."""

    weights: dict[str, float]

    def __post_init__(self) -> None:
        if not self.weights or min(self.weights.values()) <= 0 or abs(sum(self.weights.values()) - 1) > 1e-6:
            raise ValueError(f"weights: {self.weights} are not positive with a sum of 1")

    @property
    def name(self) -> str:
        """``r20``, or ``0.70r20+0.30r24``: unique up to two decimals."""
        if len(self.weights) == 1:
            return f"r{next(iter(self.weights))}"
        return "+".join(f"{weight:.2f}r{model}" for model, weight in self.weights.items())

    @property
    def models(self) -> tuple[int, ...]:
        return tuple(int(model) for model in self.weights)


def single(model: int) -> Recipe:
    """The recipe of a single model."""
    return Recipe({str(model): 1.0})


@dataclass(frozen=True)
class Catalogue:
    """The catalogue of a task's warmed models.

    Attributes:
        identity: everything that the models depend on (trunk, images, settings); another identity is another catalogue.
        models: in the order in which they were made.
        right: recipe name -> reduction -> digits of right (1) and wrong (0) answers on the profiling images.
        recipes: reduction -> the ensembler's choice to serve it.
        step_seconds: reduction -> time of a training step, as timed before the first fine-tuning.
    """

    identity: dict[str, Any]
    class_names: tuple[str, ...]
    models: tuple[WarmedModel, ...] = ()
    right: dict[str, dict[str, str]] = field(default_factory=dict)
    recipes: dict[str, Recipe] = field(default_factory=dict)
    step_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def preprocess(self) -> Preprocess:
        """Of the images that they were trained on, and of those to be served."""
        return from_plain(Preprocess, _complete(self.identity)["preprocess"])

    def model(self, reduction: int) -> WarmedModel | None:
        """The model that was fine-tuned at ``reduction``, if there is one."""
        return next((model for model in self.models if model.reduction == reduction), None)

    def accuracy(self, recipe: Recipe, reduction: int) -> float | None:
        """On the profiling images, if it was measured."""
        digits = self.right.get(recipe.name, {}).get(str(reduction))
        return None if digits is None else digits.count("1") / len(digits)


class WarmedModels:
    """A folder with a catalogue. Every change is on disk before the call returns.

    Args:
        folder: made if needed.
        identity, class_names: of the task; an existing catalogue must have the same.

    Raises:
        WarmedModelError: the folder holds another task's models, or models made with other settings.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], class_names: tuple[str, ...]) -> None:
        self.folder = folder
        self.catalogue = Catalogue(dict(identity), class_names)
        if (folder / CATALOGUE).exists():
            found = read_catalogue(folder)
            before, now = _complete(found.identity), _complete(json.loads(json.dumps(identity)))
            differing = [key for key in {*before, *now} if before.get(key) != now.get(key)]
            if differing or found.class_names != class_names:
                what = ", ".join(sorted(differing)) or "class_names"
                raise WarmedModelError(
                    f"{folder}: holds models of another {what}: choose another folder, or repeat its settings"
                )
            self.catalogue = found

    @property
    def training_folder(self) -> Path:
        """Where unfinished fine-tunings keep their state."""
        return self.folder / "training"

    def add(
        self, reduction: int, state: Mapping[str, Tensor], seconds: float, accuracies: tuple[float, ...]
    ) -> WarmedModel:
        """Keep a finished model: its file first, then its line in the catalogue."""
        content = pack(dict(sorted(state.items()))).tobytes()
        digest = hashlib.sha256(content).hexdigest()
        path = self.path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
        model = WarmedModel(reduction, digest, len(content), seconds, accuracies)
        others = tuple(other for other in self.catalogue.models if other.reduction != reduction)
        self._change(models=(*others, model))
        return model

    def record_right(self, recipe: Recipe, reduction: int, digits: str) -> None:
        """Keep measurements."""
        right = {name: dict(found) for name, found in self.catalogue.right.items()}
        right.setdefault(recipe.name, {})[str(reduction)] = digits
        self._change(right=right)

    def record_step(self, reduction: int, seconds: float) -> None:
        """Keep the time of training steps."""
        self._change(step_seconds={**self.catalogue.step_seconds, str(reduction): seconds})

    def choose(self, recipes: Mapping[int, Recipe]) -> None:
        """Set the recipe that serves each reduction from now on."""
        self._change(recipes={str(reduction): recipe for reduction, recipe in recipes.items()})

    def load(self, reduction: int) -> dict[str, Tensor]:
        """A model's weights. Raises WarmedModelError if there is none, or its file is missing or altered."""
        model = self.catalogue.model(reduction)
        if model is None:
            known = ", ".join(str(other.reduction) for other in self.catalogue.models)
            raise WarmedModelError(
                f"{self.folder}: has no model of reduction {reduction} (it has {known or 'none'})"
            )
        path = self.path(model.sha256)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise WarmedModelError(f"{path}: cannot be read ({error.strerror}): warm up again") from error
        if hashlib.sha256(content).hexdigest() != model.sha256:
            raise WarmedModelError(f"{path}: was altered, its SHA-256 is another: warm up again")
        return unpack(np.frombuffer(content, dtype=np.uint8))

    def path(self, digest: str) -> Path:
        """The file of a model."""
        return self.folder / "models" / f"{digest}.safetensors"

    def _change(self, **changes: Any) -> None:
        self.catalogue = replace(self.catalogue, **changes)
        text = json.dumps({"format": FORMAT, **to_plain(self.catalogue)}, indent=1)
        replace_text(self.folder / CATALOGUE, text)


def _complete(identity: Mapping[str, Any]) -> dict[str, Any]:
    """With what catalogues did not say before it could be chosen."""
    return {"preprocess": json.loads(json.dumps(to_plain(PLAIN))), **identity}


def read_catalogue(folder: Path) -> Catalogue:
    """A folder's catalogue. Raises WarmedModelError, one line, if none can be read."""
    path = folder / CATALOGUE
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WarmedModelError(
            f"{path}: not a readable catalogue ({error}); make one with: fedstill warmup"
        ) from error
    if not isinstance(plain, dict) or plain.pop("format", None) != FORMAT:
        raise WarmedModelError(f"{path}: is of another format: warm up again")
    try:
        return from_plain(Catalogue, plain)
    except ValueError as error:
        raise WarmedModelError(f"{path}: {error}") from error
