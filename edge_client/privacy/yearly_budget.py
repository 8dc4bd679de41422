"""How often a device tells of its clips: so many personalisations in any 365 days, whether with noise or without.

Means over all clips hide a clip among the others, but every further one of nearly the same clips tells of the
difference. Without noise no epsilon counts that. What is counted is how often a cloud may ask at all: a personalisation
is one, however many questions about the same clips it needs, and however often a broken link has them repeated. Other
clips under the same name count again, for the cloud chooses the name.

The table is in the ledger, ``privacy.sqlite``. A time in the future, of a clock that was ahead, counts as spent.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection
from pathlib import Path

from fedstill.edge_client.privacy.privacy_ledger import LEDGER_FILE, has_table, open_ledger
from fedstill.edge_client.privacy.privacy_policy import PrivacyPolicy
from fedstill.edge_client.privacy.prototypes import DeviceError

YEAR = 365 * 86_400.0
AT_ONCE = 3
"""Changes in a row that a device may announce before it spreads them."""
SCHEMA = "CREATE TABLE IF NOT EXISTS personalisations (job TEXT PRIMARY KEY, time REAL NOT NULL)"


def spend_one(folder: Path, policy: PrivacyPolicy, told: str) -> None:
    """Count a personalisation, on disk before this returns; one that is counted already costs nothing.

    Args:
        folder: the device's.
        told: its name and a digest of the clips that it tells of, the same for all of its questions.

    Raises:
        DeviceError: there were as many as the owner allows, or the ledger cannot be used.
    """
    if policy.most_a_year is None:
        return
    with open_ledger(folder / LEDGER_FILE, SCHEMA) as ledger:
        ledger.execute("BEGIN IMMEDIATE")  # nobody else may count between the look and the entry
        counted = _counted(ledger)
        if told not in counted:
            if len(counted) >= policy.most_a_year:
                raise DeviceError(_in_words(policy.most_a_year, counted.values()))
            ledger.execute("INSERT OR REPLACE INTO personalisations VALUES (?, ?)", (told, time.time()))
        ledger.execute("COMMIT")


def require_left(folder: Path, policy: PrivacyPolicy, told: str) -> None:
    """Raise DeviceError as ``spend_one`` would; nothing is counted."""
    if policy.most_a_year is None:
        return
    counted = _read(folder)
    if told not in counted and len(counted) >= policy.most_a_year:
        raise DeviceError(_in_words(policy.most_a_year, counted.values()))


def may_announce(folder: Path, policy: PrivacyPolicy) -> bool:
    """Whether the device may say that its clips have changed. Raises DeviceError if the ledger cannot be used."""
    return next_announcement(folder, policy) is None


def next_announcement(folder: Path, policy: PrivacyPolicy) -> float | None:
    """From when on the device may say that its clips have changed, in seconds since 1970; None for now.

    Some of its year has to be left, and it is spread: ``AT_ONCE`` may follow each other as they come; more come as
    often as the year has room for. Raises DeviceError if the ledger cannot be used.
    """
    most = policy.most_a_year
    if most is None:
        return None
    times = sorted(_read(folder).values())
    again = [times[-most] + YEAR] if len(times) >= most else []
    again += [times[-AT_ONCE] + min(AT_ONCE * YEAR / most, YEAR)] if len(times) >= AT_ONCE else []
    return max((at for at in again if at > time.time()), default=None)


def spent_in_a_year(folder: Path) -> int:
    """Personalisations of the last 365 days. Raises DeviceError if the ledger cannot be used."""
    return len(_read(folder))


def _in_words(most: int, times: Collection[float]) -> str:
    again = time.strftime("%Y-%m-%d", time.localtime(sorted(times)[-most] + YEAR))
    return (
        f"yearly budget: {len(times)} of {most} personalisations in 365 days are spent, the next one is possible on "
        f"{again}; nothing is uploaded"
    )


def _read(folder: Path) -> dict[str, float]:
    path = folder / LEDGER_FILE
    if not path.exists():
        return {}
    with open_ledger(path) as ledger:
        return _counted(ledger) if has_table(ledger, "personalisations") else {}


def _counted(ledger: sqlite3.Connection) -> dict[str, float]:
    """What was told in the last year, and when."""
    wanted = "SELECT job, time FROM personalisations WHERE time > ?"
    found = dict(ledger.execute(wanted, (time.time() - YEAR,)).fetchall())
    if not all(isinstance(at, int | float) for at in found.values()):
        raise DeviceError(f"{LEDGER_FILE}: is damaged; nothing is uploaded")
    return found
