"""Guards private prototypes in a federation: the table gets filled, budgets hold, a refusal is one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import copied_run, trained_run

from fedstill.cloud_server.distillation.run_plan import read_plan
from fedstill.cloud_server.journal.journal import open_journal
from fedstill.edge_client.privacy.privacy_ledger import LEDGER_FILE, PrivacyLedger
from fedstill.edge_client.privacy.privacy_policy import POLICY_FILE, PrivacyPolicy, write_policy
from fedstill.protos.messages import PrototypeRequest
from fedstill.protos.records import decode
from fedstill.simulation import inprocess
from fedstill.simulation.gather import gather_rows
from fedstill.simulation.inprocess import run_inprocess

pytestmark = pytest.mark.slow

ASKING = ("all_distill_select_cluster", "class_prior_sampling", "fedstill")
PLAN = (
    'run.arms=["all_distill_select_cluster", "class_prior_sampling", "fedstill"]',
    'run.scenarios=["latency_insensitive"]',
    "distillation.outer_epochs=2",
    "fedstill.outer_epochs=2",
    "prototypes.min_size=2",
)
PRIVATE = {"kind": "dp", "epsilon": 30.0}


def spent(run_dir: Path, client: int) -> float:
    return PrivacyLedger(run_dir / "devices" / str(client) / LEDGER_FILE, None, 1e-5).spent()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teacher and first student, which do not depend on what devices are asked for."""
    return trained_run(tmp_path_factory.mktemp("trained"), PLAN)


def run(
    trained: Path,
    folder: Path,
    policy: PrivacyPolicy | None = None,
    arms: tuple[str, ...] = ASKING,
    **prototypes: Any,
) -> tuple[Path, Any]:
    """A tiny run with these settings of prototypes; ``policy`` is that of device 1."""
    settings = replace(read_plan(trained).prototypes, **prototypes)
    run_dir = copied_run(trained, folder, arms=arms, prototypes=settings)
    if policy is not None:
        write_policy(run_dir / "devices" / "1", policy)
    run_inprocess(run_dir, 2)
    return run_dir, gather_rows(run_dir)


def failures_of(tables: Mapping[str, Any], client: int) -> set[tuple[str, int, str]]:
    return {(row.arm, row.round, row.reason) for row in tables["failures"] if row.client == client}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[PrototypeRequest]:
    """What devices are asked for."""
    heard: list[PrototypeRequest] = []

    class Listening(inprocess.InProcessGrid):
        def _deliver(self, message: Any) -> str:
            if message.metadata.message_type == "query.prototypes":
                heard.append(decode(PrototypeRequest, message.content))
            return super()._deliver(message)

    monkeypatch.setattr(inprocess, "InProcessGrid", Listening)
    return heard


def test_every_asking_arm_works_with_noise_and_is_repeatable(
    trained: Path, tmp_path: Path, asked: list[PrototypeRequest]
) -> None:
    run_dir, tables = run(trained, tmp_path / "one", **PRIVATE)
    assert tables["failures"] == ()
    assert {(row.arm, row.client) for row in tables["rows"]} == {(arm, c) for arm in ASKING for c in (0, 1)}
    assert {request.kind for request in asked} == {"dp"}
    cells = {request.job.arm: len(request.centres) for request in asked}
    assert cells == {"all_distill_select_cluster": 6, "class_prior_sampling": 1}, "fedstill spends nothing"
    assert all(spent(run_dir, client) > 30 for client in (0, 1))
    _, again = run(trained, tmp_path / "two", **PRIVATE)
    assert again["rows"] == tables["rows"]
    assert again["selection"] == tables["selection"]


def test_a_private_card_is_asked_for_if_it_has_a_share_of_the_budget(
    trained: Path, tmp_path: Path, asked: list[PrototypeRequest]
) -> None:
    """One upload per device, which costs epsilon in all; the arm that could only correct the prior asks for none."""
    arms = ("prior_corrected", "fedstill")
    run_dir, tables = run(trained, tmp_path, arms=arms, kind="dp", epsilon=900.0, card_share=0.75)
    assert tables["failures"] == ()
    assert [(one.kind, one.job.arm, one.card, one.card_share) for one in asked] == [
        ("dp", "fedstill", True, 0.75)
    ] * 2
    assert spent(run_dir, 0) == pytest.approx(900, rel=1e-6)
    journal = open_journal(run_dir, read_plan(run_dir).journal)
    choices = [job["choice"] for job in journal.jobs() if job["arm"] == "fedstill"]
    journal.close()
    assert [choice["capture"] for choice in choices] == ["sound and pictures"] * 2
    assert [[one["name"] for one in choice["candidates"]] for choice in choices] == [["rendered"]] * 2


def test_a_device_stops_at_its_budget_and_the_run_goes_on(trained: Path, tmp_path: Path) -> None:
    """Budget for one upload: each further one is refused; what was refused cost nothing."""
    policy = PrivacyPolicy(accepts="dp", epsilon=30.0, noise_seed=0)
    run_dir, tables = run(trained, tmp_path, policy, **PRIVATE)
    refused = failures_of(tables, 1)
    assert {(arm, round_) for arm, round_, _ in refused} == {
        ("all_distill_select_cluster", 1), ("class_prior_sampling", 0), ("class_prior_sampling", 1),
    }  # fmt: skip
    assert all("privacy budget" in reason and "\n" not in reason for *_, reason in refused)
    assert spent(run_dir, 1) == pytest.approx(30.0, rel=1e-6)
    assert failures_of(tables, 0) == set()
    assert {(row.arm, row.client) for row in tables["rows"]} == {(arm, c) for arm in ASKING for c in (0, 1)}


def test_a_device_that_demands_dp_uploads_nothing_else(trained: Path, tmp_path: Path) -> None:
    run_dir, tables = run(trained, tmp_path, PrivacyPolicy(accepts="dp"))
    refused = failures_of(tables, 1)
    assert {arm for arm, *_ in refused} == set(ASKING)
    assert all("accepts dp uploads" in reason for *_, reason in refused)
    assert {row.round for row in tables["traffic"] if row.client == 1} == {2}  # the evaluation alone
    assert failures_of(tables, 0) == set()
    assert not (run_dir / "devices" / "1" / LEDGER_FILE).exists()


def test_a_device_may_keep_its_accuracy(trained: Path, tmp_path: Path) -> None:
    policy = PrivacyPolicy(accepts="samples", accuracy=False)
    _, tables = run(trained, tmp_path, policy)
    assert {row.client for row in tables["rows"]} == {0}
    assert all("does not report accuracy" in reason for *_, reason in failures_of(tables, 1))


def test_a_policy_that_cannot_be_read_fails_closed(trained: Path, tmp_path: Path) -> None:
    run_dir = copied_run(trained, tmp_path)
    (run_dir / "devices" / "1" / POLICY_FILE).write_text("{")
    run_inprocess(run_dir, 2)
    tables = gather_rows(run_dir)
    assert {row.client for row in tables["rows"]} == {0}
    assert all(reason.startswith(POLICY_FILE) for *_, reason in failures_of(tables, 1))
