"""Landmark errors by hand, and between two detectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from facepipe.core.errors import DataError
from facepipe.core.faces import Faces
from facepipe.evaluation.labels import LabelledPhoto
from facepipe.evaluation.metrics.landmarks import landmark_errors, nme_ratio

POINTS = np.array([[30, 40], [70, 40], [50, 60], [35, 80], [65, 80]], np.float32)
"""Of a face with the box 0 0 100 100: eyes 40 px apart."""

BOX = np.array([0, 0, 100, 100], np.float32)


def _photo(*faces: tuple[float, bool]) -> LabelledPhoto:
    """Faces at so many pixels to the right, with or without labelled points."""
    boxes = np.array([BOX + np.array((x, 0, x, 0)) for x, _ in faces], np.float32)
    points = np.array(
        [POINTS + np.array((x, 0)) if known else POINTS * np.nan for x, known in faces], np.float32
    )
    return LabelledPhoto(Path("photo.jpg"), boxes, points)


def _found(*faces: tuple[float, float]) -> Faces:
    """Detections at so many pixels to the right, their points so much lower than they should be."""
    boxes = np.array([BOX + np.array((x, 0, x, 0)) for x, _ in faces], np.float32)
    points = np.array([POINTS + np.array((x, low)) for x, low in faces], np.float32)
    return Faces(boxes, np.linspace(0.9, 0.5, len(faces), dtype=np.float32), points)


def test_errors_by_hand() -> None:
    # of three faces one has no points and one is not found; the first detection overlaps the first face less
    photo = _photo((0, True), (200, False), (400, True))
    summary = landmark_errors([photo], [_found((20, 50), (0, 4), (200, 9))]).summary()
    assert (summary.faces, summary.found) == (2, 1)
    assert summary.nme_box == pytest.approx(0.04)
    assert summary.median_box == pytest.approx(0.04)
    assert summary.nme_interocular == pytest.approx(0.1)
    assert summary.by_landmark == pytest.approx(
        dict.fromkeys(("left_eye", "right_eye", "nose", "left_mouth", "right_mouth"), 0.04)
    )


def test_a_profile_has_no_interocular_error() -> None:
    photo = _photo((0, True))
    photo.landmarks[0, 1] = photo.landmarks[0, 0] + (10, 0)
    summary = landmark_errors([photo], [_found((0, 4))]).summary()
    assert summary.nme_interocular is None
    assert summary.nme_box is not None


def test_nothing_found_is_no_error() -> None:
    summary = landmark_errors([_photo((0, True))], [Faces.empty()]).summary()
    assert (summary.found, summary.nme_box, summary.by_landmark) == (0, None, {})
    assert json.loads(json.dumps(summary.to_dict()))["median_box"] is None


def test_detectors_are_compared_on_the_faces_of_both() -> None:
    photos = [_photo((0, True), (200, True)), _photo((0, True))]
    ours = landmark_errors(photos, [_found((0, 6), (200, 50)), Faces.empty()])
    theirs = landmark_errors(photos, [_found((0, 4)), _found((0, 1))])
    assert nme_ratio(ours, theirs) == pytest.approx(1.5)
    with pytest.raises(DataError, match="no face was found by both"):
        nme_ratio(ours, landmark_errors(photos, [Faces.empty(), _found((0, 1))]))
    with pytest.raises(DataError, match="different faces"):
        nme_ratio(ours, landmark_errors(photos[:1], [_found((0, 4))]))


def test_bad_labels_are_refused() -> None:
    with pytest.raises(DataError, match="none of the photos"):
        landmark_errors([_photo((0, False))], [_found((0, 4))])
    flat = _photo((0, True))
    flat.boxes_xyxy[0, 3] = 0
    with pytest.raises(DataError, match="without size"):
        landmark_errors([flat], [Faces.empty()])
