"""The arms and scenarios of the comparison: their names on the wire and in results, and their titles in tables.

Separate from ``arms.py``, which says what each arm does, because a report and an experiment file need no torch.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedstill.protos import messages

ARMS: Mapping[str, str] = {  # in table order; the thesis' four, the controls, ours
    "all_distill": "AllDistill",
    "all_distill_random": "AllDistill+random",
    "all_distill_select": "AllDistill+select",
    "all_distill_select_cluster": "AllDistill+select+cluster",
    "all_distill_equal_steps": "AllDistill, equal steps",
    "class_prior_sampling": "class-prior sampling",
    "oracle_classes": "oracle classes",
    "prior_corrected": "equal steps, prior-corrected",
    "fedstill_without_selection": "fedstill without selection",
    "class_support": "class support",
    "other_card": "another device's card",
    "oracle_capture": "true capture condition",
    "fedstill": "fedstill",
}
REFERENCES: Mapping[str, str] = {  # published methods, evaluated beside a run on the same clips
    "teacher": "teacher",
    "teacher_own_statistics": "teacher with the device's statistics",
    "adabn": "AdaBN",
    "tent": "TENT",
    "shot": "SHOT",
    "em": "unguarded EM",
}
THESIS_ARMS = tuple(ARMS)[:4]
ROBUSTNESS_ARMS = ("other_card", "oracle_capture")
"""Controls of an experiment that simulates how devices record; a plan without that cannot answer them."""
DEFAULT_ARMS = tuple(arm for arm in ARMS if arm not in ROBUSTNESS_ARMS)
SCENARIOS: Mapping[str, str] = {name: name.replace("_", "-") for name in messages.SCENARIOS}
