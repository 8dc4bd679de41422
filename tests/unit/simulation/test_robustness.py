"""Guards the devices of the robustness experiment: which there are, what they hold, and what controls are told."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests.helpers.runs import prepared_run, tiny_experiment

from fedstill.cloud_server.distillation.run_plan import read_plan
from fedstill.common.errors import ConfigError
from fedstill.datasets.audiovisual.capture import rendering
from fedstill.datasets.audiovisual.capture.captured import CapturedSource
from fedstill.datasets.audiovisual.capture.effects import with_babble
from fedstill.datasets.audiovisual.capture.talkers import babble_of
from fedstill.datasets.audiovisual.capture_card import card_of, to_bytes
from fedstill.datasets.audiovisual.spectrogram import audio_features
from fedstill.datasets.audiovisual.store import ClipStore, open_store
from fedstill.datasets.audiovisual.synthetic import SyntheticSource
from fedstill.edge_client.node.device import Device
from fedstill.protos.messages import Job
from fedstill.simulation.config import load_experiment
from fedstill.simulation.gather import gather_clips
from fedstill.simulation.inprocess import run_inprocess
from fedstill.simulation.robustness_cells import Cell, cells_of, deal_cells, rotated
from fedstill.simulation.robustness_devices import DEVICES_FILE
from fedstill.simulation.sources import open_source

SHIPPED = ("robustness", "robustness_digits", "robustness_synthetic", "robustness_many_classes")
TWO_CONDITIONS = (
    "partition.kind=robustness",
    'robustness.conditions=[{sound="white_noise", pictures="gamma"}, {sound="low_pass", pictures="blur"}]',
    "robustness.severities=[1.0]",
    "robustness.middle=1",
    "robustness.few_clips=[4]",
    "robustness.few_conditions=1",
    'run.scenarios=["latency_sensitive"]',
)
ARMS = ("all_distill_equal_steps", "prior_corrected", "fedstill")


def cells(name: str, *overrides: str) -> tuple[Cell, ...]:
    return cells_of(load_experiment(name, overrides).robustness)


@pytest.mark.parametrize(
    ("name", "conditions", "severities", "count"),
    [(SHIPPED[0], 6, 15, 54), *((name, 4, 12, 41) for name in SHIPPED[1:])],
)
def test_the_devices_of_a_fold(name: str, conditions: int, severities: int, count: int) -> None:
    """``severities``: of all conditions together."""
    found = cells(name)
    assert len(found) == len(set(found)) == count
    assert Counter(cell.scenario for cell in found) == {
        "A": severities,
        "B": 2 * conditions,
        "C": 2 * conditions,
        "D": 1,
        "E": conditions,
        "F": 6,
        "G": 2,
    }


def test_the_demo_compares_devices_of_their_own_with_one_like_the_public_clips() -> None:
    demo = load_experiment("demo")
    plain, *others = cells_of(demo.robustness)
    assert (plain.scenario, plain.condition, {one.scenario for one in others}) == ("D", "none", {"A"})
    assert len({one.condition for one in others}) == len(others) == 2
    assert demo.robustness.family == "development"
    assert {"all_distill_equal_steps", "fedstill"} <= set(demo.run.arms)


def test_what_a_scenario_is() -> None:
    for cell in cells("robustness"):
        sound, pictures = (
            bool(one) for one in (cell.recorder.condition.sound, cell.recorder.condition.pictures)
        )
        assert (sound or pictures) == (cell.scenario not in "DG") == (cell.severity > 0)
        assert (sound != pictures) == (cell.scenario == "C")
        assert (cell.classes != "all") == (cell.scenario in "BG")
        assert (cell.query > 0) == (cell.scenario == "F")
        assert (cell.told != cell.recorder) == (cell.scenario == "E")
        assert cell.scenario == "A" or cell.severity in (0, 2)


def test_test_conditions_share_no_effect_with_those_for_choosing_settings() -> None:
    tested, chosen = (
        {
            effect
            for cell in cells(name)
            for effect, _ in (*cell.recorder.condition.sound, *cell.recorder.condition.pictures)
        }
        for name in ("robustness", "robustness_digits")
    )
    assert len(tested) == 12
    assert not tested & chosen


def test_severities_can_be_set_for_one_condition() -> None:
    found = cells(
        "robustness",
        'robustness.conditions=[{sound="opus", pictures="jpeg", severities=[0.2, 0.4], sound_strength=2.0}]',
        "robustness.middle=1",
        'robustness.scenarios=["A", "D"]',
    )
    strengths = [cell.recorder.condition.sound + cell.recorder.condition.pictures for cell in found]
    assert strengths == [(("opus", 0.4), ("jpeg", 0.2)), (("opus", 0.8), ("jpeg", 0.4)), ()]


def test_a_part_of_the_study_has_the_same_devices() -> None:
    whole = cells("robustness")
    part = cells("robustness", 'robustness.scenarios=["A", "B"]', "robustness.levels=[2]")
    assert part == tuple(cell for cell in whole if cell.scenario in "AB" and cell.severity == 2)
    seeds = {cell.recorder.capture(fold, 0).seed for cell in whole for fold in range(4)}
    assert len(seeds) == 4 * (15 + 1)  # in every fold a device per condition and severity, and the plain one


def test_another_device_differs_by_its_condition_alone() -> None:
    found = cells("robustness")
    others = rotated(found)
    used = [other for other in others if other is not None]
    assert len(set(used)) == len(used)
    for cell, other in zip(found, others, strict=True):
        if other is None:
            assert cell.scenario in "DG"
        else:
            assert found[other].kind == cell.kind
            assert found[other].condition != cell.condition


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("robustness.fold=4", "robustness.fold: 4 is not one of 0 to 3"),
        ('robustness.scenarios=["H"]', "robustness.scenarios[0]: 'H' is not one of A, B"),
        ("robustness.scenarios=[]", "robustness.scenarios: name each one once"),
        ("robustness.family=development", "robustness: reverberation"),
        ("robustness.conditions=[]", "robustness: scenario E needs 2 or more conditions"),
        ("robustness.few_clips=[0]", "robustness.few_clips: needs numbers"),
        (
            'robustness.conditions=[{sound="opus", picture="jpeg"}]',
            "robustness.conditions[0].picture: unknown key",
        ),
        (
            'robustness.conditions=[{sound="opus", pictures="jpeg"}]',
            "robustness: scenario E needs 2 or more conditions",
        ),
    ],
)
def test_a_wrong_table_is_refused_in_one_line(override: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment("robustness", [override])
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("robustness.severities=[1.0, 0.5]", "robustness.severities: [1.0, 0.5] do not rise"),
        ("robustness.severities=[1.0]", "robustness.middle: 2 is none of 1 severities"),
        ("robustness.levels=[4]", "robustness.levels: 4 is none of 3 severities"),
    ],
)
def test_severities_that_do_not_fit_are_refused_in_one_line(override: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment("robustness_digits", [override])
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_scenarios_with_a_capture_shift_need_conditions() -> None:
    assert len(cells("robustness", "robustness.conditions=[]", 'robustness.scenarios=["D", "G"]')) == 3
    with pytest.raises(ConfigError, match="scenario C needs 1 or more conditions"):
        cells("robustness", "robustness.conditions=[]", 'robustness.scenarios=["C", "D"]')


def test_a_class_half_without_clips_is_named() -> None:
    settings = load_experiment("robustness_synthetic", ['robustness.scenarios=["D", "G"]']).robustness
    source = SyntheticSource(public_per_class=0, private_per_class=2)
    plain, first, second = deal_cells(source, np.arange(12), settings)
    assert plain.tolist() == sorted([*first, *second])
    with pytest.raises(ConfigError, match="synthetic: no private clips of the second half of the classes"):
        deal_cells(source, first, settings)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared, with every scenario: 2 + 4 + 4 + 1 + 2 + 1 + 2 devices."""
    return prepared_run(
        tmp_path_factory.mktemp("robustness"), [*TWO_CONDITIONS, "dataset.private_per_class=6"]
    )


def stores(run_dir: Path, scenario: str) -> list[ClipStore]:
    rows = json.loads((run_dir / DEVICES_FILE).read_text())
    return [
        open_store(run_dir / "devices" / str(row["client"]) / "data")
        for row in rows
        if row["scenario"] == scenario
    ]


def test_a_device_s_clips_are_those_of_its_cell(run_dir: Path) -> None:
    (plain,) = stores(run_dir, "D")
    noisy, dull = stores(run_dir, "A")
    assert noisy.info == dull.info == plain.info
    assert not np.array_equal(noisy.audio, plain.audio)
    assert not np.array_equal(noisy.frames, plain.frames)
    sound_alone, pictures_alone, *_ = stores(run_dir, "C")
    np.testing.assert_array_equal(sound_alone.audio, noisy.audio)  # the very same microphone
    np.testing.assert_array_equal(sound_alone.frames, plain.frames)
    np.testing.assert_array_equal(pictures_alone.audio, plain.audio)
    np.testing.assert_array_equal(pictures_alone.frames, noisy.frames)
    for scenario in "BG":
        first, second, *_ = stores(run_dir, scenario)
        assert set(first.labels) == {0, 1, 2}
        assert set(second.labels) == {3, 4, 5}
        assert {clip.clip_id for clip in (*first.info, *second.info)} == {clip.clip_id for clip in plain.info}


def test_a_stale_card_is_that_of_another_condition(run_dir: Path) -> None:
    noisy, dull = stores(run_dir, "A")
    noisy_told_dull, dull_told_noisy = stores(run_dir, "E")
    np.testing.assert_array_equal(noisy_told_dull.audio, noisy.audio)
    np.testing.assert_array_equal(noisy_told_dull.profiles, dull.profiles)
    np.testing.assert_array_equal(dull_told_noisy.audio, dull.audio)
    np.testing.assert_array_equal(dull_told_noisy.profiles, noisy.profiles)
    assert not np.array_equal(noisy.profiles, dull.profiles)


def test_few_clips_are_summarised_and_the_same_ones_tested(run_dir: Path) -> None:
    rows = json.loads((run_dir / DEVICES_FILE).read_text())
    (few,) = (row["client"] for row in rows if row["scenario"] == "F")

    def roles(client: int, seed: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
        job = Job("latency_sensitive", "fedstill", seed, 0)
        return Device(run_dir / "devices" / str(client), None).roles(job)  # type: ignore[arg-type]

    for seed in range(3):
        query, test = roles(few, seed)
        every_query, same_test = roles(0, seed)
        np.testing.assert_array_equal(test, same_test)
        assert len(query) == 4
        assert set(query) < set(every_query)


def test_controls_are_told_of_other_devices_and_true_conditions(run_dir: Path) -> None:
    plan = read_plan(run_dir)
    rows = json.loads((run_dir / DEVICES_FILE).read_text())
    assert len(plan.other_cards) == len(plan.oracle_conditions) == plan.clients == len(rows)
    for row, card, capture in zip(rows, plan.other_cards, plan.oracle_conditions, strict=True):
        assert (len(card) == 0) == (
            row["scenario"] in "DG" or row["scenario"] == "F"
        )  # one F device has no other
        assert (capture is None) == (row["scenario"] in "DG")
        if capture is not None:
            effects = dict((*capture.condition.sound, *capture.condition.pictures))
            assert (effects, capture.seed) == (row["strengths"], row["seed"])
    noisy, dull = stores(run_dir, "A")
    for card, store in zip(plan.other_cards[:2], (dull, noisy), strict=True):
        assert store.profiles is not None
        assert card == tuple(to_bytes(card_of(store.profiles)).tolist())


def test_preparing_again_gives_the_same_and_other_settings_start_anew(tmp_path: Path, run_dir: Path) -> None:
    overrides = [*TWO_CONDITIONS, "dataset.private_per_class=6", 'robustness.scenarios=["A", "E"]']
    again = prepared_run(tmp_path, overrides)
    for scenario in "AE":
        for one, other in zip(stores(run_dir, scenario), stores(again, scenario), strict=True):
            np.testing.assert_array_equal(one.audio, other.audio)
            np.testing.assert_array_equal(one.frames, other.frames)
            np.testing.assert_array_equal(one.profiles, other.profiles)
    before = stores(again, "E")[0].profiles
    assert before is not None
    kept = np.array(before)
    (again / "plan.json").unlink()  # as if it had been interrupted
    np.testing.assert_array_equal(stores(prepared_run(tmp_path, overrides), "E")[0].profiles, kept)
    (again / "plan.json").unlink()
    harder = prepared_run(tmp_path, [*overrides, "robustness.severities=[1.5]"])
    assert not np.array_equal(stores(harder, "E")[0].profiles, kept)


def test_public_speakers_are_the_babble(tmp_path: Path) -> None:
    overrides = [
        "partition.kind=robustness",
        "robustness.family=test",
        'robustness.conditions=[{sound="babble", pictures="jpeg"}]',
        'robustness.scenarios=["A"]',
        "robustness.levels=[2]",
    ]
    run_dir = prepared_run(tmp_path, overrides)
    (device,) = stores(run_dir, "A")
    experiment = tiny_experiment(tmp_path, overrides)
    (capture,) = read_plan(run_dir).oracle_conditions
    assert capture is not None
    effects = with_babble(babble_of(open_store(run_dir / "public")))
    heard = CapturedSource(open_source(experiment), capture.condition, capture.seed, effects)
    position = [info.clip_id for info in heard.index].index(device.info[5].clip_id)
    clip = heard.load(position)
    features = audio_features(clip.audio, clip.sample_rate, experiment.audio)
    np.testing.assert_array_equal(device.audio[5], features)


@pytest.mark.slow
def test_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SAMPLE", 6)  # they must be made here, not be good
    overrides = [
        *TWO_CONDITIONS,
        'robustness.scenarios=["A", "G"]',
        f"run.arms={list(ARMS)}".replace("'", '"'),
    ]
    run_dir = prepared_run(tmp_path, overrides)
    run_inprocess(run_dir, read_plan(run_dir).clients)
    clips = gather_clips(run_dir, 4)
    assert [row.client for row in clips] == [0, 1, 2, 3]
    for row in clips:
        assert row.correct.keys() == set(ARMS)
        assert len(row.clip_ids) == len(row.correct["fedstill"]) == (12 if row.client < 2 else 6)
