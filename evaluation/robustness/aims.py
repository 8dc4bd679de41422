"""The aims that were set beforehand and what was measured: met, missed or not measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fedstill.cloud_server.federation.seed_state import GENERIC
from fedstill.evaluation.paired_tests import SIGNIFICANT, holm
from fedstill.evaluation.robustness.costs import summary_bytes
from fedstill.evaluation.robustness.estimates import estimate_errors, estimated
from fedstill.evaluation.robustness.pooling import (
    Entry,
    Figure,
    cells_of,
    difference,
    entries_of,
    in_scenario,
    with_arms,
)
from fedstill.evaluation.robustness.questions import (
    FULL,
    MARGIN,
    OTHER_CARD,
    PRIOR,
    TEACHER_ADAPTED,
    Contract,
    Planned,
    shifted,
)
from fedstill.evaluation.robustness.records import Study

OVER_GENERIC, OVER_OTHER_CARD, OVER_PRIOR = 6.0, 3.0, 2.0
LESS_THAN_TEACHER = 8
BIAS, ERROR, COVERED = 3.0, 5.0, 0.85
UPLOAD = 512
"""Points, times, points and share, bytes: PERSONALISATION.md, section 5."""


@dataclass(frozen=True, slots=True)
class Aim:
    """One aim; met: None if it was not measured."""

    aim: str
    measured: str
    met: bool | None

    @property
    def verdict(self) -> str:
        return "not measured" if self.met is None else "met" if self.met else "missed"


def aims(study: Study, contract: Contract, planned: Sequence[Planned]) -> tuple[Aim, ...]:
    """All of them, in the order of the design."""
    return (
        *_contract_aims(contract),
        *_middle_aims(planned),
        *_prior_aims(study),
        *_teacher_aims(study),
        *_estimate_aims(study),
        *_upload_aims(study),
        Aim("attacks on the card are near the baseline in the private form", "fedstill redteam", None),
        Aim("10,000 simulated devices need at most 200 trainings", "not part of this study", None),
    )


def _contract_aims(contract: Contract) -> Iterator[Aim]:
    if not contract.scenarios:
        yield Aim("the contract", "no device has both arms", None)
        return
    worst = min(contract.scenarios, key=lambda line: line.figure.low)
    yield Aim(
        f"every scenario, pooled over sets: lower end above -{MARGIN:g} point",
        f"lowest in {worst.scenario}: {worst.figure.difference}",
        all(line.kept for line in contract.scenarios),
    )
    lowest = min(contract.by_set, key=lambda line: line.figure.low)
    yield Aim(
        "every scenario of every set: the same",
        f"lowest in {lowest.scenario} of {lowest.experiment}: {lowest.figure.difference}",
        all(line.kept for line in contract.by_set),
    )
    cell = min(contract.cells, key=lambda line: line.figure.points)
    yield Aim(
        f"no cell is significantly below 0 (Holm over {len(contract.cells)})",
        f"{len(contract.harmed)} are; lowest: {cell.key} of {cell.key.experiment}, {cell.figure.difference}",
        not contract.harmed,
    )


def _middle_aims(planned: Sequence[Planned]) -> Iterator[Aim]:
    for baseline, least in ((GENERIC, OVER_GENERIC), (OTHER_CARD, OVER_OTHER_CARD)):
        one = next(one for one in planned if one.baseline == baseline)
        aim = f"A at the middle severity: {least:g} points over {baseline}, Holm p < {SIGNIFICANT}"
        if one.figure is None or one.holm is None:
            yield Aim(aim, "the arm was not run", None)
        else:
            met = one.figure.points >= least and one.holm < SIGNIFICANT
            yield Aim(aim, f"{one.figure.difference}, Holm p = {one.holm:.3f}", met)


def _prior_aims(study: Study) -> Iterator[Aim]:
    for scenario in ("B", "G"):
        aim = f"{scenario}: {OVER_PRIOR:g} points over prior correction alone"
        entries = _both(study, PRIOR, in_scenario(scenario))
        yield _over(aim, difference(entries, FULL, PRIOR), OVER_PRIOR)
    entries = _both(study, PRIOR, lambda entry: entry.device.scenario in ("B", "G"))
    cells = {key: difference(mine, FULL, PRIOR) for key, mine in cells_of(entries).items()}
    found = {key: figure for key, figure in cells.items() if figure}
    adjusted = dict(zip(found, holm([figure.p for figure in found.values()]), strict=True))
    below = [key for key, figure in found.items() if figure.points < 0 and adjusted[key] < SIGNIFICANT]
    aim = "B and G: no cell significantly below prior correction alone"
    yield Aim(aim, f"{len(below)} of {len(found)}", not below if found else None)


def _teacher_aims(study: Study) -> Iterator[Aim]:
    figure = difference(_both(study, TEACHER_ADAPTED, shifted), FULL, TEACHER_ADAPTED)
    yield _over("any shift: not below the teacher with the device's statistics", figure, 0.0)
    sizes = [
        data.parameters["teacher"] / data.parameters["student"]
        for data in study.sets
        if {"teacher", "student"} <= data.parameters.keys()
    ]
    yield Aim(
        f"at 1/{LESS_THAN_TEACHER} of the teacher's size",
        ", ".join(f"1/{size:.1f}" for size in sizes),
        min(sizes) >= LESS_THAN_TEACHER if sizes else None,
    )


def _estimate_aims(study: Study) -> Iterator[Aim]:
    found = estimate_errors(estimated(study))
    for aim, value, least, most in (
        (f"estimated accuracy: bias at most {BIAS:g} points", found.bias, -BIAS, BIAS),
        (f"its mean absolute error at most {ERROR:g} points ({found.many} devices)", found.error, 0, ERROR),
    ):
        measured = "no estimates" if value is None else f"{value:.1f}"
        yield Aim(aim, measured, None if value is None else least <= value <= most)
    yield Aim(
        f"its 90 % intervals hold the truth in at least {100 * COVERED:g} %",
        "no estimates" if found.covered is None else f"{100 * found.covered:.1f} %",
        None if found.covered is None else found.covered >= COVERED,
    )


def _upload_aims(study: Study) -> Iterator[Aim]:
    sizes = [size for entry in entries_of(study) if (size := summary_bytes(entry, FULL)) is not None]
    aim = f"upload of at most {UPLOAD} bytes a round"
    measured = f"at most {max(sizes):.0f}, as counted on the wire" if sizes else "nothing was uploaded"
    yield Aim(aim, measured, max(sizes) <= UPLOAD if sizes else None)


def _both(study: Study, baseline: str, keep: Callable[[Entry], bool]) -> list[Entry]:
    return with_arms(entries_of(study, keep), FULL, baseline)


def _over(aim: str, figure: Figure | None, least: float) -> Aim:
    if figure is None:
        return Aim(aim, "the arm was not run", None)
    return Aim(aim, figure.difference, figure.points >= least)
