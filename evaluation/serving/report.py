"""A load test on the terminal and as a Markdown page; both read `serving_summary`, so they cannot disagree."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table

from fedstill.cloud_server.serving.policies.registry import LABELS
from fedstill.common.atomic_files import replace_text
from fedstill.evaluation.serving.plots import save_figures, standard_load
from fedstill.evaluation.serving.results import ServingResults
from fedstill.evaluation.serving.summary import (
    BASELINE,
    OURS,
    Gain,
    PolicyLine,
    bound_room,
    gain,
    paired_ratio,
    policy_lines,
)

HEADS = (
    "policy",
    "utility of offered",
    f"over {LABELS[BASELINE]}",
    "of fluid",
    "of bound",
    "right",
    "wrong",
    "late",
    "not served",
    "batch",
    "wait p95",
)


def console_report(results: ServingResults) -> RenderableType:
    """A table per trace and load."""
    parts: list[RenderableType] = []
    for trace, load in results.places():
        table = Table(title=_title(results, trace, load), title_style="bold", box=SIMPLE_HEAD)
        for place, head in enumerate(HEADS):
            table.add_column(head, justify="right" if place else "left")
        for line in policy_lines(results, trace, load):
            table.add_row(*_cells(line))
        parts.append(table)
    parts += [legend(results), *client_lines(results)]
    return Group(*parts)


def legend(results: ServingResults) -> str:
    """The meaning of the columns, and their intervals."""
    seeds = results.config["seeds"]
    return (
        f"{seeds} seed{'s' * (seeds != 1)}; brackets: 95 % intervals over seeds (Student's t), differences paired "
        "on the same loads. fluid: one-second windows without batch cost or deadlines, not a strict bound. "
        "bound: no policy's expected utility exceeds it. not served: evicted or turned away. batch: mean size. "
        "wait p95: ms until a served query's batch starts."
    )


def client_lines(results: ServingResults) -> list[str]:
    """How far the generator of a live test can be trusted: its lag and its failures."""
    rows = [row.client for row in results.runs if row.client is not None]
    if not rows:
        return []
    lag = max(row.lag_ms.get("p99", 0.0) for row in rows)
    failed: Counter[str] = Counter()
    for row in rows:
        failed.update(row.failed)
    wrong = ", ".join(f"{count} x {detail}" for detail, count in failed.most_common()) or "none"
    return [
        f"Latency counts from the planned time. Queries were sent late by at most {lag:.1f} ms (p99 of the worst run). "
        f"Queries without an answer or a refusal of the policy: {wrong}."
    ]


def live_targets(results: ServingResults, trace: str, load: float) -> list[str]:
    """At load 1 and above: whether fedstill earned most, and how much of what it served was late."""
    lines = {line.policy: line for line in policy_lines(results, trace, load)}
    if load < 1 or OURS not in lines or len(lines) == 1:
        return []
    ours = lines[OURS]
    best = max((line for line in lines.values() if line.policy != OURS), key=lambda line: line.share.value)
    found = gain(results, OURS, best.policy, trace, load)
    ahead = ours.share.value > best.share.value
    right, wrong, late, _ = ours.types
    of_served = late / max(1e-9, right + wrong + late)
    return [
        f"- {LABELS[OURS]} over the best other, {LABELS[best.policy]}: {found}; aim: most of all: "
        f"{'met' if ahead else 'missed'}.",
        f"- Late of what {LABELS[OURS]} served: {100 * of_served:.2f} %; aim at most 1 %: "
        f"{'met' if of_served <= 0.01 else 'missed'}.",
        *_refusal_lines(results, trace, load),
        *_lowest_line(results, trace, load),
    ]


def _refusal_lines(results: ServingResults, trace: str, load: float) -> list[str]:
    """When fedstill told those that it refused."""
    clients = [row.client for row in results.rows(OURS, trace, load) if row.client is not None]
    after = [client.refused_after["p50"] for client in clients if client.refused_after]
    if not after:
        return []
    typical = sum(after) / len(after)
    return [
        f"- Refusals come after {100 * typical:.0f} % of the latency objective (median, mean of seeds); aim at most "
        f"20 %: {'met' if typical <= 0.2 else 'missed'}."
    ]


def _lowest_line(results: ServingResults, trace: str, load: float) -> list[str]:
    """The policy that fedstill may lose most to."""
    others = [name for name in results.policies() if name != OURS]
    ratios = [
        (found.low, found.value, name)
        for name in others
        if (found := paired_ratio(results, OURS, name, trace, load))
    ]
    if not ratios:
        return []
    low, value, name = min(ratios)
    return [
        f"- Lowest lower end of the paired ratio of utilities (geometric mean, interval on its logarithm): {low:.3f} "
        f"({LABELS[name]}, ratio {value:.3f}); aim at least 0.97: {'met' if low >= 0.97 else 'missed'}."
    ]


def _title(results: ServingResults, trace: str, load: float) -> str:
    queries = [row.queries for row in results.rows(results.policies()[0], trace, load)]
    seconds = results.config["seconds"]
    rate = sum(queries) / len(queries) / seconds
    worth = ", all worth the same" if results.config.get("equal") else ""
    return f"{trace}, load {load:g}: {rate:.0f} queries/s{worth} for {seconds:g} s, profile {results.profile}"


def _cells(line: PolicyLine) -> list[str]:
    return [
        LABELS[line.policy],
        line.share.percent(),
        "-" if line.gain is None else str(line.gain),
        *("-" if mean is None else f"{mean.value:.3f}" for mean in (line.of_window, line.of_bound)),
        *(f"{100 * share:.1f} %" for share in line.types),
        f"{line.mean_batch:.1f}",
        f"{line.waiting_p95_ms:.0f}",
    ]


def write_serving_markdown(results: ServingResults, path: Path, facts: str = "") -> Path:
    """A page with the tables, the targets that were set, and the figures beside it. facts: on the setting."""
    figures = path.parent / path.stem
    drawn = save_figures(results, figures)
    lines = [
        "# Serving in virtual time" if results.measured_on is None else "# Serving, live",
        "",
        f"Written by `{results.command}`. "
        + (
            "One simulated engine; nothing here was measured on hardware."
            if results.measured_on is None
            else f"Measured: {results.measured_on}."
        ),
        "",
        *([facts, ""] if facts else []),
        f"Profile: {results.profile} ({results.profile_source}).",
        "",
        legend(results),
        *(part for line in client_lines(results) for part in ("", line)),
    ]
    for trace, load in results.places():
        lines += [
            "",
            f"## {_title(results, trace, load)}",
            "",
            _markdown_row(HEADS),
            _markdown_row(["---"] * len(HEADS)),
        ]
        lines += [_markdown_row(_cells(line)) for line in policy_lines(results, trace, load)]
        lines += ["", *(_targets if results.measured_on is None else live_targets)(results, trace, load)]
    load = standard_load(results)
    lines += ["", f"## Figures (load {load:g})", ""]
    lines += [f"![{picture.stem}]({figures.name}/{picture.name})" for picture in drawn]
    return replace_text(path, "\n".join(lines) + "\n")


def _targets(results: ServingResults, trace: str, load: float) -> list[str]:
    """Aims and results at load 1."""
    if load != 1.0:
        return []
    aims = [
        (BASELINE, "pets", 18.0, "as in the thesis"),
        (BASELINE, "infaas", 70.0, "as in the thesis"),
        (OURS, BASELINE, 4.0 if trace == "synthetic" else 10.0, ""),
    ]
    lines = []
    for policy, baseline, aim, why in aims:
        found = gain(results, policy, baseline, trace, load)
        if found is not None:
            note = f" ({why})" if why else ""
            lines.append(
                f"- {LABELS[policy]} over {LABELS[baseline]}: {found}; "
                f"aim at least +{aim:g} %{note}: {_met(found, aim)}."
            )
    room = bound_room(results, trace, load)
    if room is not None:
        lines.append(
            f"- Room above {LABELS[BASELINE]}: the strict bound lies {room.value:.1f} % higher "
            f"[{room.low:.1f}, {room.high:.1f}], so no policy can expect to gain more here."
        )
    ours = [line for line in policy_lines(results, trace, load) if line.policy == OURS]
    if ours and (share := ours[0].of_window) is not None:
        verdict = "met" if share.value >= 0.97 else "missed"
        lines.append(
            f"- {LABELS[OURS]} against the fluid reference: {share.value:.3f}; aim at least 0.97: {verdict}."
        )
    return lines


def _met(found: Gain, aim: float) -> str:
    return "met" if found.percent.value >= aim else "missed"


def _markdown_row(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"
