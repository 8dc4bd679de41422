"""The roll-over of an authority's root, over weeks, in three steps; devices follow by themselves.

1. ``begin``: devices are to trust old and new root; the server's certificate is still of the old one.
2. ``finish``: the server's certificate is of the new one. It waits until every device has said that it trusts that.
3. ``drop_old``: devices are to trust the new one alone.

In every step one file is replaced that counts; what comes before it is of no effect without it, and what comes after is
done by any later step, so a kill at any moment leaves a whole authority. Secret, tokens and register stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from fedstill.cloud_server.auth.authority import NODES_FOLDER
from fedstill.cloud_server.auth.authority_files import (
    CA_KEY_FILE,
    FORMER_FILE,
    NEXT_KEY_FILE,
    SERVER_FILE,
    VOUCHES_FILE,
    Roots,
    certificates_pem,
    find_key,
    key_of,
    key_pem,
    private_key,
    read_former,
    read_roots,
    read_server,
    read_vouches,
    strangers,
)
from fedstill.cloud_server.auth.certificates import ec_public_key, make_root, make_server, make_vouch
from fedstill.cloud_server.auth.lost_nodes import lost_nodes
from fedstill.cloud_server.auth.register import IssuedNode, existing, list_nodes, locked
from fedstill.common.atomic_files import PRIVATE, PUBLIC, replace_file
from fedstill.common.credentials import CA_FILE, ROLL_OVER, CredentialError, parse, read_bytes
from fedstill.common.trusted_roots import root_fingerprint

MOST_NAMES = 20
"""In the one line of a refusal."""


@dataclass(frozen=True)
class RollOver:
    """Where a roll-over stands.

    Attributes:
        roots: of the authority.
        nodes: that are not revoked.
        without: those of them that have not said yet that they trust the newest root.
        lost: those that trust a root which this authority never had, and so follow it no more.
    """

    roots: Roots
    nodes: tuple[IssuedNode, ...]
    without: tuple[IssuedNode, ...]
    lost: tuple[IssuedNode, ...] = ()


def read_roll_over(directory: Path) -> RollOver:
    """Of an authority, of which there may have been none. Raises CredentialError."""
    roots = read_roots(existing(directory))
    nodes = tuple(node for node in list_nodes(directory) if not node.revoked)
    newest = root_fingerprint(roots.newest)
    without = tuple(node for node in nodes if newest not in node.roots) if roots.succeeded else ()
    return RollOver(roots, nodes, without, lost_nodes(directory, nodes))


def begin(directory: Path) -> RollOver:
    """Make a new root, which devices are to trust beside the old one; if one is under way, nothing new.

    Raises:
        CredentialError: no authority, or its key is elsewhere: no device would believe in another root.
    """
    with locked(existing(directory)):
        roots = _roots(directory)
        if not roots.begun:
            old = roots.newest
            old_key = key_of(directory, old)
            if not (directory / CA_KEY_FILE).exists():  # it is in the file that the next one gets
                replace_file(directory / CA_KEY_FILE, key_pem(old_key), PRIVATE)
            key, root = make_root()
            vouches = [one for one in read_vouches(directory) if one.public_key() == old.public_key()]
            vouches.append(make_vouch(old_key, old, root))
            replace_file(directory / NEXT_KEY_FILE, key_pem(key), PRIVATE)
            replace_file(directory / VOUCHES_FILE, certificates_pem(*vouches), PUBLIC)
            replace_file(directory / CA_FILE, certificates_pem(old, root), PUBLIC)  # this counts
        _hand_out(directory)
        return read_roll_over(directory)


def finish(directory: Path, *, without_them: bool = False) -> RollOver:
    """From now on the server's certificate is of the new root: its names and its key stay.

    Args:
        without_them: also if devices do not trust that yet, which are then cut off.

    Raises:
        CredentialError: no roll-over is under way, devices do not trust the new root yet, or its key is elsewhere.
    """
    with locked(existing(directory)):
        _roots(directory)
        now = read_roll_over(directory)
        if not now.roots.begun:
            raise CredentialError(
                f"{directory}: no roll-over is under way; begin with: {ROLL_OVER} {directory}"
            )
        if not now.roots.finished:
            if now.without and not without_them:
                raise CredentialError(
                    f"{directory}: {len(now.without)} of {len(now.nodes)} nodes have not taken the new authority yet: "
                    f"{names_of(now.without)}; wait for them, revoke them, or cut them off with --without-them"
                )
            root, server = now.roots.newest, read_server(directory)
            names = parse(directory / SERVER_FILE, _names)
            made = make_server(key_of(directory, root), root, names, ec_public_key(server))
            replace_file(directory / SERVER_FILE, certificates_pem(made), PUBLIC)  # this counts
        _hand_out(directory)
        return read_roll_over(directory)


def drop_old(directory: Path) -> RollOver:
    """Devices are to trust the new root alone; the old one's key is deleted, wherever the new one's is kept.

    Raises:
        CredentialError: the roll-over is not finished, or there was none.
    """
    with locked(existing(directory)):
        roots = _roots(directory)
        if not roots.finished or not roots.succeeded:
            raise CredentialError(
                f"{directory}: no roll-over is finished; that is done by: {ROLL_OVER} {directory} --finish"
            )
        key = find_key(directory, roots.newest)
        if key is not None:
            replace_file(directory / CA_KEY_FILE, key_pem(key), PRIVATE)
        elif _is_of_old(directory, roots.newest):
            (directory / CA_KEY_FILE).unlink()
        if roots.begun:
            former = read_former(directory)
            dropped = [one for one in roots.trusted[:-1] if one not in former]
            replace_file(directory / FORMER_FILE, certificates_pem(*former, *dropped), PUBLIC)
            replace_file(directory / CA_FILE, certificates_pem(roots.newest), PUBLIC)  # this counts
        (directory / NEXT_KEY_FILE).unlink(missing_ok=True)
        _hand_out(directory)
        return read_roll_over(directory)


def names_of(nodes: Sequence[IssuedNode]) -> str:
    """In one line."""
    rest = f" and {len(nodes) - MOST_NAMES} more" if len(nodes) > MOST_NAMES else ""
    return ", ".join(node.name for node in nodes[:MOST_NAMES]) + rest


def _roots(directory: Path) -> Roots:
    """To take a step with. Raises CredentialError: devices could not follow."""
    roots = read_roots(directory)
    for line in strangers(directory, roots):
        raise CredentialError(line)
    return roots


def _names(server: bytes) -> x509.SubjectAlternativeName:
    extensions = x509.load_pem_x509_certificate(server).extensions
    return extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def _is_of_old(directory: Path, newest: x509.Certificate) -> bool:
    """Whether ``ca.key`` is the key that has vouched for the newest root."""
    if not (directory / CA_KEY_FILE).exists():
        return False
    key = private_key(directory / CA_KEY_FILE).public_key()
    return any(
        one.public_key() == newest.public_key() and _signed_with(key, one) for one in read_vouches(directory)
    )


def _signed_with(key: ec.EllipticCurvePublicKey, certificate: x509.Certificate) -> bool:
    try:
        key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def _hand_out(directory: Path) -> None:
    """The roots of now into every bundle that still lies here, to be copied by hand."""
    roots = read_bytes(directory / CA_FILE)
    for bundle in sorted((directory / NODES_FOLDER).glob(f"*/{CA_FILE}")):
        if read_bytes(bundle) != roots:
            replace_file(bundle, roots, PUBLIC)
