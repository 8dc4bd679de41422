"""What a device accepts as its authority: only a successor that a root names which it trusts already."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from fedstill.cloud_server.auth.authority_files import certificates_pem
from fedstill.cloud_server.auth.certificates import make_root, make_server, make_vouch, server_names
from fedstill.common import trusted_roots
from fedstill.common.credentials import CredentialError, parse
from fedstill.common.trusted_roots import (
    LARGEST_BUNDLE,
    MOST_ROOTS,
    accepted_roots,
    fingerprints,
    keep_roots,
    newest_roots,
    root_fingerprint,
)

ROOTS = 3
PAIRS = [(old, new) for old in range(ROOTS) for new in range(ROOTS) if old != new]


@cache
def made() -> list[tuple[ec.EllipticCurvePrivateKey, x509.Certificate]]:
    return [make_root() for _ in range(MOST_ROOTS + 1)]


def root(number: int) -> x509.Certificate:
    return made()[number][1]


@cache
def vouch(old: int, new: int) -> x509.Certificate:
    return make_vouch(made()[old][0], root(old), root(new))


def pem(*numbers: int) -> bytes:
    return certificates_pem(*map(root, numbers))


some = st.sets(st.integers(0, ROOTS - 1), min_size=1)


@given(present=some, sent=some, vouched=st.sets(st.sampled_from(PAIRS)))
def test_a_root_comes_if_one_that_is_trusted_names_it_and_leaves_if_it_named_one_that_stays(
    present: set[int], sent: set[int], vouched: set[tuple[int, int]]
) -> None:
    comes = all(any((old, new) in vouched for old in present) for new in sent - present)
    leaves = all(any((old, new) in vouched for new in sent) for old in present - sent)
    bundle = pem(*sorted(sent)) + certificates_pem(*(vouch(*pair) for pair in sorted(vouched)))
    if comes and leaves:
        assert accepted_roots(pem(*present), bundle) == pem(*sorted(sent))
    else:
        with pytest.raises(ValueError, match="vouche"):
            accepted_roots(pem(*present), bundle)


@given(st.binary(max_size=400) | st.binary(max_size=200).map(lambda noise: pem(0) + noise))
def test_no_bytes_put_a_stranger_in_the_place_of_a_root(sent: bytes) -> None:
    told = ""
    try:
        assert fingerprints(accepted_roots(pem(0), sent)) == (root_fingerprint(root(0)),)
    except ValueError as error:
        told = str(error)
    assert "\n" not in told


@given(data=st.data())
def test_a_damaged_bundle_is_refused_or_the_same(data: st.DataObject) -> None:
    whole = pem(0, 1) + certificates_pem(vouch(0, 1))
    where = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:where] + bytes([data.draw(st.integers(0, 255))]) + whole[where + 1 :]
    try:
        roots = accepted_roots(pem(0), damaged)
    except ValueError:
        return
    assert set(fingerprints(roots)) <= {root_fingerprint(root(0)), root_fingerprint(root(1))}


def server_certificate() -> bytes:
    key, issuer = made()[0]
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    return certificates_pem(make_server(key, issuer, server_names((), ()), other))


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (lambda: b"", "PEM"),
        (lambda: b"-----BEGIN CERTIFICATE-----\n", "PEM"),
        (lambda: pem(0) + b"x" * LARGEST_BUNDLE, "larger than"),
        (lambda: certificates_pem(vouch(0, 1)), "0 roots"),
        (lambda: pem(*range(MOST_ROOTS + 1)), "roots, and not 1 to"),
        (lambda: pem(0, 1), "vouches"),
        (lambda: pem(0, 1) + certificates_pem(vouch(2, 1)), "vouches"),
        (lambda: pem(0, 1) + certificates_pem(vouch(0, 2)), "vouches"),
        (lambda: pem(0, 1) + server_certificate(), "vouches"),
        (lambda: pem(1) + server_certificate(), "vouches"),
    ],
)
def test_what_is_not_acceptable_is_refused_in_words(sent: Callable[[], bytes], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        accepted_roots(pem(0), sent())


def of_another_version() -> bytes:
    """A root that says that it is of X.509's version 4, which there is not."""
    written = root(0).public_bytes(Encoding.DER)
    where = written.index(b"\xa0\x03\x02\x01\x02") + 4
    content = base64.encodebytes(written[:where] + b"\x03" + written[where + 1 :])
    return b"-----BEGIN CERTIFICATE-----\n" + content + b"-----END CERTIFICATE-----\n"


def with_a_name_of_an_unknown_kind() -> bytes:
    """An own root whose alternative name is an X.400 address."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([]), datetime.now(UTC)
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.UnrecognizedExtension(x509.OID_SUBJECT_ALTERNATIVE_NAME, b"\x30\x04\xa3\x02\x30\x00"),
            critical=False,
        )
    )
    return certificates_pem(built.sign(key, SHA256()))


@pytest.mark.parametrize("made_badly", [of_another_version, with_a_name_of_an_unknown_kind])
def test_every_kind_of_damage_is_one_kind_of_error(made_badly: Callable[[], bytes], tmp_path: Path) -> None:
    """cryptography has errors that are no ValueErrors: they would end a thread, or be a traceback of a command."""
    for sent in (made_badly(), pem(0) + made_badly()):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            accepted_roots(pem(0), sent)
    (tmp_path / "ca.crt").write_bytes(of_another_version())
    with pytest.raises(ValueError, match="version"):
        fingerprints(of_another_version())
    with pytest.raises(CredentialError, match=r"ca\.crt: damaged"):
        parse(tmp_path / "ca.crt", x509.load_pem_x509_certificates)


def test_only_what_signed_itself_is_a_root_and_counts_once() -> None:
    beside = pem(0) + certificates_pem(vouch(1, 0)) + server_certificate()
    assert fingerprints(beside + pem(0)) == fingerprints(pem(0))
    assert accepted_roots(beside, pem(0)) == pem(0), "an intermediate beside it need not stay"
    assert accepted_roots(pem(0), pem(0, 0)) == pem(0)
    with pytest.raises(ValueError, match="vouches"):
        accepted_roots(certificates_pem(vouch(1, 0)), pem(0))


def test_kept_roots_count_until_the_credentials_change(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    assert newest_roots(kept, pem(0)) == pem(0)
    keep_roots(kept, pem(0), pem(0, 1))
    assert fingerprints(newest_roots(kept, pem(0))) == fingerprints(pem(0, 1))
    assert newest_roots(kept, pem(2)) == pem(2), "those were copied by hand"


@pytest.mark.parametrize("content", [b"", b"\xff", b"Instead of ", pem(1)])
def test_a_damaged_file_is_as_if_there_were_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(content)
    assert newest_roots(tmp_path / "kept", pem(0)) == pem(0)
    (tmp_path / "kept").write_bytes(trusted_roots._header(pem(0)) + content[:3])
    assert newest_roots(tmp_path / "kept", pem(0)) == pem(0)
