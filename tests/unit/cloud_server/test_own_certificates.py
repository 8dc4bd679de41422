"""An operator's own certificates: pairs that work are taken, every mistake is one line that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from helpers.pki import Identity, made

from fedstill.cloud_server.auth.own_certificates import check_client_authority, check_server_files
from fedstill.common.credentials import CredentialError


@pytest.fixture(scope="module")
def root() -> Identity:
    return made("root", authority=True)


def refused(certificate: Path, key: Path, reason: str) -> None:
    with pytest.raises(CredentialError) as caught:
        check_server_files(certificate, key)
    assert reason in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_pairs_with_and_without_a_chain_are_taken(root: Identity, tmp_path: Path) -> None:
    middle = made("middle", root, authority=True)
    assert check_server_files(*made("server", middle).write(tmp_path, "chain", middle, root)) == ()
    assert check_server_files(*made("alone").write(tmp_path, "alone")) == ()
    strong = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert check_server_files(*made("rsa", root, key=strong).write(tmp_path, "rsa")) == ()


def test_what_is_unwise_is_a_warning(root: Identity, tmp_path: Path) -> None:
    certificate, key = made("soon", root, days=(-1, 5)).write(tmp_path, "soon")
    key.chmod(0o644)
    opened, soon = check_server_files(certificate, key)
    assert "other users may read it" in opened
    assert "expires on" in soon
    middle = made("middle", root, authority=True)
    (mixed,) = check_server_files(*made("server", middle).write(tmp_path, "mixed", root, middle))[:1]
    assert "certificate 2 did not sign the one before it" in mixed
    (soon,) = check_client_authority(made("late", authority=True, days=(-1, 5)).write(tmp_path, "late")[0])
    assert "expires on" in soon


def test_an_authority_that_was_replaced_may_stay_in_a_file(root: Identity, tmp_path: Path) -> None:
    old = made("old", authority=True, days=(-9, -1))
    file, _ = root.write(tmp_path, "both", old)
    (warning,) = check_client_authority(file)
    assert "expired on" in warning
    assert "'CN=old'" in warning
    warnings = check_server_files(*made("server", old).write(tmp_path, "chain", old))
    assert ["expired on" in one for one in warnings] == [True]


def test_each_mistake_of_a_pair_is_one_line(root: Identity, tmp_path: Path) -> None:
    certificate, key = made("server", root).write(tmp_path, "server")
    other, _ = made("other", root).write(tmp_path, "other")
    refused(other, key, f"{key}: not the key of the first certificate in {other}")
    refused(*made("old", root, days=(-9, -1)).write(tmp_path, "old"), "expired on")
    refused(*made("new", root, days=(2, 9)).write(tmp_path, "new"), "valid only from")
    late = made("middle", root, authority=True, days=(-9, -1))
    refused(*made("server", late).write(tmp_path, "chain", late), "expired on")
    refused(
        *made("ed", root, key=ed25519.Ed25519PrivateKey.generate()).write(tmp_path, "ed"), "neither an RSA"
    )
    refused(certificate, tmp_path, "Is a directory")
    refused(tmp_path, key, "Is a directory")
    refused(tmp_path / "no.crt", key, "missing")
    refused(key, key, "damaged, or not the kind of file it should be")
    refused(certificate, certificate, "damaged, or not the kind of file it should be")
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        made("any").key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    refused(certificate, locked, "without a passphrase")


def test_each_mistake_of_a_client_authority_is_one_line(root: Identity, tmp_path: Path) -> None:
    good, key = root.write(tmp_path, "root")
    assert check_client_authority(good) == ()
    for file, reason in (
        (made("leaf", root).write(tmp_path, "leaf")[0], "'CN=leaf' is no authority"),
        (root.write(tmp_path, "both", made("leaf", root))[0], "'CN=leaf' is no authority"),
        (made("old", authority=True, days=(-9, -1)).write(tmp_path, "old")[0], "expired on"),
        (key, "damaged, or not the kind of file it should be"),
        (tmp_path, "Is a directory"),
        (tmp_path / "no.crt", "missing"),
    ):
        with pytest.raises(CredentialError) as caught:
            check_client_authority(file)
        assert reason in str(caught.value)
