"""Configuration of the detector's trainer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from facepipe.core.errors import UsageError
from facepipe.evaluation.metrics.detection import MIN_FACE_PX
from facepipe.training.detection.augment import AugmentConfig
from facepipe.training.detection.losses import LossConfig
from facepipe.training.detection.small_faces import SmallFaceConfig
from facepipe.training.detection.targets import MatchConfig
from facepipe.training.engine.loop_config import RunConfig
from facepipe.weights.cards import AnchorSpec, InputSpec

Architecture = Literal[
    "retinaface_mobilenet025",
    "retinaface_mobilenet025_detail",
    "retinaface_mobilenet025_focus",
    "retinaface_mobilenet050",
    "retinaface_mobilenet100",
    "retinaface_resnet18",
    "retinaface_resnet34",
    "retinaface_resnet50",
]
Frozen = Literal["backbone", "finest"]


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The network and its first weights.

    Attributes:
        architecture: As on a card.
        initial: "random"; "imagenet" (ResNets: torchvision's weights, which it downloads); the name or card
            of a detector's weight, to go on from it; a checkpoint of this trainer (.pt); or a published file
            (.pth, .tar, .ckpt, .pretrained): a whole RetinaFace or an ImageNet backbone. A network with a
            branch for small faces may begin as one without, which it then agrees with; one with a focus map
            as one without, and the other way round.
        input: Preprocessing; None: that of the `initial` weight or checkpoint, else ImageNet's, RGB.
        anchors: None: those of the `initial` weight or checkpoint, else the published ones.
        frozen: The part that `loop.freeze_steps` freezes: the "backbone", or all that the "finest" stride
            depends on, so that large faces learn and small ones are found as before.
    """

    architecture: Architecture = "retinaface_mobilenet025"
    initial: str = "random"
    input: InputSpec | None = None
    anchors: AnchorSpec | None = None
    frozen: Frozen = "backbone"


@dataclass(frozen=True, slots=True)
class DataConfig:
    """A data set to train on.

    Attributes:
        folder: With `images/` and labels; without labels, any folder of photos.
        weight: Share of the samples, relative to the other data sets.
        labels: The file or folder of labels where the folder does not hold one.
        labelled: False: the folder is photos only, and a teacher gives the targets.
    """

    folder: Path
    weight: float = 1.0
    labels: Path | None = None
    labelled: bool = True

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UsageError(f"data set {self.folder}: expected a positive weight, got {self.weight}")


@dataclass(frozen=True, slots=True)
class TeacherConfig:
    """A trained detector to learn from besides the labels.

    Attributes:
        weights: Name or card of a weight; `facepipe weights import` makes one of a published .pth file.
    """

    weights: str


@dataclass(frozen=True, slots=True)
class ValidationConfig:
    """Average precision while training; chooses the best checkpoint.

    Attributes:
        photos: A data set with labels; None: some of the photos of `data`, which then do not train.
        held_out_share: Share of the labelled photos that are held out where `photos` is not named; their
            names decide which.
        ground_truth: Folder of WIDER FACE's .mat files, where the photos are of its validation set: the
            official protocol is used then, and the labels are not.
        limit: At most so many photos, spread evenly over the set.
        max_side: Photos are scaled down to a longer side of this at most, in pixels; None: original size.
        min_face_px: Without ground truth: labelled faces lower than this are ignored.
        labels: The file or folder of labels where `photos` does not hold one.
    """

    photos: Path | None = None
    held_out_share: float = 0.1
    ground_truth: Path | None = None
    limit: int | None = None
    max_side: int | None = None
    min_face_px: float = MIN_FACE_PX
    labels: Path | None = None

    def __post_init__(self) -> None:
        if not 0 < self.held_out_share < 1:
            raise UsageError(
                f"validation.held_out_share: expected more than 0 and less than 1, got {self.held_out_share}"
            )
        if self.photos is None and (self.ground_truth or self.labels):
            raise UsageError("validation.ground_truth and .labels are those of validation.photos: name them")


@dataclass(frozen=True, slots=True)
class DetectorConfig(RunConfig):
    """Configuration of a run of the detector's trainer.

    With a `cache`, decoded photos (three bytes a pixel) load ten times faster; without, none are kept.

    Attributes:
        data: What it trains on.
        focus: Train the focus map alone, of "retinaface_mobilenet025_focus"; the rest stays as it is.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: tuple[DataConfig, ...] = ()
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    match: MatchConfig = field(default_factory=MatchConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    teacher: TeacherConfig | None = None
    detail: SmallFaceConfig | None = None
    focus: bool = False
    validation: ValidationConfig | None = None
