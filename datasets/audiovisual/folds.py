"""A dataset with its speakers rotated: those of one fold are private, everybody else is public.

So every speaker is tested once, always by models that never met them. A speaker is never on both sides, nor is a
recording, nor a picture file that a private clip shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fedstill.common.errors import DataError
from fedstill.datasets.audiovisual.clip import Clip, ClipInfo, ClipSource, KeepsChannels
from fedstill.datasets.audiovisual.manifest import ManifestSource

Flags = npt.NDArray[np.bool_]


class FoldSource:
    """A ClipSource: the public and the private clips of one fold of another one, in its order.

    Args:
        source: all of whose clips are labelled.
        fold: which, from 0.
        folds: how many. Speakers are sorted by name and cut into equal parts; 1 keeps the source's own split.
        per_recording: how many clips of one recording count on the private side, the first ones; 0: all.

    Raises:
        DataError: a fold without speakers, a speaker on both sides, or a clip without a label.
    """

    def __init__(self, source: ClipSource, fold: int, folds: int, per_recording: int = 0) -> None:
        self.source = source
        private = _private(source, fold, folds)
        kept = np.flatnonzero(_kept(source, private, per_recording))
        self._positions = kept.tolist()
        self.index: tuple[ClipInfo, ...] = tuple(
            replace(source.index[one], split="private" if private[one] else "public") for one in kept
        )

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    def load(self, position: int) -> Clip:
        """Decode clip ``position`` of ``index``."""
        return self.load_with_channels(position)[0]

    def load_with_channels(self, position: int) -> tuple[Clip, npt.NDArray[np.float32] | None]:
        """Clip ``position`` of ``index``, and its channels if the source knows them."""
        place, channels = self._positions[position], None
        if isinstance(self.source, KeepsChannels):
            clip, channels = self.source.load_with_channels(place)
        else:
            clip = self.source.load(place)
        return replace(clip, info=self.index[position]), channels


def pictures_of(source: ClipSource) -> tuple[str, ...]:
    """What each clip shows: clips with the same name here show the same file. Only a manifest can share one."""
    if isinstance(source, ManifestSource):
        return source.pictures
    return tuple(info.clip_id for info in source.index)


def _private(source: ClipSource, fold: int, folds: int) -> Flags:
    """Which clips are of this fold's speakers."""
    unlabelled = next((info.clip_id for info in source.index if info.label is None), None)
    if unlabelled is not None:
        raise DataError(f"{source.name}: clip {unlabelled} has no label: folds need all of them")
    speakers = np.array([info.speaker for info in source.index])
    own = np.array([info.split == "private" for info in source.index], dtype=bool)
    if folds == 1:
        both = sorted(set(speakers[own]) & set(speakers[~own]))
        if both:
            raise DataError(f"{source.name}: speaker {both[0]} is public and private: choose 2 folds or more")
        return own
    names = np.unique(speakers)
    if not 1 < folds <= len(names) or not 0 <= fold < folds:
        raise DataError(
            f"{source.name}: no fold {fold} of {folds}: choose 1 to {len(names)} folds, for its speakers, "
            "and a fold from 0"
        )
    return np.isin(speakers, np.array_split(names, folds)[fold])


def _kept(source: ClipSource, private: Flags, per_recording: int) -> Flags:
    """Which clips take part: the first ones of private recordings, and the public ones that share nothing with them."""
    recordings = [info.recording for info in source.index]
    kept = np.ones(len(recordings), dtype=bool)
    seen: Counter[str] = Counter()
    for position in np.flatnonzero(private) if per_recording else ():
        seen[recordings[position]] += 1
        kept[position] = seen[recordings[position]] <= per_recording
    for identities in (recordings, pictures_of(source)):
        kept &= private | ~_shared(identities, private & kept)
    return kept


def _shared(identities: Sequence[str], taken: Flags) -> Flags:
    """Which clips have the identity of one that is taken."""
    names = np.array(identities)
    return np.isin(names, names[taken])
