"""What a container's build gets, without a container engine: the context that .dockerignore lets through, and the files
of one Dockerfile in it.

    image_context.py CONTEXT_OUT            copies the context of this checkout
    image_context.py CONTEXT DOCKERFILE OUT copies what DOCKERFILE copies to /build, and
                                            prints its RUN line that installs

Of .dockerignore's language it knows what ours uses: ``*``, ``!NAME`` of the root, ``**/PATTERN``; anything else is an
error.
"""

from __future__ import annotations

import re
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]


def rules(text: str) -> tuple[list[str], list[str]]:
    """(names of the root that are let through, patterns of names that are left out everywhere)."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    if lines[:1] != ["*"]:
        sys.exit(".dockerignore: the first rule is not *")
    allowed = [line[1:] for line in lines[1:] if re.fullmatch(r"![\w.]+", line)]
    left_out = [line[3:] for line in lines[1:] if re.fullmatch(r"\*\*/[^/]+", line)]
    if len(allowed) + len(left_out) + 1 != len(lines):
        sys.exit(".dockerignore: a rule that image_context.py does not know")
    return allowed, left_out


def copy_context(out: Path) -> None:
    """Links stay links, as for an engine."""
    allowed, left_out = rules((ROOT / ".dockerignore").read_text(encoding="utf-8"))

    def ignored(_folder: str, names: list[str]) -> set[str]:
        return {name for name in names if any(fnmatch(name, pattern) for pattern in left_out)}

    out.mkdir(parents=True)
    for name in allowed:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, out / name, symlinks=True, ignore=ignored)
        elif source.exists():
            shutil.copy2(source, out / name)


def copy_image(context: Path, dockerfile: Path, out: Path) -> str:
    """Do the COPY lines; returns the RUN line that installs, for ``out`` in place of /build."""
    out.mkdir(parents=True)
    text = dockerfile.read_text(encoding="utf-8")
    for sources, target in re.findall(r"^COPY (.+) (/build/\S*)$", text, re.MULTILINE):
        for source in sources.split():
            place = out / target.removeprefix("/build/") if not target.endswith("/") else out / source
            if (context / source).is_dir():
                shutil.copytree(context / source, place, symlinks=True)
            else:
                shutil.copy2(context / source, place)
    (run,) = re.findall(r"^RUN (cd /build && pip install .+)$", text, re.MULTILINE)
    return str(run).replace("/build", str(out))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        copy_context(Path(sys.argv[1]))
    elif len(sys.argv) == 4:
        sys.stdout.write(copy_image(*map(Path, sys.argv[1:])) + "\n")
    else:
        sys.exit(__doc__)
