"""X.509 for development: one root, one server certificate, elliptic curves throughout.

Strict checkers (Python 3.13, Go, BoringSSL in gRPC) refuse certificates without key identifiers, usages and alternative
names, so certificates have all of them. Nothing here touches a file.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedstill.common.credentials import CredentialError

CA_DAYS = 3650
SERVER_DAYS = 825
CLOCK_SKEW = timedelta(hours=1)
"""Certificates are valid from a little before now: a device's clock may be behind."""
LOOPBACK = (
    x509.DNSName("localhost"),
    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    x509.IPAddress(ipaddress.ip_address("::1")),
)


def server_names(hosts: Sequence[str], addresses: Sequence[str]) -> x509.SubjectAlternativeName:
    """The names and addresses under which a server is reached; loopback is always among them.

    Raises:
        CredentialError: one is not a name, or not an address.
    """
    names: dict[x509.GeneralName, None] = dict.fromkeys(LOOPBACK)
    for host in hosts:
        try:
            names[x509.DNSName(host)] = None
        except ValueError:
            raise CredentialError(f"--host {host}: not a host name in ASCII") from None
        if not host or "/" in host or ":" in host:
            raise CredentialError(
                f"--host {host}: a name without scheme, port and path, as in cloud.example.org"
            )
    for address in addresses:
        try:
            names[x509.IPAddress(ipaddress.ip_address(address))] = None
        except ValueError:
            raise CredentialError(f"--ip {address}: not an address; a name goes into --host") from None
    return x509.SubjectAlternativeName(names)


def make_root() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """A P-256 key and its self-signed certificate, valid for ``CA_DAYS`` days."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedstill development CA")])
    certificate = (
        _certificate(subject, subject, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key, certificate


def make_vouch(
    old_key: ec.EllipticCurvePrivateKey, old: x509.Certificate, new: x509.Certificate
) -> x509.Certificate:
    """The new root's name and key, signed with the old root's key (RFC 9810, "NewWithOld").

    It names a successor, no more: TLS builds no path through it, because roots here have path length 0.
    """
    key = ec_public_key(new)
    return (
        _certificate(new.subject, old.subject, key, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(_authority_identifier(old), critical=False)
        .sign(old_key, hashes.SHA256())
    )


def make_server(
    issuer_key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate,
    names: x509.SubjectAlternativeName,
    key: ec.EllipticCurvePublicKey,
) -> x509.Certificate:
    """A certificate for a server of these names and this key, valid for ``SERVER_DAYS`` days."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedstill coordinator")])
    return (
        _certificate(subject, issuer.subject, key, SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_authority_identifier(issuer), critical=False)
        .add_extension(names, critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def ec_public_key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """Of a certificate made here. Raises CredentialError: it is of another kind."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise CredentialError(f"{certificate.subject.rfc4514_string()}: has no elliptic-curve key")
    return key


def _authority_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
