"""All that a run of the encoder's trainer is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from facepipe.core.errors import UsageError
from facepipe.images.corruption import CorruptionConfig
from facepipe.training.engine.config import quoted, read_configuration
from facepipe.training.engine.loop_config import LoopConfig
from facepipe.training.engine.optimizer import OptimiserConfig
from facepipe.training.recognition.augment import JitterConfig
from facepipe.training.recognition.losses import LossConfig
from facepipe.training.recognition.sampling import BatchConfig
from facepipe.training.recognition.teacher import TeacherConfig
from facepipe.weights.cards import InputSpec
from facepipe.weights.registry import DEFAULT_DETECTOR

Architecture = Literal[
    "facenet_dense",
    "facenet_mobilenet",
    "facenet_mobilenetv1",
    "facenet_mobilefacenet",
    "facenet_inception_resnet_v1",
]
Alignment = Literal["arcface_112", "facenet_160"]


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """What is trained, and what it starts from. What is None is that of `initial`, or else the default.

    Attributes:
        architecture: As on a card.
        initial: "random"; the name or card of an encoder's weight; or a checkpoint of this trainer (.pt).
        dimensions: Length of a vector; default 128.
        widths: Of facenet_dense: channels of its three stages; default 48, 96, 192.
        blocks: Of facenet_dense: residual blocks of its three stages; default 1, 2, 2. More of them than
            `initial` has are added as the identity, so that the deeper network begins as good as it was.
        input: Preprocessing; default ImageNet's, RGB, 112 px (Inception-ResNet-v1: 160; MobileNetV1 for
            112 px: (x - 127.5) / 128).
        alignment: Landmark template that faces are aligned to; default "arcface_112".
        flip_average: Whether the finished encoder's vector is the mean of a face's and its mirror image's;
            default true.
    """

    architecture: Architecture = "facenet_dense"
    initial: str = "random"
    dimensions: int | None = None
    widths: tuple[int, int, int] | None = None
    blocks: tuple[int, int, int] | None = None
    input: InputSpec | None = None
    alignment: Alignment | None = None
    flip_average: bool | None = None

    def __post_init__(self) -> None:
        if self.architecture != "facenet_dense" and (self.widths or self.blocks):
            raise UsageError(f"network: widths and blocks are facenet_dense's, not {self.architecture}'s")
        if min(*(self.widths or (2,)), 2) < 2 or min(*(self.blocks or (1,)), 1) < 1:
            raise UsageError("network: expected widths from 2 and blocks from 1")


@dataclass(frozen=True, slots=True)
class FaceDataConfig:
    """Faces to train on.

    Attributes:
        path: A folder, or a tar file of crops.
        kind: "crops": aligned ones, see `CropSource`; "photos": whole photos,
            of which the main face is aligned; "detection": a detector's data set with landmarks, whose faces
            are cut out.
        labelled: Whether the folder that a photo lies in says who it shows; never with "detection".
        labels: Of "detection": the label file where it is not in the folder.
        min_face_px: Of "detection": least shorter side of a face's box.
    """

    path: Path
    kind: Literal["crops", "photos", "detection"] = "crops"
    labelled: bool = True
    labels: Path | None = None
    min_face_px: float = 48.0


@dataclass(frozen=True, slots=True)
class ValidationConfig:
    """Same person or not, on pairs of photos; their accuracy then chooses the best checkpoint.

    Attributes:
        pairs: A pairs.txt in LFW's form.
        images: Its photos, as PERSON/PERSON_0001.*
        aligned: Whether they are aligned crops, as for training, and not whole photos.
    """

    pairs: Path
    images: Path
    aligned: bool = False


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """A run of the trainer.

    Attributes:
        data: What it trains on.
        same_person: CSV file whose first two columns name people (folders) who are the same.
        cache: Folder for decoded crops and a teacher's vectors; None: `$FACEPIPE_HOME/cache`.
        detector: Name or card of the weight that finds the faces of whole photos.
        device: "auto", "cpu", "cuda" or "cuda:N".
        held_out_share: Of the crops: never trained on, to measure progress.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: tuple[FaceDataConfig, ...] = ()
    same_person: Path | None = None
    cache: Path | None = None
    detector: str = DEFAULT_DETECTOR
    device: str = "auto"
    held_out_share: float = 0.01
    batch: BatchConfig = field(default_factory=BatchConfig)
    jitter: JitterConfig = field(default_factory=JitterConfig)
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    validation: ValidationConfig | None = None


def encoder_configuration(
    recipe: str | Path | None,
    *,
    crops: Sequence[Path] = (),
    photos: Sequence[Path] = (),
    unlabelled: Sequence[Path] = (),
    teacher: str | None = None,
    pairs: Path | None = None,
    images: Path | None = None,
    cache: Path | None = None,
    overrides: Sequence[str] = (),
) -> EncoderConfig:
    """A configuration from a recipe, the options that every run needs, and overrides, the last of which wins.

    Args:
        recipe: See `read_configuration`.
        crops: Folders of aligned crops, one sub-folder a person; this and the next two take the place of the
            recipe's data.
        photos: Folders of whole photos, one sub-folder a person.
        unlabelled: Folders or tar files of aligned crops of anybody.
        teacher: See `TeacherConfig.weights`.
        pairs, images: See `ValidationConfig`.
        cache: See `EncoderConfig`.
        overrides: See `read_configuration`.

    Raises:
        UsageError: See `read_configuration`.
    """
    data = [
        *(f"{{path = {quoted(path)}}}" for path in crops),
        *(f'{{path = {quoted(path)}, kind = "photos"}}' for path in photos),
        *(f"{{path = {quoted(path)}, labelled = false}}" for path in unlabelled),
    ]
    options = {
        "data": f"[{', '.join(data)}]" if data else None,
        "teacher.weights": quoted(teacher),
        "validation.pairs": quoted(pairs),
        "validation.images": quoted(images),
        "cache": quoted(cache),
    }
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    return read_configuration(EncoderConfig, recipe, [*given, *overrides])
