"""``fedstill agent``: the device owner's door."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedstill.simulation.service import address, serve

agent = typer.Typer(
    help="Run a device: personalised by a coordinator, useful on its own.", no_args_is_help=True
)


@agent.command()
def run(
    coordinator: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the coordinator listens.")],
    data: Annotated[Path, typer.Option(help="This device's clips: a manifest.csv, or a prepared folder.")],
    state: Annotated[Path, typer.Option(help="This agent's own folder; kept over restarts.")],
    credentials: Annotated[
        Path | None, typer.Option(help="This device's folder of: fedstill certs issue.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="No TLS, no authentication.")] = False,
    client: Annotated[int, typer.Option(help="This device's number, with --insecure only.", min=-1)] = -1,
    patience: Annotated[float, typer.Option(help="Seconds of refusals until it gives up.", min=1)] = 180.0,
) -> None:
    """Join the fleet and stay in it until SIGTERM."""
    from fedstill.edge_client.agent import AgentSettings, run_agent
    from fedstill.edge_client.agent_data import use_clips
    from fedstill.edge_client.supernode import Link
    from fedstill.protos.credentials import read_node_bundle
    from fedstill.simulation.config import ConfigError

    with serve() as stop:
        address(coordinator, "--coordinator")
        folder = state.resolve()
        if insecure == (credentials is not None):
            raise ConfigError("--credentials: needs a folder of fedstill certs issue, or --insecure")
        if credentials is not None:
            bundle = read_node_bundle(credentials)
            link = Link(coordinator, bundle.ca_file, bundle.key_file)
            name, number = bundle.identity.name, bundle.identity.client
        elif client < 0:
            raise ConfigError("--client: needed with --insecure, where nobody issues numbers")
        else:
            link, name, number = Link(coordinator, None, None), f"device{client}", client
        use_clips(data, folder)
        run_agent(AgentSettings(folder, link, number, name, patience), [], stop)
