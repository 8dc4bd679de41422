"""The text behind an option as values; an error names the option."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedstill.common.errors import ConfigError

LARGEST_PORT = 65_535
LOGIN = re.compile(r"^([^:/@?]*):.*@")
"""Before a URL's host: a user with a password."""
SECRET = re.compile(r"([^&=]*pass[^&=]*)=[^&]*", re.I)
"""Of a URL's query: ``password``, ``sslpassword``."""
UNITS = {"B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3}
SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) ?(B|kB|MB|GB)", re.ASCII)


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """Numbers with commas between. Raises ConfigError naming the option."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ConfigError(f"{option} {text!r}: write whole numbers with commas, such as 2,4") from None


def whole_range(option: str, text: str) -> tuple[int, int]:
    """``LEAST:MOST``, or one number for both. Raises ConfigError naming the option."""
    least, _, most = text.partition(":")
    if not (least.isdecimal() and (most or least).isdecimal() and len(text) <= 20):
        raise ConfigError(f"{option} {text!r}: write a whole number, or two such as 2:4")
    return int(least), int(most or least)


def pair(text: str) -> tuple[str, Path]:
    """Of --images. Raises ConfigError for another form than NAME=PATH."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise ConfigError(f"--images {text!r}: write NAME=PATH")
    return name, Path(path)


def address(text: str, option: str) -> tuple[str, int]:
    """``HOST:PORT``. Raises ConfigError naming the option."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > LARGEST_PORT:
        raise ConfigError(f"{option}: {text!r} is no HOST:PORT, as in 0.0.0.0:9092")
    return host.strip("[]"), int(port)


def read_size(text: str) -> int:
    """Bytes, from ``50MB`` or ``1.5 GB``; a kB is 1000 bytes, as in contracts.

    Raises:
        ValueError: it means something else, or nothing; one line.
    """
    found = SIZE.fullmatch(text.strip())
    size = round(float(found[1]) * UNITS[found[2]]) if found else 0
    if size < 1:
        raise ValueError(f"{text!r} is no number of bytes: write a size such as 50MB or 1.5GB")
    return size


def size_text(size: float) -> str:
    """Two or three digits: ``312MB``, ``1.5GB``."""
    unit = next((name for name in ("GB", "MB", "kB") if size >= UNITS[name]), "B")
    value = size / UNITS[unit]
    return f"{value:.1f}{unit}" if value < 10 and unit == "GB" else f"{value:.0f}{unit}"


@contextmanager
def as_mistake(option: str) -> Iterator[None]:
    """A ValueError about an option's value, as the user's mistake."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from None


def shown_url(url: str) -> str:
    """A database's URL for people and logs: without its passwords, wherever they stand."""
    scheme, slashes, rest = url.partition("://")
    if not slashes:
        return "(not a URL)"
    rest = LOGIN.sub(r"\1:***@", rest)  # first: a password may hold a question mark
    place, mark, query = rest.partition("?")
    query = SECRET.sub(r"\1=***", query)
    return f"{scheme}://{place}{mark}{query}"
