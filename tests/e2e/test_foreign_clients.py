"""Clients that need other versions of packages than ours, unmodified, in their environment (``make clients``):
KServe's SDK, Triton's perf_analyzer, and schemathesis, which makes requests up from the OpenAPI file."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.guarded import Guarded, guarded_server, values
from helpers.serve_process import SIZE

ROOT = Path(__file__).parents[2]
CLIENTS = Path(os.environ.get("FEDSTILL_CLIENTS") or ROOT / ".venv-clients").resolve()
LIBRARIES = [
    CLIENTS / "usr" / "lib" / "x86_64-linux-gnu",
    *CLIENTS.glob("lib/python*/site-packages/nvidia/*/lib"),
]
"""Where ``make clients`` puts what perf_analyzer is linked with."""
OPTIONS = ("--rest", "127.0.0.1:0", "--policy", "pets")  # the plain model: all ways through the same schedule

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CLIENTS / ".installed").exists(), reason="the clients' environment is missing: make clients"
    ),
]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded_server(tmp_path_factory.mktemp("guarded"), *OPTIONS) as found:
        yield found


def start(program: str, *options: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """To its end, in a folder where it may leave files; it sees nothing of our packages."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["LD_LIBRARY_PATH"] = ":".join(map(str, LIBRARIES))
    command = [str(CLIENTS / "bin" / program), *options]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False
    )


def run(program: str, *options: str, folder: Path | None = None) -> str:
    """What it prints; it has to end well."""
    done = start(program, *options, folder=folder)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_kserves_sdk_gets_the_same_logits_over_grpc_and_rest(guarded: Guarded) -> None:
    script = str(ROOT / "tests" / "helpers" / "kserve_ways.py")
    places = (guarded.server.target, f"https://{guarded.rest}", "cats", str(SIZE))
    found = json.loads(run("python", script, *places, str(guarded.ca_file), guarded.token))
    expected = guarded.logits(values())
    assert len(found["ways"]) == 7
    for way, logits in found["ways"].items():
        np.testing.assert_allclose(logits, expected, atol=1e-4, err_msg=way)
    for face, code in (("grpc", "NOT_FOUND"), ("rest", "404")):
        said = found[face]
        assert (said["live"], said["ready"], said["model"], said["unknown"]) == (True, True, True, False), (
            face
        )
        assert said["refused"] == code


@pytest.mark.parametrize("options", [("-i", "grpc"), ("-i", "grpc", "--streaming"), ("-i", "http")])
def test_perf_analyzer_measures(guarded: Guarded, tmp_path: Path, options: tuple[str, ...]) -> None:
    """It asks for configuration, metadata and statistics before and after, and refuses to go on without them."""
    if not (CLIENTS / "bin" / "perf_analyzer").exists():
        pytest.skip("tritonclient 2.34.0 has no perf_analyzer for this machine")
    if "libb64" in (found := start("perf_analyzer", "--help")).stderr:
        pytest.skip(f"perf_analyzer needs a library of Debian's (libb64-0d): {found.stderr.strip()}")
    report = tmp_path / "report.csv"
    web = "http" in options
    secure = (
        ("--ssl-https-ca-certificates-file", str(guarded.ca_file), "-u", f"https://{guarded.rest}")
        if web
        else ("--ssl-grpc-use-ssl", "true", "--ssl-grpc-root-certifications-file", str(guarded.ca_file),
              "-u", guarded.server.target)
    )  # fmt: skip
    printed = run(
        "perf_analyzer", "-m", "cats", *options, *secure, "-H", f"authorization:Bearer {guarded.token}",
        "--measurement-mode", "count_windows", "--measurement-request-count", "20", "-s", "99", "-r", "3",
        "-f", str(report),
    )  # fmt: skip
    assert "Server:" in printed, "no statistics of the server's own"
    assert re.search(r"Inferences/Second: |Throughput: ", printed) or "infer/sec" in printed
    (row,) = csv.DictReader(report.read_text().splitlines())
    assert float(row["Inferences/Second"]) > 0
    assert float(row["Server Compute Infer"]) > 0, "from the server's statistics"


def test_schemathesis_finds_no_failure(guarded: Guarded, tmp_path: Path) -> None:
    """Without the check that wants every body that fits the schema accepted: a schema cannot say that a tensor's shape
    fits its data."""
    printed = run(
        "schemathesis", "run", f"https://{guarded.rest}/openapi.json",
        "--tls-verify", str(guarded.ca_file), "-H", f"authorization:Bearer {guarded.token}",
        "--exclude-checks", "positive_data_acceptance", "--seed", "1", "--max-examples", "10",
        "--generation-database", "none", folder=tmp_path,
    )  # fmt: skip
    counted = re.search(r"(\d+) generated, (\d+) passed\n", printed)
    assert counted is not None, printed
    assert int(counted[1]) == int(counted[2]) > 400, printed


def test_kserves_own_models_know_every_field_of_our_manifest() -> None:
    printed = run("python", str(ROOT / "tests" / "helpers" / "kserve_manifests.py"))
    assert printed.splitlines() == ["fedstill.yaml: 0 faults"]
