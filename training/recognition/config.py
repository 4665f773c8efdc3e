"""Configuration of the encoder's trainer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from facepipe.core.errors import UsageError
from facepipe.core.home import facepipe_home
from facepipe.images.corruption import CorruptionConfig
from facepipe.training.engine.loop_config import RunConfig
from facepipe.training.recognition.augment import JitterConfig
from facepipe.training.recognition.losses import LossConfig
from facepipe.training.recognition.sampling import BatchConfig
from facepipe.training.recognition.second_teacher import SecondTeacherConfig
from facepipe.training.recognition.teacher import TeacherConfig
from facepipe.weights.cards import InputSpec

Architecture = Literal[
    "facenet_mobilenet",
    "facenet_mobilenetv1",
    "facenet_mobilefacenet",
    "facenet_inception_resnet_v1",
]
Alignment = Literal["arcface_112", "facenet_160"]


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The network and its first weights. Settings of None are those of `initial`, or else the default.

    Attributes:
        architecture: As on a card.
        initial: "random"; the name or card of an encoder's weight; or a checkpoint of this trainer (.pt).
        dimensions: Length of a vector; default 128.
        input: Preprocessing; default ImageNet's, RGB, 112 px (Inception-ResNet-v1: 160; MobileNetV1 for
            112 px: (x - 127.5) / 128).
        alignment: Landmark template that faces are aligned to; default "arcface_112".
        flip_average: Whether the finished encoder's vector is the mean of a face's and its mirror image's;
            default true.
        frozen_maps: The backbone's first maps, whose layers stay as they are.
    """

    architecture: Architecture = "facenet_mobilenetv1"
    initial: str = "random"
    dimensions: int | None = None
    input: InputSpec | None = None
    alignment: Alignment | None = None
    flip_average: bool | None = None
    frozen_maps: int = 0

    def __post_init__(self) -> None:
        if self.frozen_maps < 0:
            raise UsageError(f"network.frozen_maps: expected 0 or more, got {self.frozen_maps}")


@dataclass(frozen=True, slots=True)
class FaceDataConfig:
    """Faces to train on.

    Attributes:
        path: A folder, or a tar file of crops.
        kind: "crops": aligned ones, see `CropSource`; "photos": whole photos,
            of which the main face is aligned; "detection": a detector's data set with landmarks, whose faces
            are cut out.
        labelled: Whether the folder that a photo lies in is the person's; never with "detection".
        min_face_px: Of "detection": minimum shorter side of a face's box.
    """

    path: Path
    kind: Literal["crops", "photos", "detection"] = "crops"
    labelled: bool = True
    min_face_px: float = 48.0


@dataclass(frozen=True, slots=True)
class ValidationConfig:
    """Verification on pairs of photos, whose accuracy chooses the best checkpoint.

    Attributes:
        pairs: A pairs.txt in LFW's form.
        images: Its photos, as PERSON/PERSON_0001.*
        aligned: Whether they are aligned crops, as for training, and not whole photos.
    """

    pairs: Path
    images: Path
    aligned: bool = False


@dataclass(frozen=True, slots=True)
class EncoderConfig(RunConfig):
    """Configuration of a run of the encoder's trainer.

    Decoded crops and a teacher's vectors are kept in `cache`; None: `$FACEPIPE_HOME/cache`.

    Attributes:
        data: What it trains on.
        same_person: CSV file whose first two columns name people (folders) who are the same.
        held_out_share: Of the crops: never trained on, to measure progress.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: tuple[FaceDataConfig, ...] = ()
    same_person: Path | None = None
    held_out_share: float = 0.01
    batch: BatchConfig = field(default_factory=BatchConfig)
    jitter: JitterConfig = field(default_factory=JitterConfig)
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    second_teacher: SecondTeacherConfig = field(default_factory=SecondTeacherConfig)
    validation: ValidationConfig | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.held_out_share < 1:
            raise UsageError(f"held_out_share: expected 0 or more and below 1, got {self.held_out_share}")

    @property
    def cache_folder(self) -> Path:
        """The folder of `cache`, or its default."""
        return self.cache or facepipe_home() / "cache"
