"""All that a run of the detector's trainer is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from facepipe.core.errors import UsageError
from facepipe.training.detection.augment import AugmentConfig
from facepipe.training.detection.losses import LossConfig
from facepipe.training.detection.small_faces import SmallFaceConfig
from facepipe.training.detection.targets import MatchConfig
from facepipe.training.engine.config import quoted, read_configuration
from facepipe.training.engine.loop_config import LoopConfig
from facepipe.training.engine.optimizer import OptimiserConfig
from facepipe.weights.cards import AnchorSpec, InputSpec

Architecture = Literal[
    "retinaface_mobilenet025",
    "retinaface_mobilenet025_detail",
    "retinaface_resnet50",
]
Frozen = Literal["backbone", "finest"]


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """What is trained, and what it starts from.

    Attributes:
        architecture: As on a card.
        initial: "random"; "imagenet" (ResNet-50: torchvision's weights, which it downloads); the name or card
            of a detector's weight, to go on from it; a checkpoint of this trainer (.pt); or a published .pth
            file: a whole RetinaFace or an ImageNet backbone. A network with a detail branch may begin as one
            without, which it then agrees with; the light one as either, its new layers at random.
        input: Preprocessing; None: that of the `initial` weight or checkpoint, else ImageNet's, RGB.
        anchors: None: those of the `initial` weight or checkpoint, else the published ones.
        frozen: What `loop.freeze_steps` keeps as it is: the "backbone", or all that the "finest" stride
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
        folder: With `images/` and a label file; without labels, any folder of photos.
        weight: Share of the samples, relative to the other data sets.
        labels: The label file where it is not in the folder.
        labelled: False: the folder is photos only, and the teacher says what is in them.
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
        weights: Name or card of a weight, or a published .pth file.
        architecture, input, anchors: Of a .pth file, which does not say; a card does.
    """

    weights: str
    architecture: Architecture = "retinaface_mobilenet025"
    input: InputSpec | None = None
    anchors: AnchorSpec | None = None


@dataclass(frozen=True, slots=True)
class ValidationConfig:
    """Average precision while training; chooses the best checkpoint.

    Attributes:
        photos: A data set with labels.
        ground_truth: Folder of WIDER FACE's .mat files, where the photos are of its validation set: the
            official protocol is used then, and the labels are not.
        limit: At most so many photos, spread evenly over the set.
        max_side: Photos are looked at with a longer side of this at most, in pixels; None: original size.
        min_face_px: Without ground truth: labelled faces lower than this are ignored.
    """

    photos: Path
    ground_truth: Path | None = None
    limit: int | None = None
    max_side: int | None = None
    min_face_px: float = 8.0


@dataclass(frozen=True, slots=True)
class DetectorConfig:
    """A run of the trainer.

    Attributes:
        data: What it trains on.
        cache: Folder for decoded photos (three bytes a pixel), which load ten times faster; None: none.
        device: "auto", "cpu", "cuda" or "cuda:N".
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: tuple[DataConfig, ...] = ()
    cache: Path | None = None
    device: str = "auto"
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    match: MatchConfig = field(default_factory=MatchConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    teacher: TeacherConfig | None = None
    detail: SmallFaceConfig | None = None
    validation: ValidationConfig | None = None


def detector_configuration(
    recipe: str | Path | None,
    *,
    data: Sequence[Path] = (),
    teacher: str | None = None,
    validation: Path | None = None,
    ground_truth: Path | None = None,
    cache: Path | None = None,
    overrides: Sequence[str] = (),
) -> DetectorConfig:
    """A configuration from a recipe, the options that every run needs, and overrides, the last of which wins.

    Args:
        recipe: See `read_configuration`.
        data: Folders of data sets with labels, in place of the recipe's.
        teacher: See `TeacherConfig.weights`.
        validation: See `ValidationConfig.photos`.
        ground_truth: See `ValidationConfig`.
        cache: See `DetectorConfig`.
        overrides: See `read_configuration`.

    Raises:
        UsageError: See `read_configuration`.
    """
    folders = ", ".join(f"{{folder = {quoted(folder)}}}" for folder in data)
    options = {
        "data": f"[{folders}]" if data else None,
        "teacher.weights": quoted(teacher),
        "validation.photos": quoted(validation),
        "validation.ground_truth": quoted(ground_truth),
        "cache": quoted(cache),
    }
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    return read_configuration(DetectorConfig, recipe, [*given, *overrides])
