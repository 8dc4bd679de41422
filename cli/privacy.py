"""``fedstill privacy``: what a device's owner allows, what has left the device, and how much of the budget is spent."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

KNOWN = (
    "data",
    "clips.json",
    "clip_format.json",
    "students",
    "privacy.json",
    "privacy.sqlite",
    "uploads.jsonl",
)
"""Any of these makes a folder a device's."""


def privacy(
    device_dir: Annotated[
        Path, typer.Argument(help="A device's folder: an agent's --state, or one of a run.")
    ],
    log: Annotated[
        bool, typer.Option("--log", help="Also list every answer that has left the device.")
    ] = False,
) -> None:
    """Show what a device accepts and what its private uploads have cost so far."""
    from fedstill.cli.shared.console import console, one_line_errors
    from fedstill.common.errors import ConfigError
    from fedstill.edge_client.inbox.learned_clips import MOST_BYTES, MOST_CLIPS, kept
    from fedstill.edge_client.privacy.privacy_ledger import LEDGER_FILE, PrivacyLedger
    from fedstill.edge_client.privacy.privacy_policy import read_policy
    from fedstill.edge_client.privacy.prototypes import DeviceError
    from fedstill.edge_client.privacy.upload_log import read_log
    from fedstill.edge_client.privacy.yearly_budget import spent_in_a_year

    with one_line_errors():
        if not device_dir.is_dir():
            raise ConfigError(
                f"{device_dir}: no such folder; give the device's folder, the one that holds data/"
            )
        if not any((device_dir / name).exists() for name in KNOWN):
            raise ConfigError(f"{device_dir}: is no device's folder: nothing is known of what left one")
        path = device_dir / LEDGER_FILE
        try:
            policy = read_policy(device_dir)
            ledger = PrivacyLedger(path, policy.epsilon, policy.delta) if path.exists() else None
            uploads, epsilon = (ledger.uploads(), ledger.spent()) if ledger else (0, 0.0)
            this_year = spent_in_a_year(device_dir)
        except DeviceError as error:
            raise ConfigError(f"{device_dir}: {error}") from error
    if log:
        sent = read_log(device_dir)
        for one in sent:
            typer.echo(
                f"{datetime.fromtimestamp(one.time):%Y-%m-%d %H:%M:%S} {one.bytes:7d} bytes: {one.what}"
            )
        if not sent:
            typer.echo("nothing is recorded here as having left this device")
    budget = "no limit" if policy.epsilon is None else f"{policy.epsilon:g}"
    console.print(
        f"accepts {policy.accepts} uploads or stronger: at most {policy.in_words}",
        highlight=False,
        soft_wrap=True,
    )
    times = "no limit" if policy.most_a_year is None else f"{policy.most_a_year}"
    console.print(
        f"told of its clips for {this_year} personalisations in 365 days, of {times}",
        highlight=False,
        soft_wrap=True,
    )
    if learned := kept(device_dir):
        console.print(
            f"answered clips of the watched folder join its clips: {learned.clips} of at most {MOST_CLIPS}, "
            f"{learned.bytes / 1e6:.1f} of at most {MOST_BYTES / 1e6:.0f} MB; they stay here, as the student sees them",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        f"spent epsilon {epsilon:.4g} of {budget} at delta {policy.delta:g}, in {uploads} private uploads",
        highlight=False,
    )
    if policy.noise_seed is not None:
        console.print("noise_seed is set: the noise is predictable and protects nobody", highlight=False)
