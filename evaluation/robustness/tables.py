"""The tables of the robustness study, as plain text for console and page."""

from __future__ import annotations

from collections.abc import Sequence

from fedstill.cloud_server.distillation.arm_names import ARMS, REFERENCES
from fedstill.cloud_server.federation.seed_state import GENERIC
from fedstill.evaluation.elastic.tables import Sheet
from fedstill.evaluation.robustness.aims import Aim
from fedstill.evaluation.robustness.costs import cost_lines
from fedstill.evaluation.robustness.estimates import MANY_CLIPS, chosen_lines, estimate_errors, estimated
from fedstill.evaluation.robustness.pooling import (
    Entry,
    accuracy,
    cells_of,
    difference,
    entries_of,
    in_scenario,
    with_arms,
)
from fedstill.evaluation.robustness.questions import FULL, MARGIN, Contract, Planned
from fedstill.evaluation.robustness.records import Study
from fedstill.evaluation.statistics import signed

TITLES = {**ARMS, **REFERENCES}
SCENARIO_TITLES = {
    "A": "A capture shift",
    "B": "B capture shift, half of the classes",
    "C": "C one modality",
    "D": "D neither",
    "E": "E stale card",
    "F": "F few clips",
    "G": "G half of the classes",
}
NONE = "-"


def aims_sheet(found: Sequence[Aim]) -> Sheet:
    """Aim by aim."""
    rows = tuple((one.aim, one.measured, one.verdict) for one in found)
    return Sheet(
        "What we aimed at", ("aim", "measured", ""), rows, ("Differences in points, with 95 % intervals.",)
    )


def contract_sheet(contract: Contract) -> Sheet:
    """The contract by scenario: pooled, and by set if there are several."""
    several = len({line.experiment for line in contract.by_set}) > 1
    rows = tuple(
        (
            SCENARIO_TITLES[line.scenario],
            line.experiment,
            line.figure.difference,
            str(line.figure.devices),
            "kept" if line.kept else "broken",
        )
        for line in (*contract.scenarios, *(contract.by_set if several else ()))
    )
    return Sheet(
        "The contract: never worse than the robust generic student",
        ("scenario", "data", "difference", "devices", f"lower end above -{MARGIN:g}"),
        rows,
        (
            f"{TITLES[FULL]} - {TITLES[GENERIC]}, paired, in points. What is pooled over all sets decides. "
            "Devices: counted with their folds and seeds.",
        ),
    )


def cells_sheet(contract: Contract, most: int = 12) -> Sheet:
    """The cells in which the arm does worst."""
    lowest = sorted(contract.cells, key=lambda line: line.figure.points)[:most]
    rows = tuple(
        (
            line.key.experiment,
            str(line.key),
            line.figure.difference,
            f"{line.figure.p:.3f}",
            f"{line.holm:.3f}",
            "harmed" if line.harmed else "",
        )
        for line in lowest
    )
    return Sheet(
        f"Single cells: the {len(rows)} lowest of {len(contract.cells)}",
        ("data", "cell", "difference", "p", "Holm", ""),
        rows,
        (f"{len(contract.harmed)} cells are significantly below 0. Folds and seeds of a cell are pooled.",),
    )


def planned_sheet(found: Sequence[Planned]) -> Sheet:
    """The four comparisons."""
    rows = tuple(
        (
            f"{TITLES[one.arm]} vs {TITLES.get(one.baseline, one.baseline)}: {one.question}",
            one.where,
            one.figure.difference if one.figure else "not run",
            NONE if one.p is None else f"{one.p:.4f}",
            NONE if one.holm is None else f"{one.holm:.4f}",
        )
        for one in found
    )
    return Sheet(
        "The four planned comparisons",
        ("comparison", "where", "difference", "p", "Holm"),
        rows,
        (
            "Sign flips, adjusted by Holm's method for all four. The last p is of the "
            f"hypothesis that the arm is worse by {MARGIN:g} point or more.",
        ),
    )


def arms_sheet(study: Study) -> Sheet:
    """Accuracy of every arm and its difference to the generic student, by scenario."""
    rows = []
    for scenario in SCENARIO_TITLES:
        entries = entries_of(study, in_scenario(scenario))
        for arm in arms_of(entries):
            mean, gain = accuracy(entries, arm), difference(entries, arm, GENERIC)
            both = with_arms(entries, arm, GENERIC)
            compared = gain.difference if gain and arm != GENERIC else ""
            assert mean is not None
            rows.append((SCENARIO_TITLES[scenario], TITLES[arm], mean.accuracy, compared, str(len(both))))
    return Sheet(
        "Every arm",
        ("scenario", "arm", "accuracy", f"against {TITLES[GENERIC]}", "devices"),
        tuple(rows),
        (
            "Arms with fewer devices were run on some cells only, so their accuracies are of other cells: compare the "
            "differences, which are paired.",
        ),
    )


def choices_sheet(study: Study) -> Sheet:
    """How often each candidate was chosen, what it was expected to gain, and what it gained."""
    lines = chosen_lines(study)
    total = sum(line.devices for line in lines)
    rows = tuple(
        (
            line.name,
            f"{line.devices} ({100 * line.devices / total:.0f} %)",
            NONE if line.expected is None else signed(line.expected),
            line.real.difference if line.real else NONE,
        )
        for line in lines
    )
    return Sheet(
        "Which candidate was chosen, and what it was worth",
        ("candidate", "devices", "expected gain", "real gain"),
        rows,
        ("Over the generic student, in points. The expected gain is the cloud's, from public clips.",),
    )


def estimates_sheet(study: Study) -> Sheet:
    """Estimated against true accuracy, all devices and by scenario."""
    found = estimated(study)
    rows = []
    for title, mine in [
        ("all", found),
        *(
            (name, [one for one in found if one.entry.device.scenario == scenario])
            for scenario, name in SCENARIO_TITLES.items()
        ),
    ]:
        errors = estimate_errors(mine)
        if errors.devices:
            rows.append(
                (
                    title,
                    str(errors.devices),
                    NONE if errors.bias is None else signed(errors.bias),
                    NONE if errors.error is None else f"{errors.error:.1f} ({errors.many})",
                    NONE if errors.covered is None else f"{100 * errors.covered:.0f} %",
                )
            )
    return Sheet(
        "Accuracy that was estimated without labels",
        ("scenario", "devices", "bias", "mean absolute error", "90 % intervals that hold the truth"),
        tuple(rows),
        (f"In points; the mean absolute error is over devices with {MANY_CLIPS} test clips or more.",),
    )


def costs_sheet(study: Study) -> Sheet:
    """Gain per kilobyte uploaded."""
    rows = tuple(
        (
            TITLES[line.arm],
            f"{line.up_bytes:,.0f}",
            line.gain.difference,
            NONE if line.points_per_kilobyte is None else signed(line.points_per_kilobyte),
        )
        for line in cost_lines(study)
    )
    return Sheet(
        "Gain per kilobyte uploaded",
        ("arm", "bytes up", "gain", "points per kB"),
        rows,
        ("On shifted devices. Bytes beyond the evaluation's, as counted on the wire; a mean over devices.",),
    )


def arms_of(entries: Sequence[Entry]) -> list[str]:
    """The arms that these devices have, in table order: references first."""
    present = {arm for entry in entries for arm in entry.device.right}
    return [arm for arm in (*REFERENCES, *ARMS) if arm in present]


def severity_cells(study: Study) -> dict[tuple[str, str], dict[int, list[Entry]]]:
    """The devices of scenario A by (experiment, condition), then by severity."""
    found: dict[tuple[str, str], dict[int, list[Entry]]] = {}
    for key, entries in cells_of(entries_of(study, in_scenario("A"))).items():
        found.setdefault((key.experiment, key.condition), {})[key.severity] = entries
    return found
