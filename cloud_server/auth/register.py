"""The register of an authority's nodes: one file that is replaced as a whole, under a lock that commands share."""

from __future__ import annotations

import fcntl
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedstill.common.atomic_files import PUBLIC, replace_file
from fedstill.common.credentials import CA_FILE, CredentialError, read_bytes
from fedstill.common.dataclass_codec import PlainError, from_plain, to_plain

REGISTER_FILE = "nodes.json"
LOCK_FILE = "lock"
THREAD_SECONDS = 5.0
_THREADS = threading.Lock()
"""Threads of one process (token renewals, notes of roots) wait for each other, whatever they do about others."""


@dataclass(frozen=True)
class IssuedNode:
    """One row of the register."""

    name: str
    client: int
    fingerprint: str
    public_key: str
    """In OpenSSH format, as ``flwr supernode register`` takes it."""
    token_expiry: int
    revoked: bool = False
    tags: tuple[str, ...] = ()
    """By which an operator names several at once."""
    token_days: int = 0
    """For how long it was issued; 0: before that was noted."""
    roots: tuple[str, ...] = ()
    """Fingerprints of the roots that it trusts, as it said last, or as it was issued; none: before that was noted."""


@dataclass(frozen=True)
class _Register:
    nodes: tuple[IssuedNode, ...] = ()


def list_nodes(directory: Path) -> tuple[IssuedNode, ...]:
    """Every node that was ever issued, in order; cheap enough to be called every few seconds.

    Raises:
        CredentialError: there is no register, or it is damaged.
    """
    path = existing(directory) / REGISTER_FILE
    try:
        return from_plain(_Register, json.loads(read_bytes(path))).nodes
    except (PlainError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CredentialError(f"{path}: {error}") from error


def in_force(directory: Path, name: str) -> IssuedNode:
    """Raises CredentialError: no such node, or it is revoked."""
    node = find(directory, name)
    if node.revoked:
        raise CredentialError(f"{name}: revoked; issue a node of another name")
    return node


def find(directory: Path, name: str) -> IssuedNode:
    nodes = {node.name: node for node in list_nodes(directory)}
    if name not in nodes:
        raise CredentialError(f"{name}: no such node; issued are: {', '.join(nodes) or 'none yet'}")
    return nodes[name]


def update(directory: Path, changed: IssuedNode) -> None:
    nodes = (changed if node.name == changed.name else node for node in list_nodes(directory))
    write_register(directory, tuple(nodes))


def existing(directory: Path) -> Path:
    if not (directory / CA_FILE).is_file():
        raise CredentialError(
            f"{directory}: no authority here; make one with: fedstill certs init {directory}"
        )
    return directory


@contextmanager
def locked(directory: Path, wait: bool = True) -> Iterator[None]:
    """Two commands at once must not issue one client number twice; a folder that cannot be locked is one line.

    wait: for another process that holds it.
    """
    if not _THREADS.acquire(timeout=-1 if wait else THREAD_SECONDS):
        raise CredentialError(f"{directory}: another thread holds its lock")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / LOCK_FILE).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
    except BlockingIOError:
        raise CredentialError(f"{directory}: another process holds its lock") from None
    except OSError as error:
        raise CredentialError(f"{error.filename or directory}: {error.strerror}") from error
    finally:
        _THREADS.release()


def write_register(directory: Path, nodes: tuple[IssuedNode, ...]) -> None:
    content = json.dumps(to_plain(_Register(nodes)), indent=2)
    replace_file(directory / REGISTER_FILE, content.encode("ascii"), PUBLIC)
