"""The figures of thesis chapter 3 beside the results of a load test (``fedstill reproduce fig3.10 DIR``).

The thesis' figures have no numbers, so its words about them are printed beside our table and picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from fedstill.cloud_server.serving.policies.registry import LABELS
from fedstill.evaluation.plot_style import save
from fedstill.evaluation.results import ResultsError
from fedstill.evaluation.serving.plots import ADAPTIVE, FIGURES, SYSTEMS, TYPES, standard_load
from fedstill.evaluation.serving.results import ServingResults
from fedstill.evaluation.serving.summary import BASELINE, Mean, gain, policy_lines

WORDS: Mapping[str, str] = {
    "fig3.10": "OTAS earns about 1.45e5 on the synthetic trace, 18.77 % more than PetS and 72.93 % more than INFaaS, "
    "and up to 96.5 % more on MAF. INFaaS is the lowest, because switching models takes long.",
    "fig3.11": "OTAS earns more than every fixed token number; ToMe -10 and VPT +2 come next, ToMe -20 and VPT +8 "
    "last.",
    "fig3.14": "synthetic: OTAS chooses +4 most often, then -15. MAF: +4 even more often, -15 at peaks.",
    "fig3.15": "OTAS serves 85.35 % of the queries rightly in time on the synthetic trace and 75.62 % on MAF, none "
    "late; on MAF VPT reaches 72.93 % with 23.11 % evicted, and ToMe answers 15.5 % wrongly.",
}


def reproduce_serving(target: str, results: ServingResults, figures: Path) -> RenderableType:
    """A figure of chapter 3 from a load test: our numbers, the thesis' words, and the picture saved in `figures`.

    Raises ResultsError for an unknown target, or a load test without the policies that it compares.
    """
    if target not in TABLES:
        raise ResultsError(f"unknown target {target!r} for a load test (known: {', '.join(TABLES)})")
    load = standard_load(results)
    traces = [trace for trace, factor in results.places() if factor == load]
    parts: list[RenderableType] = [TABLES[target](results, trace, load) for trace in traces]
    parts.append(f"Thesis, in words (its figure comes without numbers): {WORDS[target]}")
    parts.append(escape(f"Picture: {save(FIGURES[target](results, load), figures / f'{target}.png')}"))
    return Group(*parts)


def _grid(title: str, heads: Sequence[str]) -> Table:
    table = Table(title=title, title_style="bold", box=SIMPLE_HEAD)
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left")
    return table


def _present(results: ServingResults, wanted: Sequence[str]) -> list[str]:
    found = [policy for policy in wanted if policy in results.policies()]
    if not found:
        raise ResultsError(f"this load test ran none of {', '.join(wanted)}: name some with --policies")
    return found


def _systems(results: ServingResults, trace: str, load: float) -> Table:
    """Fig. 3.10: utility of whole systems, and how much more OTAS earns than each."""
    table = _grid(f"Figure 3.10, {trace}: utility", ("system", "utility", "OTAS earns more by"))
    for policy in _present(results, SYSTEMS):
        earned = Mean.of([row.utility_earned for row in results.rows(policy, trace, load)])
        more = None if policy == BASELINE else gain(results, BASELINE, policy, trace, load)
        table.add_row(
            LABELS[policy],
            f"{earned.value:.0f} [{earned.low:.0f}, {earned.high:.0f}]",
            "-" if more is None else str(more),
        )
    return table


def _fixed(results: ServingResults, trace: str, load: float) -> Table:
    """Fig. 3.11: utility of every policy, fixed token numbers among them."""
    table = _grid(f"Figure 3.11, {trace}: utility of offered", ("policy", "utility of offered"))
    for line in policy_lines(results, trace, load):
        table.add_row(LABELS[line.policy], line.share.percent())
    return table


def _choices(results: ServingResults, trace: str, load: float) -> Table:
    """Fig. 3.14: share of the served queries per schedule."""
    policies = _present(results, ADAPTIVE)
    table = _grid(
        f"Figure 3.14, {trace}: served queries by token delta",
        ("token delta", *(LABELS[p] for p in policies)),
    )
    for name in results.schedules:
        shares = [
            np.mean(
                [
                    row.schedules.get(name, 0) / max(1, sum(row.schedules.values()))
                    for row in results.rows(p, trace, load)
                ]
            )
            for p in policies
        ]
        if any(shares):
            table.add_row(name, *(f"{100 * share:.1f} %" for share in shares))
    return table


def _types(results: ServingResults, trace: str, load: float) -> Table:
    """Fig. 3.15: types 1 to 4."""
    table = _grid(
        f"Figure 3.15, {trace}: what became of the queries", ("policy", *(name for name, _ in TYPES))
    )
    for line in policy_lines(results, trace, load):
        table.add_row(LABELS[line.policy], *(f"{100 * share:.2f} %" for share in line.types))
    return table


TABLES: Mapping[str, Callable[[ServingResults, str, float], Table]] = {
    "fig3.10": _systems,
    "fig3.11": _fixed,
    "fig3.14": _choices,
    "fig3.15": _types,
}
