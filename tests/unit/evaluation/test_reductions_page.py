"""The page says what was recovered of the loss, and does not hide where the aim was missed."""

from __future__ import annotations

from fedstill.evaluation.elastic.reductions_page import BUDGETS, FAMILIES, TASKS, page


def digits(right: int) -> str:
    return "1" * right + "0" * (100 - right)


def answers(merging: int, layer_wise: int, ours: int, ratio: float = 1.0) -> tuple[dict, dict, str]:
    """100 images per task, of which 90 are right without reduction."""
    right, chosen = {f"{task} 0": digits(90) for task in TASKS}, {}
    for task in TASKS:
        for budget in BUDGETS:
            for family, number in zip(FAMILIES, (merging, layer_wise, ours), strict=True):
                right[f"{task} {budget} {family}"] = digits(number)
                chosen[f"{task} {budget} {family}"] = "g9-3"
    ratios = {
        f"{task} {budget} {family}": ratio for task in TASKS for budget in BUDGETS for family in FAMILIES
    }
    kept = {"right": right, "ratios": ratios, "cpu": "a", "torch": "2", "backend": "b"}
    return kept, chosen, "abc1234"


def test_a_loss_of_which_most_is_recovered_meets_the_aim() -> None:
    text = page(*answers(merging=60, layer_wise=85, ours=86))
    assert text.count("| 30.0 | +26.0 (87 %) | 3e-08 | 5.0 | +1.0 (20 %) | 1 | 1.00 |") == 9
    assert text.count("met in all 9 rows") == 2
    assert "committed as abc1234 before any test image" in text


def test_every_missed_row_is_named() -> None:
    """Half of the loss is not recovered; or it is below merging where that loses little; or it takes longer."""
    text = page(*answers(merging=60, layer_wise=85, ours=74, ratio=1.04))
    assert "mnist at -30 (47 % recovered, p = 0.00012)" in text
    assert "cifar10 at -15 (-11.0 points, p = 0.00098)" in text
    assert text.count("(time 1.04)") == 18


def test_a_gain_that_may_be_chance_is_missed() -> None:
    text = page(*answers(merging=84, layer_wise=84, ours=90))
    assert "tinyimagenet100 at -20 (100 % recovered, p = 0.031)" in text


def test_what_was_not_measured_is_said() -> None:
    kept, chosen, commit = answers(merging=60, layer_wise=85, ours=86)
    del kept["right"]["mnist -20 merging"], kept["ratios"]
    text = page(kept, chosen, commit)
    assert text.count("met in all 8 rows") == 2
    assert "not measured: mnist at -20, times." in text
    assert "| not measured |" in text
