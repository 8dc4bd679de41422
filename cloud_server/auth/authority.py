"""The issuing side of credentials: a development certificate authority and the register of its nodes.

One folder holds everything that the coordinator needs to prove its identity and to recognise its nodes: the authority,
the server's certificate, the secret of the inference tokens and ``nodes.json``. Nodes have no certificates: Flower
knows them by their public key, our own service by their token, and both are checked against the register, so that
revoking a node is one line in one file. A name is never issued twice, because a token names its node, and a key that
Flower unregistered can never come back.
"""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from fedstill.cloud_server.auth.authority_files import (
    CA_KEY_FILE,
    FORMER_FILE,
    NEXT_KEY_FILE,
    SERVER_FILE,
    SERVER_KEY_FILE,
    VOUCHES_FILE,
    certificates_pem,
    key_of,
    key_pem,
    private_key,
    read_roots,
    read_server,
    strangers,
    trusted_roots,
)
from fedstill.cloud_server.auth.certificates import make_root, make_server, server_names
from fedstill.cloud_server.auth.lost_nodes import lost_node_warnings
from fedstill.cloud_server.auth.register import (
    REGISTER_FILE,
    IssuedNode,
    existing,
    find,
    in_force,
    list_nodes,
    locked,
    update,
    write_register,
)
from fedstill.cloud_server.auth.tokens import SECRET_BYTES, issue
from fedstill.cloud_server.grpc.server_tls import ServerTls
from fedstill.common.atomic_files import PRIVATE, PUBLIC, replace_file
from fedstill.common.credentials import (
    CA_FILE,
    IDENTITY_FILE,
    NODE_KEY_FILE,
    NODE_PUBLIC_FILE,
    ROLL_OVER,
    TOKEN_FILE,
    CredentialError,
    NodeIdentity,
    check_dates,
    check_name,
    ends_soon,
    fingerprint,
    open_secrets,
    read_bytes,
    valid_until,
)
from fedstill.common.dataclass_codec import to_plain
from fedstill.common.trusted_roots import root_fingerprint

SECRET_FILE = "inference.secret"
NODES_FOLDER = "nodes"

TOKEN_DAYS = 365
AUTHORITY_NOTICE_DAYS = 365
"""Before the end of the root that issues: a roll-over waits for devices that are away."""


@dataclass(frozen=True)
class Authority:
    """A checked authority folder; paths are absolute."""

    directory: Path
    ca_file: Path
    certificate_file: Path
    key_file: Path
    secret: bytes = field(repr=False)
    """Signs the inference tokens (``cloud_server/auth/tokens.py``)."""
    nodes: tuple[IssuedNode, ...]
    certificate: bytes
    """Of the server, as it was read; empty if it has its own from elsewhere."""
    warnings: tuple[str, ...] = ()

    @property
    def tls(self) -> ServerTls:
        """The TLS files of the cloud's servers."""
        return ServerTls(self.ca_file, self.certificate_file, self.key_file)

    @property
    def revoked_names(self) -> frozenset[str]:
        """The nodes whose tokens are refused and whose keys are to be unregistered."""
        return frozenset(node.name for node in self.nodes if node.revoked)


def create_authority(
    directory: Path, hosts: Sequence[str] = (), addresses: Sequence[str] = (), *, force: bool = False
) -> Authority:
    """Make an authority, a server certificate and a token secret; with ``force`` in place of an older one.

    ``hosts`` and ``addresses`` are the names under which devices reach the server; loopback is always among them.

    Raises:
        CredentialError: the folder already holds an authority, or a name is invalid.
    """
    names = server_names(hosts, addresses)
    with locked(directory):
        if (directory / CA_FILE).exists() and not force:
            raise CredentialError(
                f"{directory}: holds an authority already; --force replaces it, and every node needs new credentials"
            )
        shutil.rmtree(directory / NODES_FOLDER, ignore_errors=True)  # these trust the old authority
        for file in (REGISTER_FILE, NEXT_KEY_FILE, VOUCHES_FILE, FORMER_FILE):
            (directory / file).unlink(missing_ok=True)
        key, certificate = make_root()
        replace_file(directory / CA_KEY_FILE, key_pem(key), PRIVATE)
        replace_file(directory / CA_FILE, certificates_pem(certificate), PUBLIC)
        replace_file(directory / SECRET_FILE, secrets.token_bytes(SECRET_BYTES), PRIVATE)
        _write_server(directory, key, certificate, names)
        write_register(directory, ())
    return read_authority(directory)


def renew_server(directory: Path, hosts: Sequence[str] = (), addresses: Sequence[str] = ()) -> Authority:
    """A new server certificate of the same authority, for new names or another ``certificates.SERVER_DAYS`` days.

    Raises:
        CredentialError: there is no authority, its key is elsewhere, or a name is invalid.
    """
    names = server_names(hosts, addresses)
    with locked(existing(directory)):
        issuer = _issuing(directory)
        check_dates(directory / CA_FILE, issuer, time.time())
        _write_server(directory, key_of(directory, issuer), issuer, names)
    return read_authority(directory)


def read_authority(
    directory: Path, now: float | None = None, *, server_certificate: bool = True
) -> Authority:
    """Read and check an authority folder. The authority's own key is not needed and may be kept elsewhere.

    Args:
        server_certificate: False for a server that has its own from elsewhere: then only the secret and the register
            have to be good.

    Raises:
        CredentialError: something is missing, damaged, expired, or does not belong together.
    """
    now = time.time() if now is None else now
    folder = existing(directory).resolve()
    ending = _check_certificates(folder, now) if server_certificate else ()
    secret, nodes = _read_secret(folder), list_nodes(folder)
    private = [folder / name for name in (SERVER_KEY_FILE, SECRET_FILE, CA_KEY_FILE, NEXT_KEY_FILE)]
    lost = lost_node_warnings(folder, nodes) if server_certificate else ()
    return Authority(
        directory=folder,
        ca_file=folder / CA_FILE,
        certificate_file=folder / SERVER_FILE,
        key_file=folder / SERVER_KEY_FILE,
        secret=secret,
        nodes=nodes,
        certificate=read_bytes(folder / SERVER_FILE) if server_certificate else b"",
        warnings=(
            *open_secrets(*(path for path in private if path.exists())),
            *ending,
            *lost,
            *(
                warning
                for node in nodes
                if not node.revoked
                for warning in ends_soon(
                    f"token of {node.name}", node.token_expiry, now, f"fedstill certs renew CERTS {node.name}"
                )
            ),
        ),
    )


def refreshed(authority: Authority) -> Authority:
    """With secret and register as they are now, which is all that tokens need. Raises CredentialError."""
    folder = authority.directory
    return replace(authority, secret=_read_secret(folder), nodes=list_nodes(folder))


def _issuing(folder: Path) -> x509.Certificate:
    """The root that issues; if the server's certificate, which would tell, is damaged, the one that all trust."""
    try:
        return read_roots(folder).issuing
    except CredentialError:
        return trusted_roots(folder)[0]


def _check_certificates(folder: Path, now: float) -> tuple[str, ...]:
    """Returns warnings. Raises CredentialError."""
    roots = read_roots(folder)
    check_dates(folder / CA_FILE, roots.issuing, now)
    certificate = read_server(folder)
    check_dates(folder / SERVER_FILE, certificate, now)
    if private_key(folder / SERVER_KEY_FILE).public_key() != certificate.public_key():
        raise CredentialError(f"{folder / SERVER_KEY_FILE}: does not belong to the {SERVER_FILE} beside it")
    next_step = f"{ROLL_OVER} CERTS --finish" if roots.begun and not roots.finished else f"{ROLL_OVER} CERTS"
    return (
        *strangers(folder, roots),
        *ends_soon(folder / SERVER_FILE, valid_until(certificate), now, "fedstill certs server CERTS"),
        *ends_soon(folder / CA_FILE, valid_until(roots.issuing), now, next_step, AUTHORITY_NOTICE_DAYS),
    )


def _read_secret(folder: Path) -> bytes:
    secret = read_bytes(folder / SECRET_FILE)
    if len(secret) != SECRET_BYTES:
        raise CredentialError(f"{folder / SECRET_FILE}: damaged; {SECRET_BYTES} bytes are needed")
    return secret


def issue_node(
    directory: Path,
    name: str,
    client: int | None = None,
    days: int = TOKEN_DAYS,
    tags: Sequence[str] = (),
) -> IssuedNode:
    """Make the bundle ``directory/nodes/NAME`` and enter the node in the register.

    Client numbers are handed out in order; a chosen one must not belong to a node that is not revoked.

    Raises:
        CredentialError: the name or the client number is taken, or the name or a tag is invalid.
    """
    check_name(name)
    _check_tags(tags)
    with locked(existing(directory)):
        nodes = list_nodes(directory)
        if any(node.name == name for node in nodes):
            raise CredentialError(f"{name}: issued already, and a name is never given twice; choose another")
        if client is None:
            client = 1 + max((node.client for node in nodes), default=-1)
        holder = next((node.name for node in nodes if node.client == client and not node.revoked), None)
        if holder is not None:
            raise CredentialError(f"client {client} is {holder}; choose another, or revoke {holder} first")
        key = ec.generate_private_key(ec.SECP384R1())
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")
        node = IssuedNode(
            name, client, fingerprint(key.public_key()), f"{public} {name}", _expiry(days),
            tags=_unique(tags), token_days=days,
            roots=tuple(map(root_fingerprint, trusted_roots(directory))),
        )  # fmt: skip
        folder = directory / NODES_FOLDER / name
        shutil.rmtree(folder, ignore_errors=True)  # left by an interrupted issue: not in the register
        folder.mkdir(parents=True, mode=0o700)
        identity = NodeIdentity(name, client, node.fingerprint)
        replace_file(
            folder / NODE_KEY_FILE,
            key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
            PRIVATE,
        )
        replace_file(folder / NODE_PUBLIC_FILE, f"{node.public_key}\n".encode("ascii"), PUBLIC)
        replace_file(folder / IDENTITY_FILE, json.dumps(to_plain(identity), indent=2).encode("ascii"), PUBLIC)
        replace_file(folder / CA_FILE, read_bytes(directory / CA_FILE), PUBLIC)
        _write_token(directory, node)
        write_register(directory, (*nodes, node))  # last: a node in the register is complete
    return node


def tag_node(directory: Path, name: str, tags: Sequence[str]) -> IssuedNode:
    """Give a node these tags instead of those that it has. A running coordinator sees it.

    Raises:
        CredentialError: no such node, or a tag is invalid.
    """
    _check_tags(tags)
    with locked(existing(directory)):
        node = replace(find(directory, name), tags=_unique(tags))
        update(directory, node)
    return node


def _check_tags(tags: Sequence[str]) -> None:
    for tag in tags:
        check_name(tag, "tag")


def _unique(tags: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(set(tags)))


def renew_token(directory: Path, name: str, days: int = TOKEN_DAYS) -> IssuedNode:
    """A new token for a node whose old one expires, and the roots of now; they must be copied to the node again.

    Raises:
        CredentialError: no such node, or it is revoked.
    """
    with locked(existing(directory)):
        node = in_force(directory, name)
        node = replace(node, token_expiry=_expiry(days), token_days=days)
        folder = directory / NODES_FOLDER / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(folder / CA_FILE, read_bytes(directory / CA_FILE), PUBLIC)
        _write_token(directory, node)
        update(directory, node)
    return node


def prolonged_token(directory: Path, name: str, seconds: float) -> str:
    """A token for a node that has shown an older one: the newest that it was issued, if that is good for so many
    seconds; else a new one for as many days, which is entered in the register. Empty for a node whose tokens were
    issued for no longer than ``seconds``: their end is meant.

    Raises:
        CredentialError: no such node, it is revoked, or the register cannot be written, or not now.
    """
    try:
        node = in_force(directory, name)
        if node.token_days * 86_400 <= seconds:
            return ""
        if node.token_expiry <= time.time() + seconds:
            with locked(existing(directory), wait=False):
                node = in_force(directory, name)  # it may have been revoked in between
                node = replace(node, token_expiry=_expiry(node.token_days))
                if (directory / NODES_FOLDER / name / TOKEN_FILE).exists():  # else it was moved to the device
                    _write_token(directory, node)
                update(directory, node)
        return issue(_read_secret(directory), name, node.token_expiry)
    except OSError as error:
        raise CredentialError(f"{directory}: {error.strerror or error}") from error


def revoke_node(directory: Path, name: str) -> IssuedNode:
    """Mark a node as revoked, for ever. A running coordinator sees it and acts (key and token are refused).

    Raises:
        CredentialError: no such node.
    """
    with locked(existing(directory)):
        node = replace(find(directory, name), revoked=True)
        update(directory, node)
    return node


def _write_server(
    directory: Path,
    issuer_key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate,
    names: x509.SubjectAlternativeName,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = make_server(issuer_key, issuer, names, key.public_key())
    replace_file(directory / SERVER_KEY_FILE, key_pem(key), PRIVATE)
    replace_file(directory / SERVER_FILE, certificates_pem(certificate), PUBLIC)


def _expiry(days: int) -> int:
    return int(time.time()) + days * 86400


def _write_token(directory: Path, node: IssuedNode) -> None:
    token = issue(read_bytes(directory / SECRET_FILE), node.name, node.token_expiry)
    replace_file(directory / NODES_FOLDER / node.name / TOKEN_FILE, token.encode("ascii"), PRIVATE)
