"""Guards the one list of arms: every name of the table is an arm that works, and none works that has no name."""

from __future__ import annotations

from fedstill.cloud_server.distillation.arm_names import ARMS, SCENARIOS
from fedstill.cloud_server.distillation.arms import BY_NAME, BY_RULE
from fedstill.protos import messages


def test_names_and_arms_agree_and_stand_in_table_order() -> None:
    assert [*BY_NAME] == [*(name for name in ARMS if name != "class_support"), "teacher"]
    assert list(ARMS)[-1] == "fedstill"
    assert {arm.name for arm in BY_RULE.values()} == {"class_support"}


def test_every_scenario_of_the_wire_has_a_title() -> None:
    assert tuple(SCENARIOS) == messages.SCENARIOS
    assert SCENARIOS["latency_sensitive"] == "latency-sensitive"
