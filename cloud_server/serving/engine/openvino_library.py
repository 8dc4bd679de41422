"""OpenVINO, if it is installed: without its telemetry, and with one core for the process."""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib.util import find_spec
from typing import Any


def missing_library() -> str:
    """What to install; empty if OpenVINO is here."""
    if find_spec("openvino") is None:
        return "the package is not installed: in the repository pip install '.[openvino]'"
    return ""


def library() -> Any:
    """OpenVINO without its telemetry, which would report over the network as soon as it is imported."""
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # its import fails; a stub takes its place
    import openvino

    return openvino


def load_library() -> None:
    """The library and its plugin, if they are here: what they take belongs to no network."""
    if not missing_library():
        with suppress(Exception):  # of whatever kind: a package that does not fit this machine
            core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


_CORES: list[Any] = []


def core() -> Any:
    """One for the process: it loads the CPU's plugin."""
    if not _CORES:
        _CORES.append(library().Core())
    return _CORES[0]
