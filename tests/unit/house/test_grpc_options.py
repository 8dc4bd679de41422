"""gRPC ignores an option whose name it does not know, without a word: every name that we set must be one of its own."""

from __future__ import annotations

import re
from pathlib import Path

from grpc._cython import cygrpc

OPTION = re.compile(r'\(\s*"(grpc\.[a-z0-9_.]+)",')
FOLDERS = ("benchmarks", "cli", "client", "cloud_server", "common", "edge_client", "evaluation", "simulation")


def test_every_option_exists() -> None:
    root, known = Path(__file__).parents[3], Path(cygrpc.__file__).read_bytes()
    names = {
        name
        for folder in FOLDERS
        for file in (root / folder).rglob("*.py")
        for name in OPTION.findall(file.read_text(encoding="utf-8"))
    }
    assert len(names) >= 7
    assert {name for name in names if name.encode() not in known} == set()
    assert b"grpc.http2.min_recv_ping_interval_without_data_ms" not in known, "the test can fail"
