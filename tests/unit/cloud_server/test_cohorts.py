"""Who is in which cohort: the nearest one, a new one if none is near, and for good."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fedstill.cloud_server.distillation.settings import CohortSettings
from fedstill.cloud_server.federation import cohorts as module
from fedstill.cloud_server.federation.cohorts import Cohort, Cohorts
from fedstill.cloud_server.journal.job_key import JobKey
from fedstill.datasets.audiovisual.capture.card_distance import CardSpace
from fedstill.datasets.audiovisual.capture_card import BANDS, CARD_BYTES, CARD_SIZE, CARD_VERSION

CLIPS = 40
NOBODY = np.empty((0, CARD_SIZE))


def card(louder: int = 0) -> np.ndarray:
    """With sound that is so many half decibels louder in all bands: a distance of a quarter each."""
    found = np.full(CARD_BYTES, 100, np.uint8)
    found[0] = CARD_VERSION
    found[1 : 1 + 2 * BANDS] += np.uint8(louder)
    return found


def key(client: int) -> JobKey:
    return JobKey("latency_sensitive", "fedstill", client, 0)


def opened(folder: Path, distance: float = 1.0, class_sets: int = 1) -> Cohorts:
    return Cohorts(folder / "cohorts", CohortSettings(distance, class_sets), CardSpace(NOBODY))


def cohort(found: Cohort | None) -> Cohort:
    assert found is not None
    return found


def test_a_device_joins_the_nearest_cohort_or_founds_one(tmp_path: Path) -> None:
    cohorts = opened(tmp_path)
    names = [
        cohort(cohorts.of(key(client), card(louder), CLIPS)).name
        for client, louder in enumerate([0, 6, 4, 1, 5, 40])
    ]
    first, second, last = names[0], names[1], names[5]
    assert names == [first, second, second, first, second, last]
    assert len({first, second, last}) == 3


def test_without_a_distance_or_a_card_every_device_is_on_its_own(tmp_path: Path) -> None:
    assert opened(tmp_path, distance=0.0).of(key(0), card(), CLIPS) is None
    assert opened(tmp_path).of(key(0), np.empty(0, np.uint8), CLIPS) is None
    assert not (tmp_path / "cohorts").exists()


def test_a_restart_knows_the_cohorts_and_a_job_stays_in_its_own(tmp_path: Path) -> None:
    before = opened(tmp_path)
    founder, near = (
        cohort(before.of(key(client), card(louder), CLIPS)) for client, louder in ((0, 0), (1, 3))
    )
    assert near is founder
    nearer = cohort(before.of(key(2), card(5), CLIPS))
    assert nearer is not founder
    after = opened(tmp_path)
    again = cohort(after.of(key(1), card(3), CLIPS))
    assert (again.name, again.clips) == (founder.name, CLIPS)
    assert again.card.tolist() == founder.card.tolist()
    assert cohort(after.of(key(3), card(3), CLIPS)).name == nearer.name  # a new job goes to the nearest


def test_there_are_only_so_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_COHORTS", 1)
    cohorts = opened(tmp_path)
    assert cohorts.of(key(0), card(), CLIPS) is not None
    assert cohorts.of(key(1), card(40), CLIPS) is None
    assert cohorts.of(key(2), card(1), CLIPS) is not None


def test_two_threads_found_once_and_check_once(tmp_path: Path) -> None:
    cohorts, together = opened(tmp_path), threading.Barrier(4)
    made: list[int] = []

    def serve(client: int) -> tuple[str, list[float]]:
        def check() -> np.ndarray:
            made.append(client)
            return np.full((2, 3), client, np.float32)

        together.wait()
        found = cohort(cohorts.of(key(client), card(client), CLIPS))
        return found.name, found.check_logits("rendered", check).ravel().tolist()

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(serve, range(4)))
    assert len(made) == 1
    assert all(one == answers[0] for one in answers)


def test_a_check_survives_a_restart_and_a_damaged_one_is_made_again(tmp_path: Path) -> None:
    def check() -> np.ndarray:
        return np.arange(6, dtype=np.float32).reshape(2, 3)

    def never() -> np.ndarray:
        raise AssertionError("it is there")

    cohort(opened(tmp_path).of(key(0), card(), CLIPS)).check_logits("rendered", check)
    again = cohort(opened(tmp_path).of(key(0), card(), CLIPS))
    assert again.check_logits("rendered", never).tolist() == check().tolist()
    (kept,) = tmp_path.glob("cohorts/*/check-rendered.safetensors")
    kept.write_bytes(kept.read_bytes()[:30])
    assert again.check_logits("rendered", check).tolist() == check().tolist()


def test_a_failed_check_leaves_nothing_and_the_next_member_makes_it(tmp_path: Path) -> None:
    mine = cohort(opened(tmp_path).of(key(0), card(), CLIPS))

    def killed() -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mine.check_logits("rendered", killed)
    assert not list(tmp_path.glob("cohorts/*/check-*"))
    assert mine.check_logits("rendered", lambda: np.ones((1, 2), np.float32)).tolist() == [[1, 1]]


def test_a_member_uses_the_first_set_of_classes_that_has_all_of_its_own(tmp_path: Path) -> None:
    mine = cohort(opened(tmp_path, class_sets=2).of(key(0), card(), CLIPS))
    three, two, other, third = (
        (True, True, True, False), (True, True, False, False), (False, False, False, True), (False, True, False, True)
    )  # fmt: skip
    assert mine.classes("sound", three) == three
    assert mine.classes("sound", two) == three
    assert mine.classes("sound", other) == other
    assert mine.classes("sound", third) is None
    assert mine.classes("sound", (True,) * 4) is None
    assert mine.classes("pictures", two) == two
    again = cohort(opened(tmp_path, class_sets=2).of(key(0), card(), CLIPS))
    assert again.classes("sound", two) == three
