"""What is refused for enrollment and why, on real faces made worse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from facepipe.align import Alignment, align_faces
from facepipe.core.faces import Faces, FloatArray, UInt8Array
from facepipe.images.finding import find_photos
from facepipe.images.reading import read_image
from facepipe.quality import (
    MainFaceAssessment,
    align_or_reject,
    assess,
    assess_main_face,
    main_face,
    measure,
    sharpness,
)
from facepipe.quality_rules import EnrollRules, NamingRules, Reason

LANDMARKS = np.array(
    [[203.1, 102.8], [247.4, 104.3], [224.2, 127.7], [203.9, 143.2], [241.9, 143.4]], np.float32
)
BOX = np.array([180, 66, 269, 176], np.float32)


def faces_at(*scales_and_shifts: tuple[float, float], scores: tuple[float, ...] | None = None) -> Faces:
    boxes = np.stack([BOX * scale + shift for scale, shift in scales_and_shifts])
    landmarks = np.stack([LANDMARKS * scale + shift for scale, shift in scales_and_shifts])
    confidences = np.array(scores or (0.99,) * len(boxes), np.float32)
    return Faces(boxes.astype(np.float32), confidences, landmarks.astype(np.float32))


def reasons(assessment: MainFaceAssessment) -> list[Reason]:
    return [refusal.reason for refusal in assessment.refusals]


# Reasons


def test_a_good_portrait_is_taken(astronaut: UInt8Array) -> None:
    assessment = assess_main_face(astronaut, faces_at((1, 0)))
    assert assessment.refusals == ()
    assert assessment.face is not None
    assert assessment.face.row == 0
    measures = assessment.face.measures
    assert measures.size_px == pytest.approx(89)
    assert measures.score == pytest.approx(0.99)
    assert 0.25 < measures.sharpness < 0.6
    assert 100 < measures.brightness < 200
    assert 20 < measures.contrast < 80


def test_no_face(astronaut: UInt8Array) -> None:
    assessment = assess_main_face(astronaut, Faces.empty())
    assert reasons(assessment) == [Reason.NO_FACE]
    assert assessment.face is None


@pytest.mark.parametrize(
    ("faces", "face", "refused"),
    [
        (faces_at((1, 0), (0.49, 300)), 0, False),
        (faces_at((0.49, 300), (1, 0)), 1, False),
        (faces_at((1, 0), (0.51, 300)), 0, True),
        (faces_at((1, 0), (0.9, 300), scores=(0.99, 0.5)), 0, False),
        (faces_at((1, 0), (0.9, 300), (0.8, 200)), 0, True),
    ],
    ids=["background face", "background face first", "rival", "unlikely rival", "two rivals"],
)
def test_several_faces(astronaut: UInt8Array, faces: Faces, face: int, refused: bool) -> None:
    assessment = assess_main_face(astronaut, faces)
    assert assessment.face is not None
    assert assessment.face.row == face
    assert (Reason.SEVERAL_FACES in reasons(assessment)) == refused


def shrunk(image: UInt8Array, scale: float) -> UInt8Array:
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).astype(np.uint8)


def blurred(image: UInt8Array, sigma_px: float) -> UInt8Array:
    return cv2.GaussianBlur(image, (0, 0), sigma_px).astype(np.uint8)


def test_too_small_and_therefore_too_blurred(astronaut: UInt8Array) -> None:
    assessment = assess_main_face(shrunk(astronaut, 20 / 89), faces_at((20 / 89, 0)))
    assert reasons(assessment) == [Reason.TOO_SMALL, Reason.TOO_BLURRED]
    assert assessment.refusals[0].sentence == "face too small: 20 px, at least 32 px wanted"


def test_too_blurred(astronaut: UInt8Array) -> None:
    assessment = assess_main_face(blurred(astronaut, 3), faces_at((1, 0)))
    assert reasons(assessment) == [Reason.TOO_BLURRED]
    assert assessment.refusals[0].sentence.startswith("face too blurred: sharpness 0.0")


def test_low_score(astronaut: UInt8Array) -> None:
    assessment = assess_main_face(astronaut, faces_at((1, 0), scores=(0.61,)))
    assert reasons(assessment) == [Reason.LOW_SCORE]


def test_turned_away(astronaut: UInt8Array) -> None:
    faces = faces_at((1, 0))
    narrow = faces.landmarks.copy()
    centre = narrow[0, :, 0].mean()
    narrow[0, :, 0] = centre + 0.2 * (narrow[0, :, 0] - centre)
    assert Reason.TURNED_AWAY in reasons(assess_main_face(astronaut, replace(faces, landmarks=narrow)))


def test_rules_are_the_callers(astronaut: UInt8Array) -> None:
    strict = EnrollRules(min_score=0.999, min_size_px=90, min_sharpness=0.9)
    assert reasons(assess_main_face(astronaut, faces_at((1, 0)), strict)) == [
        Reason.LOW_SCORE,
        Reason.TOO_SMALL,
        Reason.TOO_BLURRED,
    ]
    lax = EnrollRules(min_score=0, min_size_px=0, min_sharpness=0, max_rival_size=2)
    tiny = faces_at((0.1, 0), (0.1, 20), scores=(0.1, 0.1))
    assert assess_main_face(blurred(astronaut, 9), tiny, lax).refusals == ()


@pytest.mark.parametrize("broken", [np.nan, np.inf, 0], ids=["not a number", "infinite", "one point"])
def test_landmarks_that_determine_no_alignment(astronaut: UInt8Array, broken: float) -> None:
    landmarks = np.full((1, 5, 2), broken, np.float32)
    assessment = assess_main_face(astronaut, replace(faces_at((1, 0)), landmarks=landmarks))
    assert reasons(assessment) == [Reason.NO_ALIGNMENT]
    assert assessment.face is None


def turned(
    landmarks: FloatArray, yaw_deg: float = 0, pitch_deg: float = 0, roll_deg: float = 0
) -> FloatArray:
    """Landmarks of a head of the usual depths, turned and seen from afar; (5, 2), of about the same size."""
    depths = np.array([0, 0, -0.41, -0.03, -0.03]) * 44
    (yaw, pitch, roll), centre = np.deg2rad([yaw_deg, pitch_deg, roll_deg]), landmarks.mean(axis=0)
    x, y, z = np.column_stack([landmarks - centre, depths]).T
    y, z = y * np.cos(pitch) - z * np.sin(pitch), y * np.sin(pitch) + z * np.cos(pitch)
    x = x * np.cos(yaw) + z * np.sin(yaw)
    x, y = x * np.cos(roll) - y * np.sin(roll), x * np.sin(roll) + y * np.cos(roll)
    points: FloatArray = (np.column_stack([x, y]) + centre).astype(np.float32)
    return points


@pytest.mark.parametrize(
    ("turn", "reason", "said"),
    [
        ({"yaw_deg": 62.0}, Reason.TURNED_AWAY, "at most 60 degrees wanted"),
        ({"yaw_deg": -62.0}, Reason.TURNED_AWAY, "at most 60 degrees wanted"),
        ({"pitch_deg": 40.0}, Reason.LOOKING_UP_OR_DOWN, "looking down"),
        ({"pitch_deg": -55.0}, Reason.LOOKING_UP_OR_DOWN, "looking up"),
        ({"roll_deg": 55.0}, Reason.TILTED, "head tilted: 5"),
        ({"roll_deg": -55.0}, Reason.TILTED, "head tilted: "),
    ],
)
def test_heads_that_look_elsewhere(
    astronaut: UInt8Array, turn: dict[str, float], reason: Reason, said: str
) -> None:
    faces = replace(faces_at((1, 0)), landmarks=turned(LANDMARKS, **turn)[None])
    assessment = assess_main_face(astronaut, faces, EnrollRules(max_misfit=1.0, min_sharpness=0))
    assert reasons(assessment) == [reason]
    assert said in assessment.refusals[0].sentence


@pytest.mark.parametrize(
    ("level", "contrast", "wanted"),
    [
        (18, 0.15, {Reason.TOO_DARK, Reason.LOW_CONTRAST}),
        (230, 0.5, {Reason.TOO_BRIGHT}),
        (128, 0.1, {Reason.LOW_CONTRAST}),
        (128, 0.5, set()),
        (60, 0.5, set()),
        (190, 0.5, set()),
    ],
)
def test_light(astronaut: UInt8Array, level: float, contrast: float, wanted: set[Reason]) -> None:
    face = astronaut[80:170, 180:270].mean()
    lit = np.clip((astronaut - face) * contrast + level, 0, 255).astype(np.uint8)
    assert set(reasons(assess_main_face(lit, faces_at((1, 0)), EnrollRules(min_sharpness=0)))) == wanted


def test_the_codes_are_stable() -> None:
    assert {reason.value for reason in Reason} == {
        "no_face",
        "several_faces",
        "low_score",
        "too_small",
        "too_blurred",
        "turned_away",
        "no_alignment",
        "looking_up_or_down",
        "tilted",
        "too_dark",
        "too_bright",
        "low_contrast",
        "drawn",
    }


# The face that a photo is of


@pytest.mark.parametrize(
    ("scores", "face", "refused"),
    [
        ((0.99, 0.99), 1, [Reason.SEVERAL_FACES]),
        ((0.99, 0.5), 0, []),
        ((0.5, 0.99), 1, []),
        ((0.6, 0.5), 1, [Reason.LOW_SCORE]),
    ],
    ids=[
        "the larger",
        "not what is hardly a face",
        "the larger, which is sure",
        "the larger of the doubtful",
    ],
)
def test_the_largest_face_that_is_surely_one_is_meant(
    astronaut: UInt8Array, scores: tuple[float, float], face: int, refused: list[Reason]
) -> None:
    faces = faces_at((0.9, 20), (1, 0), scores=scores)
    assessment = assess_main_face(astronaut, faces)
    assert assessment.face is not None
    assert assessment.face.row == face
    assert assessment.face.measures.score == pytest.approx(scores[face])
    assert assessment.face.measures.size_px == pytest.approx(float(faces.sizes_px[face]))
    assert [reason for reason in reasons(assessment) if reason is not Reason.TOO_BLURRED] == refused


def test_who_is_sure_depends_on_the_rules(astronaut: UInt8Array) -> None:
    faces = faces_at((0.9, 20), (1, 0), scores=(0.99, 0.7))
    assert main_face(faces, EnrollRules().min_score) == 0
    assert main_face(faces, 0.6) == 1
    assessment = assess_main_face(astronaut, faces, EnrollRules(min_score=0.6))
    assert assessment.face is not None
    assert assessment.face.row == 1


# Good enough to be named


def compared(photo: UInt8Array, faces: Faces, rules: NamingRules | None = None) -> list[bool]:
    assessment = assess(photo, faces, rules)
    assert len(assessment.crops) == assessment.reasons.count(None)
    return [reason is None for reason in assessment.reasons]


def test_good_faces_are_compared_row_by_row(astronaut: UInt8Array) -> None:
    faces = faces_at((1, 0), (1, 0), (0.2, 150), (1, 0), scores=(0.99, 0.79, 0.99, 0.81))
    assert compared(astronaut, faces) == [True, False, False, True]
    assert compared(astronaut, Faces.empty()) == []
    assert assess(astronaut, Faces.empty()).crops.shape == (0, 112, 112, 3)


@pytest.mark.parametrize(
    ("rules", "passes"),
    [
        (NamingRules(), True),
        (NamingRules(min_score=0.995), False),
        (NamingRules(min_size_px=90), False),
        (NamingRules(min_sharpness=0.6), False),
        (NamingRules(min_score=0, min_size_px=0, min_sharpness=0), True),
    ],
    ids=["default", "score", "size", "sharpness", "none"],
)
def test_naming_rules_are_the_callers(astronaut: UInt8Array, rules: NamingRules, passes: bool) -> None:
    assert compared(astronaut, faces_at((1, 0)), rules) == [passes]


def test_a_blurred_face_is_not_compared(astronaut: UInt8Array) -> None:
    faces = faces_at((1, 0))
    assert compared(astronaut, faces) == [True]
    assert compared(blurred(astronaut, 3), faces) == [False]


def test_less_is_asked_for_naming_than_for_enrollment() -> None:
    """A face that may be learned may also be named."""
    naming, enrolling = NamingRules(), EnrollRules()
    assert naming.min_score <= enrolling.min_score
    assert naming.min_size_px <= enrolling.min_size_px
    assert naming.min_sharpness <= enrolling.min_sharpness
    assert naming.max_misfit >= enrolling.max_misfit


def test_why_a_face_is_not_compared(astronaut: UInt8Array) -> None:
    faces = faces_at((1, 0), (1, 0), (1, 0), (0.2, 0), (1, 0), scores=(0.99, 0.5, 0.99, 0.99, 0.99))
    landmarks = faces.landmarks.copy()
    landmarks[2] = 7
    landmarks[4] = turned(LANDMARKS, yaw_deg=75)
    faces = replace(faces, landmarks=landmarks)
    expected = [None, Reason.LOW_SCORE, Reason.NO_ALIGNMENT, Reason.TOO_SMALL, Reason.TURNED_AWAY]
    found = align_or_reject(faces, NamingRules())
    assert [None if isinstance(reason, Alignment) else reason for reason in found] == expected
    assert compared(astronaut, faces) == [True, False, False, False, False]


def test_faces_are_measured_for_enrollment_one_by_one(astronaut: UInt8Array) -> None:
    faces = faces_at((1, 0), (1, 0), (1, 0), scores=(0.99, 0.99, 0.79))
    crop = align_faces(astronaut, LANDMARKS[None])
    alignments = [Alignment.fit(LANDMARKS)] * 3
    measures = measure(np.concatenate([crop, np.stack([blurred(crop[0], 2)]), crop]), faces, alignments)
    alone = assess_main_face(astronaut, faces.select([0])).face
    assert alone is not None
    assert measures[0] == alone.measures
    assert [face.is_enrollable() for face in measures] == [True, False, False]
    assert measures[2].is_enrollable(EnrollRules(min_score=0.7))
    assert measure(crop[:0], Faces.empty(), []) == []
    assert assess(astronaut, faces).enrollable.tolist() == [True, True, False]


def test_crops_are_of_the_wanted_template_and_size(astronaut: UInt8Array) -> None:
    faces, crop = faces_at((1, 0), (1, 0), scores=(0.5, 0.99)), ("facenet_160", 160)
    expected = align_faces(astronaut, LANDMARKS[None], *crop)
    assert np.array_equal(assess(astronaut, faces, crop=crop).crops, expected)
    main = assess_main_face(astronaut, faces, crop=crop).face
    assert main is not None
    assert np.array_equal(main.crop, expected[0])


# Sharpness


@pytest.fixture(scope="module")
def crop(astronaut: UInt8Array) -> UInt8Array:
    aligned: UInt8Array = align_faces(astronaut, LANDMARKS[None])[0]
    return aligned


def measured(crop: npt.NDArray[np.generic]) -> float:
    return float(sharpness(crop.astype(np.uint8)[None])[0])


def test_sharpness_falls_with_every_blur(crop: UInt8Array) -> None:
    values = [measured(crop), *(measured(blurred(crop, sigma)) for sigma in (0.7, 1, 1.5, 2, 3, 5))]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.1


@pytest.mark.parametrize("contrast", [0.3, 0.6])
def test_contrast_and_brightness_hardly_matter(crop: UInt8Array, contrast: float) -> None:
    assert measured(crop * contrast) == pytest.approx(measured(crop), abs=0.06)
    assert measured(crop * contrast + 100) == pytest.approx(measured(crop), abs=0.06)


@pytest.mark.parametrize("direction", ["across", "down", "diagonal", "other diagonal"])
def test_motion_in_any_direction_is_blur(crop: UInt8Array, direction: str) -> None:
    path = np.eye(11, dtype=np.float32) / np.float32(11)
    kernels: dict[str, FloatArray] = {
        "across": np.full((1, 11), 1 / 11, np.float32),
        "down": np.full((11, 1), 1 / 11, np.float32),
        "diagonal": path,
        "other diagonal": path[::-1].copy(),
    }
    assert measured(cv2.filter2D(crop, -1, kernels[direction])) < EnrollRules().min_sharpness


def test_only_the_face_counts_and_not_the_black_beyond_the_photo(crop: UInt8Array) -> None:
    soft = blurred(crop, 3)
    framed = soft.copy()
    framed[:20], framed[:, :16], framed[:, 96:] = 0, 255, 0
    assert measured(framed) == pytest.approx(measured(soft), abs=0.02)


@pytest.mark.parametrize("gray", [0, 128, 255])
def test_one_colour_is_not_sharp(gray: int) -> None:
    assert measured(np.full((112, 112, 3), gray)) == 0.0


def test_shapes() -> None:
    assert sharpness(np.zeros((0, 112, 112, 3), np.uint8)).shape == (0,)
    assert sharpness(np.zeros((3, 112, 112, 3), np.uint8)).dtype == np.float32
    with pytest.raises(ValueError, match=r"expected crops of shape \(n, 112, 112, 3\), got \(2, 96, 96, 3\)"):
        sharpness(np.zeros((2, 96, 96, 3), np.uint8))


# The default thresholds on real photos


def largest_face(detector: cv2.FaceDetectorYN, photo: UInt8Array) -> tuple[FloatArray, float] | None:
    """Landmarks (5, 2) and shorter side of the largest face, by an independent detector."""
    canvas = np.zeros((640, 640, 3), np.uint8)
    canvas[: photo.shape[0], : photo.shape[1]] = photo[..., ::-1]
    _, rows = detector.detect(canvas)
    if rows is None:
        return None
    row = rows[rows[:, 2].argmax()]
    landmarks: FloatArray = row[4:14].reshape(5, 2).astype(np.float32)
    return landmarks, float(row[2:4].min())


def test_the_default_sharpness_separates_real_faces_from_their_blurred_copies(shared_data: Path) -> None:
    weights = shared_data / "weights" / "yunet_n_640.onnx"
    detector = cv2.FaceDetectorYN.create(str(weights), "", (640, 640), 0.6)
    kept, soft, tiny = [], [], []
    for path in find_photos([shared_data / "photos" / "people" / "enroll"])[::2]:
        photo = read_image(path)
        if max(photo.shape) > 640 or (found := largest_face(detector, photo)) is None:
            continue
        landmarks, size_px = found
        crop = align_faces(photo, landmarks[None])[0]
        scale = np.float32(20 / size_px)
        kept.append(measured(crop))
        soft.append(measured(blurred(crop, 2)))
        tiny.append(measured(align_faces(shrunk(photo, float(scale)), landmarks[None] * scale)[0]))
    assert len(kept) >= 20
    limit = EnrollRules().min_sharpness
    assert np.mean(np.array(kept) >= limit) > 0.97
    assert np.mean(np.array(soft) < limit) > 0.97
    assert np.mean(np.array(tiny) < limit) > 0.9
