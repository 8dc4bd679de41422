"""The docs site builds strictly, holds every page, and no page loads anything from another host."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import griffe
import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<script src="//cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="http://cdn.example/x.css">',
        '<link rel="preconnect" href="https://fonts.example" crossorigin>',
        '<img alt="" src="HTTPS://cdn.example/x.png">',
        '<img alt="" srcset="small.png 1x, https://cdn.example/x.png 2x">',
        '<p style="background: url(https://cdn.example/x.png)">text</p>',
        "<style>@import 'https://cdn.example/x.css';</style>",
        '<pre class="mermaid">graph</pre>',
    ],
)
def test_a_page_that_loads_from_elsewhere_is_named(hooks: ModuleType, tmp_path: Path, html: str) -> None:
    (tmp_path / "page.html").write_text(f"<html><body>{html}</body></html>")
    found = list(hooks.loaded_from_elsewhere(tmp_path))
    assert len(found) == 1
    assert found[0].startswith("page.html: <")


def test_a_style_sheet_that_loads_from_elsewhere_is_named(hooks: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "x.css").write_text(
        '@font-face { src: url("https://fonts.example/x.woff2") } i { color: red }'
    )
    assert list(hooks.loaded_from_elsewhere(tmp_path)) == ['x.css: url("https://fonts.example/x.woff2']


def test_links_to_follow_and_files_of_our_own_are_fine(hooks: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(
        '<a href="https://example.org">there</a><img alt="" src="../a.png"><link rel="canonical" href="https://x.org">'
        '<script src="assets/x.js"></script><style>i { background: url(data:image/png;base64,AA==) }</style>'
        '<svg xmlns="http://www.w3.org/2000/svg"><use href="#part"/></svg>'
    )
    assert list(hooks.loaded_from_elsewhere(tmp_path)) == []


def test_the_api_pages_see_every_room() -> None:
    extensions = griffe.load_extensions(ROOT / "docs" / "api_rooms.py")
    package = griffe.load("fedstill", search_paths=[ROOT / "importroot"], extensions=extensions)
    assert package["datasets.audiovisual.clip.Clip"].docstring.value.startswith(
        "One decoded audio-visual clip."
    )


@pytest.mark.slow
def test_the_site_builds_strictly_and_holds_every_page(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    ended = subprocess.run(
        build,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    sources = {page.relative_to(ROOT / "docs") for page in (ROOT / "docs").rglob("*.md")}
    built = {page if page.name == "index.md" else page.with_suffix("") / "index.md" for page in sources}
    assert {page.with_suffix(".html") for page in built} <= {
        p.relative_to(tmp_path) for p in tmp_path.rglob("*.html")
    }
    assert (tmp_path / "results" / "emotion_pairs" / "accuracy_by_arm.png").is_file()
