"""A node's credentials, and how to read them.

Both rooms read credentials, only the cloud issues them (``cloud_server/auth/authority.py``). A bundle is one folder per
node: the certificate authority that the node trusts, its key for Flower's node authentication, its token for the
inference service, and its name. Every possible fault of a bundle is reported here in one line, before a process starts
that would only report "connection refused".
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

from fedstill.common.dataclass_codec import PlainError, from_plain
from fedstill.common.errors import UserError
from fedstill.common.node_token import newest_token, token_expiry
from fedstill.common.trusted_roots import UNREADABLE, newest_roots_file

CA_FILE = "ca.crt"
NODE_KEY_FILE = "node"
NODE_PUBLIC_FILE = "node.pub"
TOKEN_FILE = "token"
IDENTITY_FILE = "node.json"
NOTICE_DAYS = 30
ROLL_OVER = "fedstill certs roll-over"
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

Parsed = TypeVar("Parsed")


class CredentialError(UserError):
    """The credentials cannot be used; one line that names the file and says what to do."""


@dataclass(frozen=True)
class NodeIdentity:
    """The content of ``node.json``."""

    name: str
    client: int
    """The client number of this node: 0, 1, 2, ..."""
    fingerprint: str
    """Of the public key, as ``ssh-keygen -l`` prints it: ``SHA256:...``."""


@dataclass(frozen=True)
class NodeBundle:
    """A checked bundle; paths are absolute."""

    identity: NodeIdentity
    ca_file: Path
    key_file: Path
    token_file: Path
    token: str = field(repr=False)
    token_expiry: int
    """Seconds since 1970."""
    warnings: tuple[str, ...] = ()
    """Warnings that do not keep the node from connecting; to be logged."""


def read_node_bundle(
    directory: Path, now: float | None = None, kept: Path | None = None, kept_roots: Path | None = None
) -> NodeBundle:
    """Read and check the bundle that ``fedstill certs issue`` wrote.

    Args:
        kept: where a token is kept that the cloud has sent since; None: the bundle's own counts.
        kept_roots: the same of the authority's roots.

    Raises:
        CredentialError: a file is missing or damaged, the key is not the one of ``node.json``, or the token is
            another node's. What has expired, or is not valid yet by this clock, is a warning: the cloud will refuse
            it, and the device can do without the cloud meanwhile.
    """
    now = time.time() if now is None else now
    folder = directory.resolve()
    if not folder.is_dir():
        raise CredentialError(f"{directory}: no such folder; make one with: fedstill certs issue")
    parse(folder / CA_FILE, x509.load_pem_x509_certificates)
    ca_file = newest_roots_file(kept_roots, folder / CA_FILE) if kept_roots else folder / CA_FILE
    try:
        identity = from_plain(NodeIdentity, json.loads(read_bytes(folder / IDENTITY_FILE)), complete=True)
    except (PlainError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CredentialError(f"{folder / IDENTITY_FILE}: {error}") from error
    key = read_node_key(folder / NODE_KEY_FILE)
    if fingerprint(key.public_key()) != identity.fingerprint:
        raise CredentialError(f"{folder / NODE_KEY_FILE}: not the key that {IDENTITY_FILE} names; {_again()}")
    public = parse(folder / NODE_PUBLIC_FILE, load_ssh_public_key)
    if not isinstance(public, ec.EllipticCurvePublicKey) or fingerprint(public) != identity.fingerprint:
        raise CredentialError(
            f"{folder / NODE_PUBLIC_FILE}: does not belong to the key beside it; {_again()}"
        )
    token, expiry = _read_token(folder / TOKEN_FILE, identity.name)
    if kept is not None:
        token = newest_token(kept, identity.name, token)
        expiry = token_expiry(token, identity.name)
    return NodeBundle(
        identity=identity,
        ca_file=folder / CA_FILE,
        key_file=folder / NODE_KEY_FILE,
        token_file=folder / TOKEN_FILE,
        token=token,
        token_expiry=expiry,
        warnings=(
            *open_secrets(folder / NODE_KEY_FILE, folder / TOKEN_FILE),
            *_token_ends(folder / TOKEN_FILE, expiry, now, f"fedstill certs renew CERTS {identity.name}"),
            *_authority_ends(ca_file, now),
        ),
    )


def valid_until(certificate: x509.Certificate) -> float:
    """Seconds since 1970."""
    return certificate.not_valid_after_utc.timestamp()


def ends_soon(
    what: Path | str, expiry: float, now: float, remedy: str, notice_days: int = NOTICE_DAYS
) -> tuple[str, ...]:
    """A warning, if something expires within so many days; ``remedy`` is the command that helps."""
    if expiry - now > notice_days * 86_400:
        return ()
    return (f"{what}: expires on {day(expiry)}; before that: {remedy}",)


def check_name(name: str, what: str = "node name") -> str:
    """A node's name, which is part of its token and of file names; or ``what`` else follows the same rule.

    Raises:
        CredentialError: it does not match ``NAME``.
    """
    if not NAME.fullmatch(name):
        raise CredentialError(
            f"{name!r} is no {what}: use up to 63 lower-case letters, digits and hyphens, as in kitchen-2"
        )
    return name


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """``SHA256:...`` of a public key, as OpenSSH writes it (RFC 4253 blob, unpadded base64)."""
    blob = base64.b64decode(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode("ascii").rstrip("=")


def check_dates(path: Path, certificate: x509.Certificate, now: float) -> None:
    """Raises CredentialError for a certificate of that file that is not yet or no longer valid."""
    if certificate.not_valid_after_utc.timestamp() <= now:
        raise CredentialError(f"{path}: expired on {day(certificate.not_valid_after_utc.timestamp())}")
    if certificate.not_valid_before_utc.timestamp() > now:
        raise CredentialError(f"{path}: valid only from {certificate.not_valid_before_utc}; check this clock")


def read_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A node's private key in OpenSSH format.

    Raises:
        CredentialError: missing, damaged, encrypted, or not an elliptic-curve key.
    """
    key = parse(path, lambda content: load_ssh_private_key(content, password=None))
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CredentialError(f"{path}: not an elliptic-curve key; {_again()}")
    return key


def parse(path: Path, reader: Callable[[bytes], Parsed]) -> Parsed:
    """A file through one of cryptography's loaders; its errors in one line without any of the content."""
    try:
        return reader(read_bytes(path))
    except CredentialError:
        raise
    except UNREADABLE as error:
        raise CredentialError(f"{path}: damaged, or not the kind of file it should be") from error


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        CredentialError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CredentialError(f"{path}: missing") from None
    except OSError as error:
        raise CredentialError(f"{path}: {error.strerror}") from error


def open_secrets(*paths: Path) -> tuple[str, ...]:
    """One line for each secret file that other users of the machine may read."""
    return tuple(
        f"{path}: other users may read it; close it with: chmod 600 {path}"
        for path in paths
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    )


def day(seconds: float) -> str:
    """A time since 1970 as a date in UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"


def _read_token(path: Path, name: str) -> tuple[str, int]:
    token = read_bytes(path).decode("ascii", "replace").strip()
    try:
        return token, token_expiry(token, name)
    except ValueError as error:
        raise CredentialError(f"{path}: {error}; {_again()}") from None


def _token_ends(path: Path, expiry: int, now: float, remedy: str) -> tuple[str, ...]:
    if expiry > now:
        return ends_soon(path, expiry, now, remedy)
    return (f"{path}: expired on {day(expiry)}, so the cloud classifies no clips; renew with: {remedy}",)


def _authority_ends(path: Path, now: float) -> tuple[str, ...]:
    """Of several roots the one that lasts longest counts."""
    roots = sorted(parse(path, x509.load_pem_x509_certificates), key=valid_until)
    for root in reversed(roots):
        if root.not_valid_before_utc.timestamp() <= now < valid_until(root):
            return ends_soon(path, valid_until(root), now, f"{ROLL_OVER} CERTS, where the coordinator is")
    try:
        check_dates(path, roots[-1], now)
    except CredentialError as error:
        return (f"{error}; the cloud cannot be reached by it; a new one is made by: {ROLL_OVER} CERTS",)
    return ()


def _again() -> str:
    return "copy the whole folder from the coordinator again"
