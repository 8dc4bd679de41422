"""The arms of the comparison: what each asks of a device, and how it chooses public clips.

The thesis' four (all_distill, + random, + select, + select + cluster), the controls that a fair table needs (equal
steps, class-prior sampling, oracle classes, prior correction, class support) and ``fedstill``, which chooses between
students (``candidates.py``). Every arm that trains further gets the same number of clips and of epochs. If a device has
more prototypes than clips may be chosen, each of them takes a share of a clip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedstill.cloud_server.distillation.class_mix import ClassMix
from fedstill.cloud_server.distillation.public_bank import PublicBank
from fedstill.cloud_server.distillation.rounds import SelectData
from fedstill.cloud_server.distillation.run_plan import RunPlan
from fedstill.cloud_server.distillation.selection import (
    Selection,
    per_prototype,
    select_by_prior,
    select_by_shares,
    select_by_transport,
    select_nearest,
    select_random,
)
from fedstill.cloud_server.distillation.settings import DistillationSettings, PrototypeSettings
from fedstill.protos.messages import PrototypeUpload

SHARED = (
    "all_distill",
    "all_distill_equal_steps",
    "fedstill_without_selection",
    "teacher",
)
"""Arms whose network is the same for every device: trained once per seed. The teacher is not an arm of the table, only
its upper reference."""


@dataclass(frozen=True)
class Arm:
    """How one arm works.

    Attributes:
        upload: what the device uploads: every sample's probabilities, prototypes, one histogram; None: nothing.
        personal: the cloud makes several students and chooses by public clips rendered to the device's capture card.
        class_mix: the cloud estimates the device's class mix from one histogram under the generic student, and uses it
            where the test of ``class_mix.py`` supports that; elsewhere the device gets the generic student.
        own_settings: trains with the experiment's ``[fedstill]`` table instead of ``[distillation]``.
    """

    name: str
    upload: str | None = None
    class_mix: bool = False
    personal: bool = False
    own_settings: bool = False


BY_NAME = {
    arm.name: arm
    for arm in (
        Arm("all_distill"),
        Arm("all_distill_random"),
        Arm("all_distill_select", upload="samples"),
        Arm("all_distill_select_cluster", upload="prototypes"),
        Arm("all_distill_equal_steps"),
        Arm("class_prior_sampling", upload="histogram"),
        Arm("oracle_classes"),
        Arm("prior_corrected", upload="histogram", class_mix=True),
        Arm("fedstill_without_selection", own_settings=True),
        Arm("other_card", upload="histogram", personal=True, own_settings=True),
        Arm("oracle_capture", own_settings=True),
        Arm("fedstill", upload="histogram", personal=True, own_settings=True),
        Arm("teacher"),
    )
}
"""Every arm of ``arm_names.ARMS`` but ``class_support``, and the teacher."""
BY_RULE = {
    "support": Arm("class_support", upload="histogram", class_mix=True, own_settings=True),
    "transport": Arm("class_support", upload="prototypes", own_settings=True),
}
"""Selection alone, by ``selection.rule``."""


def arm_of(name: str, plan: RunPlan) -> Arm:
    """The arm ``name`` under this plan's settings."""
    return BY_RULE[plan.selection.rule] if name == "class_support" else BY_NAME[name]


def may_ask_summary(arm: Arm, plan: RunPlan) -> bool:
    """Whether this arm asks a device for a summary; if not, nothing is made ready for one.

    A private histogram shows neither how a device records nor how sure the student is.
    """
    return plan.prototypes.kind != "dp" or asks_card(arm, plan)


def asks_card(arm: Arm, plan: RunPlan) -> bool:
    """Whether the arm asks for a capture card, in its private form if prototypes are private.

    The guard believes a card, and a student made by it, by confidences. No private upload has any, so under the guard a
    private card would cost budget and change nothing.
    """
    useful = plan.prototypes.kind != "dp" or (plan.prototypes.card_share > 0 and not plan.guard.test)
    return arm.personal and plan.capture.card and useful


def distillation_of(arm: Arm, plan: RunPlan) -> DistillationSettings:
    """The training settings of an arm."""
    return plan.ours if arm.own_settings else plan.distillation


def budget_of(plan: RunPlan, public: int) -> int:
    """Public clips per outer round, equal in all arms."""
    return max(1, round(plan.selection.budget * public))


def upload_kind(arm: Arm, prototypes: PrototypeSettings) -> str:
    """The wire's name for what this arm's devices upload."""
    assert arm.upload is not None
    private = prototypes.kind == "dp" and arm.upload == "histogram"
    return prototypes.kind if private or arm.upload == "prototypes" else arm.upload


def select_rule(
    arm: Arm,
    plan: RunPlan,
    bank: PublicBank,
    client: int,
    rng: np.random.Generator,
    mix: ClassMix | None = None,
) -> SelectData:
    """The arm's SelectData, with its own stream of randomness; ``mix`` is for the arms that use one."""
    public = len(bank.labels)
    budget = budget_of(plan, public)
    settings = plan.selection

    def at_random(prototypes: PrototypeUpload | None, bank: PublicBank) -> Selection:
        return Selection.uniform(select_random(public, budget, rng))

    def nearest(prototypes: PrototypeUpload | None, bank: PublicBank) -> Selection:
        assert prototypes is not None
        class_probabilities = bank.probabilities(settings.temperature)
        if len(prototypes.counts) > budget:
            return select_by_shares(prototypes.probabilities, class_probabilities, budget)
        n = per_prototype(budget, len(prototypes.counts))
        return Selection.uniform(select_nearest(prototypes.probabilities, class_probabilities, n))

    def by_prior(prototypes: PrototypeUpload | None, bank: PublicBank) -> Selection:
        assert prototypes is not None
        return Selection.uniform(select_by_prior(bank.labels, prototypes.probabilities[0], budget, rng))

    def by_true_classes(prototypes: PrototypeUpload | None, bank: PublicBank) -> Selection:
        prior = np.isin(np.arange(bank.logits.shape[1]), plan.oracle_classes[client]) * bank.class_prior()
        return Selection.uniform(select_by_prior(bank.labels, prior, budget, rng))

    def by_support(prototypes: PrototypeUpload | None, bank: PublicBank) -> Selection:
        assert mix is not None
        shares = np.where(mix.present, bank.class_prior(), 0.0)
        return Selection.uniform(select_by_prior(bank.labels, shares, budget, rng))

    def by_transport(prototypes: PrototypeUpload | None, bank: PublicBank) -> Selection:
        assert prototypes is not None
        class_probabilities = bank.probabilities(settings.temperature)
        return select_by_transport(
            prototypes.probabilities,
            prototypes.counts,
            class_probabilities,
            budget,
            sharpness=settings.sharpness,
        )

    rules: dict[str, SelectData] = {
        "all_distill_random": at_random,
        "all_distill_select": nearest,
        "all_distill_select_cluster": nearest,
        "class_prior_sampling": by_prior,
        "oracle_classes": by_true_classes,
        "class_support": by_support if settings.rule == "support" else by_transport,
    }
    return rules[arm.name]


def whole_set_in_turns(public: int, budget: int, rng: np.random.Generator) -> SelectData:
    """All public clips, ``budget`` at a time, and none twice before all were used once: the equal-steps control."""
    waiting = np.empty(0, np.int64)

    def next_turn(prototypes: PrototypeUpload | None, bank: PublicBank) -> Selection:
        nonlocal waiting
        while len(waiting) < budget:
            waiting = np.concatenate([waiting, rng.permutation(public)])
        turn, waiting = waiting[:budget], waiting[budget:]
        return Selection.uniform(turn)

    return next_turn


def with_variant(plan: RunPlan, sweep: str, value: int) -> RunPlan:
    """The plan with one prototype setting swept (Figures 5.12 and 5.13)."""
    if sweep == "cluster_samples":
        return replace(plan, prototypes=replace(plan.prototypes, samples_per_prototype=value))
    # the swept arm uploads samples; a limit is not allowed with dp, which another arm of the plan may use
    return replace(plan, prototypes=replace(plan.prototypes, upload_limit=value, kind="constrained"))
