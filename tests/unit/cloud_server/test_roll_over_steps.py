"""The three steps of a roll-over: what each leaves, also when it is killed, and what an operator reads."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cryptography import x509
from helpers.roll_over import took, without
from typer.testing import CliRunner

from fedstill.cli import main as cli
from fedstill.cli.shared import console
from fedstill.cloud_server.auth.authority import (
    create_authority,
    issue_node,
    read_authority,
    renew_server,
    renew_token,
    revoke_node,
)
from fedstill.cloud_server.auth.authority_files import VOUCHES_FILE, read_roots
from fedstill.cloud_server.auth.certificates import CA_DAYS
from fedstill.cloud_server.auth.register import list_nodes
from fedstill.cloud_server.auth.roll_over import begin, drop_old, finish, read_roll_over
from fedstill.cloud_server.coordinator.coordinator import _not_shown_yet
from fedstill.cloud_server.coordinator.proxy_process import ProxyProcess
from fedstill.common.credentials import CredentialError, read_node_bundle
from fedstill.common.trusted_roots import (
    UNKNOWN_AUTHORITY,
    accepted_roots,
    fingerprints,
    keep_roots,
    newest_roots_file,
)
from fedstill.edge_client.node.supernode import Link, SuperNode, exit_reason

DAY = 86400.0


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    create_authority(tmp_path / "certs", ["cloud.example.org"], ["192.0.2.7"])
    for name in ("kitchen", "hall"):
        issue_node(tmp_path / "certs", name)
    return tmp_path / "certs"


@contextmanager
def showing(certs: Path) -> Iterator[int]:
    """A TLS server with the certificate of now."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs / "server.crt", certs / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with suppress(OSError), context.wrap_socket(connection, server_side=True):
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def greet(port: int, roots: Path) -> None:
    """As Flower's connection does."""
    context = ssl.create_default_context(cafile=str(roots))
    with socket.create_connection(("127.0.0.1", port), 5) as plain:
        context.wrap_socket(plain, server_hostname="localhost").close()


def test_each_step_changes_what_it_says_and_nothing_else(certs: Path) -> None:
    before = {name: (certs / name).read_bytes() for name in ("inference.secret", "server.key", "server.crt")}
    tokens = [node.token_expiry for node in list_nodes(certs)]
    (old,) = read_roots(certs).trusted
    begin(certs)
    assert read_roots(certs).trusted[0] == old == read_roots(certs).issuing
    assert {name: (certs / name).read_bytes() for name in before} == before
    assert (certs / "nodes" / "hall" / "ca.crt").read_bytes() == (certs / "ca.crt").read_bytes()
    new = read_roots(certs).newest
    assert begin(certs).roots.newest == new, "one that is under way is no other one"
    for name in ("kitchen", "hall"):
        took(certs, name)
    finish(certs)
    roots = read_roots(certs)
    assert (roots.issuing, roots.trusted) == (new, (old, new))
    server = x509.load_pem_x509_certificate((certs / "server.crt").read_bytes())
    for name in ("cloud.example.org", "192.0.2.7", "127.0.0.1"):
        assert name in str(server.extensions.get_extension_for_class(x509.SubjectAlternativeName))
    renew_server(certs, ["other.example.org"])
    assert read_roots(certs).issuing == new, "certs server goes on with the new one"
    drop_old(certs)
    assert read_roots(certs).trusted == (new,)
    renew_server(certs)
    assert read_roots(certs).issuing == new
    assert not (certs / "next-ca.key").exists()
    assert (certs / "inference.secret").read_bytes() == before["inference.secret"]
    assert [node.token_expiry for node in list_nodes(certs)] == tokens
    assert begin(certs).roots.newest != new, "and once more, in ten years"


def test_python_and_the_supernode_trust_what_was_kept(certs: Path, tmp_path: Path) -> None:
    """The file has a line before the first root, and Flower gets it as it is."""
    given, kept = tmp_path / "given.crt", tmp_path / "kept.pem"
    shutil.copy(certs / "ca.crt", given)
    node = SuperNode(tmp_path, Link("127.0.0.1:1", given, None, kept_ca=kept), 0, "hall")
    assert node._trust()[1] == str(given)
    begin(certs)
    keep_roots(kept, given.read_bytes(), (certs / "ca.crt").read_bytes())
    assert node._trust()[1] == str(kept), "from the next start of the SuperNode"
    with showing(certs) as port:
        greet(port, kept)
        greet(port, given)
    finish(certs, without_them=True)
    with showing(certs) as port:
        greet(port, kept)
        with pytest.raises(ssl.SSLCertVerificationError) as refused:
            greet(port, given)
    (tmp_path / "supernode.log").write_text(f"ERROR: {refused.value}\n")
    assert exit_reason(tmp_path / "supernode.log") == UNKNOWN_AUTHORITY
    shutil.copy(certs / "ca.crt", given)
    assert newest_roots_file(kept, given) == given, "what is copied by hand counts"


def test_it_waits_for_nodes_and_names_them(certs: Path) -> None:
    with pytest.raises(
        CredentialError, match="no roll-over is under way; begin with: fedstill certs roll-over"
    ):
        finish(certs)
    with pytest.raises(CredentialError, match="no roll-over is finished"):
        drop_old(certs)
    begin(certs)
    issue_node(certs, "new")  # with both roots
    issue_node(certs, "gone")
    assert without(certs) == ["kitchen", "hall"]
    with pytest.raises(
        CredentialError, match=r"2 of 4 nodes have not taken .* yet: kitchen, hall; "
    ) as refused:
        finish(certs)
    assert "\n" not in str(refused.value)
    with pytest.raises(CredentialError, match="no roll-over is finished"):
        drop_old(certs)
    took(certs, "kitchen")
    revoke_node(certs, "hall")
    finish(certs)
    assert drop_old(certs).without == ()


def test_a_renewed_token_comes_with_the_roots_of_now(certs: Path) -> None:
    shutil.rmtree(certs / "nodes" / "hall")  # was moved to the device
    begin(certs)
    renew_token(certs, "hall")
    assert (certs / "nodes" / "hall" / "ca.crt").read_bytes() == (certs / "ca.crt").read_bytes()
    assert "hall" in without(certs), "nobody knows yet whether it was copied"


def test_the_old_key_is_needed_to_begin_and_the_new_one_to_finish(certs: Path, tmp_path: Path) -> None:
    (certs / "ca.key").rename(tmp_path / "ca.key")
    with pytest.raises(CredentialError, match=r"certs/ca\.key: missing; put the key of the root of 2\d{3}-"):
        begin(certs)
    (tmp_path / "ca.key").rename(certs / "ca.key")
    begin(certs)
    (certs / "next-ca.key").rename(tmp_path / "next")
    with pytest.raises(
        CredentialError, match=r"certs/next-ca\.key: missing, .* put the key of the root of 2"
    ):
        finish(certs, without_them=True)
    (tmp_path / "next").rename(certs / "next-ca.key")
    finish(certs, without_them=True)


def test_force_makes_an_authority_without_a_past(certs: Path) -> None:
    begin(certs)
    create_authority(certs, force=True)
    assert not read_roll_over(certs).roots.succeeded
    assert not (certs / "next-ca.key").exists()


def test_a_register_of_before_opens_and_counts_as_without(certs: Path) -> None:
    rows = json.loads((certs / "nodes.json").read_text())
    for row in rows["nodes"]:
        del row["roots"]
    (certs / "nodes.json").write_text(json.dumps(rows))
    assert without(certs) == [], "there is no roll-over"
    begin(certs)
    assert without(certs) == ["kitchen", "hall"]
    took(certs, "hall")
    assert without(certs) == ["kitchen"]


def test_the_end_of_an_authority_is_announced_a_year_ahead(certs: Path) -> None:
    now = time.time()
    shown = read_authority(certs).certificate
    with pytest.MonkeyPatch.context() as patch:  # certificates of then
        patch.setattr("fedstill.cloud_server.auth.certificates.SERVER_DAYS", CA_DAYS + 1)
        renew_server(certs)
    assert read_authority(certs).certificate != shown

    def told(days: float) -> list[str]:
        warnings = read_authority(certs, now + days * DAY).warnings
        return [one for one in warnings if one.startswith(str(certs / "ca.crt"))]

    assert told(CA_DAYS - 366) == []
    (warning,) = told(CA_DAYS - 364)
    assert re.search(r"expires on .*; before that: fedstill certs roll-over CERTS$", warning)
    begin(certs)
    (warning,) = told(CA_DAYS - 364)
    assert warning.endswith("fedstill certs roll-over CERTS --finish")
    late = now + (CA_DAYS - 20) * DAY
    assert any(
        "fedstill certs roll-over" in one for one in read_node_bundle(certs / "nodes" / "hall", late).warnings
    )


def test_a_device_is_warned_of_the_root_that_lasts_longest(certs: Path, tmp_path: Path) -> None:
    bundle = certs / "nodes" / "hall"
    later = time.time() + (CA_DAYS + 1) * DAY
    (warning,) = [one for one in read_node_bundle(bundle, later).warnings if "ca.crt" in one]
    assert "expired on" in warning
    assert "fedstill certs roll-over CERTS" in warning
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedstill.cloud_server.auth.certificates.CA_DAYS", 2 * CA_DAYS)
        given = (bundle / "ca.crt").read_bytes()
        begin(certs)
    (bundle / "ca.crt").write_bytes(given)
    keep_roots(tmp_path / "kept", given, (certs / "ca.crt").read_bytes())
    told = read_node_bundle(bundle, later, kept_roots=tmp_path / "kept").warnings
    assert not [one for one in told if "ca.crt" in one or "kept" in one]


def test_the_coordinator_says_that_it_shows_an_older_certificate(certs: Path) -> None:
    started_with = read_authority(certs)
    begin(certs)
    assert _not_shown_yet(started_with, read_authority(certs)) == ()
    finish(certs, without_them=True)
    (warning,) = _not_shown_yet(started_with, read_authority(certs))
    assert re.search(r"server\.crt: was replaced; start the coordinator again", warning)


def test_a_proxy_follows_a_superlink_that_was_started_again(
    certs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has read ``ca.crt`` at its start, and the SuperLink may show a certificate of a newer root by then."""
    done: list[str] = []
    monkeypatch.setattr(ProxyProcess, "open", lambda proxy: done.append("open"))
    monkeypatch.setattr(ProxyProcess, "close", lambda proxy: done.append("close"))
    proxy = ProxyProcess(tmp_path, "127.0.0.1", 0, "https://127.0.0.1:1", read_authority(certs))
    proxy._trusted = (certs / "ca.crt").read_bytes()
    proxy.follow()
    assert done == []
    begin(certs)
    proxy.follow()
    assert done == ["close", "open"]


def test_the_command_says_where_it_stands(certs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(certs.parent)
    monkeypatch.setattr(console.errors, "_width", 400)

    def run(line: str) -> list[str]:
        done = CliRunner().invoke(cli.app, ["certs", *line.split()])
        said = (done.stdout + done.stderr).splitlines()
        return [f"{done.exit_code}", *said]

    assert not any("authority" in line for line in run("list certs"))
    assert run("roll-over certs") == [
        "0",
        "both authorities are to be trusted; the old one signs for the server",
        "0 of 2 nodes trust the new one",
        "without it: kitchen, hall",
        "next: fedstill certs roll-over certs --finish",
    ]
    took(certs, "hall")
    assert [("new" in line, "old" in line) for line in run("list certs")[1:]] == [
        (False, True),
        (True, False),
    ]
    code, line = run("roll-over certs --finish")
    assert code == "2"
    assert "1 of 2 nodes have not taken the new authority yet: kitchen" in line
    assert run("roll-over certs --finish --without-them")[-1] == (
        "next: once the coordinator was started again: fedstill certs roll-over certs --drop-old"
    )
    assert run("roll-over certs --drop-old")[:2] == [
        "0",
        "the new authority alone is to be trusted; the new one signs for the server",
    ]
    for mistake in ("--finish --drop-old", "--without-them"):
        code, line = run(f"roll-over certs {mistake}")
        assert (code, line[:6]) == ("2", "error:")


def test_a_device_that_missed_a_whole_roll_over_but_knew_of_it_goes_on(certs: Path) -> None:
    """It took both roots, and comes back when the next roll-over has begun."""
    device = (certs / "ca.crt").read_bytes()
    begin(certs)
    vouched = (certs / "ca.crt").read_bytes() + (certs / VOUCHES_FILE).read_bytes()
    device = accepted_roots(device, vouched)
    finish(certs, without_them=True)
    drop_old(certs)
    begin(certs)
    vouched = (certs / "ca.crt").read_bytes() + (certs / VOUCHES_FILE).read_bytes()
    assert fingerprints(accepted_roots(device, vouched)) == fingerprints((certs / "ca.crt").read_bytes())
