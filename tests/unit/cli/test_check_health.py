"""Guards the health check: it succeeds only if proxy and SuperLink both answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.proxy import free_port, proxy, upstream

from fedstill.cli.check_health import check_health, main
from fedstill.cloud_server.auth.authority import create_authority
from fedstill.cloud_server.coordinator.fleet_proxy import ProxySettings


def test_it_tells_proxy_superlink_and_stranger_apart(tmp_path: Path) -> None:
    ours, theirs = create_authority(tmp_path / "ours"), create_authority(tmp_path / "theirs")
    with upstream() as behind:
        given = ProxySettings(
            "127.0.0.1", 0, f"http://127.0.0.1:{behind.port}",
            certificate_file=str(ours.certificate_file), key_file=str(ours.key_file),
        )  # fmt: skip
        with proxy(tmp_path / "run", given) as endpoint:
            for status, trouble in [
                (401, ""),
                (200, ""),
                (500, ""),
                (404, "is not a coordinator"),
                (502, "behind it"),
            ]:
                behind.status = status
                said = check_health("127.0.0.1", endpoint.port, ours.ca_file)
                assert trouble in said
                assert bool(said) == bool(trouble)
            behind.status = 401
            assert "does not answer" in check_health("127.0.0.1", endpoint.port, None)
            assert "CERTIFICATE_VERIFY_FAILED" in check_health("127.0.0.1", endpoint.port, theirs.ca_file)
            assert main([f"localhost:{endpoint.port}", str(ours.ca_file)]) == 0
        assert "does not answer" in check_health("127.0.0.1", endpoint.port, ours.ca_file)
    with proxy(
        tmp_path / "alone", ProxySettings("127.0.0.1", 0, f"http://127.0.0.1:{free_port()}")
    ) as endpoint:
        assert "the SuperLink behind it does not" in check_health("127.0.0.1", endpoint.port, None)


@pytest.mark.parametrize(
    "arguments", [[], ["localhost"], ["localhost:http"], ["a:1", "b", "c"], ["a:1", "none.crt"]]
)
def test_a_mistake_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
