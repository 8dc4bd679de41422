"""Flower's processes keep the user's exceptions from a proxy, and say what the agent must read."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedstill.common.flower_cli import environment


def test_exceptions_from_a_proxy_are_added_to_those_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert environment(Path("home"))["no_proxy"] == "127.0.0.1,localhost"
    monkeypatch.setenv("NO_PROXY", ".example.org")
    found = environment(Path("home"))
    assert found["no_proxy"] == found["NO_PROXY"] == ".example.org,127.0.0.1,localhost"


def test_flower_says_what_the_agent_must_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_LOG_LEVEL", "ERROR")
    assert environment(Path("home"))["FLWR_LOG_LEVEL"] == "INFO"
