"""Guards the hook that lets Flower wait less in tests: it works, only there, and a new Flower cannot pass it by."""

from __future__ import annotations

import subprocess
import sys

from helpers.quick import quick_environment

CHECK = """
import importlib, sitecustomize
from flwr.common import constant
for module, changes in sitecustomize.CHANGES.items():
    for name, value in changes.items():
        assert getattr(importlib.import_module(module), name) is value, (module, name)
        assert getattr(constant, name, None) != value, (module, name)
"""


def python(code: str, *, stock: bool = False) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=quick_environment(stock), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_every_wait_is_changed_in_a_process_of_a_test() -> None:
    done = python(CHECK)
    assert done.returncode == 0, done.stderr


def test_stock_means_without_the_hook() -> None:
    assert "No module named 'sitecustomize'" in python("import sitecustomize", stock=True).stderr


def test_a_name_that_flower_has_no_more_ends_the_process() -> None:
    done = python("import sitecustomize as s; s.CHANGES['colorsys'] = {'gone': 1}; import colorsys")
    assert done.returncode == 1
    assert done.stderr.strip() == "quick_flower: colorsys has no gone any more"


def test_the_hook_imports_nothing_of_flower() -> None:
    assert (
        python(
            "import sys; assert 'sitecustomize' in sys.modules; assert 'flwr' not in sys.modules"
        ).returncode
        == 0
    )
