"""What an evaluation counts for a clip is what the device answers for it: every arm, both libraries, both routes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.command import CliRunner
from helpers.deployed import (
    DEVICES,
    Deployed,
    Evaluated,
    answering,
    cloud_of,
    copied,
    forget,
    is_connected,
    level_answers,
    run_it,
    trained_run,
)
from helpers.inference import wait_until

import fedstill
from fedstill.cli import main as cli
from fedstill.cloud_server.distillation.arm_names import DEFAULT_ARMS
from fedstill.cloud_server.distillation.run_plan import read_plan
from fedstill.cloud_server.distillation.settings import DownlinkSettings
from fedstill.cloud_server.export.students import export_student
from fedstill.cloud_server.federation import deployment, server_app
from fedstill.cloud_server.federation.jobs import TABLE_PRECISIONS
from fedstill.cloud_server.journal.event_log import read_events
from fedstill.datasets.audiovisual.store import open_store
from fedstill.edge_client.folder import EXPORT_FOLDER, FORMAT_FILE, SHELF_FOLDER
from fedstill.edge_client.students.students import ModelStore
from fedstill.models.audiovisual.class_bias import Bias, levels_with_class_bias
from fedstill.models.audiovisual.compression import CompressionNet
from fedstill.models.audiovisual.levels import RATES
from fedstill.models.weights.checkpoint import load_checkpoint, network_to_json
from fedstill.models.weights.delta import content_hash
from fedstill.models.weights.packing import arrays

pytestmark = pytest.mark.slow

WITH_BIAS = ("prior_corrected", "class_support")
SWEPT = "all_distill_select_cluster"
CASES = [(arm, "int8") for arm in DEFAULT_ARMS] + [("fedstill", "exact")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    arms = ["all_distill", "prior_corrected", "fedstill_without_selection"]
    return trained_run(tmp_path_factory.mktemp("trained"), arms)


@pytest.fixture(scope="module")
def graphs(trained: Path) -> Path:
    """An ONNX export of the students' architecture, which runs the student of every arm."""
    folder = trained.parent / "graphs"
    export_student(trained / "seed0" / "all_distill", folder, store=open_store(trained / "public"))
    return folder


@pytest.fixture(scope="module")
def deployed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Deployed]:
    made: dict[tuple[str, str], Deployed] = {}

    def deploy(arm: str, precision: str) -> Deployed:
        if (arm, precision) not in made:
            downlink = installing(arm, precision)
            run_dir = copied(trained, tmp_path_factory.mktemp(arm), arms=(arm,), downlink=downlink)
            run_it(run_dir)
            made[arm, precision] = Deployed(run_dir, trained.parent / "clips", arm)
        return made[arm, precision]

    return deploy


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, deployed: Callable[[str, str], Deployed]) -> Deployed:
    return deployed(*request.param)


def installing(arm: str, precision: Any = "int8", minimum: float = 0.0) -> DownlinkSettings:
    return DownlinkSettings(precision=precision, install=arm, minimum_agreement=minimum)


def test_the_evaluated_version_is_installed_and_knows_something(case: Deployed) -> None:
    for number in DEVICES:
        evaluated = case.evaluated(number)
        current = ModelStore(case.device(number) / SHELF_FOLDER).current()
        assert current is not None
        assert current.version == evaluated.version
        assert set(evaluated.decided) == {
            clip.clip_id for clip in open_store(case.device(number) / "data").info
        }
        assert len(set(evaluated.decided.values())) > 1, "one class for all clips would be too easy to repeat"


def test_the_device_answers_what_was_counted(case: Deployed) -> None:
    for number in DEVICES:
        case.evaluated(number).must_be(case.agent(number))


def test_a_device_without_torch_answers_what_was_counted(
    case: Deployed, graphs: Path, tmp_path: Path
) -> None:
    for number in DEVICES:
        device = tmp_path / str(number)
        shutil.copytree(case.device(number), device)
        shutil.copytree(graphs, device / EXPORT_FOLDER)
        current = answering(device)
        case.evaluated(number).must_be(lambda clip, by=current: by.classify(case.clips / clip)["class"])


def test_the_cloud_answers_what_was_counted(case: Deployed) -> None:
    with cloud_of(case.run_dir) as address:
        for number in DEVICES:
            current, evaluated = answering(case.device(number), address), case.evaluated(number)
            first = case.clips / min(evaluated.decided)
            try:
                wait_until(lambda by=current, clip=first: is_connected(by, clip))
                answers = {clip: current.classify(case.clips / clip) for clip in evaluated.decided}
            finally:
                current.close()
            assert {answer["rung"] for answer in answers.values()} == {"1 fp32"}
            evaluated.must_be(lambda clip, of=answers: of[clip]["class"])


def test_the_kept_checkpoint_is_the_evaluated_student(case: Deployed) -> None:
    for number in DEVICES:
        net, meta = load_checkpoint(case.checkpoint(number))
        kept = content_hash(arrays(net), (network_to_json(net.spec), *meta.class_names))
        assert kept == case.evaluated(number).version


@pytest.mark.parametrize("arm", ["all_distill_select", "prior_corrected"])
def test_an_export_answers_what_was_counted(
    arm: str, deployed: Callable[[str, str], Deployed], tmp_path: Path
) -> None:
    case = deployed(arm, "int8")
    for number in DEVICES:
        folder = tmp_path / str(number)
        export_student(case.checkpoint(number), folder)
        exported = fedstill.load_student(folder)
        case.evaluated(number).must_be(lambda clip, by=exported: by.classify_file(case.clips / clip).label)


@pytest.mark.parametrize("arm", WITH_BIAS)
def test_a_program_gets_what_was_counted(
    arm: str, deployed: Callable[[str, str], Deployed], graphs: Path, tmp_path: Path
) -> None:
    case = deployed(arm, "int8")
    for number in DEVICES:
        device, evaluated = tmp_path / str(number), case.evaluated(number)
        shutil.copytree(case.device(number), device)
        with_torch = fedstill.load_student(device)
        shutil.copytree(graphs, device / EXPORT_FOLDER)
        for student in (with_torch, fedstill.load_student(device)):
            assert student.version == evaluated.version
            evaluated.must_be(lambda clip, by=student: by.classify_file(case.clips / clip).label)


def test_a_class_bias_decides_here_so_that_its_loss_would_be_seen(
    deployed: Callable[[str, str], Deployed],
) -> None:
    """Not with every arm on every processor: how training rounds decides about the clips that are in doubt."""
    generic, decided = deployed("all_distill_equal_steps", "int8"), list[bool]()
    for arm in WITH_BIAS:
        biased = deployed(arm, "int8")
        decided += [biased.evaluated(one).decided != generic.evaluated(one).decided for one in DEVICES]
        mixes = [event["class_mix"] for event in read_events(biased.run_dir) if event["event"] == "job"]
        assert [mix["supported"] for mix in mixes] == [True, True]
    assert any(decided)


def test_the_commands_answer_what_was_counted(
    deployed: Callable[[str, str], Deployed], tmp_path: Path
) -> None:
    case, command = deployed("fedstill", "int8"), CliRunner()
    for number in DEVICES:
        evaluated = case.evaluated(number)
        clips = [str(case.clips / clip) for clip in evaluated.decided]
        done = command.invoke(cli.app, ["agent", "infer", *clips, "--state", str(case.device(number))])
        assert done.exit_code == 0, done.output
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        answers = {f"private/{line['clip']}": line["class"] for line in lines}
        assert {line["student"] for line in lines} == {evaluated.version[:12]}
        evaluated.must_be(answers.__getitem__)
        out = tmp_path / str(number)
        done = command.invoke(cli.app, ["export", str(case.checkpoint(number)), "--out", str(out)])
        assert done.exit_code == 0, done.output
        exported = fedstill.load_student(out)
        evaluated.must_be(lambda clip, by=exported: by.classify_file(case.clips / clip).label)


def test_the_format_of_the_next_run_does_not_rename_the_student_s_classes(
    deployed: Callable[[str, str], Deployed], tmp_path: Path
) -> None:
    case, device = deployed("fedstill", "int8"), tmp_path / "device"
    shutil.copytree(case.device(0), device)
    described = json.loads((device / FORMAT_FILE).read_text())
    described["class_names"].reverse()
    (device / FORMAT_FILE).write_text(json.dumps(described))
    current = answering(device)
    case.evaluated(0).must_be(lambda clip: current.classify(case.clips / clip)["class"])


@pytest.mark.parametrize("arm", [SWEPT, "class_support"])
def test_the_cloud_decides_at_every_level_as_was_counted(
    arm: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The levels of an arm with a class bias are not in the table, but installed like the others."""
    monkeypatch.setattr(server_app, "SWEEP_ARM", {"compression": arm})
    with_bias: list[bool] = []

    def adding(levels: Mapping[float, CompressionNet], bias: Bias) -> dict[float, CompressionNet]:
        with_bias.append(bool(bias.any()))
        return levels_with_class_bias(levels, bias)

    monkeypatch.setattr(deployment, "levels_with_class_bias", adding)
    scenario, swept = "latency_sensitive", f"latency_sensitive.{arm}.compression.0"
    run_dir = copied(
        trained,
        tmp_path,
        arms=(arm,),
        scenarios=(scenario,),
        sweeps=("compression",),
        downlink=installing(arm),
    )
    run_it(run_dir)
    assert with_bias == [arm == "class_support"] * 2 * len(
        DEVICES
    )  # each trained to be installed and to be measured
    with cloud_of(run_dir) as address:
        for number in DEVICES:
            device = run_dir / "devices" / str(number)
            own_head = Evaluated.of(device, f"{scenario}.{arm}.0")
            answers = level_answers(device, address)
            for rate in RATES:
                for precision in TABLE_PRECISIONS:
                    evaluated = Evaluated.of(device, f"{swept}.0.{rate}.{precision}")
                    assert evaluated.version == own_head.version
                    evaluated.must_be(answers[rate, precision].__getitem__)
            assert Evaluated.of(device, f"{swept}.0.1.0.fp32") == own_head


def test_after_a_rollback_the_previous_student_answers_with_its_bias(
    deployed: Callable[[str, str], Deployed], tmp_path: Path
) -> None:
    before = deployed("prior_corrected", "int8")
    plan = read_plan(before.run_dir)
    spoilt = replace(plan.distillation, optimiser=replace(plan.distillation.optimiser, learning_rate=0.5))
    run_dir = copied(
        before.run_dir,
        tmp_path,
        arms=("all_distill_random",),
        distillation=spoilt,
        downlink=installing("all_distill_random", minimum=1.0),
    )
    forget(run_dir)
    installs = [event for event in run_it(run_dir) if event["event"] == "install"]
    assert [event["installed"] for event in installs] == [False, False]
    after = replace(before, run_dir=run_dir)
    for number in DEVICES:
        current = ModelStore(after.device(number) / SHELF_FOLDER).current()
        assert current is not None
        assert current.version == before.evaluated(number).version
        before.evaluated(number).must_be(after.agent(number))
