"""Guards a device's privacy budget: charged before sending, through kills and races, and one answer per question."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command import CliRunner
from test_privacy import clips, dp_request

from fedstill.cli.main import app
from fedstill.cli.shared import console
from fedstill.edge_client.folder import ALLOWED_FILE
from fedstill.edge_client.privacy.privacy import epsilon_at, sigma_for
from fedstill.edge_client.privacy.privacy_ledger import LEDGER_FILE, PrivacyLedger, noise_source, release_once
from fedstill.edge_client.privacy.privacy_policy import (
    POLICY_FILE,
    STRENGTH,
    PrivacyPolicy,
    allow,
    read_policy,
    write_policy,
)
from fedstill.edge_client.privacy.prototypes import DeviceError, Prototypes
from fedstill.protos.messages import PrototypeRequest

POLICY = PrivacyPolicy(accepts="dp", epsilon=4.0, delta=1e-5)
MADE = Prototypes(np.array([[0.1, 0.9]], np.float32), np.array([12], np.int64))


def asked(round_: int = 0, **changes: Any) -> PrototypeRequest:
    request = dp_request(**changes)
    return replace(request, job=replace(request.job, round=round_))


def release(
    folder: Path, request: PrototypeRequest, policy: PrivacyPolicy = POLICY, run: str = ""
) -> Prototypes:
    return release_once(folder, run, policy, request, lambda _: clips(200))


def ledger(folder: Path, policy: PrivacyPolicy = POLICY) -> PrivacyLedger:
    return PrivacyLedger(folder / LEDGER_FILE, policy.epsilon, policy.delta)


def never() -> Prototypes:
    raise AssertionError("noise was drawn although nothing may be released")


def test_the_same_question_gets_the_same_noise_and_costs_nothing(tmp_path: Path) -> None:
    first = release(tmp_path, asked(epsilon=1.0))
    cost = ledger(tmp_path).spent()
    again = release_once(tmp_path, "", POLICY, asked(epsilon=1.0), lambda _: clips(3))
    assert np.array_equal(first.probabilities, again.probabilities)
    assert np.array_equal(first.counts, again.counts)
    assert again.probabilities.dtype == np.float32
    assert ledger(tmp_path).spent() == cost == pytest.approx(1.0, rel=1e-6)


def test_another_round_or_run_is_another_release(tmp_path: Path) -> None:
    policy = replace(POLICY, epsilon=None)
    made = [release(tmp_path, asked(0), policy), release(tmp_path, asked(1), policy)]
    made.append(release(tmp_path, asked(0), policy, run="other"))
    assert len({one.probabilities.tobytes() for one in made}) == 3
    three = epsilon_at(3**0.5 / sigma_for(4.0, 1e-5), 1e-5)
    assert ledger(tmp_path, policy).spent() == pytest.approx(three, rel=1e-9)


def test_the_same_job_with_other_settings_is_refused(tmp_path: Path) -> None:
    release(tmp_path, asked(epsilon=1.0))
    before = ledger(tmp_path).spent()
    with pytest.raises(DeviceError, match="other settings"):
        release(tmp_path, asked(epsilon=0.5))
    assert ledger(tmp_path).spent() == before


def test_past_the_budget_nothing_leaves(tmp_path: Path) -> None:
    release(tmp_path, asked(0, epsilon=4.0))
    cost = ledger(tmp_path).spent()
    with pytest.raises(DeviceError, match=r"epsilon 4 of 4 is spent.*nothing is uploaded") as caught:
        release(tmp_path, asked(1, epsilon=0.5))
    assert "\n" not in str(caught.value)
    assert ledger(tmp_path).spent() == cost
    assert release(tmp_path, asked(0, epsilon=4.0)).counts.sum() > 0  # what is paid for is still repeated
    with pytest.raises(DeviceError, match="budget"):
        ledger(tmp_path).release("x", "y", 0.1, never)


def test_small_uploads_add_up_by_composition_not_by_sum(tmp_path: Path) -> None:
    """Sixteen uploads of epsilon 0.5 would be 8 by adding; the exact composition affords them within 4."""
    for round_ in range(16):
        release(tmp_path, asked(round_, epsilon=0.5))
    assert 2.0 < ledger(tmp_path).spent() < 2.5


def test_a_suppressed_answer_is_charged_and_repeated(tmp_path: Path) -> None:
    """That nothing was left is an answer, too: asked again, the noise must not be drawn again."""
    for _ in range(2):
        with pytest.raises(DeviceError, match="too few clips"):
            release_once(tmp_path, "", POLICY, asked(), lambda _: clips(4))
    assert ledger(tmp_path).spent() == pytest.approx(4.0, rel=1e-6)


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from fedstill.edge_client.privacy.privacy_ledger import PrivacyLedger
from fedstill.edge_client.privacy.prototypes import Prototypes

def draw():
    if sys.argv[2] == "drawing":
        os.kill(os.getpid(), signal.SIGKILL)
    return Prototypes(np.array([[0.1, 0.9]], np.float32), np.array([12], np.int64))

PrivacyLedger(Path(sys.argv[1]), 4.0, 1e-5).release("job", "question", 0.5, draw)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["drawing", "sending"])
def test_a_kill_neither_forgets_a_spend_nor_repeats_a_release(tmp_path: Path, moment: str) -> None:
    path = tmp_path / LEDGER_FILE
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), moment], check=False, env=here)
    assert done.returncode == -signal.SIGKILL
    after = PrivacyLedger(path, 4.0, 1e-5)
    if moment == "sending":
        assert after.spent() == pytest.approx(epsilon_at(0.5, 1e-5))
        kept = after.release("job", "question", 0.5, never)
        assert np.array_equal(kept.probabilities, MADE.probabilities)
    else:
        assert after.spent() == 0
        assert after.release("job", "question", 0.5, lambda: MADE) is MADE


def test_racing_messages_share_one_budget(tmp_path: Path) -> None:
    mu = 1 / sigma_for(4.0, 1e-5)

    def one(number: int) -> bool:
        try:
            ledger(tmp_path).release(f"job{number}", "question", mu, lambda: MADE)
        except DeviceError:
            return False
        return True

    ledger(tmp_path).spent()
    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(one, range(6))) == 1
    assert ledger(tmp_path).spent() == pytest.approx(4.0, rel=1e-6)


def test_a_damaged_ledger_stops_uploads(tmp_path: Path) -> None:
    (tmp_path / LEDGER_FILE).write_bytes(b"this is no database, whatever its name says" * 50)
    with pytest.raises(DeviceError, match="cannot be used"):
        release(tmp_path, asked())


def test_real_noise_is_never_the_same_and_simulated_noise_always() -> None:
    real = [noise_source(PrivacyPolicy(), "job").normal() for _ in range(3)]
    assert len(set(real)) == 3
    seeded = PrivacyPolicy(noise_seed=3)
    assert noise_source(seeded, "job").normal() == noise_source(seeded, "job").normal()
    assert noise_source(seeded, "job").normal() != noise_source(seeded, "other").normal()


def request_of(kind: str, min_size: int = 8) -> PrototypeRequest:
    request = dp_request(min_size=min_size)
    if kind == "dp":
        return request
    return replace(request, kind=kind, epsilon=0.0, delta=0.0, centres=np.empty((0, 0), np.float32))


@pytest.mark.parametrize(
    ("accepts", "kind", "fine"),
    [("samples", "samples", True), ("kmeans", "samples", False), ("kmeans", "kmeans", True),
     ("constrained", "kmeans", False), ("constrained", "constrained", True), ("constrained", "histogram", True),
     ("constrained", "dp", True), ("histogram", "constrained", False), ("histogram", "samples", False),
     ("histogram", "histogram", True), ("histogram", "dp", True),
     ("dp", "constrained", False), ("dp", "histogram", False), ("dp", "dp", True)],
)  # fmt: skip
def test_the_weakest_upload_that_the_owner_accepts(accepts: Any, kind: str, fine: bool) -> None:
    request = request_of(kind)
    policy = PrivacyPolicy(accepts=accepts)
    if fine:
        policy.require(request)
    else:
        with pytest.raises(DeviceError, match=f"accepts {accepts}.*{kind}"):
            policy.require(request)


def test_the_cloud_cannot_talk_the_minimum_down() -> None:
    request = replace(
        dp_request(min_size=2),
        kind="constrained",
        epsilon=0.0,
        delta=0.0,
        centres=np.empty((0, 0), np.float32),
    )
    with pytest.raises(DeviceError, match="min_size 2"):
        PrivacyPolicy(accepts="constrained").require(request)


def test_the_policy_file(tmp_path: Path) -> None:
    assert read_policy(tmp_path) == PrivacyPolicy()
    write_policy(tmp_path, POLICY)
    assert read_policy(tmp_path) == POLICY
    write_policy(tmp_path, replace(POLICY, epsilon=None))
    assert read_policy(tmp_path).epsilon is None


@pytest.mark.parametrize(
    ("allowed", "fine"),
    [("", ["histogram", "dp"]), ("prototypes", ["constrained", "histogram", "dp"]),
     ("samples", ["samples", "kmeans", "constrained", "histogram", "dp"])],
)  # fmt: skip
def test_without_a_file_means_over_all_clips_leave_and_the_owner_may_allow_more(
    tmp_path: Path, allowed: str, fine: list[str]
) -> None:
    def answered(kind: str) -> bool:
        try:
            read_policy(tmp_path).require(request_of(kind))
        except DeviceError:
            return False
        return True

    allow(tmp_path, "samples")
    allow(tmp_path, allowed)
    assert [kind for kind in STRENGTH if answered(kind)] == fine
    allow(tmp_path, "")
    assert read_policy(tmp_path) == PrivacyPolicy()


def test_a_file_decides_and_nothing_is_allowed_beside_it(tmp_path: Path) -> None:
    allow(tmp_path, "samples")
    write_policy(tmp_path, POLICY)
    assert read_policy(tmp_path) == POLICY
    with pytest.raises(DeviceError, match=r"privacy\.json decides"):
        allow(tmp_path, "samples")
    allow(tmp_path, "")


def test_what_may_have_been_allowed_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / ALLOWED_FILE).write_bytes(b"sample\xff")
    assert read_policy(tmp_path) == PrivacyPolicy()


def test_a_mean_of_few_clips_is_not_asked_for_in_vain() -> None:
    asked_for = request_of("histogram", min_size=2)
    assert PrivacyPolicy().strict(asked_for).min_size == 8
    assert PrivacyPolicy(min_size=5).strict(replace(asked_for, min_size=6)).min_size == 6
    assert PrivacyPolicy(accepts="samples").strict(asked_for) == asked_for
    assert PrivacyPolicy().strict(dp_request(min_size=2)).min_size == 2


def test_a_mean_over_all_clips_is_never_one_of_a_part_that_the_cloud_has_drawn() -> None:
    asked_for = replace(request_of("histogram"), upload_limit=9)
    assert PrivacyPolicy().strict(asked_for).upload_limit == 0
    assert PrivacyPolicy(accepts="constrained").strict(asked_for).upload_limit == 9


def test_a_mean_of_one_half_of_the_labelled_clips_needs_to_be_allowed() -> None:
    asked_for = request_of("histogram")
    halved = replace(asked_for, job=replace(asked_for.job, scenario="latency_sensitive"))
    PrivacyPolicy().require(replace(asked_for, job=replace(asked_for.job, scenario="latency_insensitive")))
    with pytest.raises(DeviceError, match="a part of them was asked for"):
        PrivacyPolicy().require(halved)
    PrivacyPolicy(accepts="constrained").require(halved)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"epsilon": 0}', '{"epsilon": -1}', '{"epsilon": "many"}', '{"delta": 0}', '{"delta": 2}',
     '{"accept": "dp"}', '{"accepts": "nothing"}', '{"min_size": 0}', "\xff\xfe"],
)  # fmt: skip
def test_a_policy_that_cannot_be_understood_stops_the_device(tmp_path: Path, text: str) -> None:
    (tmp_path / POLICY_FILE).write_text(text, encoding="latin-1")
    with pytest.raises(DeviceError, match=r"privacy\.json") as caught:
        read_policy(tmp_path)
    assert "\n" not in str(caught.value)


def test_infinite_budgets_are_not_a_typo_away(tmp_path: Path) -> None:
    (tmp_path / POLICY_FILE).write_text(json.dumps({"epsilon": float("inf")}))
    with pytest.raises(DeviceError, match="epsilon"):
        read_policy(tmp_path)


def test_the_owner_can_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.errors, "_width", 300)
    write_policy(tmp_path, POLICY)
    look = CliRunner()
    assert "spent epsilon 0 of 4 at delta 1e-05, in 0 private" in look.invoke(
        app, ["privacy", str(tmp_path)]
    ).stdout.replace("\n", " ")
    assert not (tmp_path / LEDGER_FILE).exists()
    release(tmp_path, asked(epsilon=1.0))
    said = look.invoke(app, ["privacy", str(tmp_path)]).stdout.replace("\n", " ")
    assert "accepts dp uploads" in said
    assert "spent epsilon 1 of 4" in said
    assert "in 1 private" in said
    assert "predictable" not in said
    (tmp_path / POLICY_FILE).write_text("{")
    for folder in (tmp_path, tmp_path / "none"):
        mistaken = look.invoke(app, ["privacy", str(folder)])
        assert mistaken.exit_code == 2
        assert "\n" not in mistaken.stderr.strip()
