"""Targets at every anchor from the faces of a crop, in torch on any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from facepipe.core.errors import UsageError
from facepipe.core.faces import FloatArray
from facepipe.retinaface.anchors import encode_boxes, encode_landmarks

FACE, BACKGROUND, IGNORED = 1, 0, -1

_IGNORED_MARGIN_PX = 4
"""Half the smallest stride: an ignored face between two cells claims both."""
_IGNORED_SIZE_RATIO = 4
"""Anchors more than so many times larger or smaller than an ignored face are not ignored for it."""


@dataclass(frozen=True, slots=True)
class MatchConfig:
    """Anchor matching (Deng et al., arXiv:1905.00641, with the 0.35 of published PyTorch trainers).

    Attributes:
        positive_iou: An anchor with at least this overlap is a positive.
        best_anchor_iou: Every face keeps its best anchor, but not below this overlap: the target of a 2-px
            face would be extreme. A face that gets no anchor is ignored.
        anchors_per_face: Every face keeps so many of its best anchors, none below `best_anchor_iou`. Anchors
            at `positive_iou` are 20 for a large face and one for a face of 12 px: more are a denser
            supervision of small faces (Zhang et al., arXiv:1708.05237).
    """

    positive_iou: float = 0.35
    best_anchor_iou: float = 0.2
    anchors_per_face: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.best_anchor_iou <= self.positive_iou <= 1:
            raise UsageError(
                "match: expected 0 < best_anchor_iou <= positive_iou <= 1, "
                f"got {self.best_anchor_iou} and {self.positive_iou}"
            )
        if self.anchors_per_face < 1:
            raise UsageError(f"match.anchors_per_face: expected at least 1, got {self.anchors_per_face}")


@dataclass(frozen=True, slots=True)
class CropFaces:
    """Labels of one crop, in its pixels.

    Attributes:
        boxes_xyxy: float32 (n, 4).
        landmarks: float32 (n, 5, 2); NaN where unknown.
        ignored_xyxy: float32 (m, 4): faces that are neither targets nor background.
        labelled: False: the crop has no labels, and every anchor is ignored.
    """

    boxes_xyxy: FloatArray
    landmarks: FloatArray
    ignored_xyxy: FloatArray
    labelled: bool = True


@dataclass(frozen=True, slots=True)
class Targets:
    """What the network learns to give at every anchor.

    Attributes:
        labels: int64 (batch, anchors): FACE, BACKGROUND or IGNORED.
        boxes: float32 (batch, anchors, 4): regression, meaningful where FACE.
        landmarks: float32 (batch, anchors, 10): regression; NaN where unknown.
    """

    labels: Tensor
    boxes: Tensor
    landmarks: Tensor


def match_batch(
    crops: Sequence[CropFaces], anchors: Tensor, variances: tuple[float, float], config: MatchConfig
) -> Targets:
    """Match the faces of a batch to anchors (n, 4: centre, size, in pixels); targets are on their device."""
    known = [_on_device(crop, anchors.device) for crop in crops]
    sides = _Sides.of(anchors)
    columns = zip(*(_match_crop(faces, anchors, sides, config) for faces in known), strict=True)
    labels, face = (torch.stack(column) for column in columns)
    crop, anchor = (labels == FACE).nonzero(as_tuple=True)
    chosen = anchors[anchor]
    counts = torch.tensor([len(faces.boxes) for faces in known], device=anchors.device)
    of_all = (counts.cumsum(0) - counts)[crop] + face[crop, anchor]
    boxes = anchors.new_zeros(*labels.shape, 4)
    landmarks = anchors.new_full((*labels.shape, 10), torch.nan)
    boxes[crop, anchor] = encode_boxes(torch.cat([f.boxes for f in known])[of_all], chosen, variances)
    points = torch.cat([f.landmarks for f in known])[of_all]
    landmarks[crop, anchor] = encode_landmarks(points, chosen, variances)
    return Targets(labels, boxes, landmarks)


class _Faces(NamedTuple):
    """`CropFaces` as tensors."""

    boxes: Tensor
    landmarks: Tensor
    ignored: Tensor
    labelled: bool


class _Sides(NamedTuple):
    """Where the anchors end, each (anchors,) and contiguous, in pixels, and their areas."""

    left: Tensor
    top: Tensor
    right: Tensor
    bottom: Tensor
    area: Tensor

    @classmethod
    def of(cls, anchors: Tensor) -> _Sides:
        x, y, width, height = anchors.T.contiguous()
        return cls(x - width / 2, y - height / 2, x + width / 2, y + height / 2, width * height)


def _on_device(crop: CropFaces, device: torch.device) -> _Faces:
    boxes, landmarks, ignored = (
        torch.from_numpy(array).to(device) for array in (crop.boxes_xyxy, crop.landmarks, crop.ignored_xyxy)
    )
    return _Faces(boxes, landmarks, ignored, crop.labelled)


def _match_crop(faces: _Faces, anchors: Tensor, sides: _Sides, config: MatchConfig) -> tuple[Tensor, Tensor]:
    """Label and face of each anchor (anchors,); the face counts where the label is FACE."""
    unmatched = BACKGROUND if faces.labelled else IGNORED
    labels = anchors.new_full((len(anchors),), unmatched, dtype=torch.int64)
    if len(faces.boxes) == 0:
        _ignore(labels, anchors, faces.ignored)
        return labels, torch.zeros_like(labels)
    face, positive = _assign(_iou(faces.boxes, sides), config)
    has_anchor = torch.zeros(len(faces.boxes), dtype=torch.bool, device=anchors.device)
    has_anchor[face[positive]] = True
    _ignore(labels, anchors, torch.cat([faces.ignored, faces.boxes[~has_anchor]]))
    labels[positive] = FACE
    return labels, face


def _assign(overlap: Tensor, config: MatchConfig) -> tuple[Tensor, Tensor]:
    """Return the face of each anchor, and whether it is a positive, from IoU (faces, anchors)."""
    best, face = overlap.max(dim=0)
    own, own_anchors = overlap.topk(min(config.anchors_per_face, overlap.shape[1]), dim=1)
    keeps = own >= config.best_anchor_iou
    # Of faces that keep the same anchor, the one of largest overlap gets it; best anchors go before others.
    rating = own * keeps
    rating[:, 0] += keeps[:, 0]
    highest = torch.zeros_like(best).scatter_reduce(0, own_anchors.flatten(), rating.flatten(), "amax")
    winner, rank = (keeps & (rating == highest[own_anchors])).nonzero(as_tuple=True)
    face[own_anchors[winner, rank]] = winner
    return face, (best >= config.positive_iou) | (highest > 0)


def _iou(boxes: Tensor, anchors: _Sides) -> Tensor:
    left, top, right, bottom = boxes[:, :, None].unbind(dim=1)
    width = torch.minimum(right, anchors.right) - torch.maximum(left, anchors.left)
    height = torch.minimum(bottom, anchors.bottom) - torch.maximum(top, anchors.top)
    shared = width.clamp_(min=0).mul_(height.clamp_(min=0))
    union = ((right - left) * (bottom - top) + anchors.area).sub_(shared)
    return shared.div_(union)


def _ignore(labels: Tensor, anchors: Tensor, regions: Tensor) -> None:
    """Mark anchors whose centre lies in a region and that are of about its size."""
    if len(regions) == 0:
        return
    low, high = regions[:, None, :2] - _IGNORED_MARGIN_PX, regions[:, None, 2:] + _IGNORED_MARGIN_PX
    inside = ((anchors[:, :2] >= low) & (anchors[:, :2] <= high)).all(dim=2)
    sides = (regions[:, 2:] - regions[:, :2]).amax(dim=1, keepdim=True)
    largest = _IGNORED_SIZE_RATIO * sides.clamp(min=_IGNORED_MARGIN_PX)
    similar = (anchors[:, 2] <= largest) & (anchors[:, 2] * _IGNORED_SIZE_RATIO >= sides)
    labels[(inside & similar).any(dim=0)] = IGNORED
