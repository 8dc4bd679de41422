"""The number of cores: affinity and quota, with made-up cgroup files of both versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedstill.common.cores import usable_cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def cores_v2(root: Path, limits: dict[str, str], path: str = "/") -> int:
    write(root / "self", f"0::{path}")
    for folder, text in limits.items():
        write(root / folder / "cpu.max", text)
    return usable_cores(root, root / "self")


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("50000 100000", 1),
        ("max 100000", 8),
        ("1600000 100000", 8),
        ("nonsense", 8),
        ("100000 0", 8),
    ],
)
def test_version_2(tmp_path: Path, text: str, cores: int) -> None:
    assert cores_v2(tmp_path, {".": text}) == cores


def test_version_2_obeys_the_tightest_group_above(tmp_path: Path) -> None:
    limits = {"a.slice": "300000 100000", "a.slice/b.service": "max 100000"}
    assert cores_v2(tmp_path, limits, "/a.slice/b.service") == 3
    assert cores_v2(tmp_path, limits, "/a.slice") == 3
    assert cores_v2(tmp_path, limits, "/other.slice") == 8


@pytest.mark.parametrize(("quota", "cores"), [("250000", 3), ("-1", 8)])
@pytest.mark.parametrize("mounted", ["cpu", "cpu,cpuacct"])
def test_version_1(tmp_path: Path, quota: str, cores: int, mounted: str) -> None:
    write(tmp_path / "self", "5:memory:/job\n4:cpu,cpuacct:/job")
    write(tmp_path / mounted / "job" / "cpu.cfs_quota_us", quota)
    write(tmp_path / mounted / "job" / "cpu.cfs_period_us", "100000")
    assert usable_cores(tmp_path, tmp_path / "self") == cores


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    """Version 1 in a container: /proc names the host's path, and the files lie at the mount's root."""
    write(tmp_path / "self", "4:cpu,cpuacct:/docker/0123")
    write(tmp_path / "cpu" / "cpu.cfs_quota_us", "400000")
    write(tmp_path / "cpu" / "cpu.cfs_period_us", "100000")
    assert usable_cores(tmp_path, tmp_path / "self") == 4


def test_affinity_counts_where_it_is_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert cores_v2(tmp_path, {".": "200000 100000"}) == 1


def test_without_cgroups_affinity_alone(tmp_path: Path) -> None:
    assert usable_cores(tmp_path, tmp_path / "missing") == 8


def test_where_there_is_no_affinity_all_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores(tmp_path, tmp_path / "missing") == 1
