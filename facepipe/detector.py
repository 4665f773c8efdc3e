"""Photos in, faces out: RetinaFace over as many scales as the photo needs."""

from __future__ import annotations

import math
import threading
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from typing import NamedTuple, Self

import numpy as np

from facepipe.core.errors import UsageError, WeightsError
from facepipe.core.faces import Faces, FloatArray, UInt8Array
from facepipe.images.photo_input import Photo, as_rgb
from facepipe.pyramid import PAD_TO, Level, LevelDetections, Look, padded, pyramid
from facepipe.retinaface.anchors import decode_boxes, decode_landmarks, make_anchors
from facepipe.retinaface.focus import CELL_PX, regions
from facepipe.retinaface.nms import box_voting, nms
from facepipe.runtime.engines import (
    Network,
    RuntimeChoice,
    choose_runtime,
    open_network,
    require_shapes,
    to_planes,
)
from facepipe.weights.cards import AnchorSpec, FocusSpec, WeightCard
from facepipe.weights.registry import DEFAULT_DETECTOR, load_card

_COLUMNS = (4, 2, 10)
"""Of the network's outputs: a box, the probabilities of background and face, five points."""
_WIDEST_FRAME = 2.0
"""Longer side by shorter side beyond which a photo is taken for several, side by side."""
_MOST_FRAMES, _WIDEST = 4, 128.0
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
        focus: Look at the full size only where the look at a quarter of it says that small faces are, with
            weights that have a focus map (their card says so). False: look everywhere.
        as_published: Earlier name of `not multi_scale`; it goes with version 0.3.
    """

    score_threshold: float = 0.5
    nms_iou: float = 0.4
    max_side: int | None = 1280
    min_face_px: float = 0.0
    top_k: int | None = None
    multi_scale: bool = True
    focus: bool = True
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
        if self.max_side is not None and self.max_side < PAD_TO:
            raise UsageError(f"longest side: expected at least {PAD_TO} px, got {self.max_side}")
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
        """The faces of several photos of any sizes; looks of equal size go through the network together.

        Args:
            photos: RGB uint8 (h, w, 3) each, or what `as_rgb` takes.
            sizes_wh: Width and height of the frames that the faces are given in, where the photos are reduced
                copies of larger ones; None: the photos' own.
        """
        if isinstance(photos, str | bytes):
            raise UsageError("expected several photos, got one: use detect")
        arrays = [as_rgb(photo) for photo in photos]
        sizes_wh = sizes_wh or [photo.shape[1::-1] for photo in arrays]
        pyramids = [
            pyramid(photo, size_wh, self.options.scale_of(photo.shape[1::-1]), self.options.multi_scale)
            for photo, size_wh in zip(arrays, sizes_wh, strict=True)
        ]
        focus = self.card.focus if self.options.multi_scale and self.options.focus else None
        seen = self._look_everywhere(pyramids) if focus is None else self._look_closer(pyramids, focus)
        return [self._merge(found, size_wh) for found, size_wh in zip(seen, sizes_wh, strict=True)]

    def _look_everywhere(self, pyramids: Sequence[Sequence[Level]]) -> list[list[LevelDetections]]:
        """Look at every level of every photo."""
        looks = [level.whole() for levels in pyramids for level in levels]
        found = iter(self._look(looks))
        return [[next(found).detections for _ in levels] for levels in pyramids]

    def _look_closer(
        self, pyramids: Sequence[Sequence[Level]], focus: FocusSpec
    ) -> list[list[LevelDetections]]:
        """Look at every coarse level, then at the finest where the focus map of the next one says."""
        coarse = [list(levels[1:] or levels) for levels in pyramids]
        seen: list[list[LevelDetections]] = [[] for _ in pyramids]
        closer: list[tuple[int, Look]] = []
        found = iter(self._look([level.whole() for levels in coarse for level in levels], with_focus=True))
        for number, (levels, looked_at) in enumerate(zip(pyramids, coarse, strict=True)):
            views = [next(found) for _ in looked_at]
            seen[number] += [view.detections for view in views]
            if len(levels) > 1:
                assert views[0].focus is not None  # it was asked for
                parts = regions(views[0].focus, focus.threshold)
                closer += [(number, levels[0].part(region)) for region in parts]
        views = self._look([look for _, look in closer])
        for (number, _), view in zip(closer, views, strict=True):
            seen[number].append(view.detections)
        return seen

    def _look(self, looks: Sequence[Look], *, with_focus: bool = False) -> list[_View]:
        """What the network finds in each look, and where its focus map says that a finer one finds more."""
        by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, look in enumerate(looks):
            by_size[look.padded_size].append(i)
        views: dict[int, _View] = {}
        for size, group in by_size.items():
            views |= zip(group, self._run([looks[i] for i in group], size, with_focus), strict=True)
        return [views[i] for i in range(len(looks))]

    @property
    def _least_candidate(self) -> float:
        wanted = self.options.score_threshold
        return min(wanted, _LEAST_CANDIDATE) if self.options.multi_scale else wanted

    def input_size_wh(self, photo: UInt8Array) -> tuple[int, int]:
        """Width and height of the largest input that the network sees of a photo (h, w, 3)."""
        height, width = photo.shape[:2]
        scale = self.options.scale_of((width, height))
        return padded(round(width * scale)), padded(round(height * scale))

    def _run(self, group: Sequence[Look], size_wh: tuple[int, int], with_focus: bool) -> list[_View]:
        width, height = size_wh
        batch = self._memory.batch(len(group), height, width)
        for look, planes in zip(group, batch, strict=True):
            rows, columns = look.image.shape[:2]
            planes[:, rows:] = 0
            planes[:, :rows, columns:] = 0
            to_planes(look.image, self.card.input, planes)
        anchors = make_anchors(width, height, self._anchors)
        unwanted_focus = self.card.focus is not None and not with_focus
        outputs = self._network.run(batch, len(_COLUMNS) if unwanted_focus else None)
        shapes: list[tuple[int, ...]] = [(len(group), len(anchors), columns) for columns in _COLUMNS]
        shapes += [(len(group), height // CELL_PX, width // CELL_PX)] if with_focus else []
        require_shapes(self.card, outputs, shapes)
        boxes, probabilities, landmarks, *focus = outputs
        views = []
        for i, look in enumerate(group):
            faces = self._decode(boxes[i], probabilities[i, :, 1], landmarks[i], anchors)
            views.append(_View(look.to_photo(faces), look.cells_of(focus[0][i]) if focus else None))
        return views

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

    def _merge(self, levels: list[LevelDetections], size_wh: tuple[int, int]) -> Faces:
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


class _View(NamedTuple):
    """What the network finds in a look, and its focus map (rows, columns), 0..1; None: not asked for."""

    detections: LevelDetections
    focus: FloatArray | None


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
