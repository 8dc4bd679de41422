"""Attacks on the capture card: whose device is it, a man's or a woman's, with which classes, and which two are one?

Every attack is a nearest neighbour or a logistic regression on the card's 169 values, in units of how the cards of the
attacker's own speakers differ. What a card does not tell counts as their mean; a device whose card tells nothing is
guessed. Cards are of public clips, which most often share microphones: cards of devices that do not differ more, and
are linked more easily. That they tell devices apart is what they are for.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from fedstill.cloud_server.distillation.randomness import stream
from fedstill.evaluation.redteam.card_forms import CardForm, card_forms
from fedstill.evaluation.redteam.intervals import Measured, Numbers, over_devices
from fedstill.evaluation.redteam.releases import DeviceClips
from fedstill.evaluation.redteam.stage import Floats, Positions, Stage, View

REHEARSALS = 8
"""Cards that the attacker makes of random halves of its recordings of each victim."""
MIXES = 4
"""Random halves of the classes per device."""
STRENGTHS = (0.01, 1.0)
"""Of logistic regression (scikit-learn's C)."""

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CardOutcome:
    """The success of the attacks against one form of the card.

    Attributes:
        sent: share of the devices whose card tells anything.
        speaker: share of the devices whose speaker is named among the victims.
        linked: share of the devices whose second card, of other recordings, is found among the victims'.
        classes: share of a device's classes, half of all, that are named.
        sex: share of the devices whose speaker's sex is named, the mean of both sexes; None if that cannot be tried.
    """

    key: str
    title: str
    sent: float
    speaker: Measured
    linked: Measured
    classes: Measured
    sex: Measured | None


@dataclass(frozen=True)
class CardResults:
    """All forms, and how well an attacker does who has no card.

    Attributes:
        speaker_chance: of naming a speaker, and of linking two cards.
        sex_chance: of naming the sex; None if that is not tried.
        skipped: what could not be tried, and why.
    """

    speaker_chance: float
    class_chance: float
    sex_chance: float | None
    skipped: tuple[str, ...]
    outcomes: tuple[CardOutcome, ...]


def attack_cards(
    stage: Stage, shadows: list[DeviceClips], targets: list[DeviceClips], draws: int
) -> CardResults:
    """All attacks on all forms; ``shadows`` are devices of the attacker's speakers, ``targets`` the victims'."""
    if stage.attacker.profiles is None or stage.victims.profiles is None:
        return CardResults(0, 0, None, ("the public clips were stored before there were capture cards",), ())
    classes = len(stage.class_names)
    lacking = _sex_lacking(stage)
    return CardResults(
        speaker_chance=draws / len(targets),
        class_chance=_half(classes) / classes,
        sex_chance=None if lacking else 1 / len(np.unique(_sex_of(stage.victims, targets))),
        skipped=(lacking,) if lacking else (),
        outcomes=tuple(
            _attacked(_Cards(stage, form, shadows, targets, draws), not lacking) for form in card_forms(stage)
        ),
    )


@dataclass(frozen=True)
class _Cards:
    """One form in the attacker's hands."""

    stage: Stage
    form: CardForm
    shadows: list[DeviceClips]
    targets: list[DeviceClips]
    draws: int

    def of(self, view: View, clips: Positions, seed: int) -> Floats:
        """The card of these clips; all NaN if there are none."""
        assert view.profiles is not None
        if not len(clips):
            return np.full(view.profiles.shape[1], np.nan, np.float32)
        return self.form.make(view.profiles[clips], seed)

    def of_each(self, view: View, devices: list[DeviceClips]) -> Floats:
        return np.stack([self.of(view, device.members, device.seed) for device in devices])

    @property
    def seed(self) -> int:
        return stream(self.stage.seed, self.form.key) % 2**31


def _attacked(cards: _Cards, with_sex: bool) -> CardOutcome:
    stage, targets, shadows = cards.stage, cards.targets, cards.shadows
    known = cards.of_each(stage.attacker, shadows)
    asked = cards.of_each(stage.victims, targets)
    told = np.isfinite(asked).any(axis=1)
    scale = _Scale(known)

    sexes = _sex_of(stage.victims, targets)

    def measured(scores: Scores, kind: Positions) -> Measured:
        """The mean over kinds of devices. The interval resamples speakers: the devices of one have much in common."""
        speaker = np.unique([device.speaker for device in targets], return_inverse=True)[1]
        by_speaker = np.bincount(speaker, scores) / np.bincount(speaker)
        kind_of = np.zeros(len(by_speaker), np.int64)
        kind_of[speaker] = kind

        def mean(some: Numbers) -> float:
            return float(
                np.mean([by_speaker[some][kind_of[some] == one].mean() for one in np.unique(kind_of[some])])
            )

        return over_devices(mean, len(by_speaker), cards.seed)

    everyone = np.zeros(len(targets), np.int64)
    sex = None
    if with_sex:
        model = _fitted(scale(known), _sex_of(stage.attacker, shadows), STRENGTHS[1])
        chance = 1 / len(np.unique(sexes))
        sex = measured(np.where(told, model.predict(scale(asked)) == sexes, chance), sexes)
    return CardOutcome(
        key=cards.form.key,
        title=cards.form.title,
        sent=float(told.mean()),
        speaker=measured(_named(cards, scale), everyone),
        linked=measured(_linked(cards, scale), everyone),
        classes=measured(_classes_found(cards, scale), everyone),
        sex=sex,
    )


class _Scale:
    """Cards in units of how the attacker's own differ, float64; what a card does not tell is their mean."""

    def __init__(self, known: Floats) -> None:
        told = known[np.isfinite(known).any(axis=1)]
        values = told if len(told) else np.zeros_like(known[:1])
        filled = np.where(np.isfinite(values), values, 0).astype(np.float64)
        self._mean, self._spread = filled.mean(axis=0), np.maximum(filled.std(axis=0), 0.1)

    def __call__(self, cards: Floats) -> Scores:
        shifted = (cards - self._mean) / self._spread
        return np.where(np.isfinite(shifted), shifted, 0.0)


def _named(cards: _Cards, scale: _Scale) -> Scores:
    """1 for each victim's device whose speaker is named, else 0; the chance of guessing if its card tells nothing.

    The attacker has other recordings of every victim. How it compares is what does best among its own speakers.
    """
    stage, ways = cards.stage, (None, *STRENGTHS)
    own = list(_rounds(cards, stage.attacker, cards.shadows))
    best = int(np.argmax([sum(_named_in(one, scale, way).sum() for one in own) for way in ways]))
    theirs = _rounds(cards, stage.victims, cards.targets)
    return np.concatenate([_named_in(one, scale, ways[best]) for one in theirs])


def _rounds(cards: _Cards, view: View, devices: list[DeviceClips]) -> Iterator[tuple[Floats, Floats]]:
    """Per draw the rehearsed cards of every speaker, (speakers, REHEARSALS, CARD_SIZE), and the real ones."""
    for numbers in np.array_split(np.arange(len(devices)), cards.draws):
        some = [devices[number] for number in numbers]
        yield np.stack([_rehearsed(cards, view, device) for device in some]), cards.of_each(view, some)


def _named_in(game: tuple[Floats, Floats], scale: _Scale, way: float | None) -> Scores:
    """``way``: the strength of logistic regression; None is the nearest mean."""
    heard, asked = game
    speakers = np.arange(len(asked))
    if way is None:
        named = _nearest(scale(asked), scale(heard).mean(axis=1))
    else:
        owner = np.repeat(speakers, REHEARSALS)
        named = _fitted(scale(np.concatenate(heard)), owner, way).predict(scale(asked))
    return np.where(np.isfinite(asked).any(axis=1), named == speakers, 1 / len(speakers))


def _rehearsed(cards: _Cards, view: View, device: DeviceClips) -> Floats:
    """Cards of random halves of the recordings that the device does not have, (REHEARSALS, CARD_SIZE)."""
    rng = np.random.default_rng(device.seed + 1)
    recordings = np.unique(view.recording[device.others])
    made = []
    for _ in range(REHEARSALS):
        half = rng.permutation(recordings)[: (len(recordings) + 1) // 2]
        clips = device.others[np.isin(view.recording[device.others], half)]
        made.append(cards.of(view, clips, int(rng.integers(2**31))))
    return np.stack(made)


def _linked(cards: _Cards, scale: _Scale) -> Scores:
    """1 for each victim's device whose two cards, of disjoint halves of its recordings, are nearest to each other."""
    view, found = cards.stage.victims, []
    for round_ in np.array_split(np.arange(len(cards.targets)), cards.draws):
        some = [cards.targets[number] for number in round_]
        first = cards.of_each(view, some)
        second = np.stack([cards.of(view, one.others, one.seed + 2) for one in some])
        told = np.isfinite(first).any(axis=1) & np.isfinite(second).any(axis=1)
        right = _nearest(scale(first), scale(second)) == np.arange(len(some))
        found.append(np.where(told, right, 1 / len(some)))
    return np.concatenate(found)


def _classes_found(cards: _Cards, scale: _Scale) -> Scores:
    """Per victim's device the share of its classes that are named, over devices with random halves of the classes."""
    stage = cards.stage
    classes = len(stage.class_names)
    half, seed = _half(classes), cards.seed
    known, present, _ = _mixed(cards, stage.attacker, cards.shadows, np.random.default_rng(seed))
    asked, true, owner = _mixed(cards, stage.victims, cards.targets, np.random.default_rng(seed + 1))
    scores = np.zeros(true.shape)
    for one in range(classes):
        if len(np.unique(present[:, one])) == 2:
            scores[:, one] = _fitted(scale(known), present[:, one], STRENGTHS[0]).decision_function(
                scale(asked)
            )
    order = np.argsort(-scores, axis=1, kind="stable")[:, :half]
    right = np.take_along_axis(true, order, axis=1).mean(axis=1)
    right = np.where(np.isfinite(asked).any(axis=1), right, half / classes)
    return np.bincount(owner, right, minlength=len(cards.targets)) / np.bincount(
        owner, minlength=len(cards.targets)
    )


def _mixed(
    cards: _Cards, view: View, devices: list[DeviceClips], rng: np.random.Generator
) -> tuple[Floats, npt.NDArray[np.bool_], Positions]:
    """Cards of devices with the clips of half of the classes, which classes these are, and the device's number."""
    classes = len(cards.stage.class_names)
    made, present, owner = [], [], []
    for number, device in enumerate(devices):
        for _ in range(MIXES):
            chosen = rng.permutation(classes)[: _half(classes)]
            clips = device.members[np.isin(view.label[device.members], chosen)]
            made.append(cards.of(view, clips, int(rng.integers(2**31))))
            present.append(np.isin(np.arange(classes), chosen))
            owner.append(number)
    return np.stack(made), np.stack(present), np.array(owner)


def _half(classes: int) -> int:
    return max(1, classes // 2)


def _nearest(cards: Scores, others: Scores) -> Positions:
    distance = np.linalg.norm(cards[:, None] - others[None], axis=2)
    nearest: Positions = distance.argmin(axis=1).astype(np.int64)
    return nearest


def _fitted(values: Scores, owner: npt.NDArray[np.generic], strength: float) -> LogisticRegression:
    with warnings.catch_warnings():  # a fit that stops early is still an attack
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=strength, max_iter=200, class_weight="balanced")
        return model.fit(values, owner)


def _sex_of(view: View, devices: list[DeviceClips]) -> Positions:
    """A number per device, 0 if nothing is known of anybody's."""
    if view.sex is None:
        return np.zeros(len(devices), np.int64)
    return np.array([view.sex[device.members[0]] for device in devices], np.int64)


def _sex_lacking(stage: Stage) -> str:
    """Why the sex cannot be guessed; empty if it can."""
    if stage.attacker.sex is None or stage.victims.sex is None:
        return "sex: the clips do not say it (a column `sex` of the manifest, filled in for every public speaker)"
    if any(len(np.unique(view.sex)) < 2 for view in (stage.attacker, stage.victims) if view.sex is not None):
        return "sex: the attacker's or the victims' speakers are all of one"
    return ""
