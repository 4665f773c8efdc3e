"""Stored faces encoded again: from which source, which face of a photo, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gallery_helpers import ENCODER, person_vectors
from pipeline_helpers import noise, side_by_side

from facepipe.core.faces import FloatArray, UInt8Array
from facepipe.encoder import FaceEncoder
from facepipe.enrollment import Outcome, PersonPhoto, enroll
from facepipe.gallery import Gallery, NewTemplate
from facepipe.images.face_crops import MAX_CROP_PIXELS, encode_crop
from facepipe.images.reading import photo_sha256, read_image, write_image
from facepipe.pipeline import FacePipeline, card_identity
from facepipe.runtime.engines import RuntimeChoice
from facepipe.stored_faces import EncodedFace, Origin, StoredFace, encode_stored
from facepipe.weights.registry import DEFAULT_ENCODER

ONE_THREAD = RuntimeChoice("onnx", "cpu", 1)
HER = "Eileen Collins"


@pytest.fixture(scope="module")
def old() -> FacePipeline:
    return FacePipeline.load(encoder_weights="facenet_mobilefacenet_128", runtime=ONE_THREAD)


@pytest.fixture(scope="module")
def new(old: FacePipeline) -> FacePipeline:
    return FacePipeline(old.detector, FaceEncoder.load(DEFAULT_ENCODER, ONE_THREAD))


@pytest.fixture
def gallery(old: FacePipeline, tmp_path: Path) -> Iterator[Gallery]:
    with Gallery.open(tmp_path / "g", card_identity(old.encoder.card), create=True) as gallery:
        yield gallery


@pytest.fixture
def photo(astronaut: UInt8Array, tmp_path: Path) -> Path:
    write_image(tmp_path / "her.png", astronaut)
    return tmp_path / "her.png"


def enroll_one(networks: FacePipeline, gallery: Gallery, photo: Path, *, keep_crops: bool = False) -> None:
    pipeline = FacePipeline(networks.detector, networks.encoder, gallery)
    (report,) = enroll(pipeline, [PersonPhoto(HER, photo)], keep_crops=keep_crops)
    assert report.outcome is Outcome.ENROLLED


def encoded(gallery: Gallery, new: FacePipeline, **options: object) -> list[EncodedFace]:
    templates = [t for person in gallery.people() for t in gallery.templates(person.name)]
    faces: list[StoredFace] = [*templates, *gallery.unknown_faces()]
    return list(encode_stored(gallery, faces, new, **options))  # type: ignore[arg-type]


def expected_embedding(new: FacePipeline, photo: UInt8Array, face: int = 0) -> FloatArray:
    """The embedding of a photo's face, from the left."""
    faces = new.embed(photo)
    assert faces.embeddings is not None
    return np.asarray(faces.embeddings[np.argsort(faces.boxes_xyxy[:, 0])[face]])


def require_vector(found: EncodedFace, origin: Origin, expected: FloatArray) -> None:
    assert (found.origin, found.problem) == (origin, "")
    assert found.new is not None
    np.testing.assert_allclose(found.new.embedding, expected, atol=1e-4)


@pytest.mark.parametrize("keep_crops", [True, False])
def test_crops_and_photos_give_the_vectors_of_enrolling_again(
    gallery: Gallery,
    old: FacePipeline,
    new: FacePipeline,
    photo: Path,
    astronaut: UInt8Array,
    keep_crops: bool,
) -> None:
    enroll_one(old, gallery, photo, keep_crops=keep_crops)
    if keep_crops:
        photo.unlink()
    (found,) = encoded(gallery, new)
    require_vector(found, Origin.CROP if keep_crops else Origin.PHOTO, expected_embedding(new, astronaut))
    assert found.new is not None
    assert found.new.crop is None


def test_more_crops_than_a_call_of_the_network(
    gallery: Gallery, old: FacePipeline, new: FacePipeline, astronaut: UInt8Array
) -> None:
    crop = old.encoder.align(astronaut, old.detect(astronaut).select([0]))[0]
    vectors = person_vectors(1, 40)
    gallery.add(HER, [NewTemplate(v, crop=encode_crop(np.roll(crop, i, 0))) for i, v in enumerate(vectors)])
    found = encoded(gallery, new)
    assert [face.face.id for face in found] == list(range(1, 41))
    require_vector(found[35], Origin.CROP, new.encoder.encode(np.roll(crop, 35, 0)[None])[0])


@pytest.mark.parametrize("side", [0, 1])
def test_the_face_at_the_stored_place_is_taken(
    gallery: Gallery, old: FacePipeline, new: FacePipeline, astronaut: UInt8Array, tmp_path: Path, side: int
) -> None:
    """Boxes of other detectors are a little larger."""
    both = side_by_side(astronaut)
    write_image(tmp_path / "both.png", both)
    faces = old.detect(both)
    box = faces.boxes_xyxy[np.argsort(faces.boxes_xyxy[:, 0])[side]] + (-9, -12, 9, 12)
    template = NewTemplate(
        person_vectors(1, 1)[0],
        str(tmp_path / "both.png"),
        tuple(map(float, box)),  # type: ignore[arg-type]
        photo_sha256=photo_sha256(tmp_path / "both.png"),
    )
    gallery.remember_unknown([template])
    (found,) = encoded(gallery, new)
    require_vector(found, Origin.PHOTO, expected_embedding(new, both, side))


def test_crops_of_another_form_are_made_again(
    gallery: Gallery, old: FacePipeline, new: FacePipeline, photo: Path, astronaut: UInt8Array
) -> None:
    """The new encoder wants a margin around the face, which the kept crop has not."""
    card = new.encoder.card
    assert card.embedding is not None
    card = replace(card, name="with_margin", embedding=replace(card.embedding, alignment="facenet_160"))
    wider = FacePipeline(new.detector, FaceEncoder(new.encoder._network, card))
    enroll_one(old, gallery, photo, keep_crops=True)
    (found,) = encoded(gallery, wider)
    require_vector(found, Origin.PHOTO, expected_embedding(wider, astronaut))
    assert found.new is not None
    assert found.new.crop is not None
    crop = read_image(found.new.crop, max_pixels=MAX_CROP_PIXELS)
    np.testing.assert_array_equal(crop, wider.encoder.align(astronaut, wider.detect(astronaut))[0])
    photo.unlink()
    (missing,) = encoded(gallery, wider)
    assert missing.new is None
    assert str(photo) in missing.problem


@pytest.mark.parametrize("crop", [b"no picture", encode_crop(np.zeros((96, 96, 3), np.uint8))])
def test_a_crop_that_is_damaged_or_of_another_size_is_passed_over(
    gallery: Gallery, old: FacePipeline, new: FacePipeline, photo: Path, astronaut: UInt8Array, crop: bytes
) -> None:
    enroll_one(old, gallery, photo)
    (template,) = gallery.templates(HER)
    stored = template.as_new_template(gallery.template_vector(template.id), crop)
    gallery.add("Somebody", [stored])
    gallery.remove(HER)
    (found,) = encoded(gallery, new)
    require_vector(found, Origin.PHOTO, expected_embedding(new, astronaut))


def test_crops_of_an_encoder_that_is_not_installed_are_not_trusted(new: FacePipeline, tmp_path: Path) -> None:
    crop = encode_crop(np.zeros((112, 112, 3), np.uint8))
    with Gallery.open(tmp_path / "other", ENCODER, create=True) as gallery:
        gallery.add("Ada", [NewTemplate(person_vectors(1, 1)[0], crop=crop)])
        (found,) = encoded(gallery, new)
    assert (found.new, found.problem) == (None, "no crop can be used, and its photo is not known")


def test_a_photo_that_is_gone_changed_or_without_the_face(
    gallery: Gallery, old: FacePipeline, new: FacePipeline, photo: Path, tmp_path: Path
) -> None:
    enroll_one(old, gallery, photo)
    (template,) = gallery.templates(HER)
    nobody = tmp_path / "noise.png"
    write_image(nobody, noise(1, 200, 200))
    vector = person_vectors(1, 1)[0]
    gallery.add("Nobody", [NewTemplate(vector, str(nobody), template.box_xyxy, None, photo_sha256(nobody))])
    elsewhere = template.box_xyxy and (0.0, 0.0, 50.0, 50.0)
    gallery.add("Zoe", [NewTemplate(vector, str(photo), elsewhere, None, photo_sha256(photo))])
    found = {str(face.face.source): face.problem for face in encoded(gallery, new) if face.new is None}
    assert found == {
        str(nobody): f"no crop can be used, and {nobody}: no face is found at its place",
        str(photo): f"no crop can be used, and {photo}: no face is found at its place",
    }
    write_image(photo, noise(1, 300, 300))
    problems = [face.problem for face in encoded(gallery, new) if face.face.source == str(photo)]
    assert (
        problems == [f"no crop can be used, and {photo}: is another photo than the one that was enrolled"] * 2
    )
    photo.unlink()
    problems = [face.problem for face in encoded(gallery, new) if face.face.source == str(photo)]
    assert problems == [f"no crop can be used, and {photo}: is not there any more"] * 2


def test_photos_that_were_moved_are_found_by_their_content(
    gallery: Gallery, old: FacePipeline, new: FacePipeline, photo: Path, astronaut: UInt8Array, tmp_path: Path
) -> None:
    enroll_one(old, gallery, photo)
    (tmp_path / "archive" / "2020").mkdir(parents=True)
    photo.rename(tmp_path / "archive" / "2020" / "renamed.png")
    write_image(tmp_path / "archive" / "other.png", noise(1, 100, 100))
    (found,) = encoded(gallery, new, photos_from=[tmp_path / "archive"])
    require_vector(found, Origin.PHOTO, expected_embedding(new, astronaut))
