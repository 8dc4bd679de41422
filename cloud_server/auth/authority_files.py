"""The files of an authority: its roots, the keys that sign with them, and the certificate that the server shows.

``ca.crt`` has one root, or during a roll-over two, the newest last. Which of them issues is no file of its own: it is
the one that signed ``server.crt``, so that it changes together with that file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from fedstill.common.credentials import CA_FILE, CredentialError, day, parse
from fedstill.common.trusted_roots import UNREADABLE, root_fingerprint, roots_among, signed_by, vouched

CA_KEY_FILE = "ca.key"
NEXT_KEY_FILE = "next-ca.key"
"""Of the new root, until the old one is dropped."""
VOUCHES_FILE = "new-with-old.crt"
"""For each new root its key signed with the old root's key, by which devices know that it is a successor."""
FORMER_FILE = "former-ca.crt"
"""Roots that were dropped: a device that still trusts one of them only has not come yet."""
SERVER_FILE = "server.crt"
SERVER_KEY_FILE = "server.key"


@dataclass(frozen=True)
class Roots:
    """The roots that devices are to trust.

    Attributes:
        trusted: of ``ca.crt``, each once, the newest last; without the strange ones.
        issuing: the one that signed ``server.crt``.
        succeeded: whether the newest one came by a roll-over, under way or done.
        strange: of ``ca.crt``, too, but neither issuing, nor a successor of one that is, nor its predecessor.
    """

    trusted: tuple[x509.Certificate, ...]
    issuing: x509.Certificate
    succeeded: bool
    strange: tuple[x509.Certificate, ...] = ()

    @property
    def newest(self) -> x509.Certificate:
        return self.trusted[-1]

    @property
    def begun(self) -> bool:
        """Whether a roll-over is under way."""
        return len(self.trusted) > 1

    @property
    def finished(self) -> bool:
        """Whether the server's certificate is of the newest root; true without a roll-over."""
        return self.issuing == self.newest

    @property
    def fingerprints(self) -> tuple[str, ...]:
        return tuple(map(root_fingerprint, self.trusted))


def read_roots(folder: Path) -> Roots:
    """Of an authority's folder; dates are not checked.

    Raises:
        CredentialError: a file is missing or damaged, or no root of ``ca.crt`` signed ``server.crt``.
    """
    present = trusted_roots(folder)
    server = read_server(folder)
    others = parse(folder / CA_FILE, x509.load_pem_x509_certificates)  # an intermediate may have signed it
    issuing = next((one for one in reversed((*others, *present)) if signed_by(server, one)), None)
    if issuing is None:
        raise CredentialError(f"{folder / SERVER_FILE}: not signed by the {CA_FILE} beside it")
    vouches = read_vouches(folder)
    start = issuing if issuing in present else present[-1]
    try:
        trusted = tuple(
            one
            for one in present
            if one == start or vouched(start, one, vouches) or vouched(one, start, vouches)
        )
        succeeded = any(one.public_key() == trusted[-1].public_key() for one in vouches)
    except UNREADABLE as error:
        raise CredentialError(f"{folder / CA_FILE}: has a key of an unknown kind") from error
    return Roots(trusted, issuing, succeeded, tuple(one for one in present if one not in trusted))


def strangers(folder: Path, roots: Roots) -> tuple[str, ...]:
    """One line for each root of ``ca.crt`` that is none of this authority's."""
    return tuple(
        f"{folder / CA_FILE}: the root {root_fingerprint(one)[:16]}... ({one.subject.rfc4514_string()}) came by no "
        "roll-over, and devices take no other roots while it is there; remove it from the file"
        for one in roots.strange
    )


def trusted_roots(folder: Path) -> tuple[x509.Certificate, ...]:
    """Of ``ca.crt``, each once; if it has intermediates alone, these. Raises CredentialError: missing or damaged."""
    found = parse(folder / CA_FILE, x509.load_pem_x509_certificates)
    return roots_among(found) or tuple(found)


def read_former(folder: Path) -> tuple[x509.Certificate, ...]:
    """The roots that were dropped. Raises CredentialError: the file is damaged."""
    path = folder / FORMER_FILE
    return tuple(parse(path, x509.load_pem_x509_certificates)) if path.exists() else ()


def read_server(folder: Path) -> x509.Certificate:
    """Of ``server.crt``. Raises CredentialError: it is missing or damaged."""
    return parse(folder / SERVER_FILE, x509.load_pem_x509_certificate)


def read_vouches(folder: Path) -> tuple[x509.Certificate, ...]:
    """By which older roots name their successors; none if there was no roll-over. Raises CredentialError: damaged."""
    path = folder / VOUCHES_FILE
    return tuple(parse(path, x509.load_pem_x509_certificates)) if path.exists() else ()


def key_of(folder: Path, root: x509.Certificate) -> ec.EllipticCurvePrivateKey:
    """The key of a root, from whichever file has it.

    Raises:
        CredentialError: it is elsewhere, or damaged.
    """
    key = find_key(folder, root)
    if key is not None:
        return key
    made = day(root.not_valid_before_utc.timestamp())
    whose = f"the key of the root of {made} (SHA-256 {root_fingerprint(root)[:16]}...)"
    if not (folder / CA_KEY_FILE).exists():
        raise CredentialError(f"{folder / CA_KEY_FILE}: missing; put {whose} there")
    present = private_key(folder / CA_KEY_FILE).public_key()
    if any(present == one.public_key() for one in trusted_roots(folder)):  # during a roll-over
        raise CredentialError(f"{folder / NEXT_KEY_FILE}: missing, or another's; put {whose} there")
    raise CredentialError(
        f"{folder / CA_KEY_FILE}: does not belong to the {CA_FILE} beside it; put {whose} in its place"
    )


def find_key(folder: Path, root: x509.Certificate) -> ec.EllipticCurvePrivateKey | None:
    """The key of a root, from whichever file has it. Raises CredentialError: a file is damaged."""
    for path in (folder / CA_KEY_FILE, folder / NEXT_KEY_FILE):
        if path.exists() and (key := private_key(path)).public_key() == root.public_key():
            return key
    return None


def private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Raises CredentialError: missing, damaged, or not an elliptic-curve key."""
    key = parse(path, lambda content: load_pem_private_key(content, password=None))
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CredentialError(f"{path}: not an elliptic-curve key")
    return key


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def certificates_pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates)
