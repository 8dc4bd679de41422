"""Makes months pass in minutes, in the processes that ``month.py`` starts and nowhere else.

Python imports a module of this name at its start if it finds one on PYTHONPATH. It changes a module when the process
itself imports it: every timer of our own that counts in minutes, hours or days takes ``MONTH_SCALE`` of its time.
Flower's timers stay. A name that is no more ends the process, so that a change cannot pass by unnoticed.

``MONTH_VERSION`` is the version that the process says of itself; ``MONTH_DEVICE`` stands for an install without torch;
``MONTH_CLOCK``, for a clock that libfaketime moves.
"""

import importlib.metadata
import os
import select
import sys
import time

TIMERS = {
    "fedstill.cloud_server.journal.visit": ("FIRST_PAUSE", "LONGEST_PAUSE", "REFUSED_PAUSE", "CHANGE_PAUSE"),
    "fedstill.cloud_server.federation.service": ("HELLO_PAUSE",),
    "fedstill.cloud_server.coordinator.coordinator": ("WARN_SECONDS",),
    "fedstill.cli.agent.app": ("WARN_SECONDS",),
    "fedstill.edge_client.node.change_watch": ("LOOK_SECONDS", "CHECK_SECONDS"),
    "fedstill.edge_client.node.upload_gate": ("QUIET_SECONDS", "LONGEST_VISIT"),
}
LEAST = {"QUIET_SECONDS": 7.0}
"""Seconds. A device is quiet for two of Flower's looks for a message at least, or it leaves before it was asked."""
ASKED_VERSION = importlib.metadata.version


class Scaled:
    """Finds what everybody else finds, and changes it after it was loaded; has no torch on a device."""

    def __init__(self, scale, without_torch):
        self.scale, self.without_torch = scale, without_torch

    def find_spec(self, name, path=None, target=None):
        if self.without_torch and name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        if name not in TIMERS:
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, found), None)
        if spec is not None:
            load = spec.loader.exec_module
            spec.loader.exec_module = lambda module: self.change(module, load)
        return spec

    def change(self, module, load):
        load(module)
        for name in TIMERS[module.__name__]:
            if not hasattr(module, name):
                sys.exit(f"month_hook: {module.__name__} has no {name} any more")
            setattr(module, name, max(LEAST.get(name, 0.0), self.scale * getattr(module, name)))


def version(package):
    """Of a release that is only pretended."""
    return os.environ["MONTH_VERSION"] if package == "fedstill" else ASKED_VERSION(package)


if "MONTH_SCALE" in os.environ:
    sys.meta_path.insert(0, Scaled(float(os.environ["MONTH_SCALE"]), "MONTH_DEVICE" in os.environ))
if "MONTH_VERSION" in os.environ:
    importlib.metadata.version = version
if (
    "MONTH_CLOCK" in os.environ
):  # libfaketime 0.9.10 takes clock_nanosleep's monotonic time for one of the moved clock
    time.sleep = lambda seconds: select.select((), (), (), seconds) and None
