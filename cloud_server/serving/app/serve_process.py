"""From the operator's settings to a running server, which listens before it is measured and warm."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

from fedstill.cloud_server.auth.authority import Authority, read_authority
from fedstill.cloud_server.auth.own_certificates import check_client_authority, check_server_files
from fedstill.cloud_server.grpc.server_tls import TlsFiles
from fedstill.cloud_server.grpc.until_signalled import run_until_signalled
from fedstill.cloud_server.serving.app.assembly import Assembly, assembled
from fedstill.cloud_server.serving.app.load_models import load_devices
from fedstill.cloud_server.serving.app.serve_plan import ServePlan
from fedstill.cloud_server.serving.callers.rate_limits import EVERY_OTHER
from fedstill.cloud_server.serving.endpoints.serving_server import Parts, Ports
from fedstill.cloud_server.serving.engine.environment import SWITCH_SECONDS, keep_what_exists
from fedstill.common.atomic_files import replace_text
from fedstill.common.folder_lock import sole_user

LOG = logging.getLogger(__name__)

SERVER_FILE = "server.json"


Assemble = Callable[[ServePlan, Authority | None, TlsFiles | None], AbstractContextManager[Assembly]]
"""Puts a server together."""


def own_models(
    plan: ServePlan, authority: Authority | None, tls: TlsFiles | None
) -> AbstractContextManager[Assembly]:
    """A server whose models are in this process."""
    return assembled(plan, authority, tls, partial(load_devices, plan))


def run_serving(plan: ServePlan, assemble: Assemble = own_models) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigError, DataError, CredentialError, FolderInUse, ServerError."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # until the server listens there is nothing to close
    sys.setswitchinterval(SWITCH_SECONDS)
    authority = _authority(plan)
    tls = _tls(plan, authority) if authority is not None else None
    with sole_user(plan.folder), assemble(plan, authority, tls) as made:
        try:
            _serve(plan, made)
        finally:
            (plan.folder / SERVER_FILE).unlink(missing_ok=True)
    if made.server.parts is None:
        # A signal during the start. Its thread is in the middle of a batch, or of a file; the interpreter's own end
        # would wait for it or tear it down half way. Nothing is lost: files are replaced whole.
        logging.shutdown()
        os._exit(0)


def _serve(plan: ServePlan, made: Assembly) -> None:
    opened: list[Ports] = []

    def listening(ports: Ports) -> None:
        opened.append(ports)
        _announce(plan, ports, ready=False)

    def make() -> Parts:
        parts = made.make()
        keep_what_exists()
        return parts

    async def get_ready() -> None:
        await made.server.prepare(make)
        _announce(plan, opened[0], ready=True)

    async def retire() -> None:
        _write(plan, opened[0], ready=False)
        await made.server.retire()

    run_until_signalled(made.server, listening, get_ready, retire)


def _authority(plan: ServePlan) -> Authority | None:
    if plan.authority is None:
        return None
    authority = read_authority(plan.authority, server_certificate=plan.tls_certificate is None)
    strangers = sorted(plan.rates.keys() - {EVERY_OTHER} - {node.name for node in authority.nodes})
    _warn(authority.warnings)
    _warn(tuple(f"--rate-limit {name}: {plan.authority} has no such node yet" for name in strangers))
    return authority


def _tls(plan: ServePlan, authority: Authority) -> TlsFiles:
    """The operator's own files, or else the authority's. Raises CredentialError."""
    files = authority.tls.files
    if plan.tls_certificate is not None and plan.tls_key is not None:
        _warn(check_server_files(plan.tls_certificate, plan.tls_key))
        files = TlsFiles(plan.tls_certificate, plan.tls_key)
    if plan.client_ca is not None:
        _warn(check_client_authority(plan.client_ca))
    return replace(files, client_ca_file=plan.client_ca)


def _warn(warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        LOG.warning("event=unwise reason=%r", warning)


def _write(plan: ServePlan, ports: Ports, ready: bool) -> None:
    """The file for the process that started the server."""
    content = {
        "pid": os.getpid(),
        "port": ports.grpc,
        "web_port": ports.web,
        "rest_port": ports.rest,
        "policy": plan.policy,
        "ready": ready,
    }
    replace_text(plan.folder / SERVER_FILE, json.dumps(content))


def _announce(plan: ServePlan, ports: Ports, ready: bool) -> None:
    """Report the addresses, in the log and in the file."""
    _write(plan, ports, ready)
    LOG.info(
        "event=%s listen=%s port=%d rest_port=%s web_port=%s policy=%s tls=%s client_certificates=%s",
        "serving" if ready else "listening",
        plan.listen[0], ports.grpc, ports.rest, ports.web, plan.policy, plan.authority is not None,
        plan.client_ca is not None,
    )  # fmt: skip
