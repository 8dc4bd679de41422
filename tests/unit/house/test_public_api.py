"""``import fedstill``: light, complete, documented, and the same for a type checker as at run time."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import fedstill

SOURCE = Path(fedstill.__file__)
PAGE = Path(__file__).parents[3] / "docs" / "reference" / "api.md"


def test_importing_it_imports_nothing_else() -> None:
    script = (
        "import sys; before = set(sys.modules); import fedstill; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {script}"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert "fedstill" in loaded
    assert {name.partition(".")[0] for name in loaded} - {"fedstill"} <= sys.stdlib_module_names
    assert not {name for name in loaded if name.startswith("fedstill.")}


@pytest.mark.parametrize("name", fedstill.__all__)
def test_every_name_is_there_and_documented(name: str) -> None:
    value = getattr(fedstill, name)
    assert name in dir(fedstill)
    if name != "__version__":
        assert len((inspect.getdoc(value) or "").split()) > 5


def test_functions_and_methods_are_typed_and_documented() -> None:
    for name in fedstill.__all__:
        value = getattr(fedstill, name)
        members = [value] if inspect.isfunction(value) else []
        if inspect.isclass(value):
            members = [one for key, one in vars(value).items() if inspect.isfunction(one) and key[0] != "_"]
        for member in members:
            assert inspect.getdoc(member), f"{name}: {member}"
            untyped = {
                one.name
                for one in inspect.signature(member).parameters.values()
                if one.annotation is inspect.Parameter.empty and one.name != "self"
            }
            assert not untyped, f"{name}: {member}"
            assert inspect.signature(member).return_annotation is not inspect.Signature.empty


def test_a_type_checker_sees_the_same_names() -> None:
    (block,) = [node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If)]
    seen = {
        alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {name: f"fedstill.{home}" for name, home in fedstill._HOMES.items()}
    assert sorted([*seen, "__version__"]) == fedstill.__all__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'fedstill' has no attribute 'load_studnet'"):
        _ = fedstill.load_studnet  # type: ignore[attr-defined]


def test_the_version_is_the_packages() -> None:
    assert fedstill.__version__ == version("fedstill")


def test_the_page_shows_every_name() -> None:
    shown = re.findall(r"^::: fedstill\.(\S+)", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(shown) == sorted(f"{home}.{name}" for name, home in fedstill._HOMES.items())


def test_python_m_fedstill_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fedstill", "--help"], capture_output=True, text=True, check=True
    )
    assert "Usage: python -m fedstill" in done.stdout
    assert "simulate" in done.stdout
