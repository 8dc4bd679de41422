"""Cohorts: devices that record alike share worlds, checks and trained students.

What costs rendering or training is a cohort's, and is made once, by the first device that needs it. What is free stays
a device's own: its class mix, the estimates and the choice, the class bias, whether it does what was promised. So the
trainings of a fleet grow with the number of different devices.

A cohort is known by the capture card of the device that founded it. All of it is in its folder, every file atomic, and
follows from the card: what an interruption left out is made by the next member, with the same result.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from fedstill.cloud_server.distillation.cross_fit import CrossFit
from fedstill.cloud_server.distillation.randomness import stream
from fedstill.cloud_server.distillation.settings import CohortSettings
from fedstill.cloud_server.federation.seed_state import SeedCloud
from fedstill.cloud_server.federation.worlds import CardWorlds, World
from fedstill.cloud_server.journal.job_key import JobKey
from fedstill.common.atomic_files import replace_file, replace_text
from fedstill.common.run_layout import cohorts_folder
from fedstill.datasets.audiovisual.capture.card_distance import CardSpace, distance, space_of
from fedstill.datasets.audiovisual.capture_card import CARD_BYTES, from_bytes
from fedstill.models.audiovisual.network import AudioVisualNet

Arrays = Mapping[str, npt.NDArray[Any]]
Logits = npt.NDArray[np.float32]

MOST_COHORTS = 500
"""Of one seed: their students must fit on a disk. A device beyond is served on its own."""
FOUNDER_FILE, WORLDS_FILE, CLASSES_FILE, MEMBERS_FOLDER = (
    "founder.json", "worlds.safetensors", "classes.json", "members"
)  # fmt: skip
JUDGED = ("logits", "labels", "speakers")


class Cohort:
    """One of them; thread-safe, and nothing but the lock is in memory.

    Args:
        folder: named as the cohort.
        card: of the device that founded it, uint8 as on the wire.
        clips: behind the card.
        class_sets: on so many sets of classes alone it trains, in each of its worlds.
    """

    def __init__(self, folder: Path, card: npt.NDArray[np.uint8], clips: int, class_sets: int) -> None:
        self.name, self.card, self.clips = folder.name, card, clips
        self._folder, self._class_sets = folder, class_sets
        self._lock = threading.RLock()

    def told(self, cloud: SeedCloud) -> CardWorlds:
        """The worlds of the founder's card."""
        return CardWorlds(cloud, self.card, self.clips, lambda what: stream(cloud.seed, what, self.name))

    def worlds(self, cloud: SeedCloud, make: Callable[[], tuple[World, ...]]) -> tuple[World, ...]:
        """Those that members may believe in. ``make`` finds them; the first member's counts."""

        def arrays() -> Arrays:
            return {
                f"{number}/{name}": np.ascontiguousarray(value)
                for number, world in enumerate(make())
                for name, value in _arrays_of(world).items()
            }

        found = self._once(self._folder / WORLDS_FILE, arrays)
        return tuple(
            self._world(cloud, found, f"{number}/")
            for number in range(len({key.partition("/")[0] for key in found}))
        )

    def check_logits(self, name: str, make: Callable[[], Logits]) -> Logits:
        """What the checked student of this name says of the judging speakers, float32 (clips, classes)."""
        found = self._once(self._folder / f"check-{name}.safetensors", lambda: {"logits": make()})
        return np.asarray(found["logits"], np.float32)

    def student(self, name: str, cloud: SeedCloud, make: Callable[[], AudioVisualNet]) -> AudioVisualNet:
        """The student of this name, the same for all members."""
        with self._lock:
            return cloud.at(self._folder / name, make)

    def classes(self, capture: str, present: tuple[bool, ...]) -> tuple[bool, ...] | None:
        """The set of classes that a member is trained on alone that may have those ``present``.

        The first set with all of them, which the member founds itself if there are not enough yet; None if no set is
        for it.

        Args:
            capture: names the world.
        """
        if all(present):
            return None
        path = self._folder / CLASSES_FILE
        with self._lock:
            sets = json.loads(path.read_text()) if path.exists() else {}
            mine = sets.setdefault(capture, [])
            for one in mine:
                if not (np.array(present) & ~np.array(one)).any():
                    return tuple(one)
            if len(mine) >= self._class_sets:
                return None
            mine.append(list(present))
            replace_text(path, json.dumps(sets))
            return present

    def _world(self, cloud: SeedCloud, found: Arrays, prefix: str) -> World:
        sound, pictures = (bool(one) for one in found[prefix + "parts"])
        judged = CrossFit(*(found[prefix + name] for name in JUDGED))
        return self.told(cloud).again(judged, (sound, pictures), found[prefix + "shares"])

    def _once(self, path: Path, make: Callable[[], Arrays]) -> Arrays:
        """The arrays of a file, which is made if it is not there or damaged."""
        with self._lock:
            try:
                return safetensors.numpy.load(path.read_bytes())
            except (OSError, SafetensorError):
                found = dict(make())
                replace_file(path, safetensors.numpy.save(found))
                return found


class Cohorts:
    """The cohorts of one seed; thread-safe.

    Args:
        folder: theirs; what an earlier process founded is there.
        space: in which cards are near to each other.
    """

    def __init__(self, folder: Path, settings: CohortSettings, space: CardSpace) -> None:
        self._folder, self._settings, self._space = folder, settings, space
        self._lock = threading.Lock()
        self._cohorts: dict[str, Cohort] = {}
        self._places: dict[str, npt.NDArray[np.float64]] = {}
        for path in sorted(folder.glob(f"*/{FOUNDER_FILE}")):
            founder = json.loads(path.read_text())
            self._add(path.parent.name, np.array(founder["card"], np.uint8), founder["clips"])

    def of(self, key: JobKey, card: npt.NDArray[np.uint8], clips: int) -> Cohort | None:
        """The cohort of a job: the nearest one within the distance, else a new one. A resumed job stays in its own.

        Args:
            card: of the device, uint8 as on the wire.

        Returns:
            None: a device without a card, or one too many; it is served on its own.
        """
        if not self._settings.distance or len(card) != CARD_BYTES:
            return None
        with self._lock:
            member = self._folder / MEMBERS_FOLDER / key.text.replace("/", "-")
            if member.exists() and (known := self._cohorts.get(member.read_text())):
                return known
            found = self._nearest(card, clips) or self._founded(card, clips)
            if found is not None:
                replace_text(member, found.name)
            return found

    def _nearest(self, card: npt.NDArray[np.uint8], clips: int) -> Cohort | None:
        mine = self._space.place(from_bytes(card, clips))
        far, name = min(
            ((distance(mine, place), name) for name, place in self._places.items()), default=(0.0, "")
        )
        return self._cohorts[name] if name and far <= self._settings.distance else None

    def _founded(self, card: npt.NDArray[np.uint8], clips: int) -> Cohort | None:
        if len(self._cohorts) >= MOST_COHORTS:
            return None
        name = hashlib.sha256(card.tobytes() + str(clips).encode()).hexdigest()[:12]
        founder = {"card": card.tolist(), "clips": clips}
        replace_text(self._folder / name / FOUNDER_FILE, json.dumps(founder))
        return self._add(name, card, clips)

    def _add(self, name: str, card: npt.NDArray[np.uint8], clips: int) -> Cohort:
        self._cohorts[name] = Cohort(self._folder / name, card, clips, self._settings.class_sets)
        self._places[name] = self._space.place(from_bytes(card, clips))
        return self._cohorts[name]


def open_cohorts(cloud: SeedCloud) -> Cohorts:
    """The cohorts of a seed, as its run directory holds them."""
    return Cohorts(cohorts_folder(cloud.plan.models, cloud.seed), cloud.plan.cohorts, space_of(cloud.public))


def _arrays_of(world: World) -> Arrays:
    assert world.cross_fit is not None  # it was judged
    assert world.shares is not None  # it was rendered
    judged = {name: getattr(world.cross_fit, name) for name in JUDGED}
    return {**judged, "parts": np.array(world.parts), "shares": np.array(world.shares, np.float64)}
