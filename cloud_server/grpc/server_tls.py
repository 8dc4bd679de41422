"""A server's TLS files: one record for every server of the cloud, and one with the authority that signed them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TlsFiles:
    """PEM files: a server's certificate (chain), its private key, and the authorities of client certificates; None asks
    clients for none."""

    certificate_file: Path
    key_file: Path
    client_ca_file: Path | None = None


@dataclass(frozen=True)
class ServerTls:
    """PEM files: the signing authority, the server's certificate (chain) and its private key; an authority has them."""

    ca_file: Path
    certificate_file: Path
    key_file: Path

    @property
    def files(self) -> TlsFiles:
        """Of a server that needs no authority."""
        return TlsFiles(self.certificate_file, self.key_file)
