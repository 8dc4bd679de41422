"""With batch norm statistics of a device's own clips, what is counted is what the device answers, on every route."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.deployed import (
    DEVICES,
    Deployed,
    answering,
    cloud_of,
    copied,
    is_connected,
    run_it,
    trained_run,
)
from helpers.inference import wait_until

import fedstill
from fedstill.cloud_server.distillation.candidates import OWN_STATISTICS, Estimate
from fedstill.cloud_server.distillation.settings import DownlinkSettings
from fedstill.cloud_server.export.graphs import graphs_of
from fedstill.cloud_server.federation import jobs
from fedstill.cloud_server.federation.own_statistics import OwnStatistics
from fedstill.cloud_server.federation.personal_student import PersonalStudents
from fedstill.cloud_server.journal.event_log import read_events
from fedstill.datasets.audiovisual.store import open_store
from fedstill.edge_client.folder import EXPORT_FOLDER, STATISTICS_FOLDER
from fedstill.edge_client.students import own_statistics
from fedstill.edge_client.students.graph_files import keep_graphs
from fedstill.models.weights.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow

ALLOWED = OwnStatistics(1.0, 0.0, 0.0, Estimate(OWN_STATISTICS, 0.1, 0.01))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.mktemp("own"), ["all_distill_equal_steps", "fedstill"])


@pytest.fixture(scope="module")
def patched() -> Iterator[pytest.MonkeyPatch]:
    """Networks this small decide for some classes only, and nothing surely helps them."""

    def allowed(self: PersonalStudents, net: object) -> OwnStatistics:
        return ALLOWED

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PersonalStudents, "_own_statistics", allowed)
        patch.setattr(jobs, "keeps_promise", lambda promised, found, left=1.0: True)
        yield patch


@pytest.fixture(scope="module")
def run(trained: Path, patched: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    installing = DownlinkSettings(install="fedstill", minimum_agreement=0.0)
    folder = copied(trained, tmp_path_factory.mktemp("run"), arms=("fedstill",), downlink=installing)
    run_it(folder)
    return Deployed(folder, trained.parent / "clips", "fedstill")


def test_the_report_says_which_students_have_them(run: Deployed) -> None:
    chosen = [event["choice"]["chosen"] for event in read_events(run.run_dir) if event["event"] == "job"]
    assert len(chosen) == len(DEVICES)
    assert all(one.endswith(f"+{OWN_STATISTICS}") for one in chosen)
    for number in DEVICES:
        files = (run.device(number) / STATISTICS_FOLDER).iterdir()
        installed = [file.stem for file in files if ".tried" not in file.name]
        assert installed == [run.evaluated(number).version]


def test_the_device_answers_what_was_counted(run: Deployed) -> None:
    for number in DEVICES:
        current = answering(run.device(number))
        run.evaluated(number).must_be(lambda clip, by=current: by.classify(run.clips / clip)["class"])
        program = fedstill.load_student(run.device(number))
        run.evaluated(number).must_be(lambda clip, by=program: by.classify_file(run.clips / clip).label)


def test_a_device_without_torch_answers_what_was_counted(
    run: Deployed, trained: Path, tmp_path: Path
) -> None:
    net, _ = load_checkpoint(trained / "seed0" / "all_distill")
    graphs = graphs_of(net.eval(), open_store(trained / "public"))
    for number in DEVICES:
        device = tmp_path / str(number)
        shutil.copytree(run.device(number), device)
        keep_graphs(device / EXPORT_FOLDER, graphs)
        current = answering(device)
        run.evaluated(number).must_be(lambda clip, by=current: by.classify(run.clips / clip)["class"])


def test_the_cloud_answers_what_was_counted(run: Deployed) -> None:
    with cloud_of(run.run_dir) as address:
        for number in DEVICES:
            current, evaluated = answering(run.device(number), address), run.evaluated(number)
            first = run.clips / min(evaluated.decided)
            try:
                wait_until(lambda by=current, clip=first: is_connected(by, clip))
                evaluated.must_be(lambda clip, by=current: by.classify(run.clips / clip)["class"])
            finally:
                current.close()


def test_without_its_statistics_the_student_would_answer_otherwise(run: Deployed, tmp_path: Path) -> None:
    others = 0
    for number in DEVICES:
        device, evaluated = tmp_path / str(number), run.evaluated(number)
        shutil.copytree(run.device(number), device)
        shutil.rmtree(device / STATISTICS_FOLDER)
        current = answering(device)
        said = {clip: current.classify(run.clips / clip)["class"] for clip in evaluated.decided}
        others += sum(said[clip] != counted for clip, counted in evaluated.decided.items())
    assert others > 0


def test_a_running_agent_notices_other_statistics(run: Deployed, tmp_path: Path) -> None:
    """Of the same student: the device drifted, and the generic student was meant for it once more."""
    device, evaluated = tmp_path / "device", run.evaluated(0)
    shutil.copytree(run.device(0), device)
    current, clip = answering(device), run.clips / min(evaluated.decided)
    current.classify(clip)
    before = current._inference
    current.classify(clip)
    assert current._inference is before
    own_statistics.settle(device, evaluated.version, own=False)
    current.classify(clip)
    assert current._inference is not before
