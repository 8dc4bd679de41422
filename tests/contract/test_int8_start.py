"""A server and ``tasks profile`` measure what schedules in int8 need, once, and a later start finds it again."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.serve_process import draw_pictures
from helpers.two_trunks import Weights, opened, plan_of, random_weights

from fedstill.cloud_server.serving.app.int8_ranges import ranges_file
from fedstill.cloud_server.serving.app.profile_tasks import ProfileOptions, compare_times, profile_tasks
from fedstill.cloud_server.serving.app.serve_plan import ServePlan
from fedstill.cloud_server.serving.app.serve_trunk import ReadyTrunk, known_trunk, ready_trunk
from fedstill.cloud_server.serving.engine.predictions import Prediction
from fedstill.cloud_server.serving.scheduling.profile import profile_to_plain
from fedstill.cloud_server.serving.tasks.registry import TaskRegistry
from fedstill.common.atomic_files import replace_text
from fedstill.common.errors import ConfigError
from fedstill.datasets.images.image_tasks import find_images
from fedstill.models.vit.preprocess import image_batch
from fedstill.models.vit.task_bank import TaskParameters

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("openvino") is None, reason="OpenVINO is not installed: pip install '.[openvino]'"
    ),
]

LOOKING = "looking at images for schedules in int8"
CLASSES = ("class0", "class1", "class2")


@dataclass(frozen=True)
class Place:
    state: Path
    pictures: Path
    weights: Weights
    head: TaskParameters

    def start(self, **changes: Any) -> tuple[ReadyTrunk, list[str]]:
        """One, and what it said."""
        plan = replace(self.plan, **changes)
        plan.folder.mkdir(exist_ok=True)
        registry, told = TaskRegistry(self.state), list[str]()
        trunk = opened(self.weights.file).trunk
        ready = ready_trunk(plan, "", trunk, plan.profile, registry, told.append)
        registry.close()
        return ready, told

    @property
    def plan(self) -> ServePlan:
        made = plan_of(
            self.state, self.weights, Path(), schedules=None, images=(f"cats={self.pictures}",),
            precision="bf16", backend="openvino", batches="1,2",
        )  # fmt: skip
        return replace(made, profile=None)

    @property
    def ranges(self) -> Path:
        (found,) = (self.state / "serve").glob("profile-*.ranges.safetensors")
        return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    # not whether the processor multiplies bf16 is asked here
    where = "fedstill.cloud_server.serving.engine"
    monkeypatch.setattr(f"{where}.openvino_backend.PRECISIONS", {"bf16": "f32"})
    monkeypatch.setattr(f"{where}.variants.PRECISIONS", {"bf16": "f32"})
    monkeypatch.setattr(f"{where}.variants.why_not", lambda *_: "")
    draw_pictures(tmp_path / "cats", CLASSES)
    weights = opened(random_weights(tmp_path, "test_vit"))
    head = weights.register(tmp_path / "tasks", "cats", 3, 0)
    return Place(tmp_path / "tasks", tmp_path / "cats", weights, head)


def logits(place: Place, ready: ReadyTrunk, name: str) -> np.ndarray:
    pictures = find_images("cats", place.pictures).load("test").images[:2]
    batch = list(image_batch(pictures, 160, place.head.preprocess))
    answers = ready.infer(batch, ["cats", "cats"], ready.schedules[name])
    return np.stack([one.logits for one in answers if isinstance(one, Prediction)])


def test_a_second_start_finds_what_the_first_has_measured(place: Place) -> None:
    first, told = place.start()
    assert LOOKING in told
    assert any("measured schedule 0q" in line for line in told)
    names = [schedule.name for schedule in first.profile.schedules]
    assert "0q" in names
    assert names.count("0") == 1
    assert {f"{name}q" for name in names if not name.endswith("q")} & set(names)
    exact, rounded = logits(place, first, "0"), logits(place, first, "0q")
    assert 0 < np.abs(exact - rounded).max() < 0.2 * np.abs(exact).max()
    content, written = place.ranges.read_bytes(), place.ranges.stat().st_mtime_ns

    second, told = place.start()
    assert not any("measured" in line for line in told)
    assert second.measured == first.measured
    assert place.ranges.stat().st_mtime_ns == written
    np.testing.assert_allclose(logits(place, second, "0q"), rounded, atol=1e-5)

    place.ranges.write_bytes(b"damaged")
    third, _ = place.start()
    assert place.ranges.read_bytes() == content  # from the same images
    np.testing.assert_allclose(logits(place, third, "0q"), rounded, atol=1e-5)


def test_a_later_start_needs_no_images(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    first, _ = place.start(schedules="0,0q")
    place.pictures.rename(place.pictures.with_name("away"))
    second, _ = place.start(schedules="0,0q")
    assert set(second.schedules) == {"0", "0q"}
    (kept := place.ranges).unlink()
    third, _ = place.start(schedules="0,0q")
    assert set(third.schedules) == {"0"}
    assert third.measured == first.measured
    assert "its ranges could not be measured" in caplog.text
    place.pictures.with_name("away").rename(place.pictures)
    kept.mkdir()  # it cannot be written
    fourth, _ = place.start(schedules="0,0q")
    assert set(fourth.schedules) == {"0"}


def test_a_memory_budget_has_none(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    registry, trunk = TaskRegistry(place.state), opened(place.weights.file).trunk
    plan = replace(place.plan, memory_budget=2**34, schedules="0,0q")
    known = known_trunk(plan, "", trunk, None, registry)
    assert [schedule.name for schedule in known.settings.schedules] == ["0"]
    assert "event=int8_left_out schedules=0q" in caplog.text
    with pytest.raises(ConfigError, match="in int8 do not go with it"):
        known_trunk(replace(plan, schedules="0q"), "", trunk, None, registry)
    registry.close()


def test_schedules_in_int8_are_left_out_where_torch_serves(place: Place) -> None:
    ready, told = place.start(backend="torch", precision="fp32")
    assert LOOKING not in told
    assert not any(name.endswith("q") for name in ready.schedules)


def test_a_profile_of_the_users_own_brings_its_ranges(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "own.json"
    options = ProfileOptions("0,0q,-4q", "1,2", 6, 0, None, "openvino")
    images = {"cats": find_images("cats", place.pictures)}
    parameters = {"cats": place.head}
    trunk = opened(place.weights.file).trunk
    made, measured = profile_tasks(trunk, parameters, images, options, out, lambda _: None)
    assert [one.schedule.name for one in measured] == ["0", "0q", "-4q"]
    made = replace(made, schedules=tuple(one.planned for one in measured))  # dominated or not
    replace_text(out, json.dumps(profile_to_plain(made)))
    assert ranges_file(out).exists()
    assert compare_times(trunk, parameters, made, ranges_file(out), "1,2").keys() == {"0", "0q", "-4q"}

    ready, told = place.start(profile=out)
    assert LOOKING not in told
    assert set(ready.schedules) == {"0", "0q", "-4q"}
    assert logits(place, ready, "0q").shape == (2, 3)

    ranges_file(out).unlink()
    ready, _ = place.start(profile=out)
    assert set(ready.schedules) == {"0"}
    assert [schedule.name for schedule in ready.profile.schedules] == ["0"]
    assert "event=int8_left_out" in caplog.text
