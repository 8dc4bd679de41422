"""Guards experiment files: shipped ones load, the wrong key is named with the right one, faithful means the thesis."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedstill.cloud_server.distillation.arm_names import ARMS, SCENARIOS
from fedstill.cloud_server.distillation.settings import OptimiserSettings
from fedstill.common.errors import ConfigError
from fedstill.common.paths import data_path
from fedstill.models.audiovisual.encoders import EncoderSpec
from fedstill.simulation.config import Experiment, load_experiment, shipped_experiments
from fedstill.simulation.sources import open_source


def written(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def refusal(name: str, *overrides: str) -> str:
    """The one line that loading ends with."""
    with pytest.raises(ConfigError) as caught:
        load_experiment(name, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_promised_experiments_are_shipped() -> None:
    assert {"demo", "quickstart", "emotion_pairs", "cremad", "ave"} <= set(shipped_experiments())


@pytest.mark.parametrize("name", shipped_experiments())
def test_every_shipped_experiment_loads(name: str) -> None:
    experiment = load_experiment(name)
    assert experiment.name == name
    assert experiment.title
    assert set(experiment.run.arms) <= ARMS.keys()
    assert set(experiment.run.scenarios) <= SCENARIOS.keys()


@pytest.mark.parametrize("name", shipped_experiments())
def test_every_shipped_experiment_also_runs_as_the_thesis_did(name: str) -> None:
    assert load_experiment(name, ["mode=faithful"]).mode == "faithful"


def test_the_fedstill_table_starts_from_the_distillation_table(tmp_path: Path) -> None:
    text = 'name = "x"\n[distillation]\nouter_epochs = 4\ninner_epochs = 7\n[fedstill]\nlogit_weight = 0.5\n'
    found = load_experiment(written(tmp_path, text))
    assert (found.fedstill.outer_epochs, found.fedstill.inner_epochs) == (4, 7)
    assert (found.fedstill.logit_weight, found.distillation.logit_weight) == (0.5, 0.0)
    assert found.fedstill.optimiser == found.distillation.optimiser


def test_arms_that_train_for_different_times_are_refused(tmp_path: Path) -> None:
    text = 'name = "x"\n[distillation]\nouter_epochs = 4\n[fedstill]\nouter_epochs = 5\n'
    assert "fedstill" in refusal(written(tmp_path, text))


@pytest.mark.parametrize("name", ["demo", "quickstart"])
def test_the_first_experiments_need_no_file(name: str) -> None:
    assert open_source(load_experiment(name)).name == "synthetic"


def test_faithful_is_the_thesis(tmp_path: Path) -> None:
    found = load_experiment(written(tmp_path, 'name = "x"\nmode = "faithful"'))
    stepped = OptimiserSettings("sgd", 1e-3, 1e-4, found.teacher.optimiser.batch_size, "step", 70)
    assert found.teacher.encoder == EncoderSpec("resnet101_basic", 64, "standard")
    assert found.student.encoder == EncoderSpec("resnet18", 64, "standard")
    assert found.teacher.feature_width == 512
    assert found.teacher.optimiser == found.student.optimiser == found.distillation.optimiser == stepped
    assert found.teacher.epochs == 150
    assert (found.teacher.unimodal_weight, found.teacher.label_smoothing) == (0.0, 0.0)
    assert (found.distillation.outer_epochs, found.distillation.inner_epochs) == (15, 10)
    assert found.distillation.logit_weight == 0.0
    assert not found.distillation.freeze_batch_norm
    assert not found.distillation.augment
    assert found.selection.temperature == 1.0
    assert (found.prototypes.kind, found.prototypes.samples_per_prototype) == ("kmeans", 3)


def test_clean_protects_single_clips(tmp_path: Path) -> None:
    found = load_experiment(written(tmp_path, 'name = "x"'))
    assert found.mode == "clean"
    assert (found.prototypes.kind, found.prototypes.min_size) == ("constrained", 8)


def test_a_file_says_only_what_differs(tmp_path: Path) -> None:
    text = 'name = "x"\nmode = "faithful"\n[teacher]\nepochs = 3\noptimiser = { learning_rate = 0.5 }'
    found = load_experiment(written(tmp_path, text))
    assert (found.teacher.epochs, found.teacher.encoder.architecture) == (3, "resnet101_basic")
    assert (found.teacher.optimiser.learning_rate, found.teacher.optimiser.kind) == (0.5, "sgd")


def test_overrides_win_in_order() -> None:
    found = load_experiment(
        "quickstart",
        [
            "run.seeds=2",
            "run.seeds=3",
            "selection.budget=0.5",
            "teacher.optimiser.learning_rate=1e-4",
            'run.arms=["all_distill"]',
            "teacher.augment=false",
            "dataset.manifest=clips of mine/list.csv",
            "dataset.root=a=b",
        ],
    )
    assert found.run.seeds == 3
    assert found.selection.budget == 0.5
    assert found.teacher.optimiser.learning_rate == 1e-4
    assert found.run.arms == ("all_distill",)
    assert found.teacher.augment is False
    assert (found.dataset.manifest, found.dataset.root) == ("clips of mine/list.csv", "a=b")


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("selection.budgt=0.3", "selection.budgt: unknown key, did you mean budget?"),
        ("selecton.budget=0.3", "selecton: unknown key, did you mean selection?"),
        ("teacher.optimiser.lerning_rate=1", "teacher.optimiser.lerning_rate: unknown key, did you mean"),
        ("selection.budget=high", "selection.budget: needs float, got 'high'"),
        ("teacher.epochs=1.5", "teacher.epochs: needs int, got '1.5'"),
        ("teacher=big", "teacher: needs a table"),
        ("teacher.encoder.architecture=vgg", "teacher.encoder.architecture: 'vgg' is not one of resnet10"),
        ("mode=fast", "mode: 'fast' is not one of clean, faithful"),
        ('run.arms=["all_distil"]', "run.arms: 'all_distil' is not one of all_distill"),
        ('run.scenarios=["latency"]', "run.scenarios: 'latency' is not one of"),
        ("run.seeds=0", "run.seeds: 0 is below 1"),
        ("partition.clients=3", "partition.kind: halves is for 2 clients"),
        ("partition.clients=0", "partition.clients: 0 is below 1"),
        ("dataset.classes=[1]", "dataset.classes[0]: needs str, got '1'"),
        ("downlink.precision=int4", "downlink.precision: 'int4' is not one of exact, fp16, int8"),
        ("downlink.install=fedstil", "downlink: install 'fedstil' is not one of run.arms (all_distill, "),
        ("downlink.install=teacher", "downlink: install 'teacher' is not one of run.arms"),
        ("nonsense", "--set nonsense: needs the form table.key=value"),
        ("=3", "--set =3: needs the form table.key=value"),
        ("name.first=3", "--set name.first=3: name is no table"),
    ],
)
def test_a_wrong_override_is_named(override: str, text: str) -> None:
    assert refusal("quickstart", override).startswith(text)


@pytest.mark.parametrize(
    "override",
    [
        "selection.budget=28",
        "selection.budget=nan",
        "selection.temperature=0",
        "prototypes.samples_per_prototype=0",
        "prototypes.min_size=0",
        "teacher.epochs=0",
        "teacher.encoder.width=0",
        "teacher.optimiser.batch_size=0",
        "compute.workers=0",
        "run.holdout=1",
        "downlink.canaries=0",
        "downlink.minimum_agreement=1.1",
    ],
)
def test_a_value_that_cannot_work_is_refused_before_anything_is_trained(override: str) -> None:
    key = override.partition("=")[0]
    assert refusal("quickstart", override).startswith(key)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[select", "not valid TOML"),
        ('name = "x"\n[teacher]\nepoch = 3', "teacher.epoch: unknown key, did you mean epochs?"),
        ("[teacher]\nepochs = 3", "name: missing"),
        ('name = "x"\nteacher = 3', "teacher: needs a table"),
    ],
)
def test_a_wrong_file_is_named(text: str, words: str, tmp_path: Path) -> None:
    assert words in refusal(written(tmp_path, text))


def test_no_such_experiment(tmp_path: Path) -> None:
    assert "shipped: " in refusal("quickstar")
    assert "quickstart" in refusal(str(tmp_path / "none.toml"))
    assert str(tmp_path) in refusal(str(tmp_path))


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "video.toml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    assert "video.toml" in refusal(str(path))


def test_where_data_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "data"
    for folder in (here, elsewhere):
        folder.mkdir()
        (folder / "both.csv").touch()
    (elsewhere / "shared.csv").touch()
    monkeypatch.chdir(here)
    monkeypatch.setenv("FEDSTILL_DATA", str(elsewhere))
    assert data_path("both.csv") == here / "both.csv"
    assert data_path("shared.csv") == elsewhere / "shared.csv"
    assert data_path(str(elsewhere / "shared.csv")) == elsewhere / "shared.csv"
    with pytest.raises(ConfigError, match=r"none\.csv: not found here nor under .*FEDSTILL_DATA") as caught:
        data_path("none.csv")
    assert "\n" not in str(caught.value)


def test_a_manifest_experiment_asks_for_its_manifest() -> None:
    def opened(*overrides: str) -> Experiment:
        experiment = load_experiment("quickstart", overrides)
        open_source(experiment)
        return experiment

    with pytest.raises(ConfigError, match=r"dataset\.manifest"):
        opened("dataset.kind=manifest")
    for kind in ("cremad", "ave"):
        with pytest.raises(ConfigError, match=f"fedstill data prepare {kind}"):
            opened(f"dataset.kind={kind}")
