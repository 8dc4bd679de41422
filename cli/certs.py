"""``fedstill certs``: make an authority, issue node credentials, revoke them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

certs = typer.Typer(help="Make and revoke the credentials of coordinator and nodes.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="Folder of the authority.")]
Hosts = Annotated[
    list[str] | None, typer.Option("--host", help="Name by which devices reach the server; repeatable.")
]
Addresses = Annotated[
    list[str] | None, typer.Option("--ip", help="Address by which devices reach the server; repeatable.")
]
Name = Annotated[str, typer.Argument(help="Name of the node: lower-case letters, digits, hyphens.")]
Days = Annotated[
    int,
    typer.Option(
        help="How long the token for edge inference is valid; it renews itself if that is more than 90 days.",
        min=1,
        max=3650,
    ),
]


@certs.command()
def init(
    directory: Folder,
    host: Hosts = None,
    ip: Addresses = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an authority and all its nodes.")] = False,
) -> None:
    """Make a development authority, a server certificate and the secret of the inference tokens."""
    from fedstill.cli.shared.console import console, one_line_errors
    from fedstill.cloud_server.auth.authority import create_authority

    with one_line_errors():
        create_authority(directory, host or (), ip or (), force=force)
    console.print(
        f"authority in {directory}; next: fedstill certs issue {directory} NAME",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip


@certs.command()
def server(directory: Folder, host: Hosts = None, ip: Addresses = None) -> None:
    """Make a new server certificate: for other names, or before it expires."""
    from fedstill.cli.shared.console import console, one_line_errors
    from fedstill.cloud_server.auth.authority import renew_server
    from fedstill.cloud_server.auth.certificates import SERVER_DAYS

    with one_line_errors():
        renew_server(directory, host or (), ip or ())
    console.print(f"valid for {SERVER_DAYS} days; restart the coordinator", highlight=False)


@certs.command()
def issue(
    directory: Folder,
    name: Name,
    client: Annotated[
        int | None, typer.Option(help="Client number of the node (default: the next free one).", min=0)
    ] = None,
    days: Days = 365,
    tag: Annotated[
        list[str] | None, typer.Option(help="A name that several nodes may have; repeatable.")
    ] = None,
) -> None:
    """Make the credentials of a node: a folder to be copied to the device."""
    from fedstill.cli.shared.console import console, one_line_errors
    from fedstill.cloud_server.auth.authority import NODES_FOLDER, issue_node

    with one_line_errors():
        node = issue_node(directory, name, client, days, tag or ())
    console.print(
        f"{name} is client {node.client}, {node.fingerprint}; copy {directory / NODES_FOLDER / name} to the device",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip


@certs.command("tag")
def tag_command(
    directory: Folder,
    name: Name,
    tags: Annotated[
        list[str] | None, typer.Argument(help="Its tags from now on; none: it loses them.")
    ] = None,
) -> None:
    """Change the tags of a node, by which fedstill fleet and status name several at once."""
    from fedstill.cli.shared.console import console, one_line_errors
    from fedstill.cloud_server.auth.authority import tag_node

    with one_line_errors():
        node = tag_node(directory, name, tags or ())
    console.print(f"{node.name}: {' '.join(node.tags) or 'no tags'}", highlight=False, markup=False)


@certs.command()
def renew(directory: Folder, name: Name, days: Days = 365) -> None:
    """Make a new inference token for a node, before the old one expires."""
    from fedstill.cli.shared.console import console, one_line_errors
    from fedstill.cloud_server.auth.authority import NODES_FOLDER, renew_token
    from fedstill.common.credentials import TOKEN_FILE, day

    with one_line_errors():
        node = renew_token(directory, name, days)
    console.print(
        f"valid until {day(node.token_expiry)}; copy {directory / NODES_FOLDER / name / TOKEN_FILE} to the device",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip


@certs.command("list")
def list_command(directory: Folder) -> None:
    """List every node that was issued."""
    from fedstill.cli.shared.console import console, one_line_errors
    from fedstill.cloud_server.auth.authority import list_nodes
    from fedstill.common.credentials import day

    with one_line_errors():
        nodes = list_nodes(directory)
    for node in nodes:
        state = "revoked" if node.revoked else f"until {day(node.token_expiry)}"
        console.print(
            f"{node.name:<24} client {node.client:<4} {state:<17} {node.fingerprint} {' '.join(node.tags)}".rstrip(),
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip


@certs.command()
def revoke(directory: Folder, name: Name) -> None:
    """Revoke a node's credentials, for ever: its key and its token are refused."""
    from fedstill.cli.shared.console import console, one_line_errors
    from fedstill.cloud_server.auth.authority import revoke_node

    with one_line_errors():
        node = revoke_node(directory, name)
    console.print(f"{node.name} is revoked; a running coordinator acts on it by itself", highlight=False)
