"""What an operator can do to an authority's folder by hand: each ends in one line that says what to do."""

from __future__ import annotations

import json
import logging
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.roll_over import took
from typer.testing import CliRunner

from fedstill.cli import main as cli
from fedstill.cli.shared import console
from fedstill.cloud_server.auth.authority import create_authority, issue_node, read_authority, renew_server
from fedstill.cloud_server.auth.authority_files import certificates_pem, read_roots
from fedstill.cloud_server.auth.certificates import make_root
from fedstill.cloud_server.auth.roll_over import begin, drop_old, finish, read_roll_over
from fedstill.cloud_server.auth.roots_update import RootsUpdate
from fedstill.cloud_server.coordinator import coordinator
from fedstill.cloud_server.coordinator.coordinator import CoordinatorSettings, _Run
from fedstill.common.credentials import CredentialError
from fedstill.common.trusted_roots import accepted_roots, fingerprints


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    create_authority(tmp_path / "certs")
    for name in ("kitchen", "hall", "attic"):
        issue_node(tmp_path / "certs", name)
    return tmp_path / "certs"


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[int, list[str]]:
    monkeypatch.setattr(console.errors, "_width", 400)
    done = CliRunner().invoke(cli.app, ["certs", *map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, (done.stdout + done.stderr).splitlines()


def followed(certs: Path, name: str, trusted: bytes) -> bytes:
    """What a device trusts after it has come."""
    update = RootsUpdate(read_authority(certs))
    sent = update.bundle_for(fingerprints(trusted))
    with suppress(ValueError):
        trusted = accepted_roots(trusted, sent) if sent else trusted
    update.note({name: fingerprints(trusted)})
    return trusted


def put_back(certs: Path, copy: Path) -> None:
    shutil.rmtree(certs)
    shutil.copytree(copy, certs)


def test_a_folder_that_was_put_back_names_the_devices_that_follow_no_more(
    certs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = (certs / "ca.crt").read_bytes()
    shutil.copytree(certs, tmp_path / "copy")
    begin(certs)
    device = followed(certs, "hall", first)
    assert not [one for one in read_authority(certs).warnings if "hall" in one]
    put_back(certs, tmp_path / "copy")
    followed(certs, "hall", device)
    for begun in (False, True):
        (warning,) = [one for one in read_authority(certs).warnings if "trusts a root" in one]
        assert warning.startswith("hall: trusts a root that this authority does not have")
        assert warning.endswith(
            "delete authorities.pem in its agent's folder and copy ca.crt to its credentials"
        )
        _, rows = run(monkeypatch, "list", certs)
        assert ["lost authority" in row for row in rows] == [False, True, False]
        if not begun:
            assert run(monkeypatch, "roll-over", certs)[1][3] == (
                "trust an authority that is not here, and follow no more: hall; on each delete authorities.pem "
                "in its agent's folder and copy ca.crt to its credentials"
            )
    told = _Run(CoordinatorSettings(certs.parent, certs, "127.0.0.1", 0, certs), None, read_authority(certs))  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        told._warn((warning,))
        told._warn((warning, "another"))
        told._warn((warning,))
        assert [json.loads(one.partition("reason=")[2]) for one in caplog.messages] == [warning, "another"]
        monkeypatch.setattr(coordinator, "WARN_SECONDS", -1.0)
        told._warn((warning,))
        assert len(caplog.messages) == 3
    followed(certs, "hall", (certs / "ca.crt").read_bytes())  # copied
    assert read_roll_over(certs).lost == ()


def test_who_trusts_a_root_that_was_dropped_is_not_lost(certs: Path) -> None:
    for step in (begin, finish, drop_old):
        for name in ("kitchen", "hall", "attic"):
            took(certs, name)
        step(certs)
        assert read_roll_over(certs).lost == (), step
    begin(certs)
    assert read_roll_over(certs).lost == ()
    create_authority(certs, force=True)
    assert not (certs / "former-ca.crt").exists()


def test_a_new_key_that_others_may_read_is_told(certs: Path) -> None:
    begin(certs)
    (certs / "next-ca.key").chmod(0o644)
    assert any("next-ca.key: other users may read it" in one for one in read_authority(certs).warnings)


def test_the_old_key_is_deleted_also_if_the_new_one_is_kept_elsewhere(certs: Path, tmp_path: Path) -> None:
    begin(certs)
    finish(certs, without_them=True)
    old = (certs / "ca.key").read_bytes()
    (certs / "next-ca.key").rename(tmp_path / "elsewhere")
    drop_old(certs)
    assert not (certs / "ca.key").exists()
    for step in (renew_server, begin):
        with pytest.raises(CredentialError, match=r"certs/ca\.key: missing; put the key of the root of 2"):
            step(certs)
    (certs / "ca.key").write_bytes(old)
    with pytest.raises(CredentialError, match=r"ca\.key: does not belong .* put the key of .* in its place"):
        renew_server(certs)
    drop_old(certs)
    assert not (certs / "ca.key").exists(), "also of a folder in which it was left"
    shutil.copy(tmp_path / "elsewhere", certs / "next-ca.key")  # under the name that it had
    begin(certs)
    renew_server(certs)
    finish(certs, without_them=True)
    drop_old(certs)
    renew_server(certs)


def test_a_strange_key_is_not_deleted(certs: Path, tmp_path: Path) -> None:
    begin(certs)
    finish(certs, without_them=True)
    (certs / "next-ca.key").rename(tmp_path / "elsewhere")
    create_authority(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "ca.key", certs / "ca.key")
    drop_old(certs)
    assert (certs / "ca.key").read_bytes() == (tmp_path / "other" / "ca.key").read_bytes()


def test_one_root_twice_is_one_root(certs: Path) -> None:
    once = (certs / "ca.crt").read_bytes()
    (certs / "ca.crt").write_bytes(2 * once)
    with pytest.raises(CredentialError, match="no roll-over is under way"):
        finish(certs)
    begin(certs)
    assert (certs / "ca.crt").read_bytes().count(b"BEGIN") == 2
    assert accepted_roots(
        2 * once, (certs / "ca.crt").read_bytes() + (certs / "new-with-old.crt").read_bytes()
    )
    finish(certs, without_them=True)
    new = drop_old(certs).roots.newest
    (certs / "ca.crt").write_bytes(2 * certificates_pem(new))
    assert drop_old(certs).roots.trusted == (new,)


@pytest.mark.parametrize("begun", [False, True])
def test_a_root_for_which_nobody_vouched_is_no_roll_over(
    begun: bool, certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if begun:
        begin(certs)
        took(certs, "hall")
    roots = read_roots(certs)
    present, foreign = (certs / "ca.crt").read_bytes(), certificates_pem(make_root()[1])
    for content in (present + foreign, foreign + present):
        (certs / "ca.crt").write_bytes(content)
        assert read_roots(certs).trusted == roots.trusted
        assert len(read_roll_over(certs).without) == (2 if begun else 0)
        for step in ([], ["--finish"], ["--drop-old"]):
            code, (line,) = run(monkeypatch, "roll-over", certs, *step)
            assert code == 2
            assert "came by no roll-over" in line
            assert "remove it from the file" in line
        assert (certs / "ca.crt").read_bytes() == content
        assert any("came by no roll-over" in one for one in read_authority(certs).warnings)
    (certs / "ca.crt").write_bytes(present)
    begin(certs)


def test_an_intermediate_may_sign_for_the_server(certs: Path, tmp_path: Path) -> None:
    """Somebody's own authority in the place of ours goes on to work; there is nothing to roll over."""
    begin(certs)
    finish(certs, without_them=True)
    vouch = (certs / "new-with-old.crt").read_bytes()  # an intermediate of the old root
    (certs / "new-with-old.crt").unlink()
    old = certificates_pem(read_roots(certs).strange[0])
    for content in (old + vouch, vouch):
        (certs / "ca.crt").write_bytes(content)
        read_authority(certs)
        with pytest.raises(CredentialError, match="no roll-over"):
            finish(certs)


def test_a_damaged_root_is_one_line(certs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (certs / "ca.crt").read_bytes()
    (certs / "ca.crt").write_bytes(content.replace(b"MIIB", b"MIIC", 1))
    code, (line,) = run(monkeypatch, "roll-over", certs)
    assert (code, "ca.crt: damaged" in line) == (2, True)
    assert run(monkeypatch, "list", certs)[0] == 0
