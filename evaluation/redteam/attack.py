"""All attacks on all kinds of upload and on capture cards, compared with an attacker without any upload."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fedstill.cloud_server.distillation.randomness import stream
from fedstill.evaluation.redteam.card_attack import CardResults, attack_cards
from fedstill.evaluation.redteam.identity import identify
from fedstill.evaluation.redteam.intervals import Measured
from fedstill.evaluation.redteam.inversion import Rebuilt, bases, invert, judged
from fedstill.evaluation.redteam.membership import auc_bound, game_bound, membership
from fedstill.evaluation.redteam.releases import Channel, DeviceClips, channels, devices
from fedstill.evaluation.redteam.stage import Stage, View


@dataclass(frozen=True)
class Outcome:
    """The success of the attacks against one kind of upload.

    Attributes:
        rows: uploaded rows per victim's device, on average.
        single: share of the rows that say they stand for a single clip.
        bound: the largest AUC that differential privacy allows for any attack on one clip more or less, None without
            such a guarantee.
        game_bound: the same for this game, where clips of a recording are in or out together.
        speaker_row, speaker_upload: share of rows, and of whole uploads, whose speaker is named.
    """

    key: str
    title: str
    rows: float
    single: float
    sound: Rebuilt
    picture: Rebuilt
    membership: Measured
    bound: float | None
    game_bound: float | None
    speaker_row: Measured
    speaker_upload: Measured


@dataclass(frozen=True)
class References:
    """The references for the figures.

    Attributes:
        mean_clip: sound and picture rebuilt as the attacker's mean clip: no information.
        own_clip: rebuilt from the clip itself through the decoder's components: the best possible result.
        chance: share of speakers named by guessing; guessing gives a membership AUC of 0.5.
    """

    mean_clip: tuple[Rebuilt, Rebuilt]
    own_clip: tuple[Rebuilt, Rebuilt]
    chance: float


@dataclass(frozen=True)
class RedteamResults:
    """The content of ``redteam.json``; the same for the same seed on the same machine.

    Attributes:
        changes: what ``--set`` changed of the experiment.
        student_correct: of the victims' clips.
        speakers, clips: the attacker's and the victims'.
        card: the attacks on capture cards.
    """

    experiment: str
    changes: tuple[str, ...]
    dataset: str
    synthetic: bool
    seed: int
    draws: int
    student_saw_victims: bool
    student_correct: int
    speakers: tuple[int, int]
    clips: tuple[int, int]
    clips_per_device: float
    delta: float
    references: References
    outcomes: tuple[Outcome, ...]
    card: CardResults


def attack(
    stage: Stage, draws: int, say: Callable[[str], None], changes: tuple[str, ...] = ()
) -> RedteamResults:
    """Run everything; ``draws`` devices per speaker."""
    shadows = list(devices(stage.attacker, draws, np.random.default_rng(stream(stage.seed, "shadows"))))
    targets = list(devices(stage.victims, draws, np.random.default_rng(stream(stage.seed, "victims"))))
    known = bases(stage.attacker, stage.seed)
    members = np.concatenate([device.members for device in targets])
    own = tuple(
        basis.to_coefficients(part[members])
        for basis, part in zip(known, (stage.victims.sound, stage.victims.picture), strict=True)
    )
    nothing = tuple(torch.zeros_like(part) for part in own)
    references = References(
        judged(nothing, stage.victims, targets, known, stage.seed),
        judged(own, stage.victims, targets, known, stage.seed),
        1 / len(np.unique(stage.victims.speaker)),
    )
    outcomes = []
    for channel in channels(stage):
        say(f"attacking {channel.title}")
        rows, single = _size(channel, stage.victims, targets)
        sound, picture = invert(
            channel,
            stage.attacker,
            shadows,
            stage.victims,
            targets,
            known,
            stream(stage.seed, channel.key) % 2**31,
        )
        seen = membership(channel, stage.attacker, shadows, stage.victims, targets, stage.seed)
        by_row, by_upload = identify(
            channel, stage.attacker, shadows, stage.victims, targets, draws, stage.seed
        )
        mu = channel.mu
        outcomes.append(
            Outcome(
                key=channel.key,
                title=channel.title,
                rows=rows,
                single=single,
                sound=sound,
                picture=picture,
                membership=seen,
                bound=None if mu is None else auc_bound(mu),
                game_bound=None if mu is None else game_bound(mu, stage.victims),
                speaker_row=by_row,
                speaker_upload=by_upload,
            )
        )
    say("attacking capture cards")
    card = attack_cards(stage, shadows, targets, draws)
    return RedteamResults(
        experiment=stage.name,
        changes=changes,
        dataset=stage.dataset,
        synthetic=stage.synthetic,
        seed=stage.seed,
        draws=draws,
        student_saw_victims=stage.student_saw_victims,
        student_correct=stage.correct,
        speakers=(len(np.unique(stage.attacker.speaker)), len(np.unique(stage.victims.speaker))),
        clips=(len(stage.attacker), len(stage.victims)),
        clips_per_device=float(np.mean([len(device.members) for device in targets])),
        delta=stage.prototypes.delta,
        references=references,
        outcomes=tuple(outcomes),
        card=card,
    )


def _size(channel: Channel, view: View, targets: list[DeviceClips]) -> tuple[float, float]:
    """Rows per device, and the share of rows with a count of one."""
    counts = [channel.upload(channel.seen(view)[device.members], device.seed).counts for device in targets]
    every = np.concatenate(counts)
    return len(every) / len(targets), float((every == 1).mean()) if len(every) else 0.0
