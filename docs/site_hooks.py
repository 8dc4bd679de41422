"""What the docs site does beyond mkdocs.yml: it lists every decision, and it loads nothing from elsewhere.

A reader's browser should ask no third party for a font or a script, and the site should work without a network. So the
build fails if a page would load anything from another host.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

LOADED_LINKS = {
    "stylesheet",
    "icon",
    "preload",
    "modulepreload",
    "prefetch",
    "preconnect",
    "dns-prefetch",
    "manifest",
}
LOADING_TAGS = {
    "script",
    "img",
    "source",
    "iframe",
    "video",
    "audio",
    "embed",
    "object",
    "track",
    "image",
    "use",
}
LOADING_ATTRIBUTES = {"src", "srcset", "data", "poster", "href", "xlink:href"}
ELSEWHERE = re.compile(r"(?:^|,)\s*(?:https?:)?//", re.IGNORECASE)
CSS_ELSEWHERE = re.compile(r"(?:url\(|@import)\s*['\"]?\s*(?:https?:)?//[^'\")\s]*", re.IGNORECASE)


def on_config(config: Any) -> Any:
    """Put all pages of docs/decisions into the navigation, so that a new one needs no second line."""
    pages = sorted((Path(config["docs_dir"]) / "decisions").glob("*.md"))
    for entry in config["nav"]:
        if "Decisions" in entry:
            entry["Decisions"] = [f"decisions/{page.name}" for page in pages]
    return config


def on_post_build(config: Any) -> None:
    """Fail the build if the site loads anything from elsewhere."""
    found = list(loaded_from_elsewhere(Path(config["site_dir"])))
    if found:
        raise PluginError("the site loads from elsewhere:\n" + "\n".join(found))


def loaded_from_elsewhere(site: Path) -> Iterator[str]:
    """Each thing that a browser would fetch from another host, as ``page: what``."""
    for page in sorted(site.rglob("*.html")):
        reader = _Loads()
        reader.feed(page.read_text(encoding="utf-8"))
        yield from (f"{page.relative_to(site)}: {what}" for what in reader.found)
    for sheet in sorted(site.rglob("*.css")):
        urls = CSS_ELSEWHERE.findall(sheet.read_text(encoding="utf-8"))
        yield from (f"{sheet.relative_to(site)}: {url}" for url in urls)


class _Loads(HTMLParser):
    """Collects what a page loads from another host. Links that a reader follows are no loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self._in_style = tag == "style"
        if tag in LOADING_TAGS or (
            tag == "link" and LOADED_LINKS & set(values.get("rel", "").lower().split())
        ):
            urls = (value for name, value in values.items() if name in LOADING_ATTRIBUTES)
            self.found += [f"<{tag}> {url}" for url in urls if ELSEWHERE.search(url)]
        self.found += [f"<{tag} style> {url}" for url in CSS_ELSEWHERE.findall(values.get("style", ""))]
        if "mermaid" in values.get("class", "").split():  # the theme then fetches the library
            self.found.append(f"<{tag}> a mermaid diagram")

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.found += [f"<style> {url}" for url in CSS_ELSEWHERE.findall(data)]
