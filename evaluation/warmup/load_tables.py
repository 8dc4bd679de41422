"""Figures 4.9 and 4.10: warmed models under load."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from fedstill.cloud_server.serving.policies.registry import LABELS
from fedstill.evaluation.elastic.tables import Sheet
from fedstill.evaluation.warmup.means import bracketed, goodput_gain, loads, p95_change, served_rows
from fedstill.evaluation.warmup.results import ServedRow, WarmupStudy


def figure_4_9(study: WarmupStudy) -> Sheet:
    """Goodput under load."""
    rows = []
    for task, trace, policy, mine in _everyone(study):
        change = goodput_gain(study, task, trace, policy)
        rows.append(
            (
                task,
                trace,
                LABELS[policy],
                f"{fmean(row.goodput for row in mine):.0f}",
                "" if policy == "vanilla" else bracketed(change, " %"),
                f"{100 * fmean(row.in_time for row in mine):.1f} %",
            )
        )
    return Sheet(
        "Figure 4.9: queries answered rightly in time, per minute",
        ("task", "load", "system", "per minute", "vs OTAS, no warm-up", "answered in time"),
        tuple(rows),
        (
            _served_note(study),
            "Thesis: Prodigy serves up to 36 % more than OTAS on the synthetic load, 4 to 23 % more on Azure's.",
        ),
    )


def figure_4_10(study: WarmupStudy) -> Sheet:
    """Latency under load."""
    rows = []
    for task, trace, policy, mine in _everyone(study):
        change = p95_change(study, task, trace, policy)
        rows.append(
            (
                task,
                trace,
                LABELS[policy],
                f"{fmean(row.latency_ms['p50'] for row in mine):.0f} ms",
                f"{fmean(row.latency_ms['p95'] for row in mine):.0f} ms",
                "" if policy == "clipper" else bracketed(change, " %"),
                *(f"{100 * fmean(row.within[step] for row in mine):.0f} %" for step in (2, 4, 9)),
            )
        )
    return Sheet(
        "Figure 4.10: latency",
        ("task", "load", "system", "p50", "p95", "p95 vs Clipper", "within 0.3", "within 0.5", "within 1"),
        tuple(rows),
        (
            _served_note(study),
            "Percentiles are of answered queries; a query that is late before it starts is never run, so the last "
            "columns count all queries: answered within 0.3, 0.5 and 1 of the objective.",
            "Thesis: 62 % less latency than Clipper; more than 80 % of the queries within the objective, Clipper "
            "40 and 60 %.",
        ),
    )


def _everyone(study: WarmupStudy) -> Iterator[tuple[str, str, str, list[ServedRow]]]:
    """Task, trace, policy, and the policy's rows by seed, in the order of the tables."""
    policies = dict.fromkeys(row.policy for run in study.runs for row in run.served)
    for task, trace in loads(study):
        for policy in policies:
            yield task, trace, policy, served_rows(study, task, trace, policy)


def _served_note(study: WarmupStudy) -> str:
    return (
        f"In virtual time, {study.settings.serving_seconds:.0f} s of arrivals per seed, with batch times measured "
        f"here; objective {1e3 * study.objective:.0f} ms, which is the thesis' 100 ms stretched by how much slower "
        "this machine is, and rates shrunk by as much; twice the rates are our addition. Policies believe "
        "profiling accuracies; answers are as tested."
    )
