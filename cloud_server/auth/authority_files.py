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

from fedstill.common.credentials import CA_FILE, CredentialError, parse
from fedstill.common.trusted_roots import root_fingerprint, signed_by

CA_KEY_FILE = "ca.key"
NEXT_KEY_FILE = "next-ca.key"
"""Of the new root, until the old one is dropped."""
VOUCHES_FILE = "new-with-old.crt"
"""For each new root its key signed with the old root's key, by which devices know that it is a successor."""
SERVER_FILE = "server.crt"
SERVER_KEY_FILE = "server.key"


@dataclass(frozen=True)
class Roots:
    """The roots that devices are to trust.

    Attributes:
        trusted: of ``ca.crt``, the newest last.
        issuing: the one that signed ``server.crt``.
        succeeded: whether the newest one came by a roll-over, under way or done.
    """

    trusted: tuple[x509.Certificate, ...]
    issuing: x509.Certificate
    succeeded: bool

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
    trusted = trusted_roots(folder)
    server = read_server(folder)
    issuing = next((root for root in reversed(trusted) if signed_by(server, root)), None)
    if issuing is None:
        raise CredentialError(f"{folder / SERVER_FILE}: not signed by the {CA_FILE} beside it")
    newest = trusted[-1].public_key()
    return Roots(trusted, issuing, any(one.public_key() == newest for one in read_vouches(folder)))


def trusted_roots(folder: Path) -> tuple[x509.Certificate, ...]:
    """Of ``ca.crt``. Raises CredentialError: it is missing or damaged."""
    return tuple(parse(folder / CA_FILE, x509.load_pem_x509_certificates))


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
    paths = [path for path in (folder / CA_KEY_FILE, folder / NEXT_KEY_FILE) if path.exists()]
    if not paths:
        raise CredentialError(f"{folder / CA_KEY_FILE}: missing")
    for path in paths:
        key = private_key(path)
        if key.public_key() == root.public_key():
            return key
    raise CredentialError(f"{' and '.join(map(str, paths))}: does not belong to the {CA_FILE} beside it")


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
