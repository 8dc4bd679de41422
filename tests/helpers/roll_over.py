"""A roll-over as devices and an operator see it."""

from __future__ import annotations

from pathlib import Path

from fedstill.cloud_server.auth.authority import read_authority
from fedstill.cloud_server.auth.roll_over import read_roll_over
from fedstill.cloud_server.auth.roots_update import RootsUpdate
from fedstill.common.trusted_roots import fingerprints


def took(certs: Path, name: str) -> None:
    """A device says that it trusts what it is to trust."""
    RootsUpdate(read_authority(certs)).note({name: fingerprints((certs / "ca.crt").read_bytes())})


def without(certs: Path) -> list[str]:
    """Nodes that have not said yet that they trust the newest root."""
    return [node.name for node in read_roll_over(certs).without]
