"""Guards the one list of arms: every name of the table is an arm that works, and none works that has no name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedstill.cloud_server.distillation.arm_names import ARMS, SCENARIOS
from fedstill.cloud_server.distillation.arms import BY_NAME, BY_RULE, asks_card, may_ask_summary, select_rule
from fedstill.cloud_server.distillation.selection import per_prototype, select_nearest
from fedstill.cloud_server.distillation.settings import (
    CaptureSettings,
    GuardSettings,
    PrototypeSettings,
    SelectionSettings,
)
from fedstill.protos import messages


def test_names_and_arms_agree_and_stand_in_table_order() -> None:
    assert [*BY_NAME] == [*(name for name in ARMS if name != "class_support"), "teacher"]
    assert list(ARMS)[-1] == "fedstill"
    assert {arm.name for arm in BY_RULE.values()} == {"class_support"}


def test_every_scenario_of_the_wire_has_a_title() -> None:
    assert tuple(SCENARIOS) == messages.SCENARIOS
    assert SCENARIOS["latency_sensitive"] == "latency-sensitive"


def test_a_private_card_is_asked_for_only_where_it_can_change_something() -> None:
    """The guard needs confidences, and no private upload has them: a card under it would only cost budget."""
    capture = CaptureSettings()
    for kind, share, test, asked in (
        ("constrained", 0.0, True, True),
        ("dp", 0.5, True, False),
        ("dp", 0.0, False, False),
        ("dp", 0.5, False, True),
    ):
        prototypes = PrototypeSettings(kind=kind, card_share=share)  # type: ignore[arg-type]
        changed: Any = SimpleNamespace(prototypes=prototypes, guard=GuardSettings(test=test), capture=capture)
        assert asks_card(BY_NAME["fedstill"], changed) is asked
        assert may_ask_summary(BY_NAME["fedstill"], changed) is asked
        assert not asks_card(BY_NAME["prior_corrected"], changed)


@pytest.mark.parametrize("arm", ["all_distill_select", "all_distill_select_cluster"])
@pytest.mark.parametrize("prototypes", [3, 5, 6, 40])
def test_no_number_of_prototypes_leaves_an_arm_out(arm: str, prototypes: int) -> None:
    rng = np.random.default_rng(0)
    public, own = rng.dirichlet(np.ones(3), 10), rng.dirichlet(np.ones(3), prototypes)
    bank: Any = SimpleNamespace(labels=np.zeros(10, np.int64), probabilities=lambda temperature: public)
    plan: Any = SimpleNamespace(selection=SelectionSettings(budget=0.5))
    upload: Any = SimpleNamespace(probabilities=own, counts=np.ones(prototypes, np.int64))
    found = select_rule(BY_NAME[arm], plan, bank, 0, rng)(upload, bank)
    assert len(np.unique(found.positions)) == 5
    if prototypes <= 5:
        assert found.positions.tolist() == select_nearest(own, public, per_prototype(5, prototypes)).tolist()
        assert (found.weights == 1).all()
