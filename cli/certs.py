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
    """Make a new inference token for a node, before the old one expires, with the authority of now beside it."""
    from fedstill.cli.shared.console import console, one_line_errors
    from fedstill.cloud_server.auth.authority import NODES_FOLDER, renew_token
    from fedstill.common.credentials import CA_FILE, TOKEN_FILE, day

    with one_line_errors():
        node = renew_token(directory, name, days)
    folder = directory / NODES_FOLDER / name
    console.print(
        f"valid until {day(node.token_expiry)}; copy {folder / TOKEN_FILE} and {folder / CA_FILE} to the device",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip


@certs.command("roll-over")
def roll_over(
    directory: Folder,
    finish: Annotated[
        bool, typer.Option("--finish", help="Have the new authority sign the server's certificate.")
    ] = False,
    without_them: Annotated[
        bool, typer.Option("--without-them", help="With --finish: cut off nodes that do not trust it yet.")
    ] = False,
    drop_old: Annotated[
        bool, typer.Option("--drop-old", help="Have devices trust the new authority alone.")
    ] = False,
) -> None:
    """Replace the authority over weeks: begin, then --finish, then --drop-old; devices follow by themselves.

    Without an option it begins, or says how far one is that is under way.
    """
    from fedstill.cli.shared.console import console, one_line_errors
    from fedstill.cloud_server.auth import roll_over as steps
    from fedstill.cloud_server.auth.lost_nodes import REMEDY
    from fedstill.common.credentials import ROLL_OVER
    from fedstill.common.errors import ConfigError

    with one_line_errors():
        if finish and drop_old:
            raise ConfigError("--finish and --drop-old: one after the other, with weeks between them")
        if without_them and not finish:
            raise ConfigError("--without-them: only with --finish")
        if finish:
            now = steps.finish(directory, without_them=without_them)
        else:
            now = steps.drop_old(directory) if drop_old else steps.begin(directory)
    which = "old" if not now.roots.finished else "new"
    trusted = "both authorities are" if now.roots.begun else "the new authority alone is"
    lines = [
        f"{trusted} to be trusted; the {which} one signs for the server",
        f"{len(now.nodes) - len(now.without)} of {len(now.nodes)} nodes trust the new one",
    ]
    if now.without:
        lines.append(f"without it: {steps.names_of(now.without)}")
    if now.lost:
        names = steps.names_of(now.lost)
        lines.append(f"trust an authority that is not here, and follow no more: {names}; on each {REMEDY}")
    if now.roots.begun:
        step = "--drop-old" if now.roots.finished else "--finish"
        when = "once the coordinator was started again: " if now.roots.finished else ""
        lines.append(f"next: {when}{ROLL_OVER} {directory} {step}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@certs.command("list")
def list_command(directory: Folder) -> None:
    """List every node that was issued, and after a roll-over which authority it trusts."""
    from fedstill.cli.shared.console import console, one_line_errors
    from fedstill.cloud_server.auth.register import list_nodes
    from fedstill.cloud_server.auth.roll_over import read_roll_over
    from fedstill.common.credentials import CredentialError, day

    with one_line_errors():
        nodes = list_nodes(directory)
    try:
        rolled = read_roll_over(directory)
    except CredentialError:  # a server's certificate from elsewhere: there is nothing to roll over
        rolled = None
    without = {node.name for node in rolled.without} if rolled else set()
    lost = {node.name for node in rolled.lost} if rolled else set()
    for node in nodes:
        state = "revoked" if node.revoked else f"until {day(node.token_expiry)}"
        trusts = ""
        if rolled and rolled.roots.succeeded and not node.revoked:
            trusts = "old authority" if node.name in without else "new authority"
        if node.name in lost:
            trusts = "lost authority"
        row = f"{node.name:<24} client {node.client:<4} {state:<17} {node.fingerprint} {trusts:<14}"
        console.print(
            f"{row if trusts else row.rstrip()} {' '.join(node.tags)}".rstrip(),
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
