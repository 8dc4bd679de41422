"""The settings of the cloud side: one frozen dataclass per step, which are the tables of an experiment file.

Defaults are ``clean`` mode's. Field comments are the reference that docs/reference/experiment.md repeats.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fedstill.cloud_server.pretrained.settings import Modality, PretrainedSettings
from fedstill.models.audiovisual.specs import EncoderSpec, Fusion
from fedstill.models.weights.delta_coding import UpdatePrecision
from fedstill.protos.messages import MOST_CENTRES, MOST_EPSILON

Optimiser = Literal["sgd", "adamw"]
Schedule = Literal["one_cycle", "step"]


def at_least(minimum: float, settings: object, *keys: str) -> None:
    """Refuse a setting below ``minimum`` (or NaN); ValueError ``key: value is below minimum``."""
    for key in keys:
        value = getattr(settings, key)
        if not value >= minimum:
            raise ValueError(f"{key}: {value} is below {minimum:g}")


def positive_share(settings: object, key: str) -> None:
    """Refuse a share outside (0, 1]; ValueError naming the key."""
    value = getattr(settings, key)
    if not 0 < value <= 1:
        raise ValueError(f"{key}: {value} is no share above 0 and up to 1")


@dataclass(frozen=True, slots=True)
class OptimiserSettings:
    """How weights are stepped. ``step`` divides the rate by 10 after ``step_epoch`` (thesis: 70 of 150)."""

    kind: Optimiser = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    batch_size: int = 64
    schedule: Schedule = "one_cycle"
    step_epoch: int = 70

    def __post_init__(self) -> None:
        at_least(1, self, "batch_size", "step_epoch")
        at_least(0, self, "learning_rate", "weight_decay")


@dataclass(frozen=True, slots=True)
class TeacherSettings:
    """The large model that is trained on the labelled public clips. A pretrained encoder takes ``encoder``'s place."""

    encoder: EncoderSpec = field(default_factory=lambda: EncoderSpec("resnet18", 32))
    fusion: Fusion = "concat"
    feature_width: int = 256
    epochs: int = 14
    unimodal_weight: float = 1.0  # share of the two unimodal losses; 0 is the thesis' plain joint training
    label_smoothing: float = 0.1
    augment: bool = True
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    pretrained_visual: PretrainedSettings = field(default_factory=PretrainedSettings)
    pretrained_audio: PretrainedSettings = field(default_factory=PretrainedSettings)

    def __post_init__(self) -> None:
        at_least(1, self, "epochs", "feature_width")
        at_least(0, self, "unimodal_weight", "label_smoothing")

    @property
    def pretrained(self) -> dict[Modality, PretrainedSettings]:
        """The pretrained encoders by modality, maybe none."""
        both: dict[Modality, PretrainedSettings] = {
            "visual": self.pretrained_visual,
            "audio": self.pretrained_audio,
        }
        return {modality: settings for modality, settings in both.items() if settings.used}


@dataclass(frozen=True, slots=True)
class StudentSettings:
    """The small model that a device receives, and its first distillation on all public clips."""

    encoder: EncoderSpec = field(default_factory=lambda: EncoderSpec("resnet18", 8))
    epochs: int = 10
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)

    def __post_init__(self) -> None:
        at_least(1, self, "epochs")


@dataclass(frozen=True, slots=True)
class DistillationSettings:
    """Feature distillation (Eq. 5.4) and the outer / inner loop of Algorithm 7."""

    outer_epochs: int = 3  # thesis: 15
    inner_epochs: int = 5  # thesis: 10
    logit_weight: float = 0.0  # share of the softened-logit loss added to the feature loss; thesis: 0
    augment: bool = (
        False  # augment what the student sees; the bank's teacher features stay those of the plain clip
    )
    freeze_batch_norm: bool = (
        False  # keep the AllDistill statistics on a class-skewed selection; thesis: train
    )
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)

    def __post_init__(self) -> None:
        at_least(1, self, "outer_epochs", "inner_epochs")
        at_least(0, self, "logit_weight")


@dataclass(frozen=True, slots=True)
class SelectionSettings:
    """How much of the public set an arm distils on, and how similarity is measured."""

    budget: float = 0.28  # share of the public clips, equal in every arm (thesis: about 5 clips per sample)
    temperature: float = 1.0  # softens teacher and student probabilities before the cosine; thesis: 1
    rule: Literal["support", "transport"] = "support"  # how the fedstill arm selects
    support: float = 0.25  # support: a class counts as present from this share of its public prior on
    sharpness: float = 10.0  # transport: of the kernel

    def __post_init__(self) -> None:
        positive_share(self, "budget")
        at_least(1e-3, self, "temperature", "sharpness")
        at_least(0, self, "support")


@dataclass(frozen=True, slots=True)
class PrototypeSettings:
    """What devices upload in the ``select_cluster`` arm; with ``dp``, in the arms that ask for a histogram, too."""

    kind: Literal["kmeans", "constrained", "dp"] = "constrained"  # thesis: kmeans
    samples_per_prototype: int = 3
    min_size: int = 8  # the smallest cluster that may be uploaded; dp: the smallest noisy count
    upload_limit: int = 0  # 0 = every query clip takes part
    epsilon: float = 4.0  # dp: of one upload; a device's uploads of all outer rounds add up
    delta: float = 1e-5  # dp: of one upload
    centres: int = 0  # dp: cells in which clips are counted; 0 = as many as there are classes
    card_share: float = (
        0.0  # dp without guard.test: of an upload's budget, for the capture card; 0 = none is asked for
    )

    def __post_init__(self) -> None:
        at_least(1, self, "samples_per_prototype", "min_size")
        at_least(0, self, "upload_limit", "centres")
        if not 0 < self.epsilon <= MOST_EPSILON:
            raise ValueError(f"epsilon: {self.epsilon} is not above 0 and up to {MOST_EPSILON:g}")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta: {self.delta} is no probability between 0 and 1")
        if not 0 <= self.card_share < 1:
            raise ValueError(f"card_share: {self.card_share} is no share from 0 to below 1")
        if self.centres > MOST_CENTRES:
            raise ValueError(f"centres: {self.centres} is above {MOST_CENTRES}")
        if self.kind == "dp" and self.upload_limit:
            raise ValueError("upload_limit: a random choice of clips voids the dp guarantee; leave it 0")


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """When a device gets more than the generic student: only where public speakers show that it is safe."""

    folds: int = 4  # of speakers: as many more generic students, each trained without one fold
    test: bool = (
        True  # false: believe every card, class mix and candidate, for comparison only; it may do harm
    )

    def __post_init__(self) -> None:
        at_least(2, self, "folds")


MOST_VERSIONS = 50


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """How students are made ready for other microphones, rooms, cameras and light than the public clips'."""

    blind: int = 3  # versions of every public clip as random devices would record it; 0: clips as they are
    card: bool = True  # ask devices how they record, and render public clips so, where that pays
    versions: int = 2  # of every public clip, rendered for one device
    own_statistics: bool = (
        True  # let devices whose clips show all classes take batch norm statistics of their own
    )

    def __post_init__(self) -> None:
        at_least(0, self, "blind")
        if self.blind > MOST_VERSIONS:
            raise ValueError(f"blind: {self.blind} versions of every clip are more than {MOST_VERSIONS}")
        at_least(1, self, "versions")


@dataclass(frozen=True, slots=True)
class CohortSettings:
    """Which devices share the students that are trained for them; without cohorts, each one has its own."""

    distance: float = 0.0  # of two capture cards; 1 is just noticed, 0: every device on its own
    class_sets: int = 1  # a cohort trains on the clips of so many sets of classes alone, the first needed

    def __post_init__(self) -> None:
        at_least(0, self, "distance")
        at_least(1, self, "class_sets")


@dataclass(frozen=True, slots=True)
class DownlinkSettings:
    """How students travel to devices, and whether a device takes one into use at the end."""

    precision: UpdatePrecision = "exact"  # of weight matrices and their changes; all else is always exact
    install: str = ""  # arm whose student devices take into use, in the first scenario and seed; empty: none
    canaries: int = 16  # public clips on which a device tries a student before it uses it
    minimum_agreement: float = (
        0.5  # least share of canaries on which student and teacher choose the same class
    )

    def __post_init__(self) -> None:
        at_least(1, self, "canaries")
        if not 0 <= self.minimum_agreement <= 1:
            raise ValueError(f"minimum_agreement: {self.minimum_agreement} is no share from 0 to 1")
