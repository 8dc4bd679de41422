"""The report's part about capture cards: a table beside the attacker without a card, and what the intervals support."""

from __future__ import annotations

from fedstill.evaluation.redteam.attack import RedteamResults
from fedstill.evaluation.redteam.card_attack import CardOutcome, CardResults
from fedstill.evaluation.redteam.wording import finding, markdown_table, percent, percent_interval, verdict

Cells = tuple[list[str], list[list[str]]]


def card_section(results: RedteamResults) -> list[str]:
    """The lines of the page's section."""
    card = results.card
    lines = ["## The capture card", ""]
    if card.outcomes:
        lines += [*markdown_table(*card_table(card)), "", _how_to_read(results), ""]
    return lines + [f"- {sentence}" for sentence in card_reading(card)]


def card_table(card: CardResults) -> Cells:
    """Headings and cells, with intervals."""
    heads = ["card", "sent", "speaker", "two cards linked", "classes", "sex"]
    rows = [["no information", "", *map(percent, _nothing(card)), _sex_chance(card)]]
    for one in card.outcomes:
        sex = "" if one.sex is None else percent_interval(one.sex)
        found = (one.speaker, one.linked, one.classes)
        rows.append([one.title, percent(one.sent), *map(percent_interval, found), sex])
    return heads, rows


def short_card_table(card: CardResults) -> Cells:
    """Headings and cells that fit a terminal."""
    heads = ["capture card", "sent", "speaker", "linked", "classes", "sex"]
    rows = [["no information", "", *map(percent, _nothing(card)), _sex_chance(card)]]
    for one in card.outcomes:
        found = (one.speaker.value, one.linked.value, one.classes.value)
        sex = "" if one.sex is None else percent(one.sex.value)
        rows.append([one.title, percent(one.sent), *map(percent, found), sex])
    return heads, rows


def card_reading(card: CardResults) -> list[str]:
    """One sentence for each form of the card, and one for each attack that was not tried."""
    sentences = [_finding(card, one) for one in card.outcomes]
    return sentences + [f"Not tried: {reason}." for reason in card.skipped]


def _finding(card: CardResults, one: CardOutcome) -> str:
    if not one.sent:
        return f"**{one.title}**: tells nothing; the devices have too few clips for it."
    speaker, linked, classes = _nothing(card)
    found = [
        verdict("speaker", one.speaker, speaker, percent),
        verdict("two cards linked", one.linked, linked, percent),
        verdict("classes", one.classes, classes, percent),
    ]
    if one.sex is not None and card.sex_chance is not None:
        found.append(verdict("sex", one.sex, card.sex_chance, percent))
    return finding(one.title, found)


def _nothing(card: CardResults) -> tuple[float, float, float]:
    """Speaker, linkage and classes without a card."""
    return card.speaker_chance, card.speaker_chance, card.class_chance


def _sex_chance(card: CardResults) -> str:
    return "" if card.sex_chance is None else percent(card.sex_chance)


def _how_to_read(results: RedteamResults) -> str:
    return (
        "*sent*: devices whose card tells anything; the private form leaves out a part that its noise would make "
        "misleading, and such a device counts as guessed. *speaker*: the attacker has the victims' other recordings "
        "and names whose card this is. *two cards linked*: of two cards of disjoint halves of a device's recordings, "
        "the second is found among the victims'. *classes*: the device has clips of half of the classes; the share of "
        "them that is named. *sex*: of speakers whom the attacker does not know, both sexes counting alike. By nearest "
        "neighbour or logistic regression; intervals over speakers. In the private form all of epsilon is spent on the "
        f"card, once (delta {results.delta:g}, one clip more or less). Public clips share most of their microphones; "
        "cards of devices with microphones of their own are linked more easily."
    )
