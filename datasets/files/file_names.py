"""Names of files as a person sees them, and files that no person has put there."""

from __future__ import annotations

import unicodedata

REPLACE = "download or export it again"
"""What to do with a file that cannot be read."""

_SYSTEM_FILES = frozenset({".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", ".directory", "icon\r"})
_SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", ".ipynb_checkpoints", ".Trashes", ".git"})


def readable(name: str) -> str:
    """A path as its writer saw it: slashes, composed letters, and UTF-8 that was taken for something else.

    Many programs write UTF-8 names into a zip without saying so, which then reads as code page 437. A name on disk
    that is not UTF-8 at all is taken for Western European.
    """
    name = name.replace("\\", "/")
    if name.isascii():
        return name
    try:
        name = name.encode("cp437").decode()
    except UnicodeError:
        if any("\udc80" <= letter <= "\udcff" for letter in name):  # Python's stand-ins for undecodable bytes
            name = name.encode("utf-8", "surrogateescape").decode("cp1252", "replace")
    return unicodedata.normalize("NFC", name)


def is_system_file(path: str) -> bool:
    """Whether macOS, Windows, a NAS or an editor has left the file: ``._0.png``, ``Thumbs.db``, ``__MACOSX/``, ..."""
    *folders, name = readable(path).split("/")
    return (
        name.lower() in _SYSTEM_FILES
        or name.startswith("._")
        or any(folder in _SYSTEM_FOLDERS for folder in folders)
    )
