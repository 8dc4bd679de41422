"""Devices that follow their authority no more, because they trust a root which it does not know.

A folder that was put back from a copy has forgotten the roots made since. A device that has taken one of these keeps
it, as it must: it cannot tell its authority from one who has stolen a copy. Only its operator can, by hand.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fedstill.cloud_server.auth.authority_files import read_former, trusted_roots
from fedstill.cloud_server.auth.register import IssuedNode
from fedstill.common.trusted_roots import root_fingerprint

REMEDY = "delete authorities.pem in its agent's folder and copy ca.crt to its credentials"


def lost_nodes(directory: Path, nodes: Iterable[IssuedNode]) -> tuple[IssuedNode, ...]:
    """Those that trust a root which neither is in ``ca.crt`` nor was dropped.

    Raises:
        CredentialError: a file of roots is missing or damaged.
    """
    known = {root_fingerprint(one) for one in (*trusted_roots(directory), *read_former(directory))}
    return tuple(node for node in nodes if not node.revoked and not known.issuperset(node.roots))


def lost_node_warnings(directory: Path, nodes: Iterable[IssuedNode]) -> tuple[str, ...]:
    """One line for each of them. Raises CredentialError, too."""
    return tuple(
        f"{node.name}: trusts a root that this authority does not have, so it follows no roll-over "
        f"(was {directory.name} put back from a copy?); on the device {REMEDY}"
        for node in lost_nodes(directory, nodes)
    )
