"""Guards credentials: issued ones can be read and used, damaged ones are named in one line, nothing leaks."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import ssl
import stat
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from helpers.command import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fedstill.cli import main as cli
from fedstill.cli.shared import console
from fedstill.cloud_server.auth import tokens
from fedstill.cloud_server.auth.authority import (
    create_authority,
    issue_node,
    prolonged_token,
    read_authority,
    refreshed,
    renew_server,
    renew_token,
    revoke_node,
    tag_node,
)
from fedstill.cloud_server.auth.certificates import CA_DAYS, SERVER_DAYS
from fedstill.cloud_server.auth.register import list_nodes
from fedstill.common.credentials import CredentialError, read_node_bundle
from fedstill.common.node_token import token_expiry

DAY = 86400.0
SECRET = bytes(range(32))


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """An authority folder with the nodes kitchen (client 0) and hall (client 1)."""
    folder = tmp_path / "certs"
    create_authority(folder, ["cloud.example.org"], ["10.0.0.5"])
    issue_node(folder, "kitchen")
    issue_node(folder, "hall")
    return folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_server_certificate_names_loopback_and_what_was_asked_for(authority: Path) -> None:
    certificate = x509.load_pem_x509_certificate((authority / "server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"localhost", "cloud.example.org"}
    assert {str(ip) for ip in names.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "::1", "10.0.0.5"}


def test_the_chain_passes_a_strict_handshake(authority: Path) -> None:
    """Both ends of a TLS connection in memory, with OpenSSL's strict checks on."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(authority / "server.crt", authority / "server.key")
    client = ssl.create_default_context(cafile=str(authority / "ca.crt"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    assert handshake(client, server, "cloud.example.org")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(client, server, "elsewhere.example.org")


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, host: str) -> bool:
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = client.wrap_bio(down, up, server_hostname=host)
    there = server.wrap_bio(up, down, server_side=True)
    done = set()
    for _ in range(10):
        for end in (here, there):
            try:
                end.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                continue
    return len(done) == 2


def test_secrets_are_closed_to_others(authority: Path) -> None:
    secrets = ["ca.key", "server.key", "inference.secret", "nodes/hall/node", "nodes/hall/token"]
    assert {mode(authority / name) for name in secrets} == {0o600}
    assert mode(authority / "nodes" / "hall") == 0o700


def test_neither_reader_shows_its_secrets(authority: Path) -> None:
    bundle = read_node_bundle(authority / "nodes" / "hall")
    assert bundle.token not in repr(bundle)
    assert repr(read_authority(authority).secret) not in repr(read_authority(authority))


def test_an_issued_bundle_is_accepted_everywhere(authority: Path) -> None:
    bundle = read_node_bundle(authority / "nodes" / "hall")
    assert (bundle.identity.name, bundle.identity.client, bundle.warnings) == ("hall", 1, ())
    secret = read_authority(authority).secret
    assert tokens.verify(secret, bundle.token, time.time()) == "hall"
    assert list_nodes(authority)[1].fingerprint == bundle.identity.fingerprint


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_fingerprint_is_the_one_of_ssh_keygen(authority: Path) -> None:
    folder = authority / "nodes" / "hall"
    told = subprocess.run(["ssh-keygen", "-lf", folder / "node"], capture_output=True, text=True, check=True)
    assert told.stdout.split()[:2] == ["384", read_node_bundle(folder).identity.fingerprint]


def test_clients_are_handed_out_in_order_and_once(authority: Path) -> None:
    assert issue_node(authority, "attic", client=7).client == 7
    assert issue_node(authority, "cellar").client == 8
    with pytest.raises(CredentialError, match="client 7 is attic"):
        issue_node(authority, "loft", client=7)
    revoke_node(authority, "attic")
    assert issue_node(authority, "loft", client=7).client == 7


def test_two_issues_at_once_get_two_clients(authority: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: issue_node(authority, f"node-{number}"), range(16)))
    assert sorted(node.client for node in list_nodes(authority)) == list(range(18))


def test_a_name_is_never_given_twice(authority: Path) -> None:
    revoke_node(authority, "hall")
    with pytest.raises(CredentialError, match="hall: issued already"):
        issue_node(authority, "hall")
    with pytest.raises(CredentialError, match="hall: revoked"):
        renew_token(authority, "hall")
    assert read_authority(authority).revoked_names == {"hall"}


@pytest.mark.parametrize("name", ["", "Hall", "a.b", "../up", "a b", "-a", "é", "a" * 64, "a\n"])
def test_unfit_names_are_refused(authority: Path, name: str) -> None:
    with pytest.raises(CredentialError, match="no node name"):
        issue_node(authority, name)
    assert len(list_nodes(authority)) == 2


def test_init_does_not_overwrite_unless_forced(authority: Path) -> None:
    before = (authority / "ca.crt").read_bytes()
    with pytest.raises(CredentialError, match="--force"):
        create_authority(authority)
    assert (authority / "ca.crt").read_bytes() == before
    assert create_authority(authority, force=True).nodes == ()
    assert (authority / "ca.crt").read_bytes() != before
    assert not (authority / "nodes").exists()


def test_a_renewed_server_certificate_is_still_trusted_by_old_bundles(authority: Path) -> None:
    before = (authority / "nodes" / "hall" / "ca.crt").read_bytes()
    renew_server(authority, ["new.example.org"])
    assert read_authority(authority).ca_file.read_bytes() == before
    assert b"new.example.org" in (
        x509.load_pem_x509_certificate((authority / "server.crt").read_bytes())
        .extensions.get_extension_for_class(x509.SubjectAlternativeName)
        .value.public_bytes()
    )


def test_a_renewed_token_replaces_one_that_expires(authority: Path) -> None:
    node = issue_node(authority, "den", days=1)
    later = time.time() + 2 * DAY
    (warning,) = read_node_bundle(authority / "nodes" / "den", later).warnings
    assert re.search(r"token: expired on .*; renew with: fedstill certs renew CERTS den$", warning)
    assert renew_token(authority, "den").token_expiry > node.token_expiry
    assert read_node_bundle(authority / "nodes" / "den", later).warnings == ()


def test_an_authority_that_ended_and_a_clock_that_is_wrong_are_warnings_to_a_device(authority: Path) -> None:
    """It answers its clips by itself; the cloud will refuse it for as long."""
    folder = authority / "nodes" / "hall"
    for now, reason in ((0.0, "valid only from"), (time.time() + (CA_DAYS + 1) * DAY, "expired on")):
        told = read_node_bundle(folder, now).warnings
        assert any("ca.crt" in one and reason in one for one in told)


def test_a_token_is_prolonged_once_and_only_where_it_lies_here(authority: Path) -> None:
    node = issue_node(authority, "den", days=100)
    folder, window = authority / "nodes" / "den", 99.5 * DAY
    until = time.time() + window
    time.sleep(1.1)  # its end is in whole seconds
    assert prolonged_token(authority, "den", window) == (folder / "token").read_text(), "still good"
    window = 100 * DAY - 1
    made = prolonged_token(authority, "den", window)
    assert token_expiry(made, "den") > node.token_expiry
    assert tokens.verify(read_authority(authority).secret, made, until) == "den"
    assert (folder / "token").read_text() == made
    written = (authority / "nodes.json").read_bytes()
    assert prolonged_token(authority, "den", 90 * DAY) == made, "one that was lost on its way is sent again"
    assert (authority / "nodes.json").read_bytes() == written
    (folder / "token").unlink()
    time.sleep(1.1)
    assert token_expiry(prolonged_token(authority, "den", window), "den") > token_expiry(made, "den")
    assert not (folder / "token").exists(), "it was moved to the device"
    revoke_node(authority, "den")
    for name in ("den", "nobody"):
        with pytest.raises(CredentialError, match=name):
            prolonged_token(authority, name, window)


def test_a_token_that_was_meant_to_end_is_not_prolonged(authority: Path) -> None:
    issue_node(authority, "guest", days=10)
    assert prolonged_token(authority, "guest", 90 * DAY) == ""
    rows = json.loads((authority / "nodes.json").read_text())
    for row in rows["nodes"]:
        del row["token_days"]  # as an older fedstill wrote it
    (authority / "nodes.json").write_text(json.dumps(rows))
    assert prolonged_token(authority, "hall", 90 * DAY) == ""
    renew_token(authority, "hall", 400)
    assert prolonged_token(authority, "hall", 90 * DAY)


def test_a_register_that_another_process_holds_is_not_waited_for(authority: Path) -> None:
    issue_node(authority, "den", days=100)
    with (authority / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        time.sleep(1.1)
        with pytest.raises(CredentialError, match="lock"):
            prolonged_token(authority, "den", 100 * DAY - 1)


def swap(first: str, second: str) -> Callable[[Path], None]:
    """Put a file of another folder in a file's place."""
    return lambda folder: (folder / second).write_bytes((folder / first).read_bytes())


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:40])


def edit_identity(folder: Path) -> None:
    (folder / "node.json").write_text(json.dumps({"name": "hall", "client": "one", "fingerprint": ""}))


BUNDLE_DAMAGE: list[tuple[Callable[[Path], None], str]] = [
    (lambda folder: (folder / "node").unlink(), r"node: missing$"),
    (lambda folder: (folder / "ca.crt").unlink(), r"ca\.crt: missing$"),
    (lambda folder: (folder / "token").unlink(), r"token: missing$"),
    (cut("node"), r"node: damaged"),
    (cut("ca.crt"), r"ca\.crt: damaged"),
    (cut("node.json"), r"node\.json: "),
    (edit_identity, r"node\.json: client: needs int"),
    (swap("../kitchen/node", "node"), r"node: not the key that node\.json names"),
    (swap("../kitchen/node.pub", "node.pub"), r"node\.pub: does not belong to the key"),
    (swap("../kitchen/token", "token"), r"token: issued to another node than hall"),
    (lambda folder: (folder / "token").write_text("hall"), r"token: damaged"),
    (lambda folder: (folder / "token").write_text("hall.soon.x"), r"token: damaged"),
    (swap("../../server.key", "node"), r"node: damaged"),
]


@pytest.mark.parametrize(("damage", "message"), BUNDLE_DAMAGE)
def test_a_damaged_bundle_is_refused_in_one_line(
    authority: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = authority / "nodes" / "hall"
    damage(folder)
    with pytest.raises(CredentialError, match=message) as refused:
        read_node_bundle(folder)
    assert "\n" not in str(refused.value)


def test_a_missing_bundle_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match="fedstill certs issue"):
        read_node_bundle(tmp_path / "none")


def test_open_files_are_a_warning(authority: Path) -> None:
    (authority / "nodes" / "hall" / "node").chmod(0o644)
    (warning,) = read_node_bundle(authority / "nodes" / "hall").warnings
    assert "chmod 600" in warning
    (authority / "server.key").chmod(0o640)
    (warning,) = read_authority(authority).warnings
    assert "server.key" in warning


def test_what_ends_is_announced_a_month_ahead(authority: Path) -> None:
    now, bundle = time.time(), authority / "nodes" / "hall"
    end = read_node_bundle(bundle).token_expiry
    assert (
        read_node_bundle(bundle, end - 31 * DAY).warnings
        == read_authority(authority, end - 31 * DAY).warnings
        == ()
    )
    (warning,) = read_node_bundle(bundle, end - 29 * DAY).warnings
    assert re.search(
        r"token: expires on \d{4}-\d\d-\d\d; before that: fedstill certs renew CERTS hall$", warning
    )
    warnings = read_authority(authority, end - 29 * DAY).warnings
    assert [warning.partition(":")[0] for warning in warnings] == ["token of kitchen", "token of hall"]
    revoke_node(authority, "kitchen")
    assert len(read_authority(authority, end - 29 * DAY).warnings) == 1
    (server, *_) = read_authority(authority, now + (SERVER_DAYS - 20) * DAY).warnings
    assert "server.crt: expires on" in server
    assert "fedstill certs server CERTS" in server


def test_tokens_outlive_a_server_certificate_that_nobody_uses(authority: Path) -> None:
    """A server with a certificate from elsewhere, and every server once it runs, needs secret and register alone."""
    made = read_authority(authority)
    late = time.time() + (CA_DAYS + 1) * DAY
    with pytest.raises(CredentialError, match="expired on"):
        read_authority(authority, late)
    assert read_authority(authority, late, server_certificate=False).secret == made.secret
    (authority / "server.crt").unlink()
    assert refreshed(made).secret == made.secret
    revoke_node(authority, "kitchen")
    assert "kitchen" in refreshed(made).revoked_names


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """Another authority."""
    create_authority(tmp_path / "other")
    return tmp_path / "other"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("server.crt", r"server\.crt: not signed by the ca\.crt"),
        ("server.key", r"server\.key: does not belong to the server\.crt"),
        ("ca.crt", r"server\.crt: not signed by the ca\.crt"),
    ],
)
def test_a_strangers_file_is_refused(authority: Path, stranger: Path, name: str, message: str) -> None:
    shutil.copy(stranger / name, authority / name)
    with pytest.raises(CredentialError, match=message):
        read_authority(authority)


def test_expiry_and_clock_are_checked(authority: Path) -> None:
    now = time.time()
    with pytest.raises(CredentialError, match=r"server\.crt: expired"):
        read_authority(authority, now + (SERVER_DAYS + 1) * DAY)
    with pytest.raises(CredentialError, match=r"ca\.crt: expired"):
        read_authority(authority, now + (CA_DAYS + 1) * DAY)
    with pytest.raises(CredentialError, match="check this clock"):
        read_authority(authority, now - DAY)


def test_the_authoritys_own_key_may_be_kept_elsewhere(authority: Path) -> None:
    (authority / "ca.key").unlink()
    assert len(read_authority(authority).nodes) == 2
    assert issue_node(authority, "den").client == 2
    with pytest.raises(CredentialError, match=r"ca\.key: missing"):
        renew_server(authority)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["issue", "none", "hall"], "fedstill certs init"),
        (["list", "none"], "fedstill certs init"),
        (["revoke", "certs", "den"], "den: no such node; issued are: kitchen, hall"),
        (["init", "new", "--ip", "cloud"], "a name goes into --host"),
        (["init", "new", "--host", "https://cloud"], "without scheme"),
        (["init", "certs/ca.crt"], "certs/ca.crt: "),
    ],
)
def test_mistakes_at_the_command_line(
    authority: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(authority.parent)
    monkeypatch.setattr(console.errors, "_width", 300)
    done = CliRunner().invoke(cli.app, ["certs", *arguments])
    assert done.exit_code == 2, repr(done.exception)
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_commands_from_init_to_revoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for line in (
        "init c --host cloud.example.org",
        "issue c hall",
        "issue c den --client 5",
        "revoke c hall",
    ):
        assert CliRunner().invoke(cli.app, ["certs", *line.split()]).exit_code == 0, line
    listed = CliRunner().invoke(cli.app, ["certs", "list", "c"]).stdout.splitlines()
    assert [line.split()[:4] for line in listed] == [
        ["hall", "client", "0", "revoked"],
        ["den", "client", "5", "until"],
    ]


@given(name=st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True), expiry=st.integers(1, 2**40))
def test_a_token_tells_its_name_until_it_expires(name: str, expiry: int) -> None:
    token = tokens.issue(SECRET, name, expiry)
    assert token.startswith(f"{name}.{expiry}.")
    assert tokens.verify(SECRET, token, expiry - 1) == name
    with pytest.raises(tokens.TokenError, match="expired"):
        tokens.verify(SECRET, token, expiry)
    with pytest.raises(tokens.TokenError, match="revoked"):
        tokens.verify(SECRET, token, 0, {name})
    with pytest.raises(tokens.TokenError, match="not one of"):
        tokens.verify(bytes(32), token, 0)


def test_a_token_of_known_content() -> None:
    """HMAC-SHA256 of "hall.2000000000" under 00 01 .. 1f, from OpenSSL's command line."""
    assert tokens.issue(SECRET, "hall", 2_000_000_000) == "hall.2000000000." + GOLDEN


GOLDEN = "p0CSX5z-xDRPQbJuG80pI9MdXVodYnoerUbDB8xny10"


@given(data=st.data())
def test_no_changed_token_is_accepted(data: st.DataObject) -> None:
    token = tokens.issue(SECRET, "hall", 2_000_000_000)
    where = data.draw(st.integers(0, len(token) - 1))
    what = data.draw(st.characters().filter(lambda character: character != token[where]))
    how = data.draw(st.sampled_from(["replace", "insert", "drop"]))
    changed = {
        "replace": token[:where] + what + token[where + 1 :],
        "insert": token[:where] + what + token[where:],
        "drop": token[:where] + token[where + 1 :],
    }[how]
    with pytest.raises(tokens.TokenError):
        tokens.verify(SECRET, changed, 0)


def test_tags_are_kept_changed_and_checked(authority: Path) -> None:
    issue_node(authority, "attic", tags=("old", "top", "old"))
    assert list_nodes(authority)[-1].tags == ("old", "top")
    assert tag_node(authority, "attic", ("new",)).tags == list_nodes(authority)[-1].tags == ("new",)
    with pytest.raises(CredentialError, match="'not a tag' is no tag: use up to 63"):
        tag_node(authority, "attic", ("not a tag",))
    with pytest.raises(CredentialError, match="is no tag"):
        issue_node(authority, "cellar", tags=("Old",))
    with pytest.raises(CredentialError):
        tag_node(authority, "nobody", ("new",))
