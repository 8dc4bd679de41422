"""Parameters of a request: what they mean here, and their values, numbers also as text (KServe knows no doubles)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches
from itertools import islice

from fedstill.cloud_server.serving.endpoints.refusals import bad
from fedstill.protos import open_inference_pb2 as pb

OURS = ("task", "latency_ms", "utility", "timeout", "priority")
"""Parameters of a request that have an effect. Others are the user's own, and ignored."""
SHARED_MEMORY = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")
LONGEST_LATENCY_MS = 3_600_000.0
LARGEST_UTILITY = 1e9
MOST_LOOKED_AT, LONGEST_LOOKED_AT = 32, 32
"""Parameters of a request, and characters of a name, that are compared with ours: more take the server's time."""
LEVELS, DEFAULT_LEVEL = 5, 3
"""Of ``priority``. Triton counts from 1, the highest; 0 and numbers above the last level mean the default."""

Value = bool | int | str | float | None
Parameters = Mapping[str, pb.InferParameter]


def value_of(parameters: Parameters, name: str) -> Value:
    """The value of a parameter; None if it is not given."""
    if name not in parameters:
        return None
    choice = parameters[name].WhichOneof("parameter_choice")
    return None if choice is None else getattr(parameters[name], choice)


def number(parameters: Parameters, name: str, largest: float, owner: str = "") -> float | None:
    """A number from 0 to ``largest``, or the text of one; None if it is not given. Raises RequestError.

    owner: whose parameter it is, in the field's name; the request's by default.
    """
    if name not in parameters:
        return None
    field = f"{owner}parameters[{name!r}]"
    value = value_of(parameters, name)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise bad(field, "needs a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise bad(field, "needs a number")
    return checked(field, float(value), largest)


def checked(name: str, value: float, largest: float) -> float:
    """The value of a field that must lie between 0 and ``largest``. Raises RequestError."""
    if not (math.isfinite(value) and 0 <= value <= largest):
        raise bad(name, f"must lie between 0 and {largest:g}")
    return value


def priority_factor(level: float | None) -> float:
    """What a request's utility is multiplied by: twice as much for each level."""
    if level is None or not 1 <= level <= LEVELS:
        return 1.0
    return float(2.0 ** (DEFAULT_LEVEL - level))


def misspelt(parameters: Parameters) -> list[str]:
    """A warning for each parameter that is nearly one of ours: its sender thinks that it has an effect."""
    found = []
    for name in islice(parameters, MOST_LOOKED_AT):
        strange = name not in OURS and len(name) <= LONGEST_LOOKED_AT
        close = get_close_matches(name, OURS, n=1, cutoff=0.75) if strange else []
        if close:
            found.append(f"parameters[{name[:40]!r}] has no effect: did you mean {close[0]}?")
    return found


def refuse_shared_memory(parameters: Parameters, owner: str) -> None:
    """Raises RequestError: a client that shares memory would read what nobody has written."""
    for name in SHARED_MEMORY:
        if name in parameters:
            raise bad(
                f"{owner}parameters[{name!r}]", "there is no shared memory here: send the tensor itself"
            )
