"""What the commands of ``fedstill agent`` share: who the device is, its student, and the failures that end it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedstill.common.option_values import address

if TYPE_CHECKING:
    from fedstill.edge_client.inference.cloud_stream import Address
    from fedstill.edge_client.inference.current_student import CurrentStudent
    from fedstill.edge_client.link.monthly_bytes import MonthlyBytes
    from fedstill.edge_client.node.supernode import Link


class Infer(StrEnum):
    """Where the head runs."""

    LOCAL = "local"
    CLOUD = "cloud"
    AUTO = "auto"


Credentials = Annotated[Path | None, typer.Option(help="This device's folder from fedstill certs issue.")]
Inference = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="Address of the coordinator's inference service.")
]
Mode = Annotated[Infer, typer.Option(help="auto: the cloud if the link allows it, else this device.")]
Objective = Annotated[float, typer.Option(help="Milliseconds from a clip to its answer.", min=1)]
Insecure = Annotated[bool, typer.Option("--insecure", help="No TLS, no authentication.")]
Client = Annotated[int, typer.Option(help="This device's client number; with --insecure only.", min=-1)]
AgentFolder = Annotated[Path, typer.Option(help="The agent's folder.")]


@dataclass(frozen=True)
class Identity:
    """Who a device is, and whom it may ask."""

    name: str
    client: int
    link: Link
    inference: Address | None


def identity_of(
    coordinator: str, inference: str, credentials: Path | None, insecure: bool, client: int, folder: Path
) -> Identity:
    """From the device's credentials, or its number with ``--insecure``. Raises ConfigError, CredentialError.

    Args:
        folder: the agent's, for a token and roots that the cloud sends.
    """
    from fedstill.common.credentials import read_node_bundle
    from fedstill.common.errors import ConfigError
    from fedstill.edge_client.folder import ROOTS_FILE, TOKEN_FILE
    from fedstill.edge_client.inference.cloud_stream import Address
    from fedstill.edge_client.node.supernode import Link

    if insecure == (credentials is not None):
        raise ConfigError("--credentials: needs a folder from fedstill certs issue, or --insecure")
    if inference:
        address(inference, "--inference")
    if credentials is None:
        if client < 0:
            raise ConfigError("--client: needed with --insecure, because no credentials name it")
        name = f"device{client}"
        where = Address(inference, name) if inference else None
        return Identity(name, client, Link(coordinator, None, None), where)
    bundle = read_node_bundle(credentials)
    name = bundle.identity.name
    where = None
    if inference:
        where = Address(
            inference, name, bundle.token, bundle.ca_file.read_bytes(),
            token_file=bundle.token_file, kept_token=folder / TOKEN_FILE,
            ca_file=bundle.ca_file, kept_roots=folder / ROOTS_FILE,
        )  # fmt: skip
    link = Link(coordinator, bundle.ca_file, bundle.key_file, kept_ca=folder / ROOTS_FILE)
    return Identity(name, bundle.identity.client, link, where)


@contextmanager
def counted(who: Identity, budget: MonthlyBytes) -> Iterator[Identity]:
    """Inside, a device whose bytes to and from its coordinator count."""
    from fedstill.edge_client.link.relay import metered

    with ExitStack() as stack:
        link = replace(who.link, via=stack.enter_context(metered(who.link.address, budget)))
        inference = who.inference
        if inference is not None:
            inference = replace(inference, target=stack.enter_context(metered(inference.target, budget)))
        yield replace(who, link=link, inference=inference)


def student_of(folder: Path, who: Identity | None, infer: Infer, objective: float) -> CurrentStudent:
    """The student that the device uses; ``who`` is None if no cloud is to be asked. Raises ConfigError, DeviceError."""
    from fedstill.common.errors import ConfigError
    from fedstill.edge_client.inference.current_student import CurrentStudent
    from fedstill.edge_client.node.loading import late_loader
    from fedstill.edge_client.privacy.privacy_policy import read_policy
    from fedstill.edge_client.privacy.prototypes import DeviceError

    try:
        features = read_policy(folder).features
    except DeviceError:  # the agent says that; nothing is uploaded, and clips are answered all the same
        features = False
    reachable = who.inference if who else None
    if infer is Infer.CLOUD and reachable is None:
        raise ConfigError("--inference: needed with --infer cloud")
    mode = Infer.LOCAL if reachable is None else infer
    return CurrentStudent(
        folder,
        late_loader(folder),
        mode.value,
        objective,
        reachable,
        uploads_allowed=features,
    )


def failures() -> tuple[type[Exception], ...]:
    """Failures of an agent that end it with one line and are not mistakes on the command line."""
    from fedstill.edge_client.inference.watch_log import WatchError
    from fedstill.edge_client.node.supernode import NodeRefused
    from fedstill.edge_client.privacy.prototypes import DeviceError

    return NodeRefused, DeviceError, WatchError
