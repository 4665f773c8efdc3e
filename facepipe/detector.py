"""Photos in, faces out: RetinaFace over as many scales as the photo needs."""

from __future__ import annotations

import math
import threading
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, replace
from typing import Self

import numpy as np

from facepipe.core.errors import UsageError, WeightsError
from facepipe.core.faces import BoolArray, Faces, FloatArray, UInt8Array
from facepipe.images.photo_input import Photo, as_rgb
from facepipe.images.reading import scaled_down
from facepipe.retinaface.anchors import decode_boxes, decode_landmarks, make_anchors
from facepipe.retinaface.nms import box_voting, nms
from facepipe.runtime.engines import (
    Network,
    RuntimeChoice,
    choose_runtime,
    open_network,
    require_shapes,
    to_planes,
)
from facepipe.weights.cards import AnchorSpec, WeightCard
from facepipe.weights.registry import DEFAULT_DETECTOR, load_card

_PAD_TO = 32
_COLUMNS = (4, 2, 10)
"""Of the network's outputs: a box, the probabilities of background and face, five points."""
_COARSER_BY = 4
_COARSEST_LONG_SIDE = 448
"""A photo longer than this is also analyzed in quarter size: its faces may exceed the largest anchor."""
_LARGEST_FACE_PX = 192
"""Shorter side, in pixels of a level, up to which its faces are taken; the coarser level finds larger ones.

Large anchors see few examples in training and take bare skin for faces: on photos of single people the split
removes three of four false alarms above 0.6 and loses no face."""
_WIDEST_FRAME = 2.0
"""Longer side by shorter side beyond which a photo is taken for several, side by side."""
_MOST_FRAMES, _WIDEST = 4, 128.0
_OVERLAP = 0.75
"""A coarser level begins this much below the finer one's end, so that no face falls between them."""
_MOST_KEPT = 1 << 24
"""Values of the network's input, 2,360 px square, whose memory is kept: 64 MB for a thread."""
_MOST_CANDIDATES = 5000
"""Of one photo at one scale, the most confident, as in published evaluations: a network that has learned
nothing yet finds tens of thousands, whose overlaps take minutes. On WIDER FACE the AP stays the same."""
_LEAST_CANDIDATE = 0.1
"""Score from which a candidate supports others, whatever score a face needs."""


@dataclass(frozen=True, slots=True)
class DetectorOptions:
    """What counts as a face, and at which scales.

    Attributes:
        score_threshold: Least confidence, 0..1.
        nms_iou: Of two boxes that overlap more than this, the better stays.
        max_side: A photo whose longer side is longer is scaled down to it, in pixels; None: original size. A
            photo of more than 2:1 is scaled as if photos of 2:1 stood side by side, up to the pixels of four.
        min_face_px: Least shorter side of a face, in pixels of the photo.
        top_k: At most this many faces, the most confident; None: all.
        multi_scale: Detect large faces in a quarter of the size, and merge all candidates of a face
            (`box_voting`). False: detect at one scale and keep the best candidate of a face (NMS), as
            published evaluations do.
        as_published: Earlier name of `not multi_scale`; it goes with version 0.3.
    """

    score_threshold: float = 0.5
    nms_iou: float = 0.4
    max_side: int | None = 1280
    min_face_px: float = 0.0
    top_k: int | None = None
    multi_scale: bool = True
    as_published: InitVar[bool | None] = None

    def __post_init__(self, as_published: bool | None) -> None:
        if as_published is not None:
            message = "DetectorOptions: as_published=True is now multi_scale=False"
            warnings.warn(message, DeprecationWarning, stacklevel=3)
            object.__setattr__(self, "multi_scale", not as_published)
        if not 0 <= self.score_threshold <= 1:
            raise UsageError(f"score threshold: expected 0..1, got {self.score_threshold}")
        if not 0 < self.nms_iou <= 1:
            raise UsageError(f"NMS IoU: expected above 0 and up to 1, got {self.nms_iou}")
        if self.max_side is not None and self.max_side < _PAD_TO:
            raise UsageError(f"longest side: expected at least {_PAD_TO} px, got {self.max_side}")
        if not 0 <= self.min_face_px < math.inf:
            raise UsageError(f"smallest face: expected 0 px or more, got {self.min_face_px}")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top-k: expected at least 1, got {self.top_k}")

    def scale_of(self, size_wh: tuple[int, int]) -> float:
        """Return how large a photo of a width and height is analyzed: the share of each side, up to 1."""
        if self.max_side is None:
            return 1.0
        long_side, short_side = max(size_wh), min(size_wh)
        scale = self.max_side / long_side
        frames = min(long_side / short_side, _WIDEST) / _WIDEST_FRAME
        if frames > 1:
            scale *= min(frames, math.sqrt(_MOST_FRAMES * frames))
        return min(1.0, scale)


class FaceDetector:
    """Finds faces. Load once, use for many photos; threads may share it, forked processes may not.

    Args:
        network: A loaded RetinaFace.
        card: Its card: preprocessing and anchors.
        options: See `DetectorOptions`.
    """

    def __init__(self, network: Network, card: WeightCard, options: DetectorOptions | None = None) -> None:
        if card.kind != "detector" or card.anchors is None:
            raise WeightsError(f"{card.name} is not a detector")
        self._network, self.card, self.options = network, card, options or DetectorOptions()
        self._anchors: AnchorSpec = card.anchors
        self._memory = _InputMemory()

    @classmethod
    def load(
        cls,
        weights: str = DEFAULT_DETECTOR,
        options: DetectorOptions | None = None,
        runtime: RuntimeChoice | None = None,
    ) -> Self:
        """Open a weight by name or card path.

        Raises:
            WeightsError: Unknown, damaged, or not a detector.
        """
        weight = load_card(weights)
        if weight.card.kind != "detector":
            raise WeightsError(f"{weight.card.name} is an {weight.card.kind}, not a detector")
        return cls(open_network(weight, runtime or choose_runtime()), weight.card, options)

    def with_options(self, options: DetectorOptions) -> Self:
        """Return a detector of the same network with other options."""
        return type(self)(self._network, self.card, options)

    def detect(self, photo: Photo) -> Faces:
        """Find the faces of one photo: most confident first, in pixels of the upright photo.

        Args:
            photo: RGB uint8 (h, w, 3); or a Pillow image, a path, or the bytes of a file.

        Raises:
            UsageError: It is no photo.
            PhotoError: Its file can't be read.
        """
        return self.detect_batch([photo])[0]

    def detect_batch(
        self, photos: Sequence[Photo], sizes_wh: Sequence[tuple[int, int]] | None = None
    ) -> list[Faces]:
        """The faces of several photos of any sizes; levels of equal size go through the network together.

        Args:
            photos: RGB uint8 (h, w, 3) each, or what `as_rgb` takes.
            sizes_wh: Width and height of the frames that the faces are given in, where the photos are reduced
                copies of larger ones; None: the photos' own.
        """
        if isinstance(photos, str | bytes):
            raise UsageError("expected several photos, got one: use detect")
        arrays = [as_rgb(photo) for photo in photos]
        sizes_wh = sizes_wh or [photo.shape[1::-1] for photo in arrays]
        levels = [
            level
            for i, (photo, size_wh) in enumerate(zip(arrays, sizes_wh, strict=True))
            for level in self._levels(i, photo, size_wh)
        ]
        seen: dict[int, list[_LevelDetections]] = defaultdict(list)
        by_size: dict[tuple[int, int], list[_Level]] = defaultdict(list)
        for level in levels:
            by_size[level.padded_size].append(level)
        for size, group in by_size.items():
            for level, faces in zip(group, self._run(group, size), strict=True):
                seen[level.photo].append(level.to_photo(faces))
        return [self._merge(seen[i], size_wh) for i, size_wh in enumerate(sizes_wh)]

    def _levels(self, index: int, photo: UInt8Array, size_wh: tuple[int, int]) -> list[_Level]:
        """Return the photo at every scale it needs, finest first."""
        height, width = photo.shape[:2]
        long_side = max(width, height)
        scale = self.options.scale_of((width, height))
        image = photo if scale == 1.0 else _resized(photo, width * scale, height * scale)
        levels = [_Level(index, image, size_wh)]
        while self.options.multi_scale and long_side * scale > _COARSEST_LONG_SIDE:
            scale /= _COARSER_BY
            image = _resized(image, width * scale, height * scale)
            levels[-1] = replace(levels[-1], max_face_side_px=_LARGEST_FACE_PX)
            min_side_px = _OVERLAP * _LARGEST_FACE_PX / _COARSER_BY
            levels.append(_Level(index, image, size_wh, min_face_side_px=min_side_px))
        return levels

    @property
    def _least_candidate(self) -> float:
        wanted = self.options.score_threshold
        return min(wanted, _LEAST_CANDIDATE) if self.options.multi_scale else wanted

    def input_size_wh(self, photo: UInt8Array) -> tuple[int, int]:
        """Width and height of the largest input that the network sees of a photo (h, w, 3)."""
        height, width = photo.shape[:2]
        scale = self.options.scale_of((width, height))
        return _padded(round(width * scale)), _padded(round(height * scale))

    def _run(self, group: list[_Level], size_wh: tuple[int, int]) -> list[Faces]:
        width, height = size_wh
        batch = self._memory.batch(len(group), height, width)
        for level, planes in zip(group, batch, strict=True):
            rows, columns = level.image.shape[:2]
            planes[:, rows:] = 0
            planes[:, :rows, columns:] = 0
            to_planes(level.image, self.card.input, planes)
        anchors = make_anchors(width, height, self._anchors)
        outputs = self._network.run(batch)
        require_shapes(self.card, outputs, [(len(group), len(anchors), columns) for columns in _COLUMNS])
        boxes, probabilities, landmarks = outputs
        return [
            self._decode(boxes[i], probabilities[i, :, 1], landmarks[i], anchors) for i in range(len(group))
        ]

    def _decode(
        self, boxes: FloatArray, scores: FloatArray, landmarks: FloatArray, anchors: FloatArray
    ) -> Faces:
        likely = np.flatnonzero(scores > self._least_candidate)
        if len(likely) > _MOST_CANDIDATES:
            best = np.argpartition(scores[likely], -_MOST_CANDIDATES)[-_MOST_CANDIDATES:]
            likely = likely[np.sort(best)]
        if not (np.isfinite(boxes[likely]).all() and np.isfinite(landmarks[likely]).all()):
            raise WeightsError(f"{self.card.name}: the network gives boxes that are not finite")
        variances = self._anchors.variances
        return Faces(
            decode_boxes(boxes[likely], anchors[likely], variances),
            scores[likely],
            decode_landmarks(landmarks[likely], anchors[likely], variances),
        )

    def _merge(self, levels: list[_LevelDetections], size_wh: tuple[int, int]) -> Faces:
        faces = Faces(
            np.concatenate([level.faces.boxes_xyxy for level in levels]),
            np.concatenate([level.faces.scores for level in levels]),
            np.concatenate([level.faces.landmarks for level in levels]),
        )
        if self.options.multi_scale:
            faces = box_voting(
                faces,
                self.options.nms_iou,
                self.options.score_threshold,
                eligible=np.concatenate([level.own for level in levels]),
                scales=np.concatenate([np.full(len(level.own), level.scale, np.float32) for level in levels]),
            )
        else:
            faces = nms(faces, self.options.nms_iou)
        inside = np.clip(faces.boxes_xyxy, 0, np.tile(np.array(size_wh, np.float32), 2))
        faces = Faces(inside, faces.scores, faces.landmarks)
        faces = faces.select(faces.sizes_px >= max(self.options.min_face_px, 1.0))
        return faces.select(range(len(faces))[: self.options.top_k])


class _InputMemory(threading.local):
    """Memory for the network's input, each thread's own and used again for the next photo.

    The kernel clears what it hands out, and it would hand out as many new pages for every photo.
    """

    def __init__(self) -> None:
        self._kept = np.empty(0, np.float32)

    def batch(self, count: int, height: int, width: int) -> FloatArray:
        """float32 (count, 3, height, width) of any values."""
        size = count * 3 * height * width
        memory = self._kept if size <= len(self._kept) else np.empty(size, np.float32)
        if len(self._kept) < size <= _MOST_KEPT:
            self._kept = memory
        return memory[:size].reshape(count, 3, height, width)


@dataclass(frozen=True, slots=True)
class _Level:
    """One photo at one scale."""

    photo: int
    image: UInt8Array
    photo_size_wh: tuple[int, int]
    min_face_side_px: float = 0.0
    max_face_side_px: float = math.inf

    @property
    def padded_size(self) -> tuple[int, int]:
        """Width and height of the network's input."""
        height, width = self.image.shape[:2]
        return _padded(width), _padded(height)

    def to_photo(self, faces: Faces) -> _LevelDetections:
        """Return all candidates of this level in pixels of the photo, with those that are its own to find."""
        own = (faces.sizes_px >= self.min_face_side_px) & (faces.sizes_px <= self.max_face_side_px)
        # Sides are rounded to whole pixels one by one, so that each axis has a scale of its own.
        height, width = self.image.shape[:2]
        back = np.array([self.photo_size_wh[0] / width, self.photo_size_wh[1] / height], np.float32)
        in_photo = Faces(faces.boxes_xyxy * np.tile(back, 2), faces.scores, faces.landmarks * back)
        return _LevelDetections(in_photo, own, width / self.photo_size_wh[0])


@dataclass(frozen=True, slots=True)
class _LevelDetections:
    """Candidates of one photo at one scale, and which of them are faces that are to be found there."""

    faces: Faces
    own: BoolArray
    scale: float


def _padded(side: int) -> int:
    return max(1, -(-side // _PAD_TO)) * _PAD_TO


def _resized(image: UInt8Array, width: float, height: float) -> UInt8Array:
    return scaled_down(image, (max(1, round(width)), max(1, round(height))))
