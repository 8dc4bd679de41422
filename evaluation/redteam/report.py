"""The results of the attacks: ``redteam.json``, a figure, and a Markdown page whose sentences follow the numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from matplotlib.figure import Figure

from fedstill.common.atomic_files import replace_text
from fedstill.common.dataclass_codec import to_plain
from fedstill.evaluation.plot_style import INK, OKABE_ITO, calm, percent_axis, save
from fedstill.evaluation.redteam.attack import Outcome, RedteamResults
from fedstill.evaluation.redteam.card_report import card_section
from fedstill.evaluation.redteam.intervals import Measured
from fedstill.evaluation.redteam.inversion import Rebuilt
from fedstill.evaluation.redteam.wording import (
    decimal,
    finding,
    interval,
    markdown_table,
    percent,
    percent_interval,
    verdict,
)

RESULTS_FILE, TABLE_FILE, FIGURE_FILE = "redteam.json", "redteam.md", "redteam.png"
GUESS = 0.5
"""Membership AUC without information."""


def write_all(results: RedteamResults, folder: Path, page: Path | None) -> None:
    """JSON, table and figure into ``folder``; with ``page``, the same page there with its figure beside it."""
    replace_text(folder / RESULTS_FILE, json.dumps(to_plain(results), indent=1) + "\n")
    save(figure(results), folder / FIGURE_FILE)
    replace_text(folder / TABLE_FILE, markdown(results, FIGURE_FILE))
    if page is not None:
        picture = page.with_suffix("") / FIGURE_FILE
        picture.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / FIGURE_FILE, picture)
        replace_text(page, markdown(results, f"{page.stem}/{FIGURE_FILE}"))


def markdown(results: RedteamResults, picture: str) -> str:
    """The page."""
    return "\n".join(
        [
            "# What an upload gives away",
            "",
            "<!-- written by fedstill redteam --markdown; run it again instead of editing -->",
            "",
            _setting(results),
            "",
            f"![attack success by kind of upload]({picture})",
            "",
            *_table(results),
            "",
            _how_to_read(results),
            "",
            "## Reading",
            "",
            *(f"- {sentence}" for sentence in reading(results)),
            "",
            *card_section(results),
            "",
        ]
    )


def reading(results: RedteamResults) -> list[str]:
    """Conclusions that the intervals support, one sentence per finding."""
    sentences = [_finding(outcome, results.references.chance) for outcome in results.outcomes]
    if results.student_saw_victims:
        sentences.append(
            "The student was distilled on the victims' clips, which a real device's clips are not."
        )
    if results.synthetic:
        sentences.append(
            "The clips are drawn, not recorded: the figures show that the command works, no more."
        )
    sentences.append(
        "An attack that fails here is no proof: a better decoder, more uploads of the same clips (each outer epoch is "
        "one), or knowledge from elsewhere may succeed. Only the bound of dp holds against every attack, per upload "
        "and for one clip more or less; what several clips of a person have in common is not covered."
    )
    return sentences


def table(results: RedteamResults) -> tuple[list[str], list[list[str]]]:
    """Headings and cells, with intervals."""
    heads = ["upload", "rows", "single", "sound explained", "sound SSIM", "picture explained", "picture SSIM",
             "membership AUC", "bounds", "speaker by row", "speaker by upload"]  # fmt: skip
    references = results.references
    rows = [
        ["no information", "", "", *_rebuilt(references.mean_clip), decimal(GUESS), "",
         percent(references.chance), percent(references.chance)],
        ["decoder's ceiling", "", "", *_rebuilt(references.own_clip), "", "", "", ""],
    ]  # fmt: skip
    for one in results.outcomes:
        rows.append(
            [one.title, f"{one.rows:.1f}", percent(one.single), *_rebuilt((one.sound, one.picture)),
             interval(one.membership), _bounds(one),
             percent_interval(one.speaker_row), percent_interval(one.speaker_upload)]
        )  # fmt: skip
    return heads, rows


def short_table(results: RedteamResults) -> tuple[list[str], list[list[str]]]:
    """Headings and cells that fit a terminal; intervals are in the files."""
    heads = ["upload", "sound", "picture", "member AUC", "speaker"]
    chance = results.references.chance
    rows = [["no information", percent(0.0), percent(0.0), decimal(GUESS), percent(chance)]]
    for one in results.outcomes:
        rebuilt = percent(one.sound.explained.value), percent(one.picture.explained.value)
        rows.append([one.title, *rebuilt, decimal(one.membership.value), percent(one.speaker_upload.value)])
    return heads, rows


def figure(results: RedteamResults) -> Figure:
    """Three panels, a kind of upload per line: clips rebuilt, membership, speaker; dashes mark no information."""
    outcomes = results.outcomes
    sound, picture, other = OKABE_ITO[0], OKABE_ITO[1], OKABE_ITO[2]
    drawn = Figure(figsize=(13.0, 1.7 + 0.42 * len(outcomes)), layout="constrained")
    drawn.set_facecolor("white")
    data = "synthetic clips" if results.synthetic else results.dataset
    drawn.suptitle(f"What an upload gives away ({data}, seed {results.seed})", fontsize=11, color=INK)
    panels = drawn.subplots(1, 3, sharey=True)
    chance = results.references.chance
    series: tuple[tuple[str, float, tuple[tuple[str, str, list[Measured]], ...]], ...] = (
        ("share of a clip's variation rebuilt", 0.0,
         (("sound", sound, [one.sound.explained for one in outcomes]),
          ("picture", picture, [one.picture.explained for one in outcomes]))),
        ("membership, area under the curve", GUESS, (("attack", other, [one.membership for one in outcomes]),)),
        ("speaker named", chance,
         (("by row", sound, [one.speaker_row for one in outcomes]),
          ("by upload", picture, [one.speaker_upload for one in outcomes]))),
    )  # fmt: skip
    for axes, (title, nothing, lines) in zip(panels, series, strict=True):
        axes.axvline(nothing, color=INK, lw=1, ls="--")
        for place, (name, colour, values) in enumerate(lines):
            shift = 0.26 * (place - (len(lines) - 1) / 2)
            middle = [one.value for one in values]
            reach = [[one.value - one.low for one in values], [one.high - one.value for one in values]]
            heights = [number + shift for number in range(len(values))]
            axes.errorbar(middle, heights, xerr=reach, fmt="o", ms=4, color=colour, label=name, capsize=2)
        calm(axes, title, grid="x")
    bounded = [(number, one.bound) for number, one in enumerate(outcomes) if one.bound is not None]
    panels[1].plot(
        [bound for _, bound in bounded], [number for number, _ in bounded], "|", ms=14, mew=2,
        color=OKABE_ITO[3], label="bound of dp for one clip",
    )  # fmt: skip
    panels[0].set_yticks(range(len(outcomes)), [one.title for one in outcomes])
    panels[0].set_ylim(len(outcomes) - 0.5, -0.5)
    for axes in (panels[0], panels[2]):
        percent_axis(axes.xaxis)
    for axes in panels:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=2, frameon=False, fontsize=8)
    return drawn


def _setting(results: RedteamResults) -> str:
    share = results.student_correct / results.clips[1]
    seen = "has" if results.student_saw_victims else "has not"
    changes = "".join(f", `{change}`" for change in results.changes)
    return (
        f"Experiment `{results.experiment}`{changes}, seed {results.seed}, public clips only. The attacker is the "
        f"cloud: it has the student and {results.clips[0]} clips of {results.speakers[0]} speakers. The victims are "
        f"{results.speakers[1]} other speakers with {results.clips[1]} clips; the student {seen} seen them in training "
        f"and gets {100 * share:.1f} % of them right. A device is one speaker with the clips of half of that speaker's "
        f"recordings ({results.clips_per_device:.0f} on average), {results.draws} draws per speaker. dp is per upload, "
        f"delta {results.delta:g}, one clip more or less. Intervals: 95 % bootstrap over devices."
    )


def _how_to_read(results: RedteamResults) -> str:
    mean, best = results.references.mean_clip, results.references.own_clip
    psnr = ", ".join(
        f"{outcome.title} {outcome.sound.psnr:.1f} / {outcome.picture.psnr:.1f}"
        for outcome in results.outcomes
    )
    return (
        "*explained*: 1 - MSE / MSE of the mean clip, so 0 is no information. *single*: rows that say they are one "
        "clip. *bounds*: the largest AUC that dp leaves any attack on one upload, first for one clip more or less, "
        "then for this game, in which clips that share a recording are in or out together. *decoder's ceiling*: the "
        "clip itself through the decoder's principal components. To rebuild a clip the attacker is told which uploaded "
        "row is nearest to it, which flatters the attack.\n\n"
        f"PSNR in dB, sound / picture: mean clip {mean[0].psnr:.1f} / {mean[1].psnr:.1f}, "
        f"ceiling {best[0].psnr:.1f} / {best[1].psnr:.1f}, {psnr}. MSE and all other figures are in `redteam.json`."
    )


def _finding(outcome: Outcome, chance: float) -> str:
    found = [
        verdict("membership", outcome.membership, GUESS, decimal),
        verdict("speaker by row", outcome.speaker_row, chance, percent),
        verdict("speaker by upload", outcome.speaker_upload, chance, percent),
        verdict("sound rebuilt", outcome.sound.explained, 0.0, percent),
        verdict("picture rebuilt", outcome.picture.explained, 0.0, percent),
    ]
    return finding(outcome.title, found)


def _table(results: RedteamResults) -> list[str]:
    heads, rows = table(results)
    return markdown_table(heads, rows)


def _rebuilt(pair: tuple[Rebuilt, Rebuilt]) -> list[str]:
    return [text for one in pair for text in (percent_interval(one.explained), decimal(one.ssim.value))]


def _bounds(one: Outcome) -> str:
    if one.bound is None or one.game_bound is None:
        return ""
    return f"{decimal(one.bound)} / {decimal(one.game_bound)}"
