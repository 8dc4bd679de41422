"""Which versions of devices a cloud serves, and which side an operator must upgrade if it does not."""

from __future__ import annotations

import pytest

from fedstill.protos.releases import is_older, why_not_together


@pytest.mark.parametrize(
    ("device", "cloud"),
    [
        ("0.1.0", "0.1.0"), ("0.1.0", "0.1.7"), ("0.1.0", "0.2.0"), ("0.2.0", "0.1.0"), ("1.9.3", "1.10.0"),
        ("0.2.0rc1", "0.1"), ("0.2.0.dev3+g12", "0.3.0"), ("nightly", "nightly"),
    ],
)  # fmt: skip
def test_one_minor_version_apart_is_fine(device: str, cloud: str) -> None:
    assert why_not_together(device, cloud) == ""


@pytest.mark.parametrize(
    ("device", "cloud", "remedy"),
    [
        ("0.1.0", "0.3.0", "upgrade the device"), ("0.3.0", "0.1.0", "upgrade the coordinator"),
        ("1.9.0", "1.11.0", "upgrade the device"), ("0.9.0", "1.0.0", "upgrade the device"),
        ("1.0.0", "0.9.0", "upgrade the coordinator"), ("nightly", "0.1.0", "install the same version on both"),
        ("", "0.1.0", "install the same version"), ("0.1.0\n" * 99, "9.1.0", "upgrade the device"),
        ("99999999.1", "0.1.0", "install the same version"),
    ],
)  # fmt: skip
def test_more_is_refused_in_one_line(device: str, cloud: str, remedy: str) -> None:
    reason = why_not_together(device, cloud)
    assert remedy in reason
    assert "\n" not in reason
    assert len(reason) < 200


def test_the_older_one_may_not_know_new_fields() -> None:
    assert is_older("0.1.9", "0.2.0")
    assert is_older("0.9.0", "0.10.0")
    assert not is_older("0.2.0", "0.2.1")
    assert not is_older("0.3.0", "0.2.0")
    assert not is_older("nightly", "0.2.0")
