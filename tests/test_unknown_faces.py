"""Unknown faces: kept when asked, grouped, named together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from gallery_helpers import ENCODER, person_vectors, photo_hash
from pipeline_helpers import shifted

from facepipe.core.errors import GalleryError, UsageError
from facepipe.core.faces import Faces, Match, UInt8Array
from facepipe.detector import DetectorOptions
from facepipe.gallery import Gallery, NewTemplate
from facepipe.images.reading import read_image, write_image
from facepipe.pipeline import FacePipeline, PhotoResult
from facepipe.runtime.engines import RuntimeChoice
from facepipe.unknown_faces import enroll_group, remember_unknown, remembering_unknown, unknown_groups


@pytest.fixture
def crowd(tmp_path: Path) -> Iterator[Gallery]:
    """Unknown faces: ids 1 to 6 of one person, 7 to 9 of a second, 10 of a third."""
    with Gallery.open(tmp_path / "crowd", ENCODER, create=True) as gallery:
        for seed, count in ((0, 6), (1, 3), (2, 1)):
            vectors = person_vectors(seed, count)
            gallery.remember_unknown(
                [
                    NewTemplate(vector, f"{seed}-{i}.jpg", photo_sha256=photo_hash(f"{seed}-{i}"))
                    for i, vector in enumerate(vectors)
                ]
            )
        yield gallery


def sizes(gallery: Gallery, distance: float | None = None) -> dict[int, int]:
    return {group.id: len(group.faces) for group in unknown_groups(gallery, distance)}


# Groups


def test_groups_are_people_and_a_face_alone_is_none(crowd: Gallery) -> None:
    assert sizes(crowd) == {1: 6, 7: 3}


def test_the_most_typical_face_comes_first(crowd: Gallery) -> None:
    faces = unknown_groups(crowd)[0].faces
    vectors = np.stack([face.embedding for face in faces])
    distances = np.linalg.norm(vectors - vectors.mean(axis=0), axis=1)
    assert distances[0] == distances.min()
    assert distances[-1] == distances.max()


def test_a_group_becomes_a_person_and_the_others_keep_their_numbers(crowd: Gallery) -> None:
    assert len(enroll_group(crowd, 1, "Ada")) == 6
    assert [(person.name, person.template_count) for person in crowd.people()] == [("Ada", 6)]
    assert sizes(crowd) == {7: 3}
    assert crowd.match(person_vectors(0, 7)[6:])[0].name == "Ada"
    with pytest.raises(GalleryError, match="no group 1 of unknown faces"):
        enroll_group(crowd, 1, "Ada")


@pytest.mark.parametrize("group", [2, 10, 99])
def test_a_number_of_no_group(crowd: Gallery, group: int) -> None:
    with pytest.raises(GalleryError, match=f"no group {group}"):
        enroll_group(crowd, group, "Ada")
    assert crowd.people() == []


def test_the_distance_is_the_callers(crowd: Gallery) -> None:
    assert sizes(crowd, 0.1) == {}
    assert sizes(crowd, 1.6) == {1: 10}
    for wrong in (-0.1, 2.1, float("nan")):
        with pytest.raises(UsageError, match="distance"):
            unknown_groups(crowd, wrong)


def test_nobody_unknown(tmp_path: Path) -> None:
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        assert unknown_groups(gallery) == []


def test_a_group_as_json(crowd: Gallery) -> None:
    record = json.loads(unknown_groups(crowd)[1].to_json())
    assert record["id"] == 7
    assert sorted(face["source"] for face in record["faces"]) == ["1-0.jpg", "1-1.jpg", "1-2.jpg"]
    assert list(record["faces"][0]) == ["id", "source", "box_xyxy", "photo_sha256", "added_at"]


# What is kept


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FacePipeline]:
    folder = tmp_path_factory.mktemp("unknown") / "gallery"
    with FacePipeline.load(
        folder,
        create_gallery=True,
        options=DetectorOptions(score_threshold=0.8),
        runtime=RuntimeChoice("onnx", "cpu", 1),
    ) as opened:
        yield opened


def test_unknown_faces_of_identified_photos(
    pipeline: FacePipeline, astronaut: UInt8Array, tmp_path: Path
) -> None:
    """She is nobody's at first; three photos of her make a group, and then a person."""
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        write_image(path, shifted(astronaut, 10 * i))
    assert pipeline.gallery is not None
    gallery = pipeline.gallery
    list(pipeline.identify_files(paths))
    assert gallery.unknown_faces() == []  # Nothing is kept unless asked.
    results = list(remembering_unknown(pipeline, pipeline.identify_files(paths), keep_crops=True))
    assert [result.path for result in results] == paths
    faces = gallery.unknown_faces()
    assert [face.source for face in faces] == [str(path.resolve()) for path in paths]
    crop = gallery.unknown_crop(faces[0].id)
    assert crop is not None
    np.testing.assert_allclose(
        pipeline.encoder.encode(read_image(crop)[None])[0], faces[0].embedding, atol=1e-4
    )
    list(remembering_unknown(pipeline, pipeline.identify_files(paths)))
    assert len(gallery.unknown_faces()) == 3  # The same photos again are nothing new.
    (group,) = unknown_groups(gallery)
    enroll_group(gallery, group.id, "Eileen Collins")
    assert gallery.unknown_faces() == []
    faces_now = pipeline.identify(astronaut)
    assert faces_now.matches is not None
    assert [match.name for match in faces_now.matches] == ["Eileen Collins"]
    assert remember_unknown(gallery, results[0], pipeline.encoder) >= 0


def test_what_enrollment_would_refuse_is_not_remembered(
    pipeline: FacePipeline, astronaut: UInt8Array, tmp_path: Path
) -> None:
    """A soft face is compared, and nobody's; made a person with its group, it would be a template."""
    sharp, soft = tmp_path / "sharp.png", tmp_path / "soft.png"
    write_image(sharp, astronaut)
    write_image(soft, cv2.GaussianBlur(astronaut, (0, 0), 1.8).astype(np.uint8))
    assert pipeline.gallery is not None
    with Gallery.open(tmp_path / "g", pipeline.gallery.encoder, create=True) as gallery:
        strangers = FacePipeline(pipeline.detector, pipeline.encoder, gallery)
        results = list(remembering_unknown(strangers, strangers.identify_files([sharp, soft])))
        for result, good in zip(results, (True, False), strict=True):
            assert result.faces is not None
            assert [match.reason for match in result.faces.matches or ()] == ["nobody_near"]
            np.testing.assert_array_equal(result.faces.enrollable, [good])
        assert [face.source for face in gallery.unknown_faces()] == [str(sharp.resolve())]


MATCHES = [
    (Match(None, 1.3, 1.0, reason="nobody_near"), True),
    (Match(None, 0.8, 1.0, reason="taken"), True),
    (Match("Ada", 0.5, 1.0), False),
    (Match(None, 0.9, 1.0, candidate_name="Ada", reason="between_people"), False),
    (Match(None, None, 1.0, reason="too_blurred"), False),
    (Match(None, None, 1.0, reason="no_alignment"), False),
]


@pytest.mark.parametrize(("match", "kept"), MATCHES, ids=[str(match.reason) for match, _ in MATCHES])
def test_only_faces_that_were_compared_and_are_nobodys(
    pipeline: FacePipeline, astronaut: UInt8Array, tmp_path: Path, match: Match, kept: bool
) -> None:
    with Gallery.open(tmp_path / "g", pipeline.gallery.encoder, create=True) as gallery:  # type: ignore[union-attr]
        write_image(tmp_path / "her.png", astronaut)
        faces = pipeline.embed(astronaut).with_matches([match]).with_enrollable(np.array([True]))
        result = PhotoResult(tmp_path / "her.png", astronaut, faces)
        assert remember_unknown(gallery, result, pipeline.encoder) == int(kept)
        assert len(gallery.unknown_faces()) == int(kept)


def test_photos_without_faces_and_those_that_failed(pipeline: FacePipeline) -> None:
    assert pipeline.gallery is not None
    for result in (
        PhotoResult(Path("a.jpg"), error="a.jpg: the file is empty"),
        PhotoResult(Path("a.jpg"), np.zeros((9, 9, 3), np.uint8), Faces.empty().with_matches([])),
    ):
        assert remember_unknown(pipeline.gallery, result, pipeline.encoder) == 0
