"""What a device does, for its owner: read from its folder, whether its agent runs or not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from fedstill.common.errors import ConfigError
from fedstill.common.folder_lock import in_use
from fedstill.edge_client.folder import CLIPS_FILE, KEEP_FILE, SHELF_FOLDER
from fedstill.edge_client.inbox.learned_clips import MOST_CLIPS, kept
from fedstill.edge_client.link.link_note import CLOSED, CONNECTING, read_link
from fedstill.edge_client.link.monthly_bytes import month_of, read_months
from fedstill.edge_client.node.bad_clips import bad_clips_of
from fedstill.edge_client.node.change_note import announced
from fedstill.edge_client.node.known_clips import read_known_clips
from fedstill.edge_client.node.student_lock import is_kept
from fedstill.edge_client.privacy.privacy_ledger import LEDGER_FILE, PrivacyLedger
from fedstill.edge_client.privacy.privacy_policy import read_policy
from fedstill.edge_client.privacy.prototypes import DeviceError
from fedstill.edge_client.privacy.upload_log import read_log
from fedstill.edge_client.privacy.yearly_budget import next_announcement, spent_in_a_year
from fedstill.edge_client.students.expected import Expected, expected_of
from fedstill.edge_client.students.pointer import POINTER, version_in_use
from fedstill.protos.messages import CLIPS_CHANGED


def read_status(folder: Path) -> dict[str, Any]:
    """Of an agent's folder, as plain values. Times are seconds since 1970.

    ``running``; ``link`` (``state``, ``reason``, ``since``; None if no agent runs, or nothing is known); ``student``
    (``version``, empty without one, ``since``, ``kept``: whether no other one may be installed, ``expected``: the
    ``accuracy`` that the cloud expects of it, with ``low`` and ``high``, or None); ``clips``
    (``known`` when the student was made, ``bad``, ``learned`` from the watched folder or None, ``change``: what the
    cloud is told); ``sent`` (``answers``, ``bytes``, ``last`` in words, ``at``); ``metered`` (``month``,
    ``bytes``; None if nothing is counted); ``privacy`` (``most`` in words,
    ``yearly``, ``this_year``, ``changes_from``: when the device may next tell that its clips have changed, or None for
    now, ``epsilon``, ``spent``; ``trouble`` in words, and nothing else then, if the owner's file
    or the ledger cannot be used).

    Raises:
        ConfigError: it is no agent's folder.
    """
    if not (folder / CLIPS_FILE).is_file():
        raise ConfigError(f"{folder}: not an agent's folder: give the --state of fedstill agent")
    running = in_use(folder)
    link = read_link(folder) if running else None
    version = version_in_use(folder / SHELF_FOLDER)
    expected = expected_of(folder, version)
    known, learned, sent = read_known_clips(folder), kept(folder), read_log(folder)
    return {
        "running": running,
        "link": {"state": link.state, "reason": link.reason, "since": link.since} if link else None,
        "student": {
            "version": version,
            "since": _changed(folder / SHELF_FOLDER / POINTER),
            "kept": is_kept(folder),
            "expected": asdict(expected) if expected else None,
        },
        "clips": {
            "known": len(known.clips) if known else None,
            "bad": len(bad_clips_of(folder)),
            "learned": learned.clips if learned else None,
            "change": announced(folder),
        },
        "sent": {
            "answers": len(sent),
            "bytes": sum(one.bytes for one in sent),
            "last": sent[-1].what if sent else "",
            "at": sent[-1].time if sent else None,
        },
        "metered": _metered(folder),
        "privacy": _privacy(folder),
    }


def _metered(folder: Path) -> dict[str, Any] | None:
    months, month = read_months(folder), month_of(time.time())
    return {"month": month, "bytes": months.get(month, 0)} if months else None


def _privacy(folder: Path) -> dict[str, Any]:
    try:
        policy = read_policy(folder)
        path = folder / LEDGER_FILE
        spent = PrivacyLedger(path, policy.epsilon, policy.delta).spent() if path.exists() else 0.0
        this_year, changes_from = spent_in_a_year(folder), next_announcement(folder, policy)
    except DeviceError as error:
        return {"trouble": str(error)}
    return {
        "most": policy.in_words,
        "yearly": policy.most_a_year,
        "this_year": this_year,
        "changes_from": changes_from,
        "epsilon": policy.epsilon,
        "spent": spent,
    }


def in_words(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and words of every line of ``read_status``."""
    yield "agent", "running" if found["running"] else "not running"
    if (link := found["link"]) is not None:
        reason = f": {link['reason']}" if link["reason"] else ""
        begun = "since" if link["state"] not in (CLOSED, CONNECTING) else "from"
        yield "coordinator", f"{link['state']} {begun} {_at(link['since'])}{reason}"
    student = found["student"]
    if student["version"]:
        stays = f"; stays, because the file {KEEP_FILE} is there" if student["kept"] else ""
        told = (
            f"; expected to be right in {Expected(**student['expected']).in_words}"
            if student["expected"]
            else ""
        )
        yield (
            "student",
            f"{student['version'][:12]}, installed or confirmed {_at(student['since'])}{told}{stays}",
        )
    else:
        yield "student", "none yet"
    yield "clips", _clips(found["clips"])
    sent = found["sent"]
    last = f"; the last one {_at(sent['at'])}: {sent['last']}" if sent["answers"] else ""
    yield "sent", f"{sent['answers']} answers, {sent['bytes']} bytes{last}"
    if (metered := found["metered"]) is not None:
        yield "link", f"{metered['bytes'] / 1e6:.3g} MB moved in {metered['month']}"
    yield "privacy", _limits(found["privacy"])


def _clips(clips: dict[str, Any]) -> str:
    parts = [] if clips["known"] is None else [f"{clips['known']} when the student was made"]
    if clips["bad"]:
        parts.append(f"{clips['bad']} cannot be used")
    if clips["learned"] is not None:
        parts.append(f"{clips['learned']} of at most {MOST_CLIPS} learned from the watched folder")
    if clips["change"]:
        told = "many are new" if clips["change"] == CLIPS_CHANGED else "the newer ones differ"
        parts.append(f"the cloud is told that {told}")
    return "; ".join(parts) or "nothing was asked about them yet"


def _limits(privacy: dict[str, Any]) -> str:
    if "trouble" in privacy:
        return str(privacy["trouble"])
    times = "without a limit" if privacy["yearly"] is None else f"of {privacy['yearly']}"
    noise = f"; epsilon {privacy['spent']:.3g} spent on uploads with noise" if privacy["spent"] else ""
    later = privacy["changes_from"]
    spread = f"; other clips are told of from {_at(later)} on, to spread the rest" if later else ""
    return f"at most {privacy['most']}; {privacy['this_year']} {times} personalisations in 365 days{spread}{noise}"


def _at(seconds: float) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):  # a damaged file
        return "at an unknown time"


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
