"""Weights published by others: their addresses, and the contents of their cards.

Figures are their authors' own. None of these files comes with facepipe, and none is needed to run it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from urllib.parse import urlsplit

from facepipe.weights.cards import AnchorSpec, EmbeddingSpec, InputSpec, Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFile:
    """One published file.

    Attributes:
        name: What `facepipe weights fetch` calls it.
        url: Its authors' release.
        sha256: 64 hex digits; None: not published; that of the first fetch is required from then on.
        next_step: What to do with the file at {path}.
    """

    name: str
    url: str
    sha256: str | None = None
    next_step: str = "facepipe weights import {path} --name NAME"

    @property
    def file_name(self) -> str:
        """Name of the file, as its authors chose it."""
        return urlsplit(self.url).path.rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedWeight(PublishedFile):
    """One published checkpoint of a network that finds or tells faces.

    Attributes:
        kind: "detector" or "encoder".
        architecture: As on a card.
        input: As on a card.
        licence: Terms of use, as far as they are known.
        trained_on: Data, by its authors.
        anchors: Detectors only.
        embedding: Encoders only. No threshold: none has been measured for these.
        framing: Encoders only: how its authors cut faces out of photos.
        measured: Accuracy by its authors, each figure with its setting.
    """

    kind: Kind
    architecture: str
    input: InputSpec
    licence: str
    trained_on: str
    anchors: AnchorSpec | None = None
    embedding: EmbeddingSpec | None = None
    framing: str = ""
    measured: Mapping[str, str] = field(default_factory=dict)


_RGB_0_TO_1 = InputSpec(channels="rgb", mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0), size_px=160)
_RGB_PLUS_MINUS_1 = InputSpec(
    channels="rgb", mean=(127.5, 127.5, 127.5), std=(128.0, 128.0, 128.0), size_px=160
)
# The published detectors subtract these three in this order from RGB pixels, though they are a BGR mean.
_RGB_MINUS_MEAN = InputSpec(channels="rgb", mean=(104.0, 117.0, 123.0), std=(1.0, 1.0, 1.0))

_CASIA = "CASIA-WebFace is for non-commercial research; its authors state no terms for the weight"
_LETTERBOX = "whole 160x160 picture of an aligned data set, aspect kept, gray bars"
_MTCNN = "MTCNN's box resized to 160x160, not rotated"

_ALL = (
    PublishedWeight(
        name="published_facenet_mobilenet_128",
        url="https://github.com/bubbliiiing/facenet-pytorch/releases/download/v1.0/facenet_mobilenet.pth",
        kind="encoder",
        architecture="facenet_mobilenet",
        input=_RGB_0_TO_1,
        licence=_CASIA,
        trained_on="CASIA-WebFace",
        embedding=EmbeddingSpec(128, "facenet_160"),
        framing=_LETTERBOX,
        measured={"LFW accuracy": "98.23%, by its authors, 160x160"},
    ),
    PublishedWeight(
        name="published_facenet_inception_resnet_128",
        url="https://github.com/bubbliiiing/facenet-pytorch/releases/download/v1.0/facenet_inception_resnetv1.pth",
        kind="encoder",
        architecture="facenet_inception_resnet_v1",
        input=_RGB_0_TO_1,
        licence=_CASIA,
        trained_on="CASIA-WebFace",
        embedding=EmbeddingSpec(128, "facenet_160"),
        framing=_LETTERBOX,
        measured={"LFW accuracy": "98.78%, by its authors, 160x160"},
    ),
    PublishedWeight(
        name="published_retinaface_resnet50",
        url="https://github.com/bubbliiiing/retinaface-pytorch/releases/download/v1.0/Retinaface_resnet50.pth",
        kind="detector",
        architecture="retinaface_resnet50",
        input=_RGB_MINUS_MEAN,
        licence="WIDER FACE is CC BY-NC-ND 4.0; its authors state no terms for the weight",
        trained_on="WIDER FACE train",
        anchors=AnchorSpec(),
        measured={
            "WIDER FACE val": "94.54 / 92.78 / 82.42% (easy / medium / hard), by its authors, 1280x1280"
        },
    ),
    PublishedWeight(
        name="published_facenet_vggface2_512",
        url="https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/20180402-114759-vggface2.pt",
        kind="encoder",
        architecture="facenet_inception_resnet_v1",
        input=_RGB_PLUS_MINUS_1,
        licence="MIT (package); VGGFace2 is for research",
        trained_on="VGGFace2",
        embedding=EmbeddingSpec(512, "facenet_160"),
        framing=_MTCNN,
        measured={"LFW accuracy": "99.65%, by its authors"},
    ),
    PublishedWeight(
        name="published_facenet_casia_512",
        url="https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/20180408-102900-casia-webface.pt",
        kind="encoder",
        architecture="facenet_inception_resnet_v1",
        input=_RGB_PLUS_MINUS_1,
        licence="MIT (package); CASIA-WebFace is for non-commercial research",
        trained_on="CASIA-WebFace",
        embedding=EmbeddingSpec(512, "facenet_160"),
        framing=_MTCNN,
        measured={"LFW accuracy": "99.05%, by its authors"},
    ),
)

PUBLISHED: Mapping[str, PublishedWeight] = MappingProxyType({weight.name: weight for weight in _ALL})
"""Every published weight, by name."""

_TRAINING = (
    PublishedFile(
        name="imagenet_mobilenet025",
        url="https://github.com/yakhyo/retinaface-pytorch/releases/download/v0.0.1/mobilenetv1_025.pretrained",
        next_step="facepipe train detector --recipe paper --data DIR --set network.initial={path}",
    ),
    PublishedFile(
        name="yunet_any_size",
        url="https://github.com/ShiqiYu/libfacedetection.train/raw/"
        "02246e79b1e976c83d1e135a85e0628120c93769/onnx/yunet_n_dynamic.onnx",
        next_step="facepipe train detector --recipe retinaface_mobilenet025_focus --data DIR "
        "--teacher retinaface_mobilenet025 --set detail.weights={path}",
    ),
)
TRAINING_FILES: Mapping[str, PublishedFile] = MappingProxyType({file.name: file for file in _TRAINING})
"""Files that a recipe trains with, by name."""
_AT_RANDOM = "begin at random values, as its published trainers do: --set network.initial=random"
WITHOUT_ADDRESS: Mapping[str, str] = MappingProxyType(
    {
        "imagenet_mobilenet050": _AT_RANDOM,
        "imagenet_mobilenet100": _AT_RANDOM,
        "strong_retinaface": "learn from the shipped detector, --teacher retinaface_mobilenet025",
    }
)
"""What recipes can take and no public address is known of, with the way to go on without."""
