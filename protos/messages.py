"""The messages between cloud and device, as frozen values that are validated when they are made.

Nothing here knows Flower or gRPC: ``records.py`` turns these values into Flower records and back. A
device's replies have no field that could hold a raw clip or a label, and the codec refuses fields that
are not declared here, so "labels never leave the client" is a property of this file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedstill.datasets.audiovisual.capture_card import CARD_BYTES, CARD_VERSION
from fedstill.datasets.files.faults import FAULTS
from fedstill.models.audiovisual.confidence import CONFIDENCE_BINS

SCENARIOS = ("latency_insensitive", "latency_sensitive")
LACKING_ITEMS = ("base", "canaries", "graphs")
CLIPS_CHANGED, DRIFTED = "clips", "drift"
CHANGES = (CLIPS_CHANGED, DRIFTED)
"""Why a device should get another student: many of its clips are new, or the newer ones differ from the others."""
OPTIONAL = {"optional": True}
"""Metadata of a field that may be missing: earlier releases do not send it."""
NEW = {"optional": True, "new": True}
"""Also not sent at its default: the release before, which refuses what it does not know, reads the rest. To a peer that
says that it is older, the field is left at its default."""
UNKNOWN = -1.0
"""Of a share: nobody can tell."""
PROTOTYPE_KINDS = ("samples", "kmeans", "constrained", "histogram", "dp")

LONGEST_REASON = 500
MOST_CLIPS = 10**9
"""More than any device has behind one prototype."""
MOST_CENTRES = 4096
MOST_EPSILON = 1000.0
"""A larger epsilon is a mistake: it guarantees nothing."""


class WireError(ValueError):
    """A message that does not fit; the text starts with the field's name."""


@dataclass(frozen=True)
class HelloRequest:
    """Cloud -> device: who are you?

    Attributes:
        version: the cloud's fedstill.
        clip_format: ``datasets/audiovisual/clip_format.py`` as JSON: the classes, and the format of clips.
        settled: whether the device has the student that is meant for its clips as it has told of them: none is to come.
        begun: whether a student is being made for it from now on: it should stay until that comes.
    """

    version: str
    clip_format: str
    settled: bool = field(default=False, metadata=NEW)
    begun: bool = field(default=False, metadata=NEW)


@dataclass(frozen=True)
class Hello:
    """Device -> cloud: who answers, with which software.

    Attributes:
        student: version of the student that the device uses; empty if it has none.
        change: one of ``CHANGES`` if the device's clips have changed since its student was made, else empty.
    """

    name: str
    version: str
    partition: int
    student: str = field(default="", metadata=OPTIONAL)
    change: str = field(default="", metadata=NEW)

    def __post_init__(self) -> None:
        if self.student and not is_version(self.student):
            raise WireError("student: needs 64 hexadecimal digits, or none")
        if self.change not in ("", *CHANGES):
            raise WireError(f"change: unknown {self.change[:40]!r}")


@dataclass(frozen=True)
class Job:
    """Which piece of work a message belongs to; also the key of every result row."""

    scenario: str
    arm: str
    seed: int
    round: int

    def __post_init__(self) -> None:
        if self.scenario not in SCENARIOS:
            raise WireError(f"scenario: unknown {self.scenario!r}")
        if self.round < 0:
            raise WireError(f"round: {self.round} is negative")


@dataclass(frozen=True)
class Student:
    """Cloud -> device: an update of the student's weights, with the specification to rebuild it.

    Attributes:
        weights: uint8 (bytes,), an update as ``models/weights/delta.py`` packs it, near-empty if nothing changed.
        spec: JSON of the network specification.
        class_names: order of the logits; a device with another order refuses the student.
        version: ``content_hash`` of the weights that the update leads to, with ``spec`` and ``class_names``.
        base: version that the update is made against; empty: it needs none.
        own_statistics: 0: the student as it is. Up to 1: the weight that batch norm statistics of the device's own
            clips get.
        least_share: they are used only if, of the clips that the student then decides, every class gets at least this
            part of an equal share.
    """

    weights: npt.NDArray[np.uint8]
    spec: str
    class_names: tuple[str, ...]
    version: str
    base: str = ""
    own_statistics: float = field(default=0.0, metadata=NEW)
    least_share: float = field(default=0.0, metadata=NEW)

    def __post_init__(self) -> None:
        for name in ("own_statistics", "least_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise WireError(f"{name}: needs a part from 0 to 1")
        _require_array("weights", self.weights, np.uint8, ndim=1)
        if not self.class_names:
            raise WireError("class_names: empty")
        if not is_version(self.version):
            raise WireError("version: needs 64 hexadecimal digits")
        if self.base and not is_version(self.base):
            raise WireError("base: needs 64 hexadecimal digits, or none")


@dataclass(frozen=True)
class MissingDependency:
    """Device -> cloud, instead of the answer: I do not have what you refer to, send it whole.

    Attributes:
        item: ``base`` of a student's update, ``canaries`` of an installation, or the ``graphs`` by which a device
            without torch runs students of this kind.
        version: the one that was referred to.
    """

    item: str
    version: str

    def __post_init__(self) -> None:
        if self.item not in LACKING_ITEMS:
            raise WireError(f"item: unknown {self.item!r}")
        if not is_version(self.version):
            raise WireError("version: needs 64 hexadecimal digits")


@dataclass(frozen=True)
class PrototypeRequest:
    """Cloud -> device: compute features with this student, summarise your clips' probabilities.

    Attributes:
        kind: ``samples`` every clip's probabilities (thesis "select"); ``kmeans`` and ``constrained``
            cluster means ("select+cluster"); ``histogram`` one row, the mean probability, and the histogram of
            confidences; ``dp`` noisy
            means of the cells around ``centres``.
        samples_per_prototype: k = ceil(n / this) clusters (thesis: 3).
        min_size: smallest cluster of ``constrained``; smaller ones are never formed. ``dp`` leaves out cells
            whose noisy count is below.
        upload_limit: at most this many randomly chosen clips take part; 0 = all (Figure 5.13).
        temperature: divides the logits before the softmax, > 0; 1 is the plain probability.
        epsilon, delta: ``dp`` only, else 0: what this one upload may cost, for adding or removing one clip.
        centres: ``dp`` only, else without rows: float32 (k, classes), rows sum to 1; public, so that the cell
            of a clip depends on that clip alone. One row makes a histogram.
        card: ``histogram`` and ``dp`` only: the capture card is wanted, too; with ``dp``, its private form.
        card_share: ``dp`` with a card only, else 0: the part of the upload's budget that the card gets, between 0 and
            1. The budget is the squared mu of Gaussian privacy, which adds up; rows and card together cost epsilon.
        coarse: ``kmeans`` and ``constrained`` only: rows in 8 bits a share are enough.
    """

    job: Job
    student: Student
    kind: str
    samples_per_prototype: int
    min_size: int
    upload_limit: int
    temperature: float
    epsilon: float = 0.0
    delta: float = 0.0
    centres: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    card: bool = False
    card_share: float = 0.0
    coarse: bool = False

    def __post_init__(self) -> None:
        if self.kind not in PROTOTYPE_KINDS:
            raise WireError(f"kind: unknown {self.kind!r}")
        for name in ("samples_per_prototype", "min_size"):
            if getattr(self, name) < 1:
                raise WireError(f"{name}: {getattr(self, name)} is below 1")
        if self.upload_limit < 0:
            raise WireError(f"upload_limit: {self.upload_limit} is negative")
        if not self.temperature > 0:
            raise WireError(f"temperature: {self.temperature} is not above 0")
        _require_array("centres", self.centres, np.float32, ndim=2)
        if self.card and self.kind not in ("histogram", "dp"):
            raise WireError(f"card: is for kind histogram or dp, not for {self.kind}")
        if self.coarse and self.kind not in ("kmeans", "constrained"):
            raise WireError(f"coarse: is for kind kmeans or constrained, not for {self.kind}")
        if self.kind == "dp":
            self._require_private()
            return
        for name, given in (
            ("epsilon", self.epsilon),
            ("delta", self.delta),
            ("centres", self.centres.size),
            ("card_share", self.card_share),
        ):
            if given:
                raise WireError(f"{name}: is for kind dp, not for {self.kind}")

    def _require_private(self) -> None:
        """Nothing in a ``dp`` request may make one clip touch another clip's row or cell."""
        if not 0 < self.epsilon <= MOST_EPSILON:
            raise WireError(f"epsilon: {self.epsilon} is not above 0 and up to {MOST_EPSILON:g}")
        if not 0 < self.delta < 1:
            raise WireError(f"delta: {self.delta} is no probability between 0 and 1")
        if self.card and not 0 < self.card_share < 1:
            raise WireError(
                f"card_share: {self.card_share} is not between 0 and 1, so the card has no budget"
            )
        if self.card_share and not self.card:
            raise WireError("card_share: no card is asked for")
        if self.upload_limit:
            raise WireError("upload_limit: a random choice of clips voids the dp guarantee; send 0")
        rows, classes = self.centres.shape
        if not 1 <= rows <= MOST_CENTRES or classes != len(self.student.class_names):
            raise WireError(
                f"centres: needs 1 to {MOST_CENTRES} rows of {len(self.student.class_names)} values"
            )
        _require_shares("centres", self.centres)
        if not np.allclose(self.centres.sum(axis=1), 1, atol=1e-3):
            raise WireError("centres: every row must sum to 1")


@dataclass(frozen=True)
class PrototypeUpload:
    """Device -> cloud: prototypes of prediction probabilities.

    Attributes:
        probabilities: float32 (k, classes), rows sum to 1.
        counts: int64 (k,), clips behind each row, >= 1.
        confidence: ``histogram`` only, else empty: float32 (CONFIDENCE_BINS,), the share of the clips in each bin
            of their largest probability; sums to 1.
        card: how the device records (``datasets/audiovisual/capture_card.py``), uint8 (CARD_BYTES,); empty unless asked
            for.
    """

    job: Job
    probabilities: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    confidence: npt.NDArray[np.float32] = field(
        default_factory=lambda: np.empty(0, np.float32), metadata=OPTIONAL
    )
    card: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8), metadata=OPTIONAL)

    def __post_init__(self) -> None:
        _require_array("probabilities", self.probabilities, np.float32, ndim=2)
        _require_array("counts", self.counts, np.int64, ndim=1)
        rows, classes = self.probabilities.shape
        if rows == 0:
            raise WireError("probabilities: no rows")
        if classes != len(self.class_names):
            raise WireError(f"probabilities: {classes} columns for {len(self.class_names)} class names")
        if not np.isfinite(self.probabilities).all():
            raise WireError("probabilities: NaN or infinite values")
        if (self.probabilities < 0).any() or not np.allclose(self.probabilities.sum(axis=1), 1, atol=1e-3):
            raise WireError("probabilities: every row must be non-negative and sum to 1")
        if self.counts.shape != (rows,) or (self.counts < 1).any() or (self.counts > MOST_CLIPS).any():
            raise WireError(f"counts: needs {rows} values from 1 to {MOST_CLIPS}")
        _require_array("confidence", self.confidence, np.float32, ndim=1)
        if len(self.confidence) not in (0, CONFIDENCE_BINS):
            raise WireError(f"confidence: needs {CONFIDENCE_BINS} values, or none")
        _require_shares("confidence", self.confidence)
        if len(self.confidence) and not np.isclose(self.confidence.sum(), 1, atol=1e-3):
            raise WireError("confidence: must sum to 1")
        _require_array("card", self.card, np.uint8, ndim=1)
        if len(self.card) not in (0, CARD_BYTES):
            raise WireError(f"card: needs {CARD_BYTES} bytes, or none")
        if len(self.card) and self.card[0] != CARD_VERSION:
            raise WireError(
                f"card: has layout {self.card[0]}, and {CARD_VERSION} is known: update the older side"
            )


@dataclass(frozen=True)
class EvaluationRequest:
    """Cloud -> device: classify your own test clips with this student and report how many were right.

    The device decides exactly as it would for a clip of its owner: nothing here changes the student's answers.

    Attributes:
        compressor: safetensors of one compression level (compressor and head), or empty for none: at rate 1 the
            student's own head decides.
        rung: JSON of the level's specification, or empty.
    """

    job: Job
    student: Student
    compressor: npt.NDArray[np.uint8]
    rung: str

    def __post_init__(self) -> None:
        _require_array("compressor", self.compressor, np.uint8, ndim=1)


@dataclass(frozen=True)
class EvaluationResult:
    """Device -> cloud: two counts, no labels, no predictions.

    Attributes:
        seconds: wall time of inference over the test clips.
        bytes_per_clip: size of one clip's (compressed) feature payload.
        bad_clips: how many of the device's clips cannot be used, by kind, such as ``2 empty``; see ``counted``.
    """

    job: Job
    correct: int
    total: int
    seconds: float
    bytes_per_clip: int
    bad_clips: tuple[str, ...] = field(default=(), metadata=OPTIONAL)

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.total or self.total < 1:
            raise WireError(f"correct: {self.correct} of {self.total} is impossible")
        if not 0 <= self.seconds < math.inf:
            raise WireError(f"seconds: {self.seconds} is impossible")
        if self.bytes_per_clip < 0:
            raise WireError(f"bytes_per_clip: {self.bytes_per_clip} is negative")
        faults_in(self.bad_clips)


@dataclass(frozen=True)
class StudentGraphs:
    """How students of one kind are computed: ONNX graphs without weights.

    Attributes:
        description: ``meta.json`` of an exported student (``common/export_manifest.py``).
        encoders, head: the files that it names, uint8 (bytes,).
        statistics: likewise; without bytes if it names no such file, as for an older device.
    """

    description: str
    encoders: npt.NDArray[np.uint8]
    head: npt.NDArray[np.uint8]
    statistics: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8), metadata=NEW)

    def __post_init__(self) -> None:
        for name in ("encoders", "head", "statistics"):
            _require_array(name, getattr(self, name), np.uint8, ndim=1)
            if not len(getattr(self, name)) and name != "statistics":
                raise WireError(f"{name}: empty")


@dataclass(frozen=True)
class GraphsRequest:
    """Cloud -> device: keep these graphs, and run students with them."""

    job: Job
    graphs: StudentGraphs


@dataclass(frozen=True)
class GraphsResult:
    """Device -> cloud: the graphs are kept, and whole."""

    job: Job


@dataclass(frozen=True)
class InstallRequest:
    """Cloud -> device: make this student your current one, if it agrees with the teacher on these public clips.

    Attributes:
        canaries: ``canaries_version`` of the clips; the device keeps them, so they travel once.
        audio: float32 (n, bins, steps); without rows if the device is expected to have the clips.
        frames: uint8 (n, count, channels, size, size).
        teacher: float32 (n, classes), the teacher's probabilities.
        compressors: of all levels, for edge inference: safetensors, uint8 (bytes,); empty for none.
        minimum_agreement: least share of clips on which student and teacher choose the same class.
        expected, low, high: the accuracy that the cloud expects of it on the device's clips, and its 90 % interval,
            from 0 to 1; all are -1 if nobody can tell.
    """

    job: Job
    student: Student
    canaries: str
    audio: npt.NDArray[np.float32]
    frames: npt.NDArray[np.uint8]
    teacher: npt.NDArray[np.float32]
    compressors: npt.NDArray[np.uint8]
    minimum_agreement: float
    expected: float = field(default=UNKNOWN, metadata=NEW)
    low: float = field(default=UNKNOWN, metadata=NEW)
    high: float = field(default=UNKNOWN, metadata=NEW)

    def __post_init__(self) -> None:
        estimate = self.expected, self.low, self.high
        if estimate != (UNKNOWN,) * 3 and not 0 <= self.low <= self.expected <= self.high <= 1:
            raise WireError(
                "expected: needs low, expected and high in this order from 0 to 1, or none of them"
            )
        _require_array("compressors", self.compressors, np.uint8, ndim=1)
        _require_array("audio", self.audio, np.float32, ndim=3)
        _require_array("frames", self.frames, np.uint8, ndim=5)
        _require_array("teacher", self.teacher, np.float32, ndim=2)
        if not is_version(self.canaries):
            raise WireError("canaries: needs 64 hexadecimal digits")
        clips = len(self.audio)
        if len(self.frames) != clips:
            raise WireError(f"frames: {len(self.frames)} clips for {clips} of audio")
        if len(self.teacher) != clips or (clips and self.teacher.shape[1] != len(self.student.class_names)):
            raise WireError("teacher: needs one row per clip and one column per class")
        _require_shares("teacher", self.teacher)
        if not np.isfinite(self.audio).all():
            raise WireError("audio: NaN or infinite values")
        if not 0 <= self.minimum_agreement <= 1:
            raise WireError(f"minimum_agreement: {self.minimum_agreement} is no share from 0 to 1")


@dataclass(frozen=True)
class InstallResult:
    """Device -> cloud: whether the student is in use now.

    Attributes:
        agreement: share of canary clips on which student and teacher chose the same class.
        reason: empty, or in one line why the student was rolled back.
        current: version of the student that the device uses; empty if it has none.
        bad_clips: as in ``EvaluationResult``.
    """

    job: Job
    installed: bool
    agreement: float
    reason: str
    current: str
    bad_clips: tuple[str, ...] = field(default=(), metadata=OPTIONAL)

    def __post_init__(self) -> None:
        if not 0 <= self.agreement <= 1:
            raise WireError(f"agreement: {self.agreement} is no share from 0 to 1")
        if self.installed is bool(self.reason):
            raise WireError("reason: belongs to a student that was rolled back, and only to such")
        if len(self.reason) > LONGEST_REASON or not self.reason.isprintable():
            raise WireError(f"reason: needs one line of at most {LONGEST_REASON} characters")
        if self.current and not is_version(self.current):
            raise WireError("current: needs 64 hexadecimal digits, or none")
        if self.installed and not self.current:
            raise WireError("current: empty, although a student was installed")
        faults_in(self.bad_clips)


def counted(faults: Mapping[str, int]) -> tuple[str, ...]:
    """How many clips have each kind of fault, as it travels: kinds of a fixed list, so that no file's name can."""
    return tuple(f"{count} {fault}" for fault, count in faults.items())


def faults_in(bad_clips: tuple[str, ...]) -> dict[str, int]:
    """What ``counted`` has made, by kind. Raises WireError if it is anything else."""
    found: dict[str, int] = {}
    for one in bad_clips:
        count, _, fault = one.partition(" ")
        if (
            not re.fullmatch(r"[1-9][0-9]{0,9}", count, re.ASCII)
            or int(count) > MOST_CLIPS
            or fault not in FAULTS
        ):
            raise WireError("bad_clips: needs a number of clips and a known kind of fault, as in '2 empty'")
        if fault in found:
            raise WireError(f"bad_clips: says {fault!r} twice")
        found[fault] = int(count)
    return found


def is_version(value: object) -> bool:
    """Whether a value looks like a SHA-256 content hash: 64 lower-case hexadecimal digits, so also a safe file name."""
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def require_same_classes(expected: tuple[str, ...], received: tuple[str, ...]) -> None:
    """Raise WireError unless both sides mean the same classes in the same order."""
    if expected != received:
        raise WireError(f"class_names: expected {list(expected)}, received {list(received)}")


def _require_shares(field: str, values: npt.NDArray[np.float32]) -> None:
    if not np.isfinite(values).all() or (values < 0).any():
        raise WireError(f"{field}: needs finite, non-negative values")


def _require_array(field: str, value: object, dtype: npt.DTypeLike, ndim: int) -> None:
    if not isinstance(value, np.ndarray) or value.dtype != np.dtype(dtype) or value.ndim != ndim:
        got = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise WireError(f"{field}: needs a {np.dtype(dtype).name} array of {ndim} dimension(s), got {got}")
