"""Faces in boxes that were drawn by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from facepipe.batch.decisions import Box
from facepipe.core.boxes import iou
from facepipe.core.faces import Faces, FloatArray, UInt8Array
from facepipe.images.face_crops import face_thumbnail
from facepipe.images.reading import read_image
from facepipe.library.models import LibraryPhoto
from facepipe.library.photo_files import original
from facepipe.pipeline import FacePipeline
from facepipe.quality import accepted_rows, assess
from facepipe.quality_rules import NamingRules

_MARGIN = 1.0
"""Of a box's sides, searched on each side of it."""
_MIN_IOU = 0.3
_MIN_SCORE = 0.3
"""Far below what the detector asks for by itself: a person has said that there is a face."""


@dataclass(frozen=True, slots=True, eq=False)
class DrawnFace:
    """What was found in a box.

    Attributes:
        landmarks: float32 (5, 2), in pixels of the upright photo; the middle of the box where there are none.
        embedding: float32 (d,), unit length; None: the face is not good enough to be compared.
        picture: A thumbnail as JPEG.
    """

    landmarks: FloatArray
    embedding: FloatArray | None
    picture: bytes


def find_face(pipeline: FacePipeline, photo: LibraryPhoto, box_xyxy: Box) -> DrawnFace:
    """Look for a face in a box, also for one that is hardly to be seen.

    Raises:
        PhotoError: The photo can't be read, or has changed since it was analyzed.
    """
    rgb = read_image(original(photo))
    box = np.array(box_xyxy, np.float32)
    found = _best_in(pipeline, rgb, box)
    picture = face_thumbnail(rgb, box)
    if found is None:
        return DrawnFace(np.tile((box[:2] + box[2:]) / 2, (5, 1)), None, picture)
    rules = NamingRules(min_score=0.0, min_sharpness=0.0)
    assessment = assess(rgb, found, rules, crop=pipeline.encoder.crop)
    rows = accepted_rows(assessment.reasons)
    embedding = pipeline.encoder.encode(assessment.crops)[0] if len(rows) else None
    return DrawnFace(found.landmarks[0], embedding, picture)


def _best_in(pipeline: FacePipeline, rgb: UInt8Array, box: FloatArray) -> Faces | None:
    """The face of a photo that overlaps a box most, one row; looked for in the surroundings of the box."""
    height, width = rgb.shape[:2]
    margin = _MARGIN * (box[2:] - box[:2])
    left, top = np.floor(np.maximum(box[:2] - margin, 0)).astype(int)
    right, bottom = np.ceil(np.minimum(box[2:] + margin, (width, height))).astype(int)
    options = pipeline.detector.options
    eager = replace(options, score_threshold=min(_MIN_SCORE, options.score_threshold), min_face_px=0.0)
    faces = pipeline.detector.with_options(eager).detect(np.ascontiguousarray(rgb[top:bottom, left:right]))
    overlaps = iou(faces.boxes_xyxy + np.tile((left, top), 2).astype(np.float32), box[None])
    if not len(faces) or overlaps.max() < _MIN_IOU:
        return None
    one = faces.select([int(overlaps.argmax())])
    offset = np.array((left, top), np.float32)
    return Faces(one.boxes_xyxy + np.tile(offset, 2), one.scores, one.landmarks + offset)
