"""What a device's owner allows: ``privacy.json`` in the device's folder. The cloud cannot change it.

    {"accepts": "dp", "epsilon": 4.0, "delta": 1e-5}

No file means the defaults: means over all clips leave the device, but nothing of a clip or of a group of them, unless
the agent was started with ``--allow``; uploads with differential privacy may cost epsilon 8 in total. A file that
cannot be understood stops the device from answering.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fedstill.common.atomic_files import replace_text
from fedstill.common.dataclass_codec import PlainError, from_plain, to_plain
from fedstill.edge_client.folder import ALLOWED_FILE
from fedstill.edge_client.privacy.prototypes import DeviceError
from fedstill.protos.messages import PrototypeRequest

POLICY_FILE = "privacy.json"
STRENGTH = {"samples": 0, "kmeans": 1, "constrained": 2, "histogram": 3, "dp": 4}
Kind = Literal["samples", "kmeans", "constrained", "histogram", "dp"]
PARTS = "latency_sensitive"
"""The scenario that summarises one half of a device's labelled clips, which the request draws, and tests the other."""
ALLOWED: Mapping[str, Kind] = {"prototypes": "constrained", "samples": "samples"}
"""What an owner may allow for one start of the agent, without a file."""
SENDS: Mapping[Kind, str] = {
    "samples": "whatever the cloud asks for, also the class probabilities of single clips",
    "kmeans": "class probabilities of groups of clips, which may be as small as one clip",
    "constrained": "mean class probabilities of groups of clips, and how all were recorded",
    "histogram": "mean class probabilities of all clips, how sure the student is, and how they were recorded",
    "dp": "mean class probabilities with noise",
}


@dataclass(frozen=True, slots=True)
class PrivacyPolicy:
    """The owner's limits."""

    accepts: Kind = "histogram"  # the weakest upload that is answered
    clips: int | None = None  # how many query clips are summarised, in a fixed order; null: all of them
    min_size: int = 8  # accepts constrained or histogram: no mean of fewer clips is uploaded
    epsilon: float | None = 8.0  # what all dp uploads together may cost; null: no limit (for simulation)
    yearly: int | None = 52  # how many personalisations may tell of the clips in any 365 days; null: no limit
    delta: float = 1e-5  # at which epsilon is counted; well below 1 / clips
    features: bool = True  # whether inference may send a clip's features to the cloud
    accuracy: bool = True  # whether the exact count of right answers is reported; dp does not cover it
    bad_clips: bool = (
        True  # whether the number of clips that cannot be used is reported; dp does not cover it
    )
    changes: bool = True  # whether the device says that its clips have changed; dp does not cover it
    noise_seed: int | None = None  # predictable noise, for simulation only: it voids every guarantee

    def __post_init__(self) -> None:
        if self.clips is not None and self.clips < 1:
            raise ValueError(f"clips: {self.clips} is below 1; give a number, or null for all of them")
        if self.min_size < 1:
            raise ValueError(f"min_size: {self.min_size} is below 1")
        if self.yearly is not None and self.yearly < 1:
            raise ValueError(f"yearly: {self.yearly} is below 1; give a number, or null for no limit")
        if self.epsilon is not None and not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon: {self.epsilon} is not above 0; give a number, or null for no limit")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta: {self.delta} is no probability between 0 and 1")

    @property
    def most_a_year(self) -> int | None:
        """Personalisations in any 365 days; None: no limit. A simulated device has none, also in a run of before it."""
        return self.yearly if self.noise_seed is None else None

    @property
    def plain_means(self) -> bool:
        """Whether anything that is no noisy sum of single clips may be answered."""
        return self.accepts != "dp"

    @property
    def _too_few(self) -> str:
        """Why no mean can ever be uploaded, in words; empty if one can."""
        if (
            self.clips is None
            or self.clips >= self.min_size
            or self.accepts not in ("constrained", "histogram")
        ):
            return ""
        return (
            f'"clips" {self.clips} is below "min_size" {self.min_size}, so no mean may leave: raise "clips" or lower '
            f'"min_size" in {POLICY_FILE}'
        )

    def require(self, request: PrototypeRequest) -> None:
        """Raise DeviceError unless the owner allows this kind of upload."""
        if request.kind != "dp" and self._too_few:
            raise DeviceError(f"{self._too_few}; nothing is uploaded")
        if STRENGTH[request.kind] < STRENGTH[self.accepts]:
            raise DeviceError(
                f"this device's owner accepts {self.accepts} uploads or stronger, and {request.kind} was asked "
                "for; nothing is uploaded"
            )
        if self.accepts == "histogram" and request.kind == "histogram" and request.job.scenario == PARTS:
            raise DeviceError(
                "this device's owner allows means over all of its clips, and one of a part of them was asked for; "
                "nothing is uploaded"
            )
        if self.accepts == "constrained" and request.kind != "dp" and request.min_size < self.min_size:
            raise DeviceError(
                f"min_size {request.min_size} was asked for, and this device's owner accepts {self.min_size} "
                "or more; nothing is uploaded"
            )

    def strict(self, request: PrototypeRequest) -> PrototypeRequest:
        """The request as it is answered: a mean over all clips is one of ``min_size`` at least, and of no part of them.

        Means of parts, which the cloud could have drawn anew for every request, would tell of single clips.
        """
        if request.kind != "histogram" or self.accepts != "histogram":
            return request
        return replace(request, min_size=max(request.min_size, self.min_size), upload_limit=0)

    @property
    def in_words(self) -> str:
        """The most that the cloud can have of the clips when it makes a student."""
        return self._too_few or SENDS[self.accepts]

    def require_accuracy(self) -> None:
        """Raise DeviceError if the owner keeps the accuracy private."""
        if not self.accuracy:
            raise DeviceError("this device's owner does not report accuracy")


def read_policy(directory: Path) -> PrivacyPolicy:
    """The policy of a device's folder. Raises DeviceError, in one line, if the file cannot be understood."""
    path = directory / POLICY_FILE
    try:
        text = path.read_text(encoding="utf-8")
        return from_plain(PrivacyPolicy, json.loads(text, object_pairs_hook=_each_once))
    except FileNotFoundError as error:
        if path.is_symlink():
            raise DeviceError(f"{POLICY_FILE}: is a link to nothing; nothing is uploaded") from error
        return PrivacyPolicy(accepts=_allowed(directory))
    except PlainError as error:
        raise DeviceError(f"{POLICY_FILE}: {' '.join(str(error).split())}; nothing is uploaded") from error
    except (OSError, ValueError, OverflowError, RecursionError) as error:
        raise DeviceError(
            f"{POLICY_FILE}: cannot be read ({type(error).__name__}); nothing is uploaded"
        ) from error


def _each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises PlainError if it says one thing twice."""
    found = dict(pairs)
    for name in found:
        if [key for key, _ in pairs].count(name) > 1:
            raise PlainError(f"{name} is there twice")
    return found


def write_policy(directory: Path, policy: PrivacyPolicy) -> None:
    """Write the policy, by rename."""
    replace_text(directory / POLICY_FILE, json.dumps(to_plain(policy), indent=1))


def allow(directory: Path, what: str) -> None:
    """Until the next start of the agent, allow more than the defaults do.

    Args:
        what: a key of ``ALLOWED``; empty: no more.

    Raises:
        DeviceError: the owner's file says already what is allowed, or a folder is in the way.
    """
    if (directory / ALLOWED_FILE).is_dir():
        raise DeviceError(f"{directory / ALLOWED_FILE}: is a folder, where --allow is kept: remove it")
    if what and ((directory / POLICY_FILE).exists() or (directory / POLICY_FILE).is_symlink()):
        raise DeviceError(
            f'--allow {what}: {POLICY_FILE} decides here: change "accepts" in {directory / POLICY_FILE}'
        )
    directory.mkdir(parents=True, exist_ok=True)
    if what:
        replace_text(directory / ALLOWED_FILE, what)
    else:
        (directory / ALLOWED_FILE).unlink(missing_ok=True)


def _allowed(directory: Path) -> Kind:
    try:
        return ALLOWED.get((directory / ALLOWED_FILE).read_text("utf-8"), "histogram")
    except (OSError, UnicodeDecodeError):
        return "histogram"
