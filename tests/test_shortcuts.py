"""The common jobs in one call, and `facepipe verify`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import facepipe as run
from PIL import Image
from pipeline_helpers import shifted, side_by_side
from video_helpers import write_video

import facepipe
from facepipe.core.errors import PhotoError, UsageError
from facepipe.core.faces import UInt8Array
from facepipe.images.reading import write_image
from facepipe.pipeline import FacePipeline


@pytest.fixture(scope="module")
def pipeline() -> FacePipeline:
    return FacePipeline.load()


@pytest.fixture(scope="module")
def portrait(tmp_path_factory: pytest.TempPathFactory, astronaut: UInt8Array) -> Path:
    path = tmp_path_factory.mktemp("photos") / "portrait.png"
    write_image(path, astronaut)
    return path


@pytest.fixture(scope="module")
def stranger(shared_data: Path) -> Path:
    """A photo of somebody else."""
    return sorted((shared_data / "photos" / "people" / "enroll").glob("*/*"))[0]


def test_a_person_is_the_same_in_another_photo_of_any_kind(
    pipeline: FacePipeline, portrait: Path, astronaut: UInt8Array
) -> None:
    moved = shifted(astronaut, 20)
    for second in (moved, Image.fromarray(moved), str(portrait), portrait.read_bytes()):
        found = facepipe.verify(portrait, second, pipeline=pipeline)
        assert found.same_person
        assert found.distance_l2 < 0.5 < found.threshold_l2
        assert found.comparisons == 1
        assert found.strangers_share is not None
        assert 0 <= found.strangers_share < 1e-6


def test_people_are_told_apart(pipeline: FacePipeline, portrait: Path, stranger: Path) -> None:
    found = facepipe.verify(portrait, stranger, pipeline=pipeline)
    assert not found.same_person
    assert found.distance_l2 > found.threshold_l2
    assert found.strangers_share is not None
    assert found.strangers_share > 0.001


def test_of_several_faces_the_nearest_count_and_the_threshold_allows_for_all_comparisons(
    pipeline: FacePipeline, portrait: Path, astronaut: UInt8Array
) -> None:
    four_faces = side_by_side(side_by_side(astronaut))
    several = facepipe.verify(four_faces, four_faces, pipeline=pipeline)
    alone = facepipe.verify(portrait, portrait, pipeline=pipeline)
    assert several.comparisons == 16
    assert several.distance_l2 == pytest.approx(0, abs=1e-3)
    assert several.threshold_l2 < alone.threshold_l2
    np.testing.assert_allclose(several.first.box_xyxy, several.second.box_xyxy, atol=1e-3)


def test_an_asked_for_threshold_decides(
    pipeline: FacePipeline, portrait: Path, astronaut: UInt8Array
) -> None:
    moved = shifted(astronaut, 20)
    distance_l2 = facepipe.verify(portrait, moved, pipeline=pipeline).distance_l2
    assert not facepipe.verify(portrait, moved, threshold_l2=distance_l2 / 2, pipeline=pipeline).same_person
    with pytest.raises(UsageError, match=r"0\.\.2|between 0 and 2"):
        facepipe.verify(portrait, moved, threshold_l2=2.5, pipeline=pipeline)


def test_a_photo_without_a_usable_face_is_named(
    tmp_path: Path, pipeline: FacePipeline, portrait: Path
) -> None:
    write_image(tmp_path / "wall.png", np.full((80, 80, 3), 90, np.uint8))
    with pytest.raises(PhotoError, match=r"wall\.png: no face that is good enough"):
        facepipe.verify(portrait, tmp_path / "wall.png", pipeline=pipeline)


def test_represent_gives_vectors(pipeline: FacePipeline, portrait: Path) -> None:
    faces = facepipe.represent(portrait, pipeline=pipeline)
    assert faces.embeddings is not None
    assert faces.embeddings.shape == (1, 128)
    assert faces[0].embedding is not None


def test_find_gives_the_photos_of_a_person_nearest_first(
    tmp_path: Path, pipeline: FacePipeline, portrait: Path, astronaut: UInt8Array, stranger: Path
) -> None:
    (tmp_path / "deep").mkdir()
    write_image(tmp_path / "deep" / "same.png", astronaut)
    write_image(tmp_path / "moved.png", shifted(astronaut, 20))
    (tmp_path / "other.webp").write_bytes(stranger.read_bytes())
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xffnothing")
    found = facepipe.find(portrait, tmp_path, pipeline=pipeline)
    assert [one.path.name for one in found] == ["same.png", "moved.png"]
    assert found[0].distance_l2 == pytest.approx(0, abs=1e-3)
    assert all(one.distance_l2 <= one.threshold_l2 for one in found)
    assert facepipe.find(portrait, tmp_path, threshold_l2=0.01, pipeline=pipeline)[0].path.name == "same.png"


def test_the_default_networks_are_loaded_once(portrait: Path) -> None:
    from facepipe import shortcuts

    facepipe.represent(portrait)
    facepipe.verify(portrait, portrait)
    assert shortcuts._default_pipeline.cache_info().misses == 1


def test_the_command_answers_in_words_and_as_json(portrait: Path, stranger: Path) -> None:
    same = run("verify", portrait, portrait)
    assert same.code == 0
    assert same.lines[0].startswith("the same person: distance 0.00, at most 1.1")
    assert same.lines[1].startswith("1 in ")
    different = json.loads(run("verify", "--json", portrait, stranger).out)
    assert different["same_person"] is False
    assert different["photos"] == [str(portrait), str(stranger)]
    assert len(different["boxes_xyxy"]) == 2


@pytest.mark.parametrize(("arguments", "code"), [(["--threshold", "3"], 2), ([], 1)])
def test_the_command_refuses_in_one_line(
    tmp_path: Path, portrait: Path, arguments: list[str], code: int
) -> None:
    second = portrait if arguments else tmp_path / "missing.jpg"
    said = run("verify", *arguments, portrait, second)
    assert said.code == code
    assert len(said.complaints) == 1


def test_a_video_is_named_frame_by_frame(tmp_path: Path, astronaut: UInt8Array) -> None:
    write_video(tmp_path / "film.mp4", [shifted(astronaut, 5 * number) for number in range(4)])
    (tmp_path / "people" / "Eileen").mkdir(parents=True)
    write_image(tmp_path / "people" / "Eileen" / "portrait.png", astronaut)
    with FacePipeline.load(tmp_path / "gallery", create_gallery=True) as teaching:
        list(facepipe.enroll(teaching, facepipe.photos_in_folders(tmp_path / "people")))
    seen = list(facepipe.stream(tmp_path / "gallery", str(tmp_path / "film.mp4")))
    assert [faces[0].name for _, faces in seen] == ["Eileen"] * len(seen)
    assert [frame.time_s for frame, _ in seen] == pytest.approx([0.0, 0.1, 0.2, 0.3])
