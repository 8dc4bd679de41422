"""What larger patches earn: the same server and load with the usual schedules, and with ``g10`` and ``g10-5`` besides.

At twice the capacity, by default, where a server must reduce. First in virtual time, from one measured profile with and
without the two schedules. Then live: two servers that take turns, each with a profile of its own, meet the same images
at the same times; server and generator have a core each. The policy is fedstill's in all of them.

    python benchmarks/serving/reductions_utility.py --markdown docs/results/reductions_utility.md
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from fedstill.client.serving_client import ServingAddress
from fedstill.cloud_server.serving.scheduling.profile import Profile
from fedstill.cloud_server.serving.tasks.learn_task import LearnSettings
from fedstill.common.atomic_files import replace_text
from fedstill.common.provenance import git_revision, hardware
from fedstill.evaluation.serving.learnt_state import learn_missing
from fedstill.evaluation.serving.live_loadtest import LiveSettings, run_live
from fedstill.evaluation.serving.live_sweep import measured, rotated
from fedstill.evaluation.serving.results import RunRow
from fedstill.evaluation.serving.served_process import ServedProcess, ServerOptions
from fedstill.evaluation.serving.served_setting import (
    add_setting_options,
    real_setting,
    split_cores,
    tiny_setting,
)
from fedstill.evaluation.serving.summary import Mean, mean_ratio
from fedstill.evaluation.serving.target import GrpcTarget
from fedstill.evaluation.serving.task_images import TaskImages, held_out_images
from fedstill.evaluation.serving.virtual import LoadTest, Progress, run_virtual

LARGER = ("g10", "g10-5")
USUAL, WITH = "usual", "with larger patches"
POLICY = "fedstill"
VIRTUAL_SEEDS, VIRTUAL_SECONDS = 5, 300.0

Pairs = dict[tuple[str, str], list[tuple[RunRow, RunRow]]]
"""By (where, utilities): the rows of a seed with larger patches and without."""


@dataclass(frozen=True)
class Live:
    """The two servers, by name, and what they are asked."""

    servers: dict[str, ServerOptions]
    pictures: tuple[TaskImages, ...]
    test: LoadTest


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write the page."""
    options = _parser().parse_args(arguments)
    if options.quick:
        options.seeds, options.seconds, options.rate = 1, 2.0, 60.0
    console = Console(soft_wrap=True, highlight=False)
    machine = hardware()
    server_cores, client_cores = split_cores()
    if client_cores is not None:
        os.sched_setaffinity(0, client_cores)
    with tempfile.TemporaryDirectory() as scratch:
        setting = (
            tiny_setting(Path(scratch))
            if options.quick
            else real_setting(options.val_images, options.schedules, options.batches)
        )
        state = options.state or (Path(scratch) / "state" if options.quick else Path("runs") / "serving_live")
        images = 40 if options.quick else options.train_images
        with Console(stderr=True).status("tasks") as shown:
            learn_missing(
                state, setting.tasks, setting.weights, LearnSettings(images, images // 4), shown.update
            )
            usual = ServerOptions(state, setting.arguments, server_cores)
            larger = replace(usual, arguments=_with_larger(setting.arguments))
            pictures = tuple(held_out_images(task, options.pictures) for task in setting.tasks)
            shown.update("profiles")
            profile, rate = measured(larger, pictures, options.rate)
            test = LoadTest(("synthetic",), (POLICY,), (options.load,), options.seeds, options.seconds, rate)
            pairs = virtual(profile, replace(test, seeds=VIRTUAL_SEEDS, seconds=VIRTUAL_SECONDS))
            live = Live({USUAL: usual, WITH: larger}, pictures, test)
            for equal in (False, True):
                pairs |= _live(live, equal, shown.update)
    lines = table(pairs)
    for line in lines:
        console.print(line, markup=False)
    if options.markdown is not None:
        command = f"python benchmarks/serving/reductions_utility.py {shlex.join(arguments)}".strip()
        replace_text(options.markdown, _page(command, machine, profile, rate, options, lines))


def _with_larger(arguments: Sequence[str]) -> tuple[str, ...]:
    """The same arguments of a server with the larger patches among its schedules."""
    return tuple(f"{one},{','.join(LARGER)}" if one.startswith("--schedules=") else one for one in arguments)


def virtual(profile: Profile, test: LoadTest) -> Pairs:
    """From one profile with all schedules, and without the larger patches."""
    usual = replace(profile, schedules=tuple(s for s in profile.schedules if s.name not in LARGER))
    pairs: Pairs = {}
    for equal in (False, True):
        mine = replace(test, equal=equal)
        larger, without = (run_virtual(mine, known, None, "").runs for known in (profile, usual))
        pairs["virtual", _utilities(equal)] = list(zip(larger, without, strict=True))
    return pairs


def _live(live: Live, equal: bool, progress: Progress) -> Pairs:
    test = replace(live.test, equal=equal)
    rows: dict[str, list[RunRow]] = {name: [] for name in live.servers}
    for seed in range(test.seeds):
        for name in rotated(tuple(live.servers), seed):
            progress(f"{_utilities(equal)} utilities, seed {seed}: {name}")
            with ServedProcess(live.servers[name], POLICY) as server:
                rows[name].append(asyncio.run(_ask(server.target, live.pictures, test, seed)))
    return {("live", _utilities(equal)): list(zip(rows[WITH], rows[USUAL], strict=True))}


async def _ask(target: str, pictures: Sequence[TaskImages], test: LoadTest, seed: int) -> RunRow:
    async with GrpcTarget(ServingAddress(target)) as server:
        (row,) = (await run_live(test, LiveSettings(), server, pictures, seeds=(seed,))).runs
    return row


def _utilities(equal: bool) -> str:
    return "equal" if equal else "mixed"


def table(pairs: Pairs) -> list[str]:
    """A row for each of virtual and live, mixed and equal utilities: shares of what was offered, and paired ratios."""
    lines = [
        "| | utilities | seeds | earned, usual | with larger patches | ratio of utility | ratio of right in time |",
        "|---|---|---|---|---|---|---|",
    ]
    for (where, utilities), rows in pairs.items():
        shares = [Mean.of([row.share for row in side]).percent() for side in zip(*rows, strict=True)]
        earned = mean_ratio([(mine.utility_earned, other.utility_earned) for mine, other in rows])
        right = mean_ratio([(float(mine.type1), float(other.type1)) for mine, other in rows])
        cells = (where, utilities, str(len(rows)), shares[1], shares[0], _ratio(earned), _ratio(right))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _ratio(found: Mean | None) -> str:
    return "-" if found is None else f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _page(
    command: str, machine: str, profile: Profile, rate: float, options: argparse.Namespace, lines: list[str]
) -> str:
    schedules = "\n".join(
        f"| `{one.name}` | {1000 * one.seconds(8) / 8:.1f} | {' | '.join(f'{100 * a:.0f}' for a in one.accuracy)} |"
        for one in profile.schedules
    )
    tasks = " | ".join(profile.tasks)
    return (
        "# What larger patches earn\n\n"
        f"`{command}`, revision {git_revision()}: {machine}, a core for the server and one for the generator. Load "
        f"{options.load:g} times the capacity ({rate:.0f} queries/s unchanged). The usual schedules are "
        f"`{options.schedules}`; the others are offered {' and '.join(f'`{name}`' for name in LARGER)} besides. "
        f"Live: {options.seeds} seeds of {options.seconds:g} s, servers take turns and meet the same queries. Virtual "
        f"time: {VIRTUAL_SEEDS} seeds of {VIRTUAL_SECONDS:g} s. Brackets: 95 % intervals over seeds. See "
        "[reductions](reductions.md) for what the schedules are and lose.\n\n"
        + "\n".join(lines)
        + "\n\n## The profile\n\nMilliseconds per image in batches of eight, and percent right of "
        f"{options.val_images} profiling images per task.\n\n| schedule | ms | {tasks} |\n|---|---|"
        f"{'---|' * len(profile.tasks)}\n{schedules}\n"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--load", type=float, default=2.0, help="times the capacity")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=15.0, help="of arrivals, per server and seed")
    add_setting_options(parser)
    parser.add_argument("--markdown", type=Path, help="page to write")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
