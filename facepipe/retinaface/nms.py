"""Non-maximum suppression and box voting: many candidates around a face to one face, in NumPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from facepipe.core.boxes import iou
from facepipe.core.faces import BoolArray, Faces, FloatArray

_SAME_FACE_IOU = 0.5
_FACES_AT_ONCE = 256
"""Bounds the memory of their overlaps with all candidates."""


def non_maximum_suppression(
    boxes_xyxy: FloatArray, scores: FloatArray, iou_threshold: float
) -> npt.NDArray[np.intp]:
    """Indices of the boxes that remain, best score first.

    Greedy: a box that overlaps a better one that remains by more than the threshold is removed. Overlaps of
    one box with all others are one vector operation.
    """
    order = np.argsort(-scores, kind="stable")
    boxes = boxes_xyxy[order]
    alive = np.ones(len(boxes), bool)
    kept: list[int] = []
    for i in range(len(boxes)):
        if not alive[i]:
            continue
        kept.append(i)
        rest = np.flatnonzero(alive[i + 1 :]) + i + 1
        if len(rest):
            alive[rest[iou(boxes[i], boxes[rest]) > iou_threshold]] = False
    return order[kept]


def nms(candidates: Faces, iou_threshold: float) -> Faces:
    """Select the faces that non-maximum suppression leaves, best score first."""
    return candidates.select(non_maximum_suppression(candidates.boxes_xyxy, candidates.scores, iou_threshold))


def box_voting(
    candidates: Faces,
    iou_threshold: float,
    score_threshold: float,
    *,
    eligible: BoolArray | None = None,
    scales: FloatArray | None = None,
) -> Faces:
    """Average the candidates of each face that non-maximum suppression leaves (Gidaris and Komodakis, 2015).

    Box and landmarks are means over the candidates that overlap the face by half, weighted by score squared,
    overlap and scale (box voting: arXiv:1505.01749). The score is multiplied by (1 + support) / 2, where
    support is the probability that any other of these candidates is right, each with its score times its
    overlap: several anchors at several scales detect a face, mostly one a false alarm.

    Args:
        candidates: All that may support a face, also those of low score.
        iou_threshold: Of two candidates that overlap more than this, the better is a face.
        score_threshold: Faces whose final score is not above this are left out.
        eligible: bool (n,), which may be a face; the others only support faces; None: all.
        scales: float32 (n,), above 0, of the copy of the photo in which each was detected: larger copies give
            more exact boxes; None: all in one.
    """
    may_be = candidates.scores > score_threshold
    likely = np.flatnonzero(may_be if eligible is None else may_be & eligible)
    weights = candidates.scores**2 * (1 if scales is None else scales)
    kept = likely[
        non_maximum_suppression(candidates.boxes_xyxy[likely], candidates.scores[likely], iou_threshold)
    ]
    faces = candidates.select(kept)
    for start in range(0, len(kept), _FACES_AT_ONCE):
        part = slice(start, start + _FACES_AT_ONCE)
        of_part = faces.boxes_xyxy[part], faces.scores[part], faces.landmarks[part]
        _vote(*of_part, kept[part], candidates, weights)
    faces = faces.select(faces.scores > score_threshold)
    return faces.select(np.argsort(-faces.scores, kind="stable"))


def _vote(
    boxes: FloatArray,
    scores: FloatArray,
    landmarks: FloatArray,
    rows: npt.NDArray[np.intp],
    candidates: Faces,
    weights: FloatArray,
) -> None:
    """Average candidates into the faces, which are these rows of them, in place: see `box_voting`."""
    own = np.arange(len(rows)), rows
    overlap = iou(boxes[:, None], candidates.boxes_xyxy)
    overlap[own] = 1  # of a box without area it is 0
    overlap[overlap < _SAME_FACE_IOU] = 0
    shares = overlap * weights
    shares /= shares.sum(axis=1, keepdims=True)
    boxes[:] = shares @ candidates.boxes_xyxy
    landmarks[:] = np.tensordot(shares, candidates.landmarks, 1)
    overlap[own] = 0
    support = 1 - np.prod(1 - overlap * candidates.scores, axis=1)
    scores *= (1 + support) / 2
