"""What ``promtool check metrics`` looks for, on a page of metrics: Prometheus' naming rules and its text format.

Rules: https://prometheus.io/docs/practices/naming and the linter of client_golang (testutil/promlint).
"""

from __future__ import annotations

import re
from collections import defaultdict

SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)(?: \d+)?")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(?:,|$)')
KINDS = ("counter", "gauge", "histogram", "summary", "untyped")
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count", "")}
OTHER_UNITS = {
    *(
        "ms",
        "us",
        "ns",
        "sec",
        "secs",
        "msec",
        "min",
        "mins",
        "milliseconds",
        "microseconds",
        "minutes",
        "hours",
        "days",
    ),
    *(
        "kb",
        "mb",
        "gb",
        "kib",
        "mib",
        "kilobytes",
        "megabytes",
        "bits",
        "percent",
        "pct",
        "fahrenheit",
        "kelvin",
    ),
}
"""In place of seconds, bytes, ratios."""


def problems(text: str) -> list[str]:
    """One line per problem; nothing if Prometheus and its linter have nothing to say."""
    found = [] if text.endswith("\n") else ["no line end at the end"]
    kinds: dict[str, str] = {}
    helps: set[str] = set()
    finished: set[str] = set()
    seen: set[tuple[str, tuple[tuple[str, str], ...]]] = set()
    buckets: dict[tuple[str, tuple[tuple[str, str], ...]], dict[str, float]] = defaultdict(dict)
    counts: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    current = ""
    for line in text.splitlines():
        if line.startswith(("# HELP ", "# TYPE ")):
            word, name, rest = (*line[2:].split(" ", 2), "")[:3]
            if name != current:
                finished.add(current)
                current = name
            if name in finished:
                found.append(f"{name}: its lines are not together")
            if word == "HELP":
                found += [f"{name}: HELP twice"] if name in helps else []
                found += [] if rest.strip() else [f"{name}: HELP is empty"]
                helps.add(name)
            else:
                found += [f"{name}: TYPE twice"] if name in kinds else []
                found += [] if rest in KINDS else [f"{name}: TYPE {rest!r}"]
                kinds[name] = rest
            continue
        sample = SAMPLE.fullmatch(line)
        if sample is None:
            found.append(f"no sample: {line!r}")
            continue
        name, inside, number = sample[1], sample[2] or "", float(sample[3])
        labels = LABEL.findall(inside)
        if LABEL.sub("", inside):
            found.append(f"{name}: labels {inside!r}")
        family = _family(name, current, kinds.get(current, ""))
        if family != current or current not in helps or current not in kinds:
            found.append(f"{name}: a sample without HELP and TYPE before it")
        key = (name, tuple(sorted(labels)))
        found += [f"{name}: {inside} twice"] if key in seen else []
        seen.add(key)
        names = [label for label, _ in labels]
        found += [f"{name}: label {label} is camelCase" for label in names if label != label.lower()]
        if kinds.get(current) == "histogram":
            rest_of = tuple(sorted(pair for pair in labels if pair[0] != "le"))
            if name.endswith("_bucket"):
                buckets[current, rest_of][dict(labels)["le"]] = number
            elif name.endswith("_count"):
                counts[current, rest_of] = number
        elif "le" in names or ("quantile" in names and kinds.get(current) != "summary"):
            found.append(f"{name}: le and quantile belong to histograms and summaries")
    for name, kind in kinds.items():
        found += _name_problems(name, kind)
    for series, values in buckets.items():
        ordered = [values[le] for le in sorted(values, key=float)]
        if "+Inf" not in values or values["+Inf"] != counts.get(series) or ordered != sorted(ordered):
            found.append(f"{series[0]}: buckets do not add up")
    return found


def _family(name: str, current: str, kind: str) -> str:
    """Of a sample, if it can be of the current one."""
    return current if name in {current + suffix for suffix in SUFFIXES.get(kind, ("",))} else name


def _name_problems(name: str, kind: str) -> list[str]:
    words = name.split("_")
    found = []
    if not re.fullmatch(r"[a-z_][a-z0-9_]*", name):
        found.append(f"{name}: not in lower case with underscores")
    if (kind == "counter") != name.endswith("_total"):
        found.append(f"{name}: _total is the end of counters, and of them only")
    if name.endswith(("_bucket", "_sum", "_count")):
        found.append(f"{name}: an end that belongs to a histogram's samples")
    if set(words) & {"counter", "gauge", "histogram", "summary"}:
        found.append(f"{name}: its type is part of its name")
    if set(words) & OTHER_UNITS:
        found.append(f"{name}: not in seconds, bytes or a ratio")
    return found
