"""The ways in which a device may have recorded its clips, and what the generic student says in each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fedstill.cloud_server.distillation.class_mix import ClassMix, ClassMixes
from fedstill.cloud_server.distillation.cross_fit import CrossFit
from fedstill.cloud_server.federation.seed_state import SeedCloud
from fedstill.datasets.audiovisual.capture.rendering import Rendering, fit_rendering
from fedstill.datasets.audiovisual.capture.views import ClipViews, PlainViews, RenderedViews, Renderer
from fedstill.datasets.audiovisual.capture_card import from_bytes
from fedstill.protos.messages import PrototypeUpload

Positions = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Shares = npt.NDArray[np.floating]
Parts = tuple[bool, bool]
"""(sound, pictures)"""
WORLDS: tuple[Parts, ...] = ((True, True), (True, False), (False, True))
MOST_JUDGED = 1000
"""Public clips that are rendered to see what a device's summary should look like."""


@dataclass(frozen=True)
class World:
    """One way in which clips may be recorded, and what is known about the generic student there.

    Attributes:
        views: the public clips in it.
        cross_fit: what the student says there of speakers that it never heard; None if too few are known.
        mixes: the judge of devices' class mixes there.
        parts: in which it differs from the public clips' own.
        shares: the class mix for which it was rendered, float (classes,); None: it was not.
    """

    views: ClipViews
    cross_fit: CrossFit | None
    mixes: ClassMixes
    parts: Parts = (False, False)
    shares: Shares | None = None

    @property
    def capture(self) -> str:
        """The parts in words; empty for the public clips' own world."""
        return " and ".join(
            name for name, differs in zip(("sound", "pictures"), self.parts, strict=True) if differs
        )


class LateRendering:
    """A rendering that is fitted when the first clip needs it.

    Args:
        sound, pictures: the parts that it renders.
    """

    def __init__(self, fit: Callable[[], Rendering], sound: bool, pictures: bool) -> None:
        self._fit = fit
        self.sound, self.pictures = (True if part else None for part in (sound, pictures))

    @cached_property
    def _rendering(self) -> Rendering:
        return self._fit()

    def render_sound(
        self, waveform: Floats, position: int, rng: np.random.Generator, jitter: float = 1.0
    ) -> Floats:
        """See ``views.Renderer``."""
        return self._rendering.render_sound(waveform, position, rng, jitter)

    def render_pictures(
        self, frames: npt.NDArray[np.uint8], rng: np.random.Generator, jitter: float = 1.0
    ) -> npt.NDArray[np.uint8]:
        """See ``views.Renderer``."""
        return self._rendering.render_pictures(frames, rng, jitter)


class CardWorlds:
    """The worlds that one capture card tells of.

    Args:
        card: uint8, as on the wire; empty if there is none.
        clips: behind the card.
        random: the seed of a purpose, ``rendering`` or ``views``.
    """

    def __init__(
        self, cloud: SeedCloud, card: npt.NDArray[np.uint8], clips: int, random: Callable[[str], int]
    ) -> None:
        self._cloud, self._card, self._clips, self._random = cloud, card, clips, random

    def told(self, shares: Shares, wanted: tuple[Parts, ...]) -> tuple[World, ...]:
        """The public clips with these parts as the card says; none if it says nothing of them.

        Args:
            shares: of the classes on the device, as far as they are known.
        """
        if not len(self._card) or self._cloud.class_mixes.lacking:
            return ()
        rendering = self._rendering(shares)
        has = rendering.sound is not None, rendering.pictures is not None
        views = self._views(rendering)
        worlds = [
            self._judged(views.only(sound=sound, pictures=pictures), (sound, pictures), shares)
            for sound, pictures in wanted
            if sound <= has[0] and pictures <= has[1]
        ]
        return tuple(one for one in worlds if not one.mixes.lacking)

    def again(self, found: CrossFit, parts: Parts, shares: Shares) -> World:
        """A world that was judged before; nothing is fitted or rendered until a clip is needed."""
        late = LateRendering(lambda: self._rendering(shares), *parts)
        return world_of(self._cloud, self._views(late), found, parts, shares)

    def _rendering(self, shares: Shares) -> Rendering:
        card = from_bytes(self._card, self._clips)
        return fit_rendering(card, self._cloud.public, shares, self._random("rendering"))

    def _views(self, rendering: Renderer) -> RenderedViews:
        cloud = self._cloud
        return RenderedViews(cloud.public, rendering, self._random("views"), cloud.plan.capture.versions)

    def _judged(self, views: RenderedViews, parts: Parts, shares: Shares) -> World:
        cloud = self._cloud
        judged = np.random.default_rng(cloud.seed).permutation(len(cloud.public))[:MOST_JUDGED]
        return world_of(cloud, views, cloud.judged(views, np.sort(judged)), parts, shares)


def world_of(cloud: SeedCloud, views: ClipViews, found: CrossFit, parts: Parts, shares: Shares) -> World:
    """The world of rendered ``views`` in which the student says what was ``found``."""
    mixes = ClassMixes(
        found, cloud.bank.class_prior(), cloud.plan.selection.support, cloud.plan.guard.test,
        cloud.class_mixes.temperature,
    )  # fmt: skip
    return World(views, found, mixes, parts, shares)


class Belief:
    """In which world a device is believed to record, by its summary, and how its classes are mixed there.

    Args:
        summary: the device's.
        worlds: of its card, or of its cohort's.
        seed: of the draws that say how uncertain a class mix is.
    """

    def __init__(self, cloud: SeedCloud, summary: PrototypeUpload, worlds: CardWorlds, seed: int) -> None:
        self._cloud, self._summary, self._worlds, self._seed = cloud, summary, worlds, seed

    def believed(self, told: tuple[World, ...]) -> World:
        """Of the public clips' world and these, the one that explains the device better."""
        cloud = self._cloud
        plain = World(PlainViews(cloud.public), cloud.cross_fit, cloud.class_mixes)
        near = min(told, key=self._distance, default=plain)
        if near is plain or (cloud.plan.guard.test and self._distance(near) >= self._distance(plain)):
            return plain
        return near

    def own(self) -> tuple[World, tuple[World, ...]]:
        """The one that is believed, rendered for the class mix that is seen there; and all that were compared."""
        told = self._worlds.told(self._cloud.bank.class_prior(), WORLDS)
        near = self.believed(told)
        if not near.capture:
            return near, told
        mix = self.mix_in(near)
        again = self._worlds.told(np.array(mix.shares), (near.parts,)) if mix.supported else ()
        return next(iter(again), near), told

    def founded(self) -> tuple[World, ...]:
        """For a cohort: each world once, the believed one as it was rendered last."""
        near, told = self.own()
        return tuple(near if one.parts == near.parts else one for one in told)

    def mix_in(self, world: World) -> ClassMix:
        """The device's classes, as its summary shows them in this world."""
        return world.mixes.judge(self._summary, np.random.default_rng(self._seed))

    def _distance(self, world: World) -> float:
        """How far the device's summary is from what public speakers say in this world."""
        found = world.mixes.distance(self._summary)
        return np.inf if found is None else found
