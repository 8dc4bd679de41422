"""Which weights a server serves, and what was typed about each: with several, WEIGHTS=VALUE says whose a value is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedstill.common.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TrunkOptions:
    """Of one trunk, as typed. architecture, profile: None for what is found without them."""

    weights: str
    architecture: str | None = None
    profile: Path | None = None


def trunk_options(
    weights: Sequence[str], architectures: Sequence[str], profiles: Sequence[str]
) -> tuple[TrunkOptions, ...]:
    """The trunks in the order of their weights.

    Raises ConfigError for weights that are named twice, and for a value of which it is not clear whose it is.
    """
    if not weights or not all(weights):
        raise ConfigError("--weights: names no file")
    twice = [one for place, one in enumerate(weights) if one in weights[:place]]
    if twice:
        raise ConfigError(f"--weights {twice[0]}: given twice")
    named = _by_weights("--architecture", architectures, weights)
    measured = _by_weights("--profile", profiles, weights)
    return tuple(
        TrunkOptions(one, named.get(one), Path(measured[one]) if one in measured else None) for one in weights
    )


def _by_weights(option: str, values: Sequence[str], weights: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for value in values:
        owners = [one for one in weights if value.startswith(f"{one}=")]
        if owners:
            owner = max(owners, key=len)
            own = value.removeprefix(f"{owner}=")
        elif len(weights) == 1:
            owner, own = weights[0], value
        else:
            raise ConfigError(
                f"{option} {value}: of which --weights? write {option} {weights[0]}={value}, or another's"
            )
        if not own:
            raise ConfigError(f"{option} {value}: says nothing after the =")
        if owner in found:
            raise ConfigError(f"{option}: given twice for {owner}")
        found[owner] = own
    return found
