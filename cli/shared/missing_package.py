"""Which install brings the package that a command lacks: docs/decisions/023-installs.md."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

EDGE = frozenset({"flwr", "onnxruntime", "prometheus_client", "soundfile"})
VIDEO = frozenset({"av"})
SERVE = frozenset(
    {
        "alembic",
        "fastapi",
        "grpc_reflection",
        "matplotlib",
        "prometheus_client",
        "scipy",
        "sqlalchemy",
        "starlette",
        "timm",
        "torch",
        "torchvision",
        "uvicorn",
    }
)
FULL = EDGE | SERVE | VIDEO | {"httpx", "jinja2", "onnx", "sklearn", "tensorboard", "torchaudio"}
"""Import names of the packages that each extra adds to the base."""

SMALLER = {
    "agent": ("edge", EDGE),
    "privacy": ("edge", EDGE),
    "elastic": ("serve", SERVE),
    "import": ("serve", SERVE),
    "loadtest": ("serve", SERVE),
    "serve": ("serve", SERVE),
    "tasks": ("serve", SERVE),
    "warmup": ("serve", SERVE),
    "warmup-study": ("serve", SERVE),
}
"""Commands that need less than everything."""


def require(packages: frozenset[str]) -> None:
    """Tells a user what to install before telling what else is missing.

    Raises:
        ModuleNotFoundError: names the first of the ``packages`` (import names) that is not installed.
    """
    for package in sorted(packages):
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


@contextmanager
def missing_package_in_one_line() -> Iterator[None]:
    """For the command of ``sys.argv``: one that lacks a package says which install brings it, and ends with 2."""
    try:
        yield
    except ModuleNotFoundError as error:
        message = what_to_install("".join(sys.argv[1:2]), str(error.name))
        if message is None:
            raise
        from rich.markup import escape

        from fedstill.cli.shared.console import MISTAKE, errors

        errors.print(f"[red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
        sys.exit(MISTAKE)


def what_to_install(command: str, module: str) -> str | None:
    """One line for a ``command`` that could not import ``module``; None if no extra brings it: that is a bug."""
    package = module.partition(".")[0]
    extra, brings = SMALLER.get(command, ("full", FULL))
    if package not in brings:
        extra, brings = "full", FULL
    if package not in brings:
        return None
    return (
        f"this command needs {package}; install fedstill with the extra [{extra}]: "
        f"in the repository pip install '.[{extra}]', from a wheel pip install 'FILE.whl[{extra}]'"
    )
