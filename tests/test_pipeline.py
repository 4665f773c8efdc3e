"""Photo in, names out, on real photos: who is named, who stays unknown, and what happens to bad photos."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from pipeline_helpers import SURE, noise, side_by_side, write_broken_photos

import facepipe.align
from facepipe.core.errors import GalleryError, LandmarkError, UsageError, WeightsError
from facepipe.core.faces import Faces, MatchStatus, UInt8Array
from facepipe.detector import DetectorOptions
from facepipe.enrollment import PersonPhoto, enroll
from facepipe.gallery import Gallery
from facepipe.gallery.ranking import PersonDistance
from facepipe.images.finding import find_photos
from facepipe.images.reading import read_image, write_image
from facepipe.pipeline import FacePipeline, NamingOptions, card_identity, process_files
from facepipe.quality import assess_main_face
from facepipe.quality_rules import NamingRules, Reason
from facepipe.runtime.engines import RuntimeChoice
from facepipe.weights.registry import DEFAULT_DETECTOR, DEFAULT_ENCODER, load_card

HER = "Eileen Collins"
ONE_THREAD = RuntimeChoice("onnx", "cpu", 1)


@pytest.fixture(scope="module")
def knows_her(tmp_path_factory: pytest.TempPathFactory, astronaut: UInt8Array) -> Iterator[FacePipeline]:
    """A pipeline whose gallery has one person."""
    folder = tmp_path_factory.mktemp("pipeline")
    write_image(folder / "her.png", astronaut)
    with FacePipeline.load(
        folder / "gallery",
        create_gallery=True,
        options=DetectorOptions(score_threshold=SURE),
        runtime=ONE_THREAD,
    ) as pipeline:
        (report,) = enroll(pipeline, [PersonPhoto(HER, folder / "her.png")])
        assert report.outcome.value == "enrolled"
        yield pipeline


def names(faces: Faces) -> list[str | None]:
    assert faces.matches is not None
    return [match.name for match in faces.matches]


# One photo


def test_a_face_goes_all_the_way(knows_her: FacePipeline, astronaut: UInt8Array) -> None:
    faces = knows_her.identify(astronaut)
    assert names(faces) == [HER]
    assert faces.matches is not None
    assert faces.embeddings is not None
    assert faces.matches[0].distance_l2 == pytest.approx(0, abs=1e-3)
    assert knows_her.gallery is not None
    assert faces.matches[0].threshold_l2 == knows_her.gallery.default_threshold_l2
    assert faces.matches[0].runner_up_name is None
    np.testing.assert_allclose(np.linalg.norm(faces.embeddings, axis=1), 1, atol=1e-5)


def altered(photo: UInt8Array, how: str) -> UInt8Array:
    match how:
        case "mirrored":
            return np.ascontiguousarray(photo[:, ::-1])
        case "darker":
            return photo // 2
        case "gray":
            return cv2.cvtColor(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB).astype(np.uint8)
        case "small":
            return cv2.resize(photo, (256, 256), interpolation=cv2.INTER_AREA).astype(np.uint8)
        case "large":
            return cv2.resize(photo, (2000, 2000), interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    raise AssertionError(how)


@pytest.mark.parametrize("how", ["mirrored", "darker", "gray", "small", "large"])
def test_she_is_known_in_altered_photos(knows_her: FacePipeline, astronaut: UInt8Array, how: str) -> None:
    assert HER in names(knows_her.identify(altered(astronaut, how)))


def test_a_photo_without_faces(knows_her: FacePipeline) -> None:
    faces = knows_her.identify(noise(0, 90, 120))
    assert len(faces) == 0
    assert faces.matches == ()


def test_a_person_is_in_a_photo_once_unless_asked_otherwise(
    knows_her: FacePipeline, astronaut: UInt8Array
) -> None:
    twins = side_by_side(astronaut)
    once = knows_her.identify(twins)
    assert sorted(names(once), key=str) == [HER, None]
    assert once.matches is not None
    loser = once.matches[names(once).index(None)]
    assert loser.distance_l2 is not None
    assert loser.distance_l2 < loser.threshold_l2
    assert names(knows_her.identify(twins, options=NamingOptions(one_person_per_photo=False))) == [HER, HER]


@pytest.mark.parametrize("how", ["small", "blurred", "rules"])
def test_a_face_that_is_not_good_enough_is_not_compared(
    knows_her: FacePipeline, astronaut: UInt8Array, how: str
) -> None:
    photo, rules = astronaut, NamingRules(min_score=0)
    if how == "small":
        photo = cv2.resize(astronaut, (120, 120), interpolation=cv2.INTER_AREA).astype(np.uint8)
    elif how == "blurred":
        photo = cv2.GaussianBlur(astronaut, (0, 0), 3).astype(np.uint8)
    else:
        rules = NamingRules(min_size_px=400)
    faces = knows_her.identify(photo, rules=rules)
    assert len(faces) == 1
    assert faces.matches is not None
    match = faces.matches[0]
    assert (match.name, match.distance_l2, match.runner_up_name) == (None, None, None)
    assert match.reason == ("too_blurred" if how == "blurred" else "too_small")
    assert knows_her.gallery is not None
    assert match.threshold_l2 == knows_her.gallery.default_threshold_l2
    assert faces.embeddings is not None
    assert np.isnan(faces.embeddings).all()


def test_a_soft_photo_is_named_though_it_would_not_be_learned(
    knows_her: FacePipeline, astronaut: UInt8Array
) -> None:
    photo = cv2.GaussianBlur(altered(astronaut, "darker"), (0, 0), 1.8).astype(np.uint8)
    faces = knows_her.identify(photo)
    assert [refusal.reason for refusal in assess_main_face(photo, faces).refusals] == [Reason.TOO_BLURRED]
    assert names(faces) == [HER]


def test_the_threshold_decides(knows_her: FacePipeline, astronaut: UInt8Array) -> None:
    mirrored = altered(astronaut, "darker")
    faces = knows_her.identify(mirrored, options=NamingOptions(0))
    assert names(faces) == [None]
    assert faces.matches is not None
    distance = faces.matches[0].distance_l2
    assert distance is not None
    assert 0 < distance < 1
    assert names(knows_her.identify(mirrored, options=NamingOptions(distance))) == [HER]
    assert names(knows_her.identify(mirrored, options=NamingOptions(2))) == [HER]


def test_a_face_between_two_people_is_nobodys(astronaut: UInt8Array, tmp_path: Path) -> None:
    """The same face was learned under two names: who is it?"""
    write_image(tmp_path / "her.png", astronaut)
    with FacePipeline.load(tmp_path / "g", create_gallery=True, runtime=ONE_THREAD) as pipeline:
        list(enroll(pipeline, [PersonPhoto(name, tmp_path / "her.png") for name in (HER, "Her twin")]))
        unsure = pipeline.identify(astronaut)
        assert not any(names(unsure))
        assert unsure.matches is not None
        assert unsure.matches[0].status is MatchStatus.UNSURE
        both = {unsure.matches[0].candidate_name, unsure.matches[0].runner_up_name}
        assert both == {HER, "Her twin"}
        assert unsure.matches[0].distance_l2 == pytest.approx(0, abs=1e-3)
        assert any(names(pipeline.identify(astronaut, options=NamingOptions(min_margin_l2=0))))


@pytest.mark.parametrize("threshold", [-0.1, 2.01, 100, float("nan"), float("inf")])
def test_a_threshold_that_unit_vectors_cant_have_is_refused(
    knows_her: FacePipeline, astronaut: UInt8Array, threshold: float
) -> None:
    with pytest.raises(UsageError, match=r"threshold: expected 0\.\.2"):
        knows_her.identify(astronaut, options=NamingOptions(threshold_l2=threshold))
    with pytest.raises(UsageError, match=r"threshold: expected 0\.\.2"):
        knows_her.identify_files([], options=NamingOptions(threshold_l2=threshold))


def test_without_a_measured_threshold_one_must_be_given(
    knows_her: FacePipeline, astronaut: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert knows_her.gallery is not None
    unmeasured = replace(knows_her.gallery.encoder, threshold_l2=0.0, impostors=None)
    monkeypatch.setattr(knows_her.gallery, "encoder", unmeasured)
    with pytest.raises(UsageError, match="has no measured threshold: give one"):
        knows_her.identify(astronaut)
    assert names(knows_her.identify(astronaut, options=NamingOptions(1.0))) == [HER]


def test_one_face_that_cant_be_aligned_spoils_no_photo(
    knows_her: FacePipeline, astronaut: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = knows_her.detect(astronaut)
    twice = found.select([0, 0])
    landmarks = twice.landmarks.copy()
    landmarks[1] = 7
    monkeypatch.setattr(knows_her.detector, "detect", lambda photo: replace(twice, landmarks=landmarks))
    faces = knows_her.identify(astronaut)
    assert faces.matches is not None
    assert [(match.name, match.reason) for match in faces.matches] == [(HER, None), (None, "no_alignment")]
    embedded = knows_her.embed(astronaut).embeddings
    assert embedded is not None
    assert np.isnan(embedded).all(axis=1).tolist() == [False, True]


def test_a_face_is_warped_once(
    knows_her: FacePipeline, astronaut: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    warp = Mock(wraps=facepipe.align._warp)
    monkeypatch.setattr(facepipe.align, "_warp", warp)
    assert names(knows_her.identify(astronaut)) == [HER]
    assert warp.call_count == 1


@pytest.mark.parametrize("measure", PersonDistance)
def test_any_distance_to_a_person_may_be_asked_for(
    knows_her: FacePipeline, astronaut: UInt8Array, measure: PersonDistance
) -> None:
    assert names(
        knows_her.identify(altered(astronaut, "mirrored"), options=NamingOptions(person_distance=measure))
    ) == [HER]


# Opening


def test_without_a_gallery_faces_are_found_and_encoded(astronaut: UInt8Array) -> None:
    pipeline = FacePipeline.load(options=DetectorOptions(score_threshold=SURE), runtime=ONE_THREAD)
    assert len(pipeline.detect(astronaut)) == 1
    embedded = pipeline.embed(astronaut)
    assert embedded.embeddings is not None
    with pytest.raises(UsageError, match="without a gallery"):
        pipeline.identify(astronaut)
    with pytest.raises(UsageError, match="without a gallery"):
        pipeline.identify_files([])
    pipeline.close()


def test_a_missing_gallery_is_made_only_when_asked(tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match="there is no gallery"):
        FacePipeline.load(tmp_path / "g", runtime=ONE_THREAD)
    assert not (tmp_path / "g").exists()
    FacePipeline.load(tmp_path / "g", create_gallery=True, runtime=ONE_THREAD).close()
    assert (tmp_path / "g").is_dir()


def test_a_gallery_of_another_encoder_is_refused(tmp_path: Path) -> None:
    other = replace(card_identity(load_card(DEFAULT_ENCODER).card), name="other", fingerprint="0" * 16)
    Gallery.open(tmp_path / "g", other, create=True).close()
    with pytest.raises(GalleryError, match="can't be compared"):
        FacePipeline.load(tmp_path / "g", runtime=ONE_THREAD)


def test_a_wrong_weight_leaves_no_gallery_behind(tmp_path: Path) -> None:
    with pytest.raises(WeightsError):
        FacePipeline.load(tmp_path / "g", create_gallery=True, detector_weights="nonsense")
    with pytest.raises(WeightsError):
        FacePipeline.load(tmp_path / "g", create_gallery=True, encoder_weights="nonsense")
    assert not (tmp_path / "g").exists()


def test_only_encoders_bind_galleries() -> None:
    with pytest.raises(WeightsError, match="not an encoder"):
        card_identity(load_card(DEFAULT_DETECTOR).card)


def test_leaving_with_an_error_closes_the_gallery(tmp_path: Path) -> None:
    pipeline = FacePipeline.load(tmp_path / "g", create_gallery=True, runtime=ONE_THREAD)
    with pytest.raises(ZeroDivisionError), pipeline:
        raise ZeroDivisionError
    assert pipeline.gallery is not None
    with pytest.raises(GalleryError):
        pipeline.gallery.people()


# Many files


def test_a_bad_photo_does_not_stop_the_others(
    knows_her: FacePipeline, astronaut: UInt8Array, tmp_path: Path
) -> None:
    broken = dict(write_broken_photos(tmp_path, astronaut))
    write_image(tmp_path / "pixel.png", np.zeros((1, 1, 3), np.uint8))
    paths = [*broken, tmp_path / "pixel.png", tmp_path / "whole.jpg"]
    results = list(knows_her.identify_files(paths))
    assert [result.path for result in results] == paths
    for result in results[: len(broken)]:
        assert result.error is not None
        assert result.error.startswith(f"{result.path}: ")
        assert broken[result.path] in result.error
        assert result.faces is None
        assert result.photo is None
    assert results[-2].error is None
    assert results[-2].faces is not None
    assert len(results[-2].faces) == 0
    assert results[-1].faces is not None
    assert names(results[-1].faces) == [HER]
    assert results[-1].photo is not None
    assert results[-1].without_photo().photo is None


def test_results_come_while_later_files_wait(
    knows_her: FacePipeline, astronaut: UInt8Array, tmp_path: Path
) -> None:
    write_image(tmp_path / "first.png", astronaut)

    def paths() -> Iterator[Path]:
        yield tmp_path / "first.png"
        raise AssertionError("the second photo is not wanted yet")

    assert next(knows_her.identify_files(paths())).faces is not None


def test_faces_that_cant_be_aligned_are_a_photos_error(astronaut: UInt8Array, tmp_path: Path) -> None:
    write_image(tmp_path / "odd.png", astronaut)

    def step(photo: UInt8Array) -> Faces:
        raise LandmarkError("face 0: all five landmarks are in one point")

    (result,) = process_files([tmp_path / "odd.png"], step)
    assert result.error == f"{tmp_path / 'odd.png'}: face 0: all five landmarks are in one point"


def test_photos_beyond_the_limit_are_not_decoded(knows_her: FacePipeline, tmp_path: Path) -> None:
    write_image(tmp_path / "large.png", np.zeros((40, 50, 3), np.uint8))
    (result,) = knows_her.identify_files([tmp_path / "large.png"], max_pixels=1999)
    assert result.error is not None
    assert "1,999 pixels" in result.error
    (result,) = knows_her.identify_files([tmp_path / "large.png"], max_pixels=2000)
    assert result.error is None


# Real people


def test_people_are_named_and_strangers_are_not(shared_data: Path, tmp_path: Path) -> None:
    """Six people of four photos each; floors are far below what is measured on all of them."""
    folder = shared_data / "photos" / "people"
    people = sorted(p.name for p in (folder / "enroll").iterdir())[:6]
    with FacePipeline.load(tmp_path / "g", create_gallery=True, runtime=ONE_THREAD) as pipeline:
        wanted = [PersonPhoto(n, photo) for n in people for photo in find_photos([folder / "enroll" / n])]
        outcomes = [report.outcome.value for report in enroll(pipeline, wanted)]
        assert outcomes.count("enrolled") >= 0.8 * len(outcomes)
        right = wrong = 0
        for name in people:
            for photo in find_photos([folder / "probe" / "known" / name])[:3]:
                given = {n for n in names(pipeline.identify(read_image(photo))) if n}
                right += name in given
                wrong += bool(given - {name})
        strangers = sorted((folder / "probe" / "strangers").iterdir())
        named = [any(names(pipeline.identify(read_image(find_photos([person])[0])))) for person in strangers]
    assert right >= 0.5 * 3 * len(people)
    assert wrong <= 1
    assert sum(named) <= 1
