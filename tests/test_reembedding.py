"""A gallery made anew for another encoder: names compared, thresholds carried, the switch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gallery_helpers import ENCODER, person_vectors, templates
from pipeline_helpers import shifted

from facepipe.core.errors import GalleryError, UsageError
from facepipe.core.faces import UInt8Array
from facepipe.encoder import FaceEncoder
from facepipe.gallery import Gallery, NewTemplate
from facepipe.images.face_crops import encode_crop
from facepipe.pipeline import FacePipeline, card_identity
from facepipe.reembedding import Reembedding, reembed, switch
from facepipe.runtime.engines import RuntimeChoice
from facepipe.stored_faces import Origin
from facepipe.weights.registry import DEFAULT_ENCODER

ONE_THREAD = RuntimeChoice("onnx", "cpu", 1)
HER, OTHER = "Eileen Collins", "Somebody Else"


@pytest.fixture(scope="module")
def old() -> FacePipeline:
    return FacePipeline.load(encoder_weights="facenet_mobilefacenet_128", runtime=ONE_THREAD)


@pytest.fixture(scope="module")
def new(old: FacePipeline) -> FacePipeline:
    return FacePipeline(old.detector, FaceEncoder.load(DEFAULT_ENCODER, ONE_THREAD))


@pytest.fixture
def gallery(old: FacePipeline, astronaut: UInt8Array, tmp_path: Path) -> Iterator[Gallery]:
    """Kept crops of her with the ids 1 to 3, of no face with 4 and 5; one of her without a name."""
    photos = [astronaut, shifted(astronaut, 5), np.ascontiguousarray(astronaut[:, ::-1])]
    hers = [old.encoder.align(photo, old.detect(photo).select([0]))[0] for photo in photos]
    pattern = np.random.default_rng(1).integers(0, 255, (112, 112, 3), np.uint8)
    others = [pattern, np.roll(pattern, 3, axis=0)]
    with Gallery.open(tmp_path / "g", card_identity(old.encoder.card), create=True) as gallery:
        gallery.add(HER, _faces(old, hers))
        gallery.add(OTHER, _faces(old, others))
        gallery.remember_unknown(_faces(old, [np.roll(hers[0], 2, axis=1)]))
        yield gallery


def _faces(networks: FacePipeline, crops: list[UInt8Array]) -> list[NewTemplate]:
    embeddings = networks.encoder.encode(np.stack(crops))
    return [NewTemplate(e, crop=encode_crop(crop)) for e, crop in zip(embeddings, crops, strict=True)]


def reopened(gallery: Gallery, networks: FacePipeline) -> Gallery:
    return Gallery.open(gallery.path, card_identity(networks.encoder.card))


def test_names_ids_and_unknown_faces_survive(
    gallery: Gallery, old: FacePipeline, new: FacePipeline, astronaut: UInt8Array
) -> None:
    before = {name: gallery.templates(name) for name in (HER, OTHER)}
    found = reembed(gallery, new)
    assert (found.count_from(Origin.CROP), found.missing, found.thresholds) == (6, (), ())
    assert (found.right_before, found.right_after, found.changed) == (5, 5, ())
    assert {name: gallery.templates(name) for name in (HER, OTHER)} == before
    assert switch(gallery, found) == 0
    with reopened(gallery, new) as again:
        assert {name: again.templates(name) for name in (HER, OTHER)} == before
        assert len(again.unknown_faces()) == 1
        named = FacePipeline(new.detector, new.encoder, again).identify(astronaut)
        assert [face.name for face in named][:1] == [HER]
        assert named[0].distance_l2 == pytest.approx(0, abs=1e-3)
    with pytest.raises(GalleryError, match="gallery reembed"):
        reopened(gallery, old)


def test_names_that_would_change_are_shown(gallery: Gallery, new: FacePipeline) -> None:
    """With a threshold that none of her faces is within, and that is dropped."""
    found = _with_threshold(gallery, new, 0.01)
    assert {change.template.id: change.before.label for change in found.changed} == dict.fromkeys(
        (1, 2, 3), "unknown"
    )
    assert [change.after.name for change in found.changed] == [HER] * 3
    assert (found.right_before, found.right_after) == (2, 5)


def _with_threshold(gallery: Gallery, new: FacePipeline, threshold_l2: float) -> Reembedding:
    """As if the new encoder's strangers were not known: own thresholds go."""
    gallery.set_person_threshold(HER, threshold_l2)
    card = new.encoder.card
    assert card.embedding is not None
    card = replace(card, embedding=replace(card.embedding, impostors=None))
    return reembed(gallery, FacePipeline(new.detector, FaceEncoder(new.encoder._network, card)))


def test_own_thresholds_keep_their_rate_of_strangers(
    gallery: Gallery, old: FacePipeline, new: FacePipeline
) -> None:
    gallery.set_threshold(0.9)
    gallery.set_person_threshold(OTHER, 0.0)
    found = reembed(gallery, new)
    before, after = (card_identity(networks.encoder.card).impostors for networks in (old, new))
    assert before is not None
    assert after is not None
    carried = {change.person: change.after_l2 for change in found.thresholds}
    assert carried == {None: pytest.approx(after.threshold_of_same_rate(before, 0.9)), OTHER: 0.0}
    assert after.fpir(carried[None] or 0, 1) == pytest.approx(before.fpir(0.9, 1), rel=1e-6)
    assert "as many strangers" in str(found.thresholds[0])
    switch(gallery, found)
    with reopened(gallery, new) as again:
        assert again.threshold_l2 == carried[None]
        assert [person.threshold_l2 for person in again.people()] == [None, 0.0]


def test_thresholds_of_encoders_that_were_not_measured_are_dropped(
    gallery: Gallery, new: FacePipeline
) -> None:
    found = _with_threshold(gallery, new, 0.9)
    assert [(change.person, change.after_l2) for change in found.thresholds] == [(HER, None)]
    assert str(found.thresholds[0]).startswith(f"the threshold of {HER!r}, 0.900, is dropped")
    assert found.change.person_thresholds_l2 == {}


def test_faces_without_crop_and_photo_stop_the_switch(gallery: Gallery, new: FacePipeline) -> None:
    gallery.add("Ada", templates(person_vectors(1, 1)))
    gallery.remember_unknown(templates(person_vectors(2, 1)))
    found = reembed(gallery, new)
    assert [(type(e.face).__name__, e.face.id) for e in found.missing] == [
        ("Template", 6),
        ("UnknownFace", 2),
    ]
    state = gallery.state
    with pytest.raises(GalleryError, match=r"2 faces can't be encoded.*--photos-from.*--drop-missing"):
        switch(gallery, found)
    assert gallery.state == state
    assert switch(gallery, found, drop_missing=True) == 2
    with reopened(gallery, new) as again:
        assert [person.name for person in again.people()] == [HER, OTHER]
        assert [face.id for face in again.unknown_faces()] == [1]


def test_a_gallery_that_was_changed_meanwhile_stays(gallery: Gallery, new: FacePipeline) -> None:
    found = reembed(gallery, new)
    gallery.rename(OTHER, "Ada")
    with pytest.raises(GalleryError, match="was changed while"):
        switch(gallery, found)
    assert gallery.knows("Ada")


def test_the_same_encoder_is_wrong_usage(gallery: Gallery, old: FacePipeline) -> None:
    with pytest.raises(UsageError, match="holds vectors of facenet_mobilefacenet_128 already"):
        reembed(gallery, old)


def test_an_empty_gallery_of_an_unknown_encoder(new: FacePipeline, tmp_path: Path) -> None:
    with Gallery.open(tmp_path / "empty", ENCODER, create=True) as empty:
        found = reembed(empty, new)
        assert (found.encoded, found.names) == ((), ())
        switch(empty, found)
        with reopened(empty, new) as again:
            assert again.encoder.name == DEFAULT_ENCODER


def test_progress_and_json(gallery: Gallery, new: FacePipeline) -> None:
    gallery.add("Ada", templates(person_vectors(1, 1)))
    seen: list[int] = []

    def progress(faces: Iterator[object], total: int) -> Iterator[object]:
        seen.append(total)
        for face in faces:
            seen.append(1)
            yield face

    found = reembed(gallery, new, progress=progress)  # type: ignore[arg-type]
    assert seen == [7] + 7 * [1]
    record = json.loads(json.dumps(found.to_dict()))
    assert record["encoder"] == DEFAULT_ENCODER
    assert (record["templates"], record["unknown_faces"], record["from_crops"]) == (5, 1, 6)
    assert record["named_as_enrolled"] == {"before": 5, "after": 5}
    assert [(face["id"], face["person"]) for face in record["missing"]] == [(6, "Ada")]
