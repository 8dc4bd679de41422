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

from fedstill.cloud_server.auth.authority import NODES_FOLDER
from fedstill.cloud_server.auth.authority_files import (
    CA_KEY_FILE,
    NEXT_KEY_FILE,
    SERVER_FILE,
    VOUCHES_FILE,
    Roots,
    certificates_pem,
    key_of,
    key_pem,
    read_roots,
    read_server,
    read_vouches,
)
from fedstill.cloud_server.auth.certificates import ec_public_key, make_root, make_server, make_vouch
from fedstill.cloud_server.auth.register import IssuedNode, existing, list_nodes, locked
from fedstill.common.atomic_files import PRIVATE, PUBLIC, replace_file
from fedstill.common.credentials import CA_FILE, ROLL_OVER, CredentialError, read_bytes
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
    """

    roots: Roots
    nodes: tuple[IssuedNode, ...]
    without: tuple[IssuedNode, ...]


def read_roll_over(directory: Path) -> RollOver:
    """Of an authority, of which there may have been none. Raises CredentialError."""
    roots = read_roots(existing(directory))
    nodes = tuple(node for node in list_nodes(directory) if not node.revoked)
    newest = root_fingerprint(roots.newest)
    without = tuple(node for node in nodes if newest not in node.roots) if roots.succeeded else ()
    return RollOver(roots, nodes, without)


def begin(directory: Path) -> RollOver:
    """Make a new root, which devices are to trust beside the old one; if one is under way, nothing new.

    Raises:
        CredentialError: no authority, or its key is elsewhere: no device would believe in another root.
    """
    with locked(existing(directory)):
        roots = read_roots(directory)
        if not roots.begun:
            old = roots.newest
            old_key = key_of(directory, old)
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
            names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            made = make_server(key_of(directory, root), root, names, ec_public_key(server))
            replace_file(directory / SERVER_FILE, certificates_pem(made), PUBLIC)  # this counts
        _hand_out(directory)
        return read_roll_over(directory)


def drop_old(directory: Path) -> RollOver:
    """Devices are to trust the new root alone; the old one's key is deleted.

    Raises:
        CredentialError: the roll-over is not finished, or there was none.
    """
    with locked(existing(directory)):
        roots = read_roots(directory)
        if not roots.finished or not roots.succeeded:
            raise CredentialError(
                f"{directory}: no roll-over is finished; that is done by: {ROLL_OVER} {directory} --finish"
            )
        if roots.begun:
            if (directory / NEXT_KEY_FILE).exists():  # else it is kept elsewhere, or is there already
                replace_file(directory / CA_KEY_FILE, key_pem(key_of(directory, roots.newest)), PRIVATE)
            replace_file(directory / CA_FILE, certificates_pem(roots.newest), PUBLIC)  # this counts
        (directory / NEXT_KEY_FILE).unlink(missing_ok=True)
        _hand_out(directory)
        return read_roll_over(directory)


def names_of(nodes: Sequence[IssuedNode]) -> str:
    """In one line."""
    rest = f" and {len(nodes) - MOST_NAMES} more" if len(nodes) > MOST_NAMES else ""
    return ", ".join(node.name for node in nodes[:MOST_NAMES]) + rest


def _hand_out(directory: Path) -> None:
    """The roots of now into every bundle that still lies here, to be copied by hand."""
    roots = read_bytes(directory / CA_FILE)
    for bundle in sorted((directory / NODES_FOLDER).glob(f"*/{CA_FILE}")):
        if read_bytes(bundle) != roots:
            replace_file(bundle, roots, PUBLIC)
