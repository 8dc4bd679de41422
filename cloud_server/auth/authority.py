"""The issuing side of credentials: a development certificate authority and the register of its nodes.

One folder holds everything that the coordinator needs to prove its identity and to recognise its nodes: the authority,
the server's certificate, the secret of the inference tokens and ``nodes.json``. Nodes have no certificates: Flower
knows them by their public key, our own service by their token, and both are checked against the register, so that
revoking a node is one line in one file. A name is never issued twice, because a token names its node, and a key that
Flower unregistered can never come back.
"""

from __future__ import annotations

import fcntl
import json
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from fedstill.cloud_server.auth.certificates import make_root, make_server, server_names
from fedstill.cloud_server.auth.tokens import SECRET_BYTES, issue
from fedstill.cloud_server.grpc.server_tls import ServerTls
from fedstill.common.atomic_files import PRIVATE, PUBLIC, replace_file
from fedstill.common.credentials import (
    CA_FILE,
    IDENTITY_FILE,
    NEW_AUTHORITY,
    NODE_KEY_FILE,
    NODE_PUBLIC_FILE,
    TOKEN_FILE,
    CredentialError,
    NodeIdentity,
    check_name,
    ends_soon,
    fingerprint,
    open_secrets,
    parse,
    read_bytes,
    read_certificate,
    valid_until,
)
from fedstill.common.dataclass_codec import PlainError, from_plain, to_plain

CA_KEY_FILE = "ca.key"
SERVER_FILE = "server.crt"
SERVER_KEY_FILE = "server.key"
SECRET_FILE = "inference.secret"
REGISTER_FILE = "nodes.json"
LOCK_FILE = "lock"
NODES_FOLDER = "nodes"

TOKEN_DAYS = 365


@dataclass(frozen=True)
class IssuedNode:
    """One row of the register."""

    name: str
    client: int
    fingerprint: str
    public_key: str
    """In OpenSSH format, as ``flwr supernode register`` takes it."""
    token_expiry: int
    revoked: bool = False
    tags: tuple[str, ...] = ()
    """By which an operator names several at once."""
    token_days: int = 0
    """For how long it was issued; 0: before that was noted."""


@dataclass(frozen=True)
class _Register:
    nodes: tuple[IssuedNode, ...] = ()


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
    with _locked(directory):
        if (directory / CA_FILE).exists() and not force:
            raise CredentialError(
                f"{directory}: holds an authority already; --force replaces it, and every node needs new credentials"
            )
        shutil.rmtree(directory / NODES_FOLDER, ignore_errors=True)  # these trust the old authority
        (directory / REGISTER_FILE).unlink(missing_ok=True)
        key, certificate = make_root()
        replace_file(directory / CA_KEY_FILE, _pem(key), PRIVATE)
        replace_file(directory / CA_FILE, certificate.public_bytes(Encoding.PEM), PUBLIC)
        replace_file(directory / SECRET_FILE, secrets.token_bytes(SECRET_BYTES), PRIVATE)
        _write_server(directory, key, certificate, names)
        _write_register(directory, ())
    return read_authority(directory)


def renew_server(directory: Path, hosts: Sequence[str] = (), addresses: Sequence[str] = ()) -> Authority:
    """A new server certificate of the same authority, for new names or another ``certificates.SERVER_DAYS`` days.

    Raises:
        CredentialError: there is no authority, its key is elsewhere, or a name is invalid.
    """
    names = server_names(hosts, addresses)
    with _locked(_existing(directory)):
        certificate = read_certificate(directory / CA_FILE, time.time())
        key = _private_key(directory / CA_KEY_FILE)
        if key.public_key() != certificate.public_key():
            raise CredentialError(f"{directory / CA_KEY_FILE}: does not belong to the {CA_FILE} beside it")
        _write_server(directory, key, certificate, names)
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
    folder = _existing(directory).resolve()
    ending = _check_certificates(folder, now) if server_certificate else ()
    secret, nodes = _read_secret(folder), list_nodes(folder)
    private = [folder / SERVER_KEY_FILE, folder / SECRET_FILE, folder / CA_KEY_FILE]
    return Authority(
        directory=folder,
        ca_file=folder / CA_FILE,
        certificate_file=folder / SERVER_FILE,
        key_file=folder / SERVER_KEY_FILE,
        secret=secret,
        nodes=nodes,
        warnings=(
            *open_secrets(*(path for path in private if path.exists())),
            *ending,
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


def _check_certificates(folder: Path, now: float) -> tuple[str, ...]:
    """Returns warnings. Raises CredentialError."""
    issuer = read_certificate(folder / CA_FILE, now)
    certificate = read_certificate(folder / SERVER_FILE, now, issuer)
    if _private_key(folder / SERVER_KEY_FILE).public_key() != certificate.public_key():
        raise CredentialError(f"{folder / SERVER_KEY_FILE}: does not belong to the {SERVER_FILE} beside it")
    return (
        *ends_soon(folder / SERVER_FILE, valid_until(certificate), now, "fedstill certs server CERTS"),
        *ends_soon(folder / CA_FILE, valid_until(issuer), now, NEW_AUTHORITY),
    )


def _read_secret(folder: Path) -> bytes:
    secret = read_bytes(folder / SECRET_FILE)
    if len(secret) != SECRET_BYTES:
        raise CredentialError(f"{folder / SECRET_FILE}: damaged; {SECRET_BYTES} bytes are needed")
    return secret


def list_nodes(directory: Path) -> tuple[IssuedNode, ...]:
    """Every node that was ever issued, in order; cheap enough to be called every few seconds.

    Raises:
        CredentialError: there is no register, or it is damaged.
    """
    path = _existing(directory) / REGISTER_FILE
    try:
        return from_plain(_Register, json.loads(read_bytes(path))).nodes
    except (PlainError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CredentialError(f"{path}: {error}") from error


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
    with _locked(_existing(directory)):
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
        _write_register(directory, (*nodes, node))  # last: a node in the register is complete
    return node


def tag_node(directory: Path, name: str, tags: Sequence[str]) -> IssuedNode:
    """Give a node these tags instead of those that it has. A running coordinator sees it.

    Raises:
        CredentialError: no such node, or a tag is invalid.
    """
    _check_tags(tags)
    with _locked(_existing(directory)):
        node = replace(_find(directory, name), tags=_unique(tags))
        _update(directory, node)
    return node


def _check_tags(tags: Sequence[str]) -> None:
    for tag in tags:
        check_name(tag, "tag")


def _unique(tags: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(set(tags)))


def renew_token(directory: Path, name: str, days: int = TOKEN_DAYS) -> IssuedNode:
    """A new token for a node whose old one expires; it must be copied to the node again.

    Raises:
        CredentialError: no such node, or it is revoked.
    """
    with _locked(_existing(directory)):
        node = _in_force(directory, name)
        node = replace(node, token_expiry=_expiry(days), token_days=days)
        (directory / NODES_FOLDER / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_token(directory, node)
        _update(directory, node)
    return node


def prolonged_token(directory: Path, name: str, seconds: float) -> str:
    """A token for a node that has shown an older one: the newest that it was issued, if that is good for so many
    seconds; else a new one for as many days, which is entered in the register. Empty for a node whose tokens were
    issued for no longer than ``seconds``: their end is meant.

    Raises:
        CredentialError: no such node, it is revoked, or the register cannot be written, or not now.
    """
    try:
        node = _in_force(directory, name)
        if node.token_days * 86_400 <= seconds:
            return ""
        if node.token_expiry <= time.time() + seconds:
            with _locked(_existing(directory), wait=False):
                node = _in_force(directory, name)  # it may have been revoked in between
                node = replace(node, token_expiry=_expiry(node.token_days))
                if (directory / NODES_FOLDER / name / TOKEN_FILE).exists():  # else it was moved to the device
                    _write_token(directory, node)
                _update(directory, node)
        return issue(_read_secret(directory), name, node.token_expiry)
    except OSError as error:
        raise CredentialError(f"{directory}: {error.strerror or error}") from error


def _in_force(directory: Path, name: str) -> IssuedNode:
    """Raises CredentialError: no such node, or it is revoked."""
    node = _find(directory, name)
    if node.revoked:
        raise CredentialError(f"{name}: revoked; issue a node of another name")
    return node


def revoke_node(directory: Path, name: str) -> IssuedNode:
    """Mark a node as revoked, for ever. A running coordinator sees it and acts (key and token are refused).

    Raises:
        CredentialError: no such node.
    """
    with _locked(_existing(directory)):
        node = replace(_find(directory, name), revoked=True)
        _update(directory, node)
    return node


def _find(directory: Path, name: str) -> IssuedNode:
    nodes = {node.name: node for node in list_nodes(directory)}
    if name not in nodes:
        raise CredentialError(f"{name}: no such node; issued are: {', '.join(nodes) or 'none yet'}")
    return nodes[name]


def _update(directory: Path, changed: IssuedNode) -> None:
    nodes = (changed if node.name == changed.name else node for node in list_nodes(directory))
    _write_register(directory, tuple(nodes))


def _existing(directory: Path) -> Path:
    if not (directory / CA_FILE).is_file():
        raise CredentialError(
            f"{directory}: no authority here; make one with: fedstill certs init {directory}"
        )
    return directory


@contextmanager
def _locked(directory: Path, wait: bool = True) -> Iterator[None]:
    """Two commands at once must not issue one client number twice; a folder that cannot be locked is one line.

    wait: for another one that holds it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / LOCK_FILE).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
    except BlockingIOError:
        raise CredentialError(f"{directory}: another process holds its lock") from None
    except OSError as error:
        raise CredentialError(f"{error.filename or directory}: {error.strerror}") from error


def _write_server(
    directory: Path,
    issuer_key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate,
    names: x509.SubjectAlternativeName,
) -> None:
    key, certificate = make_server(issuer_key, issuer, names)
    replace_file(directory / SERVER_KEY_FILE, _pem(key), PRIVATE)
    replace_file(directory / SERVER_FILE, certificate.public_bytes(Encoding.PEM), PUBLIC)


def _expiry(days: int) -> int:
    return int(time.time()) + days * 86400


def _write_token(directory: Path, node: IssuedNode) -> None:
    token = issue(read_bytes(directory / SECRET_FILE), node.name, node.token_expiry)
    replace_file(directory / NODES_FOLDER / node.name / TOKEN_FILE, token.encode("ascii"), PRIVATE)


def _write_register(directory: Path, nodes: tuple[IssuedNode, ...]) -> None:
    content = json.dumps(to_plain(_Register(nodes)), indent=2)
    replace_file(directory / REGISTER_FILE, content.encode("ascii"), PUBLIC)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = parse(path, lambda content: load_pem_private_key(content, password=None))
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CredentialError(f"{path}: not an elliptic-curve key")
    return key
