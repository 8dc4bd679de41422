"""``make fuzz``: mutated files of every format that fedstill reads, and a page about what became of them.

Each file has a number and is always the same, so a fault can be repeated: ``helpers.mutation.mutated``.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from textwrap import fill

import av
import numpy as np
import PIL
import soundfile
from helpers.fuzz_formats import FORMATS
from helpers.fuzz_process import Report, fuzz

MOST_MEMORY = 10**9  # bytes


def page(reports: dict[str, Report]) -> str:
    """The results as Markdown."""
    total = sum(_count(report) for report in reports.values())
    faults = [fault for report in reports.values() for fault in report.faults]
    slowest = max(reports, key=lambda name: reports[name].slowest)
    largest = max(reports, key=lambda name: reports[name].memory)
    reasons = sum((report.named for report in reports.values()), Counter[str]())
    paragraphs = [
        f"`make fuzz` writes this page (`python tests/fuzz_files.py --files {total}`). Valid files of "
        f"{len(reports)} formats get one to four injuries each: bits flipped, parts cut, zeroed, swapped, removed "
        "or repeated, numbers in headers replaced. They are then read as users' files are. The seeds are fixed.",
        "A file must be read, with a result of the right kind, or be *named*: one line that begins with its path. "
        "Anything else is a fault: another exception, a crash, no answer in a minute.",
        f"{total} files: {sum(report.read for report in reports.values())} read, {reasons.total()} named, "
        f"{len(faults)} faults. Slowest: {reports[slowest].slowest:.2f} s ({slowest}). Most memory: "
        f"{reports[largest].memory / 1e6:.0f} MB ({largest}); the process with its libraries holds about "
        f"{min(report.memory for report in reports.values()) / 1e6:.0f} MB before.",
        f"PyAV {av.__version__} (libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}), Pillow "
        f"{PIL.__version__}, libsndfile {soundfile.__libsndfile_version__}, numpy {np.__version__}.",
    ]
    lines = ["# Mutated files", ""]
    for paragraph in paragraphs:
        lines += [fill(paragraph, 105, break_long_words=False, break_on_hyphens=False), ""]
    if faults:
        lines += ["## Faults", "", *(f"- `{fault}`" for fault in faults), ""]
    for room in dict.fromkeys(FORMATS[name].room for name in reports):
        lines += [
            f"## {room.capitalize()}s",
            "",
            "| format | files | read | named | faults | slowest | memory |",
        ]
        lines.append("|---|---|---|---|---|---|---|")
        lines += [_row(name, report) for name, report in reports.items() if FORMATS[name].room == room]
        lines.append("")
    lines += [
        "## What was raised below",
        "",
        "All of it reaches the user as a `DataError`. `MediaError` is our readers' own; the others come from",
        "decoders and Python.",
        "",
        "| exception | files |",
        "|---|---|",
        *(f"| {name} | {count} |" for name, count in reasons.most_common()),
    ]
    return "\n".join(lines) + "\n"


def _count(report: Report) -> int:
    return report.read + report.named.total() + len(report.faults)


def _row(name: str, report: Report) -> str:
    return (
        f"| {name} | {_count(report)} | {report.read} | {report.named.total()} | {len(report.faults)} "
        f"| {1000 * report.slowest:.0f} ms | {report.memory / 1e6:.0f} MB |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20_000, help="how many, of all formats together")
    parser.add_argument("--markdown", type=Path, help="where to write the page")
    options = parser.parse_args()
    each, more = divmod(options.files, len(FORMATS))
    reports = fuzz({name: each + (place < more) for place, name in enumerate(FORMATS)})
    text = page(reports)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    too_much = [name for name, report in reports.items() if report.memory > MOST_MEMORY]
    if too_much:
        sys.stderr.write(f"more than 1 GB of memory: {', '.join(too_much)}\n")
    return 1 if too_much or any(report.faults for report in reports.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
