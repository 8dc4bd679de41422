"""How often a device tells of its clips: so many personalisations in any 365 days, whether with noise or without.

Means over all clips hide a clip among the others, but every further one of nearly the same clips tells of the
difference. Without noise no epsilon counts that. What is counted is how often a cloud may ask at all: a personalisation
is one, however many questions it needs, and however often a broken link has them repeated.

The table is in the ledger, ``privacy.sqlite``. A time in the future, of a clock that was ahead, counts as spent.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from fedstill.edge_client.privacy.privacy_ledger import LEDGER_FILE, WAIT_SECONDS
from fedstill.edge_client.privacy.privacy_policy import PrivacyPolicy
from fedstill.edge_client.privacy.prototypes import DeviceError

YEAR = 365 * 86_400.0
SCHEMA = "CREATE TABLE IF NOT EXISTS personalisations (job TEXT PRIMARY KEY, time REAL NOT NULL)"


def spend_one(folder: Path, policy: PrivacyPolicy, job: str) -> None:
    """Count a personalisation, on disk before this returns; one that is counted already costs nothing.

    Args:
        folder: the device's.
        job: its name, the same for all of its questions.

    Raises:
        DeviceError: there were as many as the owner allows, or the ledger cannot be used.
    """
    if policy.most_a_year is None:
        return
    with _open(folder) as ledger:
        ledger.execute("BEGIN IMMEDIATE")  # nobody else may count between the look and the entry
        if ledger.execute("SELECT 1 FROM personalisations WHERE job = ?", (job,)).fetchone() is None:
            times = _times(ledger)
            if len(times) >= policy.most_a_year:
                raise DeviceError(_in_words(policy.most_a_year, times))
            ledger.execute("INSERT INTO personalisations VALUES (?, ?)", (job, time.time()))
        ledger.execute("COMMIT")


def require_left(folder: Path, policy: PrivacyPolicy, job: str = "") -> None:
    """Raise DeviceError as ``spend_one`` would; nothing is counted."""
    if policy.most_a_year is None or not (folder / LEDGER_FILE).exists():
        return
    with _open(folder) as ledger:
        known = ledger.execute("SELECT 1 FROM personalisations WHERE job = ?", (job,)).fetchone()
        times = _times(ledger)
    if known is None and len(times) >= policy.most_a_year:
        raise DeviceError(_in_words(policy.most_a_year, times))


def has_left(folder: Path, policy: PrivacyPolicy) -> bool:
    """Whether another personalisation may tell of the clips. Raises DeviceError if the ledger cannot be used."""
    return policy.most_a_year is None or spent_in_a_year(folder) < policy.most_a_year


def spent_in_a_year(folder: Path) -> int:
    """Personalisations of the last 365 days. Raises DeviceError if the ledger cannot be used."""
    if not (folder / LEDGER_FILE).exists():
        return 0
    with _open(folder) as ledger:
        return len(_times(ledger))


def _in_words(most: int, times: list[float]) -> str:
    again = time.strftime("%Y-%m-%d", time.localtime(sorted(times)[-most] + YEAR))
    return (
        f"yearly budget: {len(times)} of {most} personalisations in 365 days are spent, the next one is possible on "
        f"{again}; nothing is uploaded"
    )


def _times(ledger: sqlite3.Connection) -> list[float]:
    wanted = "SELECT time FROM personalisations WHERE time > ?"
    return [found for (found,) in ledger.execute(wanted, (time.time() - YEAR,))]


@contextmanager
def _open(folder: Path) -> Iterator[sqlite3.Connection]:
    path = folder / LEDGER_FILE
    try:
        with closing(sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None)) as ledger:
            ledger.execute("PRAGMA synchronous = FULL")
            ledger.execute(SCHEMA)
            yield ledger
    except sqlite3.Error as error:
        raise DeviceError(
            f"the privacy ledger {LEDGER_FILE} cannot be used ({error}); nothing is uploaded"
        ) from error
