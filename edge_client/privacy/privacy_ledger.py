"""A device's record of its private uploads: ``privacy.sqlite`` in its folder.

A release is generated, charged and stored in one transaction that is on disk before the upload leaves. So a kill at any
point leaves either nothing (and nothing was sent) or the charge with its upload. If the same job and outer round is
requested again, the device repeats the stored upload: new noise would be a second release, and the mean of many would
be the truth. SQLite, because each Flower message is a process of its own, and two may come at the same time.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedstill.edge_client.privacy.privacy import composed, epsilon_at, sigma_for, sigma_of_share, spent
from fedstill.edge_client.privacy.privacy_policy import PrivacyPolicy
from fedstill.edge_client.privacy.private_card import private_card
from fedstill.edge_client.privacy.private_prototypes import private_prototypes, require_rows
from fedstill.edge_client.privacy.prototypes import DeviceError, Probabilities, Prototypes
from fedstill.protos.messages import PrototypeRequest

LEDGER_FILE = "privacy.sqlite"
WAIT_SECONDS = 60.0
"""How long to wait for another process of this device that is charging at the same time."""
ROUNDING = 1e-9
"""Relative slack of the budget: a budget of 4 affords one upload of 4."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS releases (
    key TEXT PRIMARY KEY, question TEXT NOT NULL, mu REAL NOT NULL, upload TEXT NOT NULL, time REAL NOT NULL
)
"""


class PrivacyLedger:
    """All private releases of one device, oldest first, and the budget that they share."""

    def __init__(self, path: Path, epsilon: float | None, delta: float) -> None:
        self._path, self._epsilon, self._delta = path, epsilon, delta

    def remembered(self, key: str, question: str) -> Prototypes | None:
        """The upload that was made for ``key``, None if there is none.

        Raises:
            DeviceError: it answered another ``question``, or the ledger cannot be read.
        """
        with open_ledger(self._path, SCHEMA) as ledger:
            return _remembered(ledger, key, question)

    def release(self, key: str, question: str, mu: float, draw: Callable[[], Prototypes]) -> Prototypes:
        """Charge ``mu``, store what ``draw`` makes, and return it; a stored upload is returned without a charge.

        Raises:
            DeviceError: it exceeds the budget (``draw`` is not called then), or as ``remembered``.
        """
        with open_ledger(self._path, SCHEMA) as ledger:
            ledger.execute("BEGIN IMMEDIATE")  # nobody else may charge between the check and the entry
            known = _remembered(ledger, key, question)
            if known is not None:
                return known
            self._require_budget(_mus(ledger), mu)
            made = draw()
            entry = (key, question, mu, _to_text(made), time.time())
            ledger.execute("INSERT INTO releases VALUES (?, ?, ?, ?, ?)", entry)
            ledger.execute("COMMIT")
            return made

    def affords_another(self) -> bool:
        """Whether one more upload like the last one is within the budget."""
        mus = self._made()
        try:
            self._require_budget(mus, mus[-1] if mus else 0.0)
        except DeviceError:
            return False
        return True

    def uploads(self) -> int:
        """How many private uploads were made."""
        return len(self._made())

    def spent(self) -> float:
        """Epsilon at this ledger's delta of everything released so far."""
        return spent(self._made(), self._delta)

    def _made(self) -> list[float]:
        """Of all uploads, without a change of the file: whoever looks neither waits for the agent nor holds it up."""
        if not self._path.exists():
            return []
        with open_ledger(self._path) as ledger:
            return _mus(ledger) if has_table(ledger, "releases") else []

    def _require_budget(self, mus: list[float], mu: float) -> None:
        if self._epsilon is None:
            return
        after = epsilon_at(composed([*mus, mu]), self._delta)
        if after > self._epsilon * (1 + ROUNDING):
            raise DeviceError(
                f"privacy budget: epsilon {spent(mus, self._delta):.3g} of {self._epsilon:g} is spent, and this "
                f"upload would make it {after:.3g} (delta {self._delta:g}); nothing is uploaded"
            )


@contextmanager
def open_ledger(path: Path, schema: str = "") -> Iterator[sqlite3.Connection]:
    """The ledger's file, with the table that ``schema`` makes unless it is there; what is committed is on the disk.

    schema: none is for who only reads, and makes nothing; what a power cut left half written is rolled back even then.
    Raises DeviceError if it cannot be used, also from within the block.
    """
    try:
        where = f"{path.absolute().as_uri()}?mode={'rwc' if schema else 'rw'}"
        with closing(sqlite3.connect(where, timeout=WAIT_SECONDS, isolation_level=None, uri=True)) as ledger:
            if schema:
                ledger.execute("PRAGMA synchronous = FULL")
                ledger.execute(schema)
            yield ledger
    except sqlite3.Error as error:
        raise DeviceError(
            f"the privacy ledger {LEDGER_FILE} cannot be used ({error}); nothing is uploaded"
        ) from error


def release_once(
    directory: Path,
    run: str,
    policy: PrivacyPolicy,
    request: PrototypeRequest,
    class_probabilities: Callable[[PrototypeRequest], Probabilities],
    profiles: npt.NDArray[np.float32] | None = None,
) -> Prototypes:
    """Answer a ``dp`` request within the budget of ``policy``, once per run, job and outer round.

    Args:
        directory: the device's folder.
        class_probabilities: makes the (n, classes) probabilities; called only if the answer is not stored yet.
        profiles: (n, CARD_SIZE) of the same clips, for a capture card; None if the device has none.

    Raises:
        DeviceError: the budget is spent, or the noise left nothing worth uploading.
    """
    ledger = PrivacyLedger(directory / LEDGER_FILE, policy.epsilon, policy.delta)
    key, question = _key(run, request), _question(request)
    known = ledger.remembered(key, question)
    if known is None:
        rows = class_probabilities(request)
        mu = 1 / sigma_for(request.epsilon, request.delta)
        noise = noise_source(
            policy, _key("", request)
        )  # without the run's name: a repeated simulation gives the same
        known = ledger.release(key, question, mu, lambda: _noisy(rows, profiles, request, noise))
    return require_rows(known)


def may_release_again(directory: Path, policy: PrivacyPolicy) -> bool:
    """Whether the budget of a device's owner leaves room for another personalisation like the last one.

    Raises:
        DeviceError: the ledger cannot be read.
    """
    path = directory / LEDGER_FILE
    return not path.exists() or PrivacyLedger(path, policy.epsilon, policy.delta).affords_another()


def _noisy(
    rows: Probabilities,
    profiles: npt.NDArray[np.float32] | None,
    request: PrototypeRequest,
    noise: np.random.Generator,
) -> Prototypes:
    """Prototypes and, if it is asked for, the capture card; each with the noise of its share of the budget."""
    made = private_prototypes(rows, request, noise)
    if not request.card or profiles is None:
        return made
    sigma = sigma_of_share(request.epsilon, request.delta, request.card_share)
    return replace(made, card=private_card(profiles, sigma, request.min_size, noise))


def noise_source(policy: PrivacyPolicy, key: str) -> np.random.Generator:
    """The operating system's entropy; in a simulation, whose owner gave a seed, a stream per release."""
    if policy.noise_seed is None:
        return np.random.default_rng()
    digest = hashlib.sha256(f"{policy.noise_seed}/{key}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def _key(run: str, request: PrototypeRequest) -> str:
    return json.dumps({"run": run, **asdict(request.job)}, sort_keys=True)


def _question(request: PrototypeRequest) -> str:
    """How the answer was to be made; without the student, since an outer round may train it again after a restart."""
    fields = (
        request.epsilon,
        request.delta,
        request.min_size,
        request.temperature,
        request.student.class_names,
    )
    card = (request.card_share,) if request.card else ()  # without one, old answers are found
    content = json.dumps((*fields, *card)).encode() + request.centres.tobytes()
    return hashlib.sha256(content).hexdigest()


def _remembered(ledger: sqlite3.Connection, key: str, question: str) -> Prototypes | None:
    row = ledger.execute("SELECT question, upload FROM releases WHERE key = ?", (key,)).fetchone()
    if row is None:
        return None
    if row[0] != question:
        raise DeviceError(
            "this job and round was asked before with other settings, and it is answered once; nothing is uploaded"
        )
    return _from_text(row[1])


def has_table(ledger: sqlite3.Connection, name: str) -> bool:
    """Whether anybody has written into this table yet."""
    return ledger.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (name,)).fetchone() is not None


def _mus(ledger: sqlite3.Connection) -> list[float]:
    return [mu for (mu,) in ledger.execute("SELECT mu FROM releases ORDER BY time")]


def _to_text(made: Prototypes) -> str:
    rows = made.probabilities.astype(np.float64)  # float32 values survive JSON exactly as float64
    return json.dumps(
        {
            "probabilities": rows.tolist(),
            "counts": made.counts.tolist(),
            "classes": rows.shape[1],
            "card": made.card.tolist(),
        }
    )


def _from_text(text: str) -> Prototypes:
    kept = json.loads(text)
    rows = np.array(kept["probabilities"], np.float32).reshape(len(kept["counts"]), kept["classes"])
    card = np.array(kept.get("card", []), np.uint8)  # older entries have none
    return Prototypes(rows, np.array(kept["counts"], np.int64), card=card)
