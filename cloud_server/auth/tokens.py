"""Bearer tokens of the inference service: ``name.expiry.signature``, checked without a database.

The signature is ``base64url(HMAC-SHA256(secret, "name.expiry"))`` without padding, the expiry is in whole seconds
since 1970. Nothing of a token but the node's name is ever logged.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Container

from fedstill.common.node_token import LONGEST_TOKEN

SECRET_BYTES = 32


class TokenError(ValueError):
    """A token that is not accepted; the reason gives no help for forging a better one."""


def issue(secret: bytes, name: str, expiry: int) -> str:
    """The token of the node ``name``, valid until ``expiry``.

    Raises:
        ValueError: the name holds a dot or is empty, or the secret is not 32 bytes long.
    """
    if not name or "." in name or not name.isascii():
        raise ValueError(f"{name!r}: a name in a token is ASCII without dots")
    if expiry < 0:
        raise ValueError("expiry: seconds since 1970")
    signed = f"{name}.{expiry}"
    return f"{signed}.{_signature(secret, signed)}"


def verify(secret: bytes, token: str, now: float, revoked: Container[str] = ()) -> str:
    """The name of the node that this token was issued to.

    Args:
        secret: the server's 32 bytes.
        token: as it came over the wire.
        now: seconds since 1970.
        revoked: names that are refused although their token is genuine.

    Raises:
        TokenError: forged, damaged, expired or revoked.
    """
    if len(token) > LONGEST_TOKEN or not token.isascii():
        raise TokenError("token is damaged")
    signed, _, signature = token.rpartition(".")
    # The signature is compared first and in constant time: only what we signed is ever parsed.
    if not hmac.compare_digest(signature, _signature(secret, signed)):
        raise TokenError("token is not one of this server's")
    name, _, expiry = signed.rpartition(".")
    if int(expiry) <= now:
        raise TokenError("token has expired")
    if name in revoked:
        raise TokenError("token is revoked")
    return name


def _signature(secret: bytes, signed: str) -> str:
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"secret: {SECRET_BYTES} bytes are needed, not {len(secret)}")
    digest = hmac.new(secret, signed.encode("ascii"), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).decode("ascii").rstrip("=")
