"""The text behind an option as values; an error names the option."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedstill.common.errors import ConfigError

LARGEST_PORT = 65_535


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """Numbers with commas between. Raises ConfigError naming the option."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ConfigError(f"{option} {text!r}: write whole numbers with commas, such as 2,4") from None


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


@contextmanager
def as_mistake(option: str) -> Iterator[None]:
    """A ValueError about an option's value, as the user's mistake."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from None
