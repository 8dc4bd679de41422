"""A schedule says what happens to the tokens, also where a layer runs out of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedstill.models.vit.schedules import (
    THESIS_TOKEN_DELTAS,
    TokenSchedule,
    check_distinct,
    constant_schedule,
    decreasing_schedule,
    default_schedules,
    effective_merges,
    first_patches,
    forward_macs,
    layer_wise_schedule,
    parse_schedule,
    token_counts,
)

VIT_BASE = {"tokens": 196, "width": 768, "hidden": 3072}
merges = st.lists(st.integers(0, 60), min_size=1, max_size=12).map(tuple)
schedules = st.builds(
    TokenSchedule,
    merges,
    st.integers(0, 9),
    st.sampled_from(["replace", "accumulate"]),
    st.integers(0, 14),
)


@pytest.mark.parametrize(("scheme", "removed"), [(1, 195), (2, 170), (3, 169), (4, 168)])
def test_the_four_schemes_of_the_thesis_end_where_the_design_notes_say(scheme: int, removed: int) -> None:
    schedule = layer_wise_schedule(scheme)
    assert len(schedule.merges) == 12
    assert sum(effective_merges(schedule, 196)) in (removed, 193)
    assert token_counts(schedule, 196)[-1] == (4 if scheme == 1 else 197 - removed)


def test_more_than_half_cannot_merge_in_a_layer() -> None:
    assert effective_merges(constant_schedule(-100, 12), 196)[:3] == (98, 49, 24)
    assert token_counts(constant_schedule(-25, 12), 196)[-1] == 2


def test_the_same_forward_pass_under_two_names_is_refused() -> None:
    with pytest.raises(ValueError, match="-100 and -98 are the same on 196 patches: keep one"):
        check_distinct([constant_schedule(-98, 12), constant_schedule(-100, 12)], 196)
    kept = check_distinct([constant_schedule(delta, 12) for delta in THESIS_TOKEN_DELTAS], 196)
    assert len(kept) == len(THESIS_TOKEN_DELTAS)
    both = [TokenSchedule((0,), 2), TokenSchedule((0,), 2, "accumulate")]
    assert len(check_distinct(both, 196)) == 2


def test_a_grid_begins_with_fewer_patches() -> None:
    assert token_counts(parse_schedule("g10-5", 3), 196) == (101, 96, 91, 86)
    assert effective_merges(TokenSchedule((9, 9), grid=3), 196) == (4, 2)
    with pytest.raises(ValueError, match="g14 and 0 are the same on 196 patches: keep one"):
        check_distinct([parse_schedule(name, 3) for name in ("0", "g14")], 196)
    with pytest.raises(ValueError, match="g15 has 225 patches: the weights have 196"):
        check_distinct([parse_schedule("g15", 3)], 196)


def test_the_embedding_of_larger_patches_costs_as_much_and_the_rest_falls() -> None:
    """A quarter of the tokens is a quarter of the linears."""
    plain, coarse = (
        forward_macs(parse_schedule(name, 12), 196, 768, 3072, protected=0) for name in ("0", "g7")
    )
    embedding = 196 * 768 * 768
    assert 1 / 5 < (coarse - embedding) / (plain - embedding) < 1 / 4


def test_prompts_replaced_or_accumulated() -> None:
    assert token_counts(constant_schedule(8, 3), 196) == (205, 205, 205, 205)
    assert token_counts(constant_schedule(8, 3, "accumulate"), 196) == (205, 213, 221, 221)


@pytest.mark.parametrize(("delta", "gain"), [(-5, 1.19), (-10, 1.46), (-15, 1.89), (-20, 2.46), (-25, 3.03)])
def test_flops_fall_as_published_for_vit_base(delta: int, gain: float) -> None:
    plain = forward_macs(constant_schedule(0, 12), **VIT_BASE)
    assert plain / forward_macs(constant_schedule(delta, 12), **VIT_BASE) == pytest.approx(gain, abs=0.006)
    assert plain == pytest.approx(17.56e9, rel=0.001)


def test_accumulated_prompts_cost_more_than_replaced_ones() -> None:
    plain = forward_macs(constant_schedule(0, 12), **VIT_BASE)
    replaced, accumulated = (
        forward_macs(constant_schedule(8, 12, mode), **VIT_BASE) / plain for mode in ("replace", "accumulate")
    )
    assert replaced == pytest.approx(1.042, abs=0.002)
    assert accumulated == pytest.approx(1.277, abs=0.003)


def test_a_decreasing_schedule_is_the_recorded_one() -> None:
    assert decreasing_schedule(13, 12).merges == (26, 23, 21, 18, 16, 14, 11, 9, 7, 4, 2, 0)
    assert decreasing_schedule(5, 1).merges == (5,)


@given(schedules)
def test_a_name_gives_the_schedule_back(schedule: TokenSchedule) -> None:
    again = parse_schedule(schedule.name, len(schedule.merges))
    assert (again.merges, again.prompts) == (schedule.merges, schedule.prompts)
    assert again.grid == schedule.grid
    assert again.prompt_mode == schedule.prompt_mode or not schedule.prompts


def test_a_q_says_int8() -> None:
    for name in ("0q", "-20q", "m3x1-2x1-0x1q", "g10-5q"):
        schedule = parse_schedule(name, 3)
        assert schedule.int8
        assert schedule.name == name
        plain = parse_schedule(name.removesuffix("q"), 3)
        assert replace(schedule, int8=False) == plain
        assert check_distinct([plain, schedule], 196) == (plain, schedule)
        assert token_counts(schedule, 196) == token_counts(plain, 196)
    for name in ("+2q", "2q"):
        with pytest.raises(ValueError, match="write 0, -20, "):
            parse_schedule(name, 3)
    with pytest.raises(ValueError, match="2 prompts do not go with int8"):
        TokenSchedule((0,), 2, int8=True)


def test_a_bare_number_adds_prompts() -> None:
    assert parse_schedule("4", 3) == parse_schedule("+4", 3) == constant_schedule(4, 3)
    assert parse_schedule("-4", 3) == constant_schedule(-4, 3)
    assert parse_schedule("0", 3) == constant_schedule(0, 3)


def test_the_defaults_fit_any_network_and_hold_nothing_twice() -> None:
    for layers, tokens in ((12, 196), (6, 100), (4, 16), (24, 256)):
        defaults = default_schedules(layers, tokens)
        assert check_distinct(defaults, tokens) == defaults
        assert {len(schedule.merges) for schedule in defaults} == {layers}
        assert {schedule.prompts for schedule in defaults} == {0, 2, 4, 8}
    assert len(default_schedules(12, 196)) == 10


@given(schedules, st.integers(1, 300))
def test_counts_fall_by_the_effective_merges_and_never_below_one_patch(
    schedule: TokenSchedule, tokens: int
) -> None:
    done = effective_merges(schedule, tokens)
    left = first_patches(schedule, tokens) - sum(done)
    assert left >= 1
    assert all(0 <= have <= want for have, want in zip(done, schedule.merges, strict=True))
    times = len(done) if schedule.prompt_mode == "accumulate" else 1
    assert token_counts(schedule, tokens, protected=1)[-1] == 1 + times * schedule.prompts + left


@pytest.mark.parametrize("text", ["", "x", "+", "m3x2", "+-", "4.5", "+4b", "m1-2", "g", "g4g4"])
def test_a_mistyped_schedule_is_shown_the_forms(text: str) -> None:
    with pytest.raises(ValueError, match="write 0, -20, "):
        parse_schedule(text, 12)


def test_negative_counts_and_unknown_schemes_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        TokenSchedule((-1,))
    with pytest.raises(ValueError, match="scheme: 9 is not one of 1, 2, 3, 4"):
        layer_wise_schedule(9)
    with pytest.raises(ValueError, match="too few for scheme 4"):
        layer_wise_schedule(4, layers=6)
    with pytest.raises(ValueError, match="prompt_mode"):
        TokenSchedule((0,), 1, "add")  # type: ignore[arg-type]
