"""Warm-up from images to served batches, on a small net: resuming, hashes, soups, and what is refused."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.vit import images as made_images
from helpers.vit import tiny_trunk
from helpers.warmup import SETTINGS, made_net, made_set

from fedstill.cloud_server.serving.policies.prodigy import warmed_profile
from fedstill.cloud_server.serving.scheduling.profile import Profile, Schedule
from fedstill.cloud_server.warmup.ensembler import EnsembleSettings, ranking
from fedstill.cloud_server.warmup.fine_tuning import (
    FineTuneSettings,
    fine_tune,
    prepare_images,
    right_answers,
    step_seconds,
)
from fedstill.cloud_server.warmup.planner import Budget
from fedstill.cloud_server.warmup.reduced_nets import MergingNet, task_net
from fedstill.cloud_server.warmup.reductions import reduction_schedule
from fedstill.cloud_server.warmup.soups import SoupCache, average
from fedstill.cloud_server.warmup.warm_up import (
    PlanSettings,
    WarmUp,
    choose_recipes,
    find_ratio,
    mean_accuracy,
)
from fedstill.cloud_server.warmup.warmed_models import (
    Recipe,
    WarmedModelError,
    WarmedModels,
    read_catalogue,
    single,
)
from fedstill.cloud_server.warmup.warmed_serving import EngineOptions, WarmedServing
from fedstill.common.errors import DataError
from fedstill.datasets.images.image_tasks import ImageSet
from fedstill.models.vit.elastic_vit import ElasticViT
from fedstill.models.vit.preprocess_settings import PLAIN

CLASSES = ("dark", "light", "middle")


def merging(reduction: int = 2) -> MergingNet:
    return MergingNet(made_net(), reduction_schedule(reduction, 4))


def made_warm_up(folder: Path, **options) -> WarmUp:
    store = WarmedModels(folder, {"task": "greys"}, CLASSES)
    profiling = prepare_images(made_set(12, seed=1), 32, PLAIN)
    return WarmUp(made_net(), store, made_set(), profiling, SETTINGS, (0, 2, 4), **options)


@pytest.fixture(scope="module")
def warm(tmp_path_factory) -> WarmUp:
    """Three models: at 1, 6 and one more."""
    backend = made_warm_up(tmp_path_factory.mktemp("warm"))
    find_ratio(backend, PlanSettings((0, 1, 2, 3, 6), 1, (0, 2, 6), Budget(models=3)))
    return backend


def test_fine_tuning_learns_with_the_reduction_in_the_loop() -> None:
    net, profiling = merging(), prepare_images(made_set(12, seed=1), 32, PLAIN)
    seen: list[tuple[int, float]] = []
    done = fine_tune(net, made_set(), profiling, SETTINGS, progress=lambda *said: seen.append(said))
    assert done.best > done.accuracies[0]
    assert done.best > 0.6
    assert [epoch for epoch, _ in seen] == [1, 2, 3]
    assert done.seconds > 0
    digits = right_answers(net, profiling, SETTINGS)
    assert digits.count("1") / len(digits) == done.best  # the best epoch's weights remain
    assert not any(parameter.requires_grad for parameter in net.module.parameters())


def test_fine_tuning_ends_when_the_profiling_images_say_so() -> None:
    settings = FineTuneSettings(epochs=30, batch_size=12, learning_rate=1e-9, head_rate=0.0, patience=2)
    upside_down = made_set(12, seed=1)
    done = fine_tune(merging(), made_set(), prepare_images(upside_down, 32, PLAIN), settings)
    assert len(done.accuracies) == 31  # equal is not worse
    fast = FineTuneSettings(epochs=30, batch_size=12, learning_rate=0.5, patience=2)
    wrong = ImageSet(upside_down.images, (upside_down.labels + 1) % 3)
    start = merging()
    worse = fine_tune(start, made_set(), prepare_images(wrong, 32, PLAIN), fast)
    assert len(worse.accuracies) < 31


def test_a_fine_tuning_that_was_interrupted_ends_with_the_same_weights(tmp_path: Path) -> None:
    profiling = prepare_images(made_set(12, seed=1), 32, PLAIN)
    whole, cut = merging(), merging()
    expected = fine_tune(whole, made_set(), profiling, SETTINGS)
    state = tmp_path / "training" / "r2.safetensors"

    class Killed(Exception):
        pass

    def kill(epoch: int, _: float) -> None:
        if epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        fine_tune(cut, made_set(), profiling, SETTINGS, state, kill)
    again = merging()
    epochs: list[int] = []
    done = fine_tune(again, made_set(), profiling, SETTINGS, state, lambda epoch, _: epochs.append(epoch))
    assert epochs == [3]
    assert done.accuracies == expected.accuracies
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name]), name


def test_a_damaged_training_state_says_what_to_do(tmp_path: Path) -> None:
    state = tmp_path / "r2.safetensors"
    state.write_bytes(b"half a file")
    with pytest.raises(DataError, match="remove it to start this model again"):
        fine_tune(merging(), made_set(), prepare_images(made_set(3), 32, PLAIN), SETTINGS, state)


def test_a_diverging_fine_tuning_is_stopped() -> None:
    settings = FineTuneSettings(epochs=5, batch_size=6, learning_rate=1e30)
    with pytest.raises(DataError, match="diverged at learning rate 1e"):
        fine_tune(merging(), made_set(), prepare_images(made_set(3), 32, PLAIN), settings)


def test_timing_a_step_leaves_the_weights_alone() -> None:
    net = merging()
    before = {name: value.clone() for name, value in net.module.state_dict().items()}
    assert step_seconds(net, made_set(), SETTINGS) > 0
    assert all(torch.equal(before[name], value) for name, value in net.module.state_dict().items())


def test_a_task_net_answers_with_the_head_that_it_was_given() -> None:
    trunk = ElasticViT(tiny_trunk())
    head = (torch.randn(3, 32, generator=torch.Generator().manual_seed(1)), torch.tensor([1.0, 2.0, 3.0]))
    net, pictures = task_net(trunk, head), made_images(2)
    expected = trunk.features(pictures) @ head[0].T + head[1]
    assert torch.allclose(net(pictures), expected, atol=1e-5)
    assert trunk.trunk.head.out_features == 7  # a copy was changed


def test_find_ratio_fine_tunes_measures_and_remembers(warm: WarmUp) -> None:
    catalogue = read_catalogue(warm.store.folder)
    assert catalogue == warm.store.catalogue
    assert [model.reduction for model in catalogue.models][:2] == [1, 6]
    assert len(catalogue.models) == 3
    assert all(warm.store.path(model.sha256).stat().st_size == model.bytes for model in catalogue.models)
    assert not list(warm.store.training_folder.glob("*"))
    again = made_warm_up(
        warm.store.folder, on_progress=pytest.fail
    )  # nothing is timed, trained or measured anew
    assert find_ratio(again, PlanSettings((0, 1, 2, 3, 6), 1, (0, 2, 6), Budget(models=3))) == tuple(
        model.reduction for model in catalogue.models
    )


def test_a_folder_of_other_models_is_refused(warm: WarmUp) -> None:
    with pytest.raises(WarmedModelError, match="models of another task"):
        WarmedModels(warm.store.folder, {"task": "colours"}, CLASSES)
    with pytest.raises(WarmedModelError, match="models of another class_names"):
        WarmedModels(warm.store.folder, {"task": "greys"}, ("a", "b"))


def test_an_average_lies_between_and_one_model_is_itself(warm: WarmUp) -> None:
    one, other = (warm.store.load(reduction) for reduction in (1, 6))
    mixed = average([(0.25, one), (0.75, other)])
    for name, value in mixed.items():
        assert torch.allclose(value, 0.25 * one[name] + 0.75 * other[name], atol=1e-6)
    assert all(torch.equal(value, one[name]) for name, value in average([(1.0, one)]).items())
    with pytest.raises(ValueError, match="differ in their parameters"):
        average([(0.5, one), (0.5, {"head.weight": torch.zeros(2, 2)})])


def test_the_kitchen_keeps_what_is_used(warm: WarmUp) -> None:
    kitchen = SoupCache(warm.store, made_net(), capacity=1, source_models=1)
    first = kitchen.net(single(1))
    assert kitchen.net(single(1)) is first
    kitchen.net(Recipe({"1": 0.5, "6": 0.5}))
    assert kitchen.net(single(1)) is not first


def test_recipes_are_chosen_per_reduction_and_soups_only_where_better(warm: WarmUp) -> None:
    models = [model.reduction for model in warm.store.catalogue.models]
    plain = choose_recipes(warm, models, (0, 6), None)
    assert all(len(recipe.weights) == 1 for recipe in plain.values())
    souped = choose_recipes(warm, models, (0, 6), EnsembleSettings(temperatures=(1.0,)))
    for reduction, recipe in souped.items():
        digits = {r.name: warm.digits(r, reduction) for r in (recipe, plain[reduction])}
        assert digits[recipe.name][1::2].count("1") >= digits[plain[reduction].name][1::2].count("1")
    warm.store.choose(souped)
    assert read_catalogue(warm.store.folder).recipes == {str(r): recipe for r, recipe in souped.items()}


def made_profile(store: WarmedModels, recipes: dict[int, Recipe]) -> Profile:
    """As ``fedstill warmup`` writes it: the plain model and what was chosen, at every measured reduction."""
    catalogue = store.catalogue
    plain = {
        reduction: Schedule(
            f"-{reduction}", -reduction, 0.0, 0.01, (catalogue.accuracy(single(0), reduction),), 2
        )
        for reduction in recipes
    }
    chosen: dict[str, dict[int, float]] = {}
    for reduction, recipe in recipes.items():
        chosen.setdefault(recipe.name, {})[reduction] = catalogue.accuracy(recipe, reduction)
    return warmed_profile("made", "made up", "greys", plain, chosen)


@pytest.fixture
def served(warm: WarmUp, tmp_path: Path) -> tuple[WarmedModels, Profile]:
    """A copy of the models, reduction 2 served by the first of them and reduction 6 by an average."""
    warm.fine_tune(0)
    models = [model.reduction for model in warm.store.catalogue.models if model.reduction]
    recipes = {2: single(models[0]), 6: Recipe({str(models[0]): 0.25, str(models[1]): 0.75})}
    for reduction, recipe in recipes.items():
        for model in (0, *models):
            warm.digits(single(model), reduction)
        warm.digits(recipe, reduction)
    warm.store.choose(recipes)
    shutil.copytree(warm.store.folder, tmp_path / "copy")
    store = WarmedModels(tmp_path / "copy", {"task": "greys"}, CLASSES)
    return store, made_profile(store, recipes)


def logits(store: WarmedModels, recipe: Recipe, reduction: int) -> np.ndarray:
    net = SoupCache(store, made_net()).net(recipe)
    return net(made_images(2), reduction_schedule(reduction, 4)).numpy()


OPTIONS = EngineOptions((1, 2), precision="fp32")


def test_every_schedule_is_served_by_the_model_that_it_names(served: tuple[WarmedModels, Profile]) -> None:
    store, profile = served
    serving = WarmedServing(store, made_net(), profile, OPTIONS)
    serving.warm_up()
    assert serving.profile == profile
    for schedule in profile.schedules:
        reduction = -schedule.token_delta
        recipe = store.catalogue.recipes[str(reduction)] if schedule.model else single(0)
        answers = serving.infer(made_images(2), ["greys"] * 2, schedule.name)
        expected = logits(store, recipe, reduction)
        assert np.allclose([answer.logits for answer in answers], expected, atol=1e-4)
    with pytest.raises(WarmedModelError, match="is not among the warmed models"):
        WarmedServing(store, made_net(), warmed_without_catalogue(profile), OPTIONS)
    both = tuple(replace(one, accuracy=one.accuracy * 2) for one in profile.schedules)
    with pytest.raises(WarmedModelError, match="of 2 tasks, not of one"):
        WarmedServing(store, made_net(), replace(profile, tasks=("a", "b"), schedules=both), OPTIONS)


def warmed_without_catalogue(profile: Profile) -> Profile:
    strange = replace(profile.schedules[-1], name="-6@r77", model="r77")
    return replace(profile, schedules=(*profile.schedules, strange))


def test_a_corrupt_model_is_refused_by_hash_and_the_next_best_serves(
    served: tuple[WarmedModels, Profile], caplog: pytest.LogCaptureFixture
) -> None:
    store, profile = served
    first, *others = [model.reduction for model in store.catalogue.models if model.reduction]
    path = store.path(store.catalogue.model(first).sha256)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(WarmedModelError, match="was altered, its SHA-256 is another"):
        store.load(first)
    serving = WarmedServing(store, made_net(), profile, OPTIONS)
    assert caplog.text.count("event=warmed_model_refused") == 1
    right = {model: store.catalogue.right[f"r{model}"]["2"] for model in (0, *others)}
    best = ranking(right)[0]
    substitute = next(
        s for s in serving.profile.schedules if s.token_delta == -2 and (s.model or best == single(0))
    )
    assert substitute.model == ("" if best == single(0) else best.name)
    assert substitute.accuracy == (store.catalogue.accuracy(best, 2),)
    (answer, _) = serving.infer(made_images(2), ["greys"] * 2, substitute.name)
    assert np.allclose(answer.logits, logits(store, best, 2)[0], atol=1e-4)
    assert {str(first)}.isdisjoint(s.model.removeprefix("r") for s in serving.profile.schedules)
    for model in (0, *others):
        store.path(store.catalogue.model(model).sha256).unlink()
    with pytest.raises(WarmedModelError, match="no model is usable: warm up again"):
        WarmedServing(store, made_net(), profile, OPTIONS)


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    store = WarmedModels(tmp_path, {}, CLASSES)
    two = made_set(2)
    with pytest.raises(DataError, match="2 training images for 3 classes, none of middle: give at least one"):
        WarmUp(made_net(), store, two, [], SETTINGS, ())


def test_a_catalogue_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(WarmedModelError, match="make one with: fedstill warmup"):
        read_catalogue(tmp_path)
    (tmp_path / "warmed.json").write_text(json.dumps({"format": 9}))
    with pytest.raises(WarmedModelError, match="another format"):
        read_catalogue(tmp_path)


def test_the_mean_is_over_all_reductions() -> None:
    assert mean_accuracy({0: 1.0, 4: 0.5}, (0, 2, 4)) == pytest.approx(0.75)


SLOW = """
import sys, time
from pathlib import Path
sys.path[:0] = {paths!r}
import test_warmup as t
from fedstill.cloud_server.warmup.fine_tuning import fine_tune, prepare_images

def told(epoch, accuracy):
    print(epoch, flush=True)
    time.sleep(float(sys.argv[2]))

net = t.merging()
fine_tune(net, t.made_set(), prepare_images(t.made_set(12, seed=1), 32, t.PLAIN), t.SETTINGS, Path(sys.argv[1]), told)
print(t.digest(net), flush=True)
"""


def digest(net: MergingNet) -> str:
    return f"digest {float(sum(value.double().abs().sum() for value in net.module.state_dict().values()))!r}"


@pytest.mark.slow
def test_kill_9_in_the_middle_loses_at_most_an_epoch(tmp_path: Path) -> None:
    """A real process, ended by its id between two epochs; the next one ends with the weights of an undisturbed one."""
    script = tmp_path / "slow.py"
    script.write_text(
        SLOW.format(paths=[str(Path(__file__).parent), str(Path(__file__).parents[2]), *sys.path])
    )

    def start(state: str, pause: float) -> subprocess.Popen[str]:
        command = [sys.executable, str(script), str(tmp_path / state), str(pause)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    first = start("cut.safetensors", 60.0)
    assert first.stdout is not None
    assert first.stdout.readline().strip() == "1"
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()
    resumed, _ = start("cut.safetensors", 0.0).communicate()
    assert resumed.split()[:2] == ["2", "3"]
    undisturbed, epochs = merging(), list[int]()
    held_out = prepare_images(made_set(12, seed=1), 32, PLAIN)
    fine_tune(
        undisturbed, made_set(), held_out, SETTINGS, tmp_path / "whole", lambda epoch, _: epochs.append(epoch)
    )
    assert epochs == [1, 2, 3]
    assert resumed.splitlines()[-1] == digest(undisturbed)
