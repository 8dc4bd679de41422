"""Personal audio-visual models for edge devices by selective feature distillation.

What a program needs is here, by name; the rest of the packages is open, too, but may change. Nothing heavy is imported
until a name is used, so a device without torch imports this as well.

    import fedstill

    fedstill.run_experiment("demo", out="runs/mine")
    student = fedstill.load_student("runs/mine", client=0)
    print(student.classify_file("clip.mp4").label)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedstill.client.serving_client import QueryResponse as QueryResponse
    from fedstill.client.serving_client import ServedTask as ServedTask
    from fedstill.client.serving_client import ServerDescription as ServerDescription
    from fedstill.client.serving_client import ServingAddress as ServingAddress
    from fedstill.client.serving_client import ServingClient as ServingClient
    from fedstill.client.serving_client import ServingError as ServingError
    from fedstill.common.errors import RunError as RunError
    from fedstill.common.errors import UserError as UserError
    from fedstill.datasets.audiovisual.clip import Clip as Clip
    from fedstill.datasets.audiovisual.clip import ClipInfo as ClipInfo
    from fedstill.datasets.audiovisual.clip import ClipSource as ClipSource
    from fedstill.datasets.audiovisual.open_dataset import open_dataset as open_dataset
    from fedstill.edge_client.inference.clip_classifier import Classification as Classification
    from fedstill.edge_client.inference.clip_classifier import ClipClassifier as ClipClassifier
    from fedstill.edge_client.inference.load_student import load_student as load_student
    from fedstill.evaluation.results import Results as Results
    from fedstill.evaluation.results import read_results as read_results
    from fedstill.simulation.config import shipped_experiments as shipped_experiments
    from fedstill.simulation.run_experiment import run_experiment as run_experiment

    __version__: str

_HOMES = {
    "Classification": "edge_client.inference.clip_classifier",
    "Clip": "datasets.audiovisual.clip",
    "ClipClassifier": "edge_client.inference.clip_classifier",
    "ClipInfo": "datasets.audiovisual.clip",
    "ClipSource": "datasets.audiovisual.clip",
    "QueryResponse": "client.serving_client",
    "Results": "evaluation.results",
    "RunError": "common.errors",
    "ServedTask": "client.serving_client",
    "ServerDescription": "client.serving_client",
    "ServingAddress": "client.serving_client",
    "ServingClient": "client.serving_client",
    "ServingError": "client.serving_client",
    "UserError": "common.errors",
    "load_student": "edge_client.inference.load_student",
    "open_dataset": "datasets.audiovisual.open_dataset",
    "read_results": "evaluation.results",
    "run_experiment": "simulation.run_experiment",
    "shipped_experiments": "simulation.config",
}
"""Where a public name is at home, below ``fedstill``."""

__all__ = [
    "Classification",
    "Clip",
    "ClipClassifier",
    "ClipInfo",
    "ClipSource",
    "QueryResponse",
    "Results",
    "RunError",
    "ServedTask",
    "ServerDescription",
    "ServingAddress",
    "ServingClient",
    "ServingError",
    "UserError",
    "__version__",
    "load_student",
    "open_dataset",
    "read_results",
    "run_experiment",
    "shipped_experiments",
]


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("fedstill")
    elif name in _HOMES:
        value = getattr(import_module(f"fedstill.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'fedstill' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
