"""The forms in which a device may upload its capture card, made by the same functions that devices use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedstill.datasets.audiovisual.capture_card import card_of, from_bytes, to_bytes
from fedstill.edge_client.privacy.privacy import sigma_for
from fedstill.edge_client.privacy.private_card import private_card
from fedstill.evaluation.redteam.releases import EPSILONS
from fedstill.evaluation.redteam.stage import Floats, Stage


@dataclass(frozen=True)
class CardForm:
    """One form.

    Attributes:
        make: from the profiles (clips, CARD_SIZE) of a device and a seed of the noise to the card as the cloud reads
            it, float32 (CARD_SIZE,); NaN is unknown.
    """

    key: str
    title: str
    make: Callable[[Floats, int], Floats]


def card_forms(stage: Stage) -> tuple[CardForm, ...]:
    """The exact card, then the private one with less and less epsilon, all of it spent on the card."""
    epsilons = sorted(EPSILONS, reverse=True)
    return (
        CardForm("card_exact", f"exact card (>= {stage.prototypes.min_size} clips)", _exact(stage)),
        *(CardForm(f"card_dp_{one:g}", f"private card, epsilon {one:g}", _private(stage, one)) for one in epsilons),
    )  # fmt: skip


def _exact(stage: Stage) -> Callable[[Floats, int], Floats]:
    def make(profiles: Floats, seed: int) -> Floats:
        return from_bytes(to_bytes(card_of(profiles, stage.prototypes.min_size)), len(profiles)).values

    return make


def _private(stage: Stage, epsilon: float) -> Callable[[Floats, int], Floats]:
    sigma = sigma_for(epsilon, stage.prototypes.delta)

    def make(profiles: Floats, seed: int) -> Floats:
        sent = private_card(profiles, sigma, stage.prototypes.min_size, np.random.default_rng(seed))
        return from_bytes(sent, len(profiles)).values

    return make
