"""What an environment holds: bytes on the disk, packages, and which of them only Flower needs."""

from __future__ import annotations

from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

OF_THE_ENVIRONMENT = ("pip", "setuptools", "wheel")
"""An environment has these before anything is installed into it."""
OF_A_DEVICE = ("edge", "video")
BLOCK = 512
LARGEST = 8
MB = 1e6


def installed_lines(environment: Path) -> list[str]:
    """Sentences about an environment."""
    (site,) = environment.glob("lib/python3*/site-packages")
    found = {str(canonicalize_name(one.metadata["Name"])): one for one in distributions(path=[str(site)])}
    sizes = {name: _size(one) for name, one in found.items()}
    total = sum(_blocks(path) for path in [site, *site.rglob("*")])
    own = sum(sizes.get(name, 0) for name in OF_THE_ENVIRONMENT)
    flower = needed(found, "flwr") - needed(found, "fedstill", OF_A_DEVICE, without="flwr")
    largest = sorted(sizes.items(), key=lambda one: -one[1])[:LARGEST]
    return [
        f"{environment}: {total / MB:.0f} MB on the disk, {len(found)} packages; of this pip and setuptools "
        f"{own / MB:.0f} MB",
        f"only Flower needs {len(flower)} of them, {sum(sizes[name] for name in flower) / MB:.0f} MB",
        "largest: " + ", ".join(f"{name} {size / MB:.0f} MB" for name, size in largest),
    ]


def needed(
    found: dict[str, Distribution], package: str, extras: tuple[str, ...] = (), without: str = ""
) -> set[str]:
    """A package and what it needs, as far as it is installed, and not by way of ``without``."""
    seen: set[str] = set()
    waiting, done = [(str(canonicalize_name(package)), extras)], set()
    while waiting:
        name, extras = waiting.pop()
        if name not in found or name == without or (name, extras) in done:
            continue
        done.add((name, extras))
        seen.add(name)
        for text in found[name].requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)
            ):
                name_needed = str(canonicalize_name(requirement.name))
                waiting.append((name_needed, tuple(sorted(requirement.extras))))
    return seen


def _size(distribution: Distribution) -> int:
    return sum(_blocks(Path(str(file.locate()))) for file in distribution.files or ())


def _blocks(path: Path) -> int:
    try:
        return path.lstat().st_blocks * BLOCK
    except OSError:
        return 0
