"""A roll-over in any order, killed at any write, while devices come and go: nobody is cut off."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from helpers.roll_over import took
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstill.cloud_server.auth import roll_over
from fedstill.cloud_server.auth.authority import create_authority, issue_node, read_authority, renew_server
from fedstill.cloud_server.auth.authority_files import read_roots
from fedstill.cloud_server.auth.roll_over import begin, drop_old, finish
from fedstill.cloud_server.auth.roots_update import RootsUpdate
from fedstill.common.credentials import CredentialError
from fedstill.common.trusted_roots import accepted_roots, fingerprints, root_fingerprint


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    create_authority(tmp_path / "certs", ["cloud.example.org"], ["192.0.2.7"])
    for name in ("kitchen", "hall"):
        issue_node(tmp_path / "certs", name)
    return tmp_path / "certs"


STEPS: dict[str, Callable[[Path], object]] = {"begin": begin, "finish": finish, "drop_old": drop_old}


class Killed(BaseException):
    """A process ends here, without a word."""


@contextmanager
def killed_after(writes: int) -> Iterator[None]:
    """Inside, only so many files are written."""
    left = [writes]
    real = roll_over.replace_file

    def write(*arguments: Any) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        real(*arguments)

    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        patch.setattr(roll_over, "replace_file", write)
        yield


@pytest.mark.parametrize(
    ("step", "writes"),
    [
        *(("begin", n) for n in range(5)),
        *(("finish", n) for n in range(2)),
        *(("drop_old", n) for n in range(6)),
    ],
)
def test_a_step_that_was_killed_is_done_by_the_same_command(certs: Path, step: str, writes: int) -> None:
    """After each of the files that it writes."""
    for name, do in STEPS.items():
        if name == "finish":
            for node in ("kitchen", "hall"):
                took(certs, node)
        if name == step:
            with killed_after(writes):
                do(certs)
            read_authority(certs)
            renew_server(certs)
        do(certs)
    (root,) = read_roots(certs).trusted
    renew_server(certs)
    assert read_roots(certs).issuing == root
    assert not (certs / "next-ca.key").exists()
    assert {(certs / "nodes" / name / "ca.crt").read_bytes() for name in ("kitchen", "hall")} == {
        (certs / "ca.crt").read_bytes()
    }


@dataclass
class World:
    """An authority, a coordinator that shows the certificate of its start, and what devices trust."""

    certs: Path
    shown: str = ""
    devices: dict[str, bytes] = field(default_factory=dict)

    def issuing(self) -> str:
        return root_fingerprint(read_roots(self.certs).issuing)

    def reaches(self, device: str) -> bool:
        return self.shown in fingerprints(self.devices[device])

    def visit(self, device: str) -> None:
        if not self.reaches(device):
            return
        update = RootsUpdate(read_authority(self.certs))
        sent = update.bundle_for(fingerprints(self.devices[device]))
        if sent:
            accepted = accepted_roots(self.devices[device], sent)
            if self.shown in fingerprints(accepted):
                self.devices[device] = accepted
        update.note({device: fingerprints(self.devices[device])})


actions = st.one_of(
    st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 8)),
    st.tuples(st.sampled_from(["visit", "visit", "restart", "issue"]), st.integers(0, 2)),
)


@settings(max_examples=8, deadline=None)
@given(st.lists(actions, max_size=14))
def test_whatever_happens_in_between_no_device_is_cut_off(past: list[tuple[str, int]]) -> None:
    """Steps in any order, each killed after any of its writes, while devices come, go and are away."""
    with tempfile.TemporaryDirectory() as folder:
        certs = Path(folder) / "certs"
        create_authority(certs)
        world = World(certs)
        world.shown = world.issuing()
        for name in ("d0", "d1", "d2"):
            issue_node(certs, name)
            world.devices[name] = (certs / "ca.crt").read_bytes()
        for what, number in past:
            if what in STEPS:
                with suppress(CredentialError), killed_after(number):
                    STEPS[what](certs)
            elif what == "restart":
                world.shown = world.issuing()
            elif what == "visit":
                world.visit(f"d{number}")
            elif f"new{number}" not in world.devices:
                issue_node(certs, f"new{number}")
                world.devices[f"new{number}"] = (certs / "ca.crt").read_bytes()
            read_authority(certs)  # whole
            assert all(world.reaches(name) for name in ("d0", "d1", "d2"))
        world.shown = world.issuing()
        assert all(map(world.reaches, world.devices)), "new ones, too, once the coordinator was started again"
        begin(certs)
        for name in world.devices:
            world.visit(name)
        assert finish(certs).without == ()
        world.shown = world.issuing()
        drop_old(certs)
        for name in world.devices:
            world.visit(name)
        assert {fingerprints(roots) for roots in world.devices.values()} == {(world.shown,)}
        assert not list(certs.glob(".*.part"))
