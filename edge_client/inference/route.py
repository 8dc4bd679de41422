"""Where a clip's head runs: on the device, for a reason, or in the cloud, over a compression level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedstill.edge_client.inference.levels import CompressionLevel

Path = Literal["local", "cloud"]


@dataclass(frozen=True)
class Route:
    """Made by :meth:`local` or :meth:`cloud`.

    Attributes:
        level: how the features travel to the cloud; None: the device's own head.
        reason: why it is not the cloud; empty if it is.
    """

    level: CompressionLevel | None
    reason: str

    @classmethod
    def local(cls, reason: str) -> Route:
        return cls(None, reason)

    @classmethod
    def cloud(cls, level: CompressionLevel) -> Route:
        return cls(level, "")

    @property
    def path(self) -> Path:
        """Where the clip is classified: ``local`` or ``cloud``."""
        return "local" if self.level is None else "cloud"

    @property
    def level_name(self) -> str:
        """Such as ``1.5 int8``; empty for ``local``."""
        return "" if self.level is None else self.level.name
