"""``fedstill loadtest live`` against a scripted server of the protocol: messages, counts, and mistakes of users."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from helpers.command import CliRunner
from helpers.queries import made_profile
from helpers.target import MadeServer, Served, never
from PIL import Image

from fedstill.cli import main as cli
from fedstill.cli.shared import console
from fedstill.client.serving_client import ServingAddress
from fedstill.cloud_server.auth.authority import create_authority, issue_node
from fedstill.cloud_server.serving.scheduling.profile import profile_to_plain
from fedstill.common.errors import DataError
from fedstill.evaluation.serving.live_loadtest import LiveSettings, run_live
from fedstill.evaluation.serving.open_loop import Response
from fedstill.evaluation.serving.results import ServingResults, read_serving_results
from fedstill.evaluation.serving.target import GrpcTarget, address_of
from fedstill.evaluation.serving.task_images import TaskImages, drawn_images, encoded
from fedstill.evaluation.serving.virtual import LoadTest

CLASSES = {"easy": ("cat", "dog"), "hard": ("dog", "cat", "owl")}


def shaded(task: str, labels: tuple[str, ...]) -> TaskImages:
    """Images whose grey value encodes their class."""
    grey = {"cat": 10, "dog": 90, "owl": 200}
    pictures = tuple(encoded(np.full((4, 4, 3), grey[label], dtype=np.uint8)) for label in labels)
    return TaskImages(task, pictures, labels)


PICTURES = (shaded("easy", ("cat", "dog")), shaded("hard", ("owl", "dog", "cat")))


def seen(picture: np.ndarray) -> str:
    return {10: "cat", 90: "dog", 200: "owl"}[int(picture[0, 0, 0])]


async def right(task: str, picture: np.ndarray, latency_ms: float, utility: float) -> str:
    return seen(picture)


def run(made: MadeServer, settings: LiveSettings | None = None, profile=None, **changes) -> ServingResults:
    test = LoadTest(
        **{"traces": ("poisson",), "policies": ("any",), "seeds": 1, "seconds": 1.0, "rate": 60.0} | changes
    )

    async def both() -> ServingResults:
        async with Served(made) as place, GrpcTarget(ServingAddress(place)) as target:
            return await run_live(test, settings or LiveSettings(), target, PICTURES, profile=profile)

    return asyncio.run(both())


def test_right_answers_in_time_earn_everything() -> None:
    made = MadeServer(CLASSES, right, policy="faithful")
    results = run(made, seeds=2, loads=(1.0, 2.0), profile=made_profile())
    assert results.policies() == ["faithful"]
    assert len(results.runs) == 4
    for row in results.runs:
        assert row.type1 == row.queries > 0
        assert row.utility_earned == pytest.approx(row.utility_offered)
        assert row.schedules == {"-10": row.queries}
        assert row.batch_sizes == (row.queries,)
        assert row.client is not None
        assert row.client.failed == {}
    assert len(made.requests) == sum(row.queries for row in results.runs)
    assert len(results.references) == 4


def test_the_server_is_told_task_utility_and_the_time_that_is_left() -> None:
    made = MadeServer(CLASSES, right)
    run(made, LiveSettings(latency_scale=2.0, allowance_ms=100.0))
    kinds = {(task, utility) for task, _, utility in made.requests}
    assert kinds <= {("easy", 0.3), ("easy", 0.01), ("hard", 1.0), ("hard", 0.2)}
    assert len(kinds) == 4
    for _, latency_ms, utility in made.requests:
        whole = 1200 if utility in (0.3, 1.0) else 2000
        assert whole - 400 < latency_ms <= whole - 100  # the generator's own lag is off, too


def test_the_same_seed_sends_the_same_queries_to_every_server() -> None:
    loads = []
    for _ in range(2):
        shades: list[tuple[str, str, float]] = []

        async def noting(task: str, picture: np.ndarray, latency_ms: float, utility: float, to=shades) -> str:
            to.append((task, seen(picture), utility))
            return seen(picture)

        run(MadeServer(CLASSES, noting))
        loads.append(sorted(shades))
    assert loads[0] == loads[1]
    assert len(loads[0]) > 20


def test_wrong_late_and_refused_queries_are_told_apart() -> None:
    async def script(
        task: str, picture: np.ndarray, latency_ms: float, utility: float
    ) -> str | grpc.StatusCode:
        if utility == 1.0:
            return "nothing of the kind"
        if utility == 0.3:
            await asyncio.sleep(0.25)
            return seen(picture)
        return grpc.StatusCode.RESOURCE_EXHAUSTED if utility == 0.2 else grpc.StatusCode.DEADLINE_EXCEEDED

    made = MadeServer(CLASSES, script)
    row = run(made, LiveSettings(latency_scale=0.2)).runs[0]  # objectives of 120 and 200 ms
    counts = {
        value: sum(utility == value for _, _, utility in made.requests) for value in (1.0, 0.3, 0.2, 0.01)
    }
    assert min(counts.values()) > 0
    assert row.type1 == 0
    assert row.type2 == counts[1.0]
    assert row.type3 == counts[0.3]
    assert row.type4 == counts[0.2] + counts[0.01]
    assert row.rejected == counts[0.2]
    assert row.utility_earned == 0.0
    assert row.client is not None
    assert row.client.refused == {"overload": counts[0.2], "too_late": counts[0.01]}


def test_other_errors_are_kept_by_what_the_server_said() -> None:
    async def script(task: str, picture: np.ndarray, latency_ms: float, utility: float) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    row = run(MadeServer(CLASSES, script)).runs[0]
    assert row.client is not None
    assert row.client.failed == {"UNAVAILABLE as scripted": row.queries}
    assert row.type4 == row.queries


def test_a_bounded_generator_says_what_it_did_not_send(caplog: pytest.LogCaptureFixture) -> None:
    async def script(task: str, picture: np.ndarray, latency_ms: float, utility: float) -> str:
        return await never()

    async def both() -> ServingResults:
        made = MadeServer(CLASSES, script)
        async with Served(made) as place, GrpcTarget(ServingAddress(place)) as target:
            test = LoadTest(traces=("poisson",), policies=("any",), seeds=1, seconds=1.0, rate=60.0)
            return await run_live(
                test, LiveSettings(latency_scale=0.01, outstanding=5), target, PICTURES, grace=0.3
            )

    row = asyncio.run(both()).runs[0]
    assert row.client is not None
    assert row.client.failed == {
        "no answer": 5,
        "not sent: too many queries outstanding": row.queries - 5,
    }
    assert "queries failed" in caplog.text


@pytest.mark.parametrize(
    ("tasks", "policy", "message"),
    [
        (
            {"easy": ("cat", "dog")},
            "fedstill",
            "the server has no task 'hard' (it has easy): choose others with --tasks",
        ),
        ({**CLASSES, "hard": ("dog", "cat")}, "fedstill", "task hard: the server knows no class 'owl'"),
        (CLASSES, "triton", "the server runs policy 'triton', which this fedstill does not know"),
    ],
)
def test_a_server_that_does_not_fit_is_one_line(tasks, policy: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        run(MadeServer(tasks, right, policy))
    assert message in str(caught.value)


def test_tls_and_token(tmp_path: Path) -> None:
    create_authority(tmp_path)
    issue_node(tmp_path, "client")
    token = tmp_path / "nodes" / "client" / "token"
    credentials = grpc.ssl_server_credentials(
        [((tmp_path / "server.key").read_bytes(), (tmp_path / "server.crt").read_bytes())]
    )
    made = MadeServer(CLASSES, right)

    async def both() -> Response:
        async with Served(made, credentials) as place:
            address = address_of(place, insecure=False, authority=tmp_path / "ca.crt", token_file=token)
            async with GrpcTarget(address) as target:
                await target.describe()
                return await target.query("easy", PICTURES[0].pictures[0], 100.0, 1.0)

    assert asyncio.run(both()).label == "cat"
    assert made.tokens == [f"Bearer {token.read_text().strip()}"] * 2


def test_drawn_pictures_are_the_same_for_the_same_seed() -> None:
    first, again = (drawn_images("easy", ("cat", "dog"), 8, np.random.default_rng(3)) for _ in range(2))
    assert first == again
    assert set(first.labels) == {"cat", "dog"}
    assert len(set(first.pictures)) == 8


@contextmanager
def serving(made: MadeServer) -> Iterator[str]:
    """A scripted server in a thread of its own, for the command."""
    loop, place, stop = asyncio.new_event_loop(), [], threading.Event()
    up = threading.Event()

    async def serve() -> None:
        async with Served(made) as address:
            place.append(address)
            up.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert up.wait(10)
    try:
        yield place[0]
    finally:
        stop.set()
        thread.join(10)
        loop.close()


TWO_COMMANDS = (
    "type: fedstill loadtest virtual, or fedstill loadtest live --target HOST:PORT of a running server"
)


def invoke(*arguments: str):
    return CliRunner().invoke(cli.app, ["loadtest", *arguments])


def test_the_command_from_images_to_pictures_of_results(tmp_path: Path) -> None:
    for name, grey in (("cat", 10), ("dog", 90)):
        for split in ("train", "test"):
            folder = tmp_path / "easy" / split / name
            folder.mkdir(parents=True)
            Image.new("L", (6, 6), grey).save(folder / "1.png")
    (tmp_path / "profile.json").write_text(json.dumps(profile_to_plain(made_profile())))
    options = [
        "--insecure",
        "--seeds",
        "1",
        "--seconds",
        "1",
        "--rate",
        "50",
        "--load",
        "1,2",
        "--tasks",
        "easy",
    ]
    options += ["--images", f"easy={tmp_path / 'easy'}", "--profile", str(tmp_path / "profile.json")]
    with serving(MadeServer(CLASSES, right)) as place:
        done = invoke(
            "live",
            "--target",
            place,
            *options,
            "--out",
            str(tmp_path / "run"),
            "--markdown",
            str(tmp_path / "page.md"),
        )
    assert done.exit_code == 0, done.output
    results = read_serving_results(tmp_path / "run")
    assert [row.type1 for row in results.runs] == [row.queries for row in results.runs]
    assert results.measured_on is not None
    assert "Queries were sent late by at most" in (tmp_path / "page.md").read_text()
    assert (tmp_path / "run" / "plots" / "fig3.15.png").stat().st_size > 5000


def test_the_command_draws_pictures_for_all_tasks_of_a_server(tmp_path: Path) -> None:
    made = MadeServer(CLASSES, right_or_guess)
    with serving(made) as place:
        options = ("--drawn", "--insecure", "--seeds", "1", "--seconds", "1", "--rate", "50")
        done = invoke("live", "--target", place, *options, "--out", str(tmp_path / "run"))
    assert done.exit_code == 0, done.output
    assert {task for task, _, _ in made.requests} == {"easy", "hard"}
    row = read_serving_results(tmp_path / "run").runs[0]
    assert row.type1 + row.type2 == row.queries


async def right_or_guess(task: str, picture: np.ndarray, latency_ms: float, utility: float) -> str:
    return "cat"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), TWO_COMMANDS),
        (("--virtual", "--target", "h:1"), TWO_COMMANDS),
        (("--seeds", "3"), TWO_COMMANDS),
        (
            ("--virtual", "--trace", "azure,a file.csv"),
            "type: fedstill loadtest virtual --trace 'azure,a file.csv'",
        ),
        (("--target", "h:1", "--drawn"), "type: fedstill loadtest live --target h:1 --drawn"),
        (("--drawn", "--target=h:1"), "type: fedstill loadtest live --drawn --target=h:1"),
        (("live", "--target", "nowhere", "--drawn"), "--target 'nowhere': write HOST:PORT"),
        (
            ("live", "--target", "h:1", "--drawn"),
            "--target needs --ca FILE (and --token-file FILE), or --insecure",
        ),
        (
            ("live", "--target", "h:1", "--insecure", "--ca", "x"),
            "--insecure goes without --ca and --token-file",
        ),
        (("live", "--target", "h:1", "--ca", "nowhere.pem"), "nowhere.pem: cannot be read"),
        (
            ("live", "--target", "h:1", "--insecure", "--latency-scale", "0"),
            "--latency-scale must lie above 0",
        ),
        (("live", "--target", "h:1", "--insecure", "--images", "x"), "--images 'x': write NAME=PATH"),
        (("live", "--target", "h:1", "--insecure", "--images", "x=y"), "--images x: is not among --tasks"),
        (("live", "--target", "127.0.0.1:1", "--insecure", "--drawn"), "127.0.0.1:1: UNAVAILABLE"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.errors, "_width", 400)
    done = invoke(*arguments)
    assert done.exit_code == 2, repr(done.exception)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert message in lines[0]
