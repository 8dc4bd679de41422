"""The token that a device uses: the one that came with its credentials, or one that the cloud has sent since.

Credentials may lie where an agent cannot write, so what was sent is kept in the agent's own folder, with a digest of
the token that it replaces. When credentials are renewed by hand, that digest is of another one, and theirs counts.
"""

from __future__ import annotations

import json
import re
import time
from hashlib import sha256
from pathlib import Path

from fedstill.common.atomic_files import PRIVATE, replace_file

LONGEST_TOKEN = 256
SAID = re.compile(r"[A-Za-z0-9_.~+/=-]+")
"""What a header can carry (RFC 6750)."""
LONGEST_SECONDS = 20 * 366 * 86_400
"""Beyond now; nobody issues tokens for longer."""
LAST_SECOND = 253_402_300_799
"""Of the year 9999, beyond which there are no dates."""


def token_expiry(token: str, name: str) -> int:
    """When a token of ``name`` expires, in seconds since 1970; only its issuer can check the signature.

    Raises:
        ValueError: it is damaged, or another node's.
    """
    owner, _, rest = token.partition(".")
    expiry, _, signature = rest.partition(".")
    if not signature or len(token) > LONGEST_TOKEN or not (SAID.fullmatch(token) and expiry.isdigit()):
        raise ValueError("damaged")
    if owner != name:
        raise ValueError(f"issued to another node than {name}")
    return min(int(expiry), LAST_SECOND)


def newest_token(kept: Path, name: str, given: str) -> str:
    """The token to show.

    Args:
        kept: the file for what was sent; it need not be there, and a damaged one does not count.
        name: of the device.
        given: the token of its credentials.
    """
    try:
        content = json.loads(kept.read_bytes())
        if content["instead_of"] != _digest(given):
            return given
        token = str(content["token"])
        token_expiry(token, name)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return given
    return token


def keep_token(kept: Path, name: str, given: str, sent: str) -> bool:
    """Keep a token that was sent, if it ends later than the present one; returns whether it does.

    Raises:
        ValueError: it is damaged, another device's, or good for decades.
        OSError: it could not be written; what was kept before still is.
    """
    if token_expiry(sent, name) > time.time() + LONGEST_SECONDS:
        raise ValueError("ends in some decades")
    present = newest_token(kept, name, given)
    if token_expiry(sent, name) <= token_expiry(present, name):
        return False
    content = {"instead_of": _digest(given), "token": sent}
    replace_file(kept, json.dumps(content).encode(), PRIVATE)
    return True


def _digest(token: str) -> str:
    return sha256(token.encode()).hexdigest()
