"""The numbers of a run for readers, computed once, so that page, markdown and console cannot disagree."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from fedstill.cloud_server.distillation.arm_names import ARMS, SCENARIOS, THESIS_ARMS
from fedstill.evaluation.clusters import by_recording, unit_of
from fedstill.evaluation.paired_tests import FEWEST_SPEAKERS
from fedstill.evaluation.results import ClipRow, Results
from fedstill.evaluation.statistics import (
    SEEDS_FOR_TEST,
    Accuracy,
    Comparison,
    arm_accuracy,
    compare,
    distinct_recordings,
    pooled_accuracy,
)

BASELINE = "all_distill"
OURS = "fedstill"
EQUAL_STEPS = "all_distill_equal_steps"
CONTROLS = {
    EQUAL_STEPS: "what it adds to the student that everybody has",
    "fedstill_without_selection": "what a choice for the device adds to our training",
    "prior_corrected": "what more than prior correction adds",
    "oracle_classes": "an upper reference for selection alone: it knows the true classes",
}
CLASS_MIX_NOTE = (
    "Devices, over all seeds, whose student uses what was estimated of their classes; the others get the "
    "generic student."
)
STUDENTS_NOTE = (
    "Which candidate each device got, and its accuracy: as expected from public speakers under its conditions, with a "
    "90 % interval and without its labels, and as found."
)
MB = 1e6  # decimal megabytes, as in the thesis
FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class ArmLine:
    """One arm in one scenario: all clients, each client (None: not run), the difference to AllDistill."""

    arm: str
    pooled: Accuracy
    clients: tuple[Accuracy | None, ...]
    difference: Comparison | None


@dataclass(frozen=True, slots=True)
class ScenarioTable:
    """The headline table of one scenario; `clients` heads the per-client columns."""

    scenario: str
    clients: tuple[int, ...]
    lines: tuple[ArmLine, ...]


@dataclass(frozen=True, slots=True)
class KeyComparison:
    """A question that the run was made to answer; `comparison` is None if the two arms share no clips."""

    scenario: str
    arm: str
    baseline: str
    comparison: Comparison | None
    note: str


@dataclass(frozen=True, slots=True)
class ClassMixTotal:
    """For how many devices of how many the class mix was used, and why not for the others."""

    scenario: str
    arm: str
    used: int
    devices: int
    reasons: str


@dataclass(frozen=True, slots=True)
class ArmTraffic:
    """Mean over clients and seeds of one client's traffic in a whole run, in MB."""

    scenario: str
    arm: str
    up_mb: float
    down_mb: float


def scenario_tables(results: Results, clips: Sequence[ClipRow]) -> tuple[ScenarioTable, ...]:
    """One headline table per scenario that has accuracy rows, arms in table order."""
    return tuple(_scenario_table(results, clips, scenario) for scenario in results.scenarios())


def _scenario_table(results: Results, clips: Sequence[ClipRow], scenario: str) -> ScenarioTable:
    rows = [row for row in results.rows if row.scenario == scenario]
    clients = tuple(sorted({row.client for row in rows}))
    lines = []
    for arm in results.arms():
        mine = [row for row in rows if row.arm == arm]
        if not mine:
            continue
        per_client = [[row for row in mine if row.client == client] for client in clients]
        lines.append(
            ArmLine(
                arm=arm,
                pooled=arm_accuracy(mine, clips),
                clients=tuple(arm_accuracy(some, clips) if some else None for some in per_client),
                difference=None if arm == BASELINE else compare(clips, arm, BASELINE, scenario=scenario),
            )
        )
    return ScenarioTable(scenario, clients, tuple(lines))


def key_comparisons(results: Results, clips: Sequence[ClipRow]) -> tuple[KeyComparison, ...]:
    """fedstill against AllDistill, the best thesis arm and its own parts; the thesis' arms against equal steps."""
    found = []
    for scenario in results.scenarios():
        rows_of = {
            arm: [row for row in results.rows if (row.scenario, row.arm) == (scenario, arm)]
            for arm in results.arms()
        }
        accuracy = {arm: pooled_accuracy(rows).fraction for arm, rows in rows_of.items() if rows}
        thesis = [arm for arm in THESIS_ARMS if arm in accuracy]
        pairs = [(OURS, BASELINE, "")]
        if thesis and (best := max(thesis, key=lambda arm: accuracy[arm])) != BASELINE:
            pairs.append(
                (OURS, best, "the thesis' best arm here, chosen on the test clips, which favours it")
            )
        pairs += [(OURS, control, note) for control, note in CONTROLS.items()]
        same_length = "both trained for the same number of steps"
        pairs += [(arm, EQUAL_STEPS, same_length) for arm in THESIS_ARMS[2:]]
        for arm, baseline, note in dict.fromkeys(pairs):
            if arm in accuracy and baseline in accuracy:
                outcome = compare(clips, arm, baseline, scenario=scenario)
                found.append(KeyComparison(scenario, arm, baseline, outcome, note))
    return tuple(found)


def teacher_accuracy(results: Results, clips: Sequence[ClipRow] = ()) -> tuple[tuple[str, Accuracy], ...]:
    """Teacher accuracy on held-out public clips and per client, each with a heading."""
    distinct = distinct_recordings(clips, "latency_insensitive")  # it is asked about all clips of a client
    groups = defaultdict(list)
    for row in results.teacher:
        name = "held-out public clips" if row.scope == "public_holdout" else f"client {row.client}"
        groups[name].append(row)
    return tuple((name, pooled_accuracy(rows, distinct)) for name, rows in groups.items())


def pretrained_note(results: Results) -> str:
    """Which weights the teacher came with, and what follows for the table; empty as a rule."""
    encoders = [
        f"Pretrained {row.modality} encoder, {'frozen' if row.frozen else 'fine-tuned'}: {row.model}, "
        f"licence {row.licence}, sha256 {row.sha256}."
        for row in results.pretrained
    ]
    no_row = "Devices cannot run this teacher, so there is no row for it on their clips."
    return " ".join([*encoders, no_row]) if encoders else ""


def traffic_totals(results: Results) -> tuple[ArmTraffic, ...]:
    """One client's uploads and downloads in a run, per scenario and arm."""
    totals = []
    for scenario in SCENARIOS:
        for arm in ARMS:
            rows = [row for row in results.traffic if (row.scenario, row.arm) == (scenario, arm)]
            if rows:
                runs = len({(row.client, row.seed) for row in rows}) * MB
                up, down = sum(row.up_bytes for row in rows), sum(row.down_bytes for row in rows)
                totals.append(ArmTraffic(scenario, arm, up / runs, down / runs))
    return tuple(totals)


def class_mix_totals(results: Results) -> tuple[ClassMixTotal, ...]:
    """Per scenario and arm, for how many devices (of all seeds) the class mix was used."""
    totals = []
    for scenario in SCENARIOS:
        for arm in ARMS:
            rows = [row for row in results.decisions if (row.scenario, row.arm) == (scenario, arm)]
            if rows:
                against = Counter(_without_numbers(row.reason) for row in rows if not row.supported)
                reasons = "; ".join(f"{count}: {reason}" for reason, count in against.most_common())
                totals.append(
                    ClassMixTotal(scenario, arm, sum(row.supported for row in rows), len(rows), reasons)
                )
    return tuple(totals)


def student_rows(results: Results) -> list[list[str]]:
    """Of every choice: scenario, arm, client, seed, student, accuracy expected and found, points over generic,
    reason. What was not measured is empty."""
    found = {
        (row.scenario, row.arm, row.client, row.seed): 100 * row.correct / row.total for row in results.rows
    }
    members = Counter((row.seed, row.cohort) for row in results.choices if row.cohort)
    rows = []
    for one in results.choices:
        sharing, expected = members[one.seed, one.cohort], ""
        if one.estimate is not None and one.low is not None and one.high is not None:
            expected = f"{100 * one.estimate:.1f} % [{100 * one.low:.0f}, {100 * one.high:.0f}]"
        mine = found.get((one.scenario, one.arm, one.client, one.seed))
        generic = found.get((one.scenario, EQUAL_STEPS, one.client, one.seed))
        rows.append(
            [SCENARIOS[one.scenario], ARMS[one.arm], str(one.client), str(one.seed),
             f"{one.chosen} (shared by {sharing})" if sharing > 1 else one.chosen, expected,
             "" if mine is None else f"{mine:.1f} %",
             "" if mine is None or generic is None else f"{mine - generic:+.1f}", one.reason]
        )  # fmt: skip
    return rows


def student_line(results: Results) -> str:
    """How many devices got which student of the ``fedstill`` arm, for the console; empty without choices."""
    chosen = Counter(row.chosen for row in results.choices if row.arm == OURS)
    counted = ", ".join(f"{count} {name}" for name, count in chosen.most_common())
    return (
        f"Students of fedstill: {counted}; the report says why, and what to expect of them. "
        if counted
        else ""
    )


def shares_line(results: Results) -> str:
    """Which arms had more prototypes than public clips to choose, and what became of that; empty if none had."""
    told = []
    for arm in ARMS:
        rows = [row for row in results.shares if row.arm == arm]
        if rows:
            most = max(rows, key=lambda row: row.prototypes / row.clips)
            told.append(f"{ARMS[arm]} up to {most.prototypes} for {most.clips} clips")
    return (
        f"More prototypes than the budget of public clips: {', '.join(told)}. Each took its share of a clip, and no "
        "device is left out; a larger selection.budget gives whole clips. "
        if told
        else ""
    )


def class_mix_line(results: Results) -> str:
    """How often each arm used a class mix, for the console; empty if no arm of the run asks for one."""
    rows = results.decisions
    used = [
        f"{ARMS[arm]} for {sum(row.supported for row in rows if row.arm == arm)} of "
        f"{sum(row.arm == arm for row in rows)} students"
        for arm in ARMS
        if any(row.arm == arm for row in rows)
    ]
    return f"Class mix used: {', '.join(used)}; the report says why not. " if used else ""


def _without_numbers(reason: str) -> str:
    """A reason without its p value, so that equal ones can be counted."""
    return re.sub(r" \([^)]*\)", "", reason)


def what_ran(results: Results) -> str:
    """The run in one sentence."""
    arms, seeds = _count(len(results.arms()), "arm"), _count(len(results.seeds), "seed")
    return (
        f"{results.experiment} ran in {results.mode} mode on {data_name(results)}: "
        f"{_count(len(results.clients), 'client')}, {arms} and {seeds}, "
        f"in {duration(results.seconds.get('total', 0.0))} on {results.hardware}."
    )


def data_name(results: Results) -> str:
    """The data set, with the word synthetic if it is."""
    if not results.synthetic:
        return results.dataset
    return "synthetic data" if "synthetic" in results.dataset else f"synthetic data ({results.dataset})"


def differences_note(results: Results, clips: Sequence[ClipRow] = ()) -> str:
    """How to read intervals and differences of this run."""
    n, unit = len(results.seeds), unit_of(clips)
    both = f"sign flips per {unit} and a t-test over the {n} seeds, which may disagree with the interval"
    how = (
        both if n >= SEEDS_FOR_TEST else f"sign flips per {unit}; {_count(n, 'seed')} cannot speak for seeds"
    )
    return (
        f"Brackets are 95 % intervals {_intervals_note(unit, clips)}. Differences are percentage points on the "
        f"same clips, paired, and n.s. unless p < 0.05 ({how}). "
        "The p values are not corrected for the number of comparisons."
    )


def _intervals_note(unit: str, clips: Sequence[ClipRow]) -> str:
    if unit != "speaker":
        doubt = ". This run does not say who speaks, so they may be too narrow" if clips else ""
        return f"over distinct {unit}s{doubt}"
    found = by_recording([(row, [0] * len(row.clip_ids)) for row in clips])
    drawn = (
        f"that draw speakers, then recordings of each ({_count(found.speaker_count, 'speaker')}, "
        f"{_count(len(found.sums), 'recording')})"
    )
    if found.speaker_count < FEWEST_SPEAKERS:
        return f"{drawn}; with fewer than {FEWEST_SPEAKERS} speakers p cannot be below 0.05"
    return drawn


def narrow(cell: str) -> str:
    """A cell with spaces only at places for a line break on a narrow terminal: "66.3% [61.4,70.9]"."""
    return re.sub(r"(\[[^ ]+), ", r"\1,", cell).replace(" %", "%").replace(" = ", "=").replace(" < ", "<")


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would choose."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
