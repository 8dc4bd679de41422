"""A server's certificate and key from an operator's own authority, and the authority of its clients' certificates.

Every mistake is one line that names the file: TLS libraries say of most of them no more than that a handshake failed.
"""

from __future__ import annotations

import time
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fedstill.common.credentials import (
    CredentialError,
    check_dates,
    ends_soon,
    open_secrets,
    parse,
    read_bytes,
    valid_until,
)
from fedstill.common.trusted_roots import UNREADABLE, signed_by

RENEW = "put a new one in its place and restart the server"


def check_server_files(certificate: Path, key: Path, now: float | None = None) -> tuple[str, ...]:
    """Check a PEM certificate, which others may follow up to its authority, and the PEM key without passphrase.

    Returns warnings. Raises CredentialError: unreadable, damaged, expired, not yet valid, or not of one pair.
    """
    now = time.time() if now is None else now
    chain = parse(certificate, x509.load_pem_x509_certificates)
    for one in chain:
        if one is chain[0] or one.issuer != one.subject:  # clients have their root from elsewhere
            check_dates(certificate, one, now)
    if b"ENCRYPTED" in read_bytes(key):
        raise CredentialError(f"{key}: is encrypted; the server needs the key without a passphrase")
    private = parse(key, lambda content: load_pem_private_key(content, password=None))
    if not isinstance(private, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey)):
        raise CredentialError(f"{key}: neither an RSA nor an elliptic-curve key")
    if private.public_key() != _public_key(certificate, chain[0]):
        raise CredentialError(f"{key}: not the key of the first certificate in {certificate}")
    good, old = _by_date(certificate, chain, now)
    return (
        *open_secrets(key),
        *old,
        *ends_soon(certificate, min(map(valid_until, good)), now, RENEW),
        *(
            f"{certificate}: certificate {number + 1} did not sign the one before it, so clients may not trust it"
            for number in range(1, len(chain))
            if not signed_by(chain[number - 1], chain[number])
        ),
    )


def check_client_authority(file: Path, now: float | None = None) -> tuple[str, ...]:
    """Check the PEM certificates of the authorities whose client certificates are accepted.

    Returns warnings. Raises CredentialError: unreadable, damaged, expired, not yet valid, or of no authority.
    """
    now = time.time() if now is None else now
    found = parse(file, x509.load_pem_x509_certificates)
    good, old = _by_date(file, found, now)
    if not good:
        check_dates(file, found[0], now)
    for one in found:
        if not _signs(file, one):
            name = one.subject.rfc4514_string()
            raise CredentialError(
                f"{file}: {name!r} is no authority, so no client can have a certificate of it"
            )
    return (*old, *ends_soon(file, min(map(valid_until, good)), now, RENEW))


def _by_date(
    file: Path, found: list[x509.Certificate], now: float
) -> tuple[list[x509.Certificate], tuple[str, ...]]:
    """Those that are valid now, and a warning for each other one: an authority that was replaced may stay in a file."""
    good, old = [], []
    for one in found:
        try:
            check_dates(file, one, now)
            good.append(one)
        except CredentialError as error:
            old.append(f"{error} ({one.subject.rfc4514_string()!r}), and is of no use there")
    return good, tuple(old)


def _public_key(file: Path, certificate: x509.Certificate) -> object:
    try:
        return certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise CredentialError(f"{file}: its key is neither an RSA nor an elliptic-curve key") from None


def _signs(file: Path, certificate: x509.Certificate) -> bool:
    """Whether it may sign others; of an old one that does not say so, true."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return True
    except UNREADABLE:
        raise CredentialError(f"{file}: damaged, or not the kind of file it should be") from None
