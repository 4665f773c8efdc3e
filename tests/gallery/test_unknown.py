"""Faces without a name, crops, and thresholds of galleries and people."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from gallery_helpers import ENCODER, person_vectors, photo_hash, template, templates

from facepipe.core.errors import GalleryError, UsageError
from facepipe.gallery import Gallery, NewTemplate
from facepipe.gallery.models import CROP_BYTES_MAX

FACES = [template(v, f"p{i}", b"crop %d" % i) for i, v in enumerate(person_vectors(1, 4))]


@pytest.fixture
def gallery(place: str) -> Iterator[Gallery]:
    with Gallery.open(place, ENCODER, create=True) as gallery:
        yield gallery


def test_unknown_faces_are_remembered_once_with_all_that_is_known(place: str, gallery: Gallery) -> None:
    ids = gallery.remember_unknown(FACES)
    assert len(ids) == 4
    assert gallery.remember_unknown(FACES) == []
    gallery.close()
    with Gallery.open(place) as again:
        stored = again.unknown_faces()
        assert [face.id for face in stored] == ids
        for face, new in zip(stored, FACES, strict=True):
            np.testing.assert_array_equal(face.embedding, new.embedding)
            assert (face.source, face.box_xyxy, face.quality) == (new.source, new.box_xyxy, new.quality)
            assert face.photo_sha256 == new.photo_sha256
            assert again.unknown_crop(face.id) == new.crop
        assert again.info().unknown_faces == 4


def test_unknown_faces_name_nobody(gallery: Gallery) -> None:
    gallery.remember_unknown(FACES)
    (match,) = gallery.match(FACES[0].embedding[None])
    assert (match.name, match.distance_l2) == (None, None)
    assert gallery.people() == []


def test_unknown_faces_become_a_person(gallery: Gallery) -> None:
    gallery.add("Ada", [FACES[1]])
    ids = gallery.remember_unknown(FACES)
    generation = gallery.info().generation
    new = gallery.enroll_unknown(ids[:3], "Ada")
    assert len(new) == 2  # One was hers before.
    assert gallery.info().generation == generation + 1
    assert [face.id for face in gallery.unknown_faces()] == ids[3:]
    assert sorted(t.source or "" for t in gallery.templates("Ada")) == [f"photos/p{i}.jpg" for i in range(3)]
    assert gallery.crop(new[0]) == b"crop 0"
    assert gallery.match(FACES[2].embedding[None])[0].name == "Ada"
    assert gallery.has_photo(photo_hash("p2"), "Ada")
    assert gallery.enroll_unknown(ids[3:], "Somebody New")
    assert gallery.unknown_faces() == []


def test_all_unknown_faces_of_a_call_or_none(gallery: Gallery) -> None:
    ids = gallery.remember_unknown(FACES)
    for act in (
        lambda: gallery.enroll_unknown([*ids, 99], "Ada"),
        lambda: gallery.forget_unknown([*ids, 99]),
    ):
        with pytest.raises(GalleryError, match="no unknown face 99"):
            act()
    with pytest.raises(GalleryError, match="name"):
        gallery.enroll_unknown(ids, " ")
    with pytest.raises(GalleryError, match="no faces"):
        gallery.enroll_unknown([], "Ada")
    assert [face.id for face in gallery.unknown_faces()] == ids
    assert gallery.people() == []
    gallery.forget_unknown(ids[:2])
    assert [face.id for face in gallery.unknown_faces()] == ids[2:]


def test_bad_unknown_faces_are_refused(gallery: Gallery) -> None:
    with pytest.raises(GalleryError, match="unknown face"):
        gallery.remember_unknown([FACES[0], NewTemplate(FACES[0].embedding * np.float32(2))])
    assert gallery.unknown_faces() == []


def test_crops_are_kept_only_when_given(gallery: Gallery) -> None:
    with_crop, without = gallery.add("Ada", [FACES[0], template(FACES[1].embedding, "plain")])
    assert gallery.crop(with_crop) == b"crop 0"
    assert gallery.crop(without) is None
    with pytest.raises(GalleryError, match="no face 99"):
        gallery.crop(99)
    with pytest.raises(GalleryError, match="no face 99"):
        gallery.unknown_crop(99)


@pytest.mark.parametrize("crop", [b"", b"x" * (CROP_BYTES_MAX + 1)])
def test_crops_that_are_refused(crop: bytes) -> None:
    with pytest.raises(GalleryError, match="crop"):
        NewTemplate(FACES[0].embedding, crop=crop)


def test_thresholds_are_remembered_and_taken_away(place: str, gallery: Gallery) -> None:
    gallery.add("Ada", templates(person_vectors(1, 1)))
    assert gallery.threshold_l2 is None
    gallery.set_threshold(0.5)
    gallery.set_person_threshold("Ada", 1)
    gallery.close()
    with Gallery.open(place) as again:
        assert (again.threshold_l2, again.info().threshold_l2, again.people()[0].threshold_l2) == (
            0.5,
            0.5,
            1.0,
        )
        again.set_threshold(None)
        again.set_person_threshold("Ada", None)
        assert (again.threshold_l2, again.people()[0].threshold_l2) == (None, None)


@pytest.mark.parametrize("threshold_l2", [-0.1, math.nan, math.inf])
def test_thresholds_that_are_refused(gallery: Gallery, threshold_l2: float) -> None:
    gallery.add("Ada", templates(person_vectors(1, 1)))
    with pytest.raises(UsageError, match="threshold"):
        gallery.set_threshold(threshold_l2)
    with pytest.raises(UsageError, match="threshold"):
        gallery.set_person_threshold("Ada", threshold_l2)
    with pytest.raises(GalleryError, match="nobody"):
        gallery.set_person_threshold("Eve", 0.5)
    assert (gallery.threshold_l2, gallery.people()[0].threshold_l2) == (None, None)
