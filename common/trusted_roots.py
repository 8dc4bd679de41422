"""The roots that a device trusts: those that came with its credentials, or those that its cloud has sent since.

An authority's root is replaced over weeks (RFC 9810, "Root CA Key Update"): devices get old and new root together, and
later the new one alone. What is sent is accepted by two rules. A root comes only with a certificate of its key that a
root signed which the device trusts already (RFC 9810's NewWithOld), and one leaves only if it has signed such a
certificate for another that stays. So it takes the old root's own key, and no server's, to change what a device trusts.

What was accepted is one PEM file in the device's own folder, since credentials may lie where it cannot write. Its first
line has a digest of the ``ca.crt`` that it replaces: when that is renewed by hand, it counts again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from fedstill.common.atomic_files import PUBLIC, replace_file

LARGEST_BUNDLE = 32 * 1024
"""Bytes; forty certificates of ours."""
MOST_ROOTS = 4
HEADER = b"Instead of "
UNREADABLE = (
    ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.InvalidVersion,
    x509.UnsupportedGeneralNameType, x509.ExtensionNotFound, x509.DuplicateExtension,
)  # fmt: skip
"""What cryptography raises for a damaged or unknown certificate, key or signature: not all are ValueErrors."""
UNKNOWN_AUTHORITY = (
    "the cloud's certificate is of an authority that this device does not trust; if that was rolled over while the "
    "device was away, its operator says: fedstill certs renew CERTS NAME, and copies ca.crt and token to this device"
)


def root_fingerprint(root: x509.Certificate) -> str:
    """SHA-256 of the certificate, 64 hexadecimal digits."""
    return root.fingerprint(SHA256()).hex()


def signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether ``issuer``'s name and key are those that signed; dates and path lengths are not looked at."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except UNREADABLE:
        return False
    return True


def roots_among(certificates: Iterable[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """Those that signed themselves, each once; intermediates and vouches are none."""
    return tuple(dict.fromkeys(one for one in certificates if signed_by(one, one)))


def fingerprints(pem: bytes) -> tuple[str, ...]:
    """Of the roots of a PEM file, each once. Raises ValueError: it has no certificate, or is damaged."""
    try:
        return tuple(map(root_fingerprint, roots_among(x509.load_pem_x509_certificates(pem))))
    except UNREADABLE as error:
        raise ValueError(str(error)) from error


def accepted_roots(present: bytes, sent: bytes) -> bytes:
    """The roots to trust from now on, in PEM, in the order that they were sent.

    Args:
        present: PEM of the roots that are trusted now.
        sent: PEM of roots, and of the certificates that vouch for the new ones.

    Raises:
        ValueError: damaged, too large, or by the rules above not acceptable; one line.
    """
    if len(sent) > LARGEST_BUNDLE:
        raise ValueError(f"larger than {LARGEST_BUNDLE} bytes")
    try:
        trusted = roots_among(x509.load_pem_x509_certificates(present))
        found = x509.load_pem_x509_certificates(sent)
        roots = roots_among(found)
        _check_roots(roots)
        vouches = [one for one in found if one not in roots]
        _check_change(trusted, roots, vouches)
    except ValueError:
        raise
    except UNREADABLE as error:
        raise ValueError("damaged, or of another kind") from error
    return b"".join(one.public_bytes(Encoding.PEM) for one in roots)


def _check_roots(roots: Sequence[x509.Certificate]) -> None:
    if not 0 < len(roots) <= MOST_ROOTS:
        raise ValueError(f"{len(roots)} roots, and not 1 to {MOST_ROOTS}")
    for root in roots:
        if not root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise ValueError("has a root that may sign nothing")


def _check_change(
    trusted: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    vouches: Sequence[x509.Certificate],
) -> None:
    for root in roots:
        if root not in trusted and not any(vouched(old, root, vouches) for old in trusted):
            raise ValueError("has a root for which none that is trusted here vouches")
    for old in trusted:
        if old not in roots and not any(vouched(old, root, vouches) for root in roots):
            raise ValueError("lacks a root that is trusted here and has vouched for no other")


def vouched(old: x509.Certificate, new: x509.Certificate, vouches: Iterable[x509.Certificate]) -> bool:
    """Whether one of these is ``new``'s name and key, signed by ``old``. Raises one of ``UNREADABLE``."""
    return any(
        one.public_key() == new.public_key() and one.subject == new.subject and signed_by(one, old)
        for one in vouches
    )


def newest_roots(kept: Path, given: bytes) -> bytes:
    """PEM of the roots to trust; text before the first one does no harm.

    Args:
        kept: the file for what was sent; it need not be there, and a damaged one does not count.
        given: ``ca.crt`` of the credentials.
    """
    try:
        content = kept.read_bytes()
        if content.startswith(_header(given)) and fingerprints(content):
            return content
    except (OSError, ValueError):
        pass
    return given


def newest_roots_file(kept: Path, given: Path) -> Path:
    """The same as a file; ``given`` also while it cannot be read."""
    try:
        content = given.read_bytes()
    except OSError:
        return given
    return given if newest_roots(kept, content) is content else kept


def keep_roots(kept: Path, given: bytes, roots: bytes) -> None:
    """Keep accepted roots, instead of those of the credentials. Raises OSError: what was kept before still is."""
    replace_file(kept, _header(given) + roots, PUBLIC)


def _header(given: bytes) -> bytes:
    return HEADER + sha256(given).hexdigest().encode() + b"\n"
