"""Faces in boxes that people drew, in photos as they were analyzed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from facepipe.core.errors import PhotoError
from facepipe.core.faces import UInt8Array
from facepipe.images.reading import photo_sha256, write_image
from facepipe.library.drawing import find_face
from facepipe.library.models import LibraryPhoto
from facepipe.pipeline import FacePipeline


def test_a_face_is_looked_for_in_the_photo_that_was_analyzed(tmp_path: Path, astronaut: UInt8Array) -> None:
    path = tmp_path / "photo.png"
    write_image(path, astronaut)
    pipeline = FacePipeline.load()
    (box,) = pipeline.detector.detect(astronaut).boxes_xyxy.tolist()
    photo = LibraryPhoto(1, path, photo_sha256(path), (512, 512), None, None, ())
    assert find_face(pipeline, photo, tuple(box)).embedding is not None
    write_image(path, np.ascontiguousarray(astronaut[:, ::-1]))
    with pytest.raises(PhotoError, match="has changed since it was analyzed"):
        find_face(pipeline, photo, tuple(box))
