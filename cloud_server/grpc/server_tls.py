"""A server's TLS files: one record for every server of the cloud, the SuperLink included."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServerTls:
    """PEM files: the signing authority, the server's certificate (chain) and its private key; an authority has them."""

    ca_file: Path
    certificate_file: Path
    key_file: Path
