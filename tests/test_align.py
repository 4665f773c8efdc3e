"""The aligner against the closed form, and the warp against where the landmarks must land."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facepipe.align import TEMPLATES, Alignment, align_faces, fit_alignments, warp_faces
from facepipe.core.errors import LandmarkError, UsageError
from facepipe.core.faces import FloatArray, UInt8Array

Matrix = npt.NDArray[np.float64]

ASTRONAUT_LANDMARKS = np.array(
    [[[203.1, 102.8], [247.4, 104.3], [224.2, 127.7], [203.9, 143.2], [241.9, 143.4]]], np.float32
)
"""Of the portrait's one face, found with another detector."""


def umeyama(source: Matrix, target: Matrix) -> Matrix:
    """The closed form: S. Umeyama, Least-squares estimation of transformation parameters, PAMI 1991."""
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    covariance = (target - target_mean).T @ (source - source_mean) / len(source)
    u, singular, vt = np.linalg.svd(covariance)
    signs = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = u @ np.diag(signs) @ vt
    scale = (singular * signs).sum() / ((source - source_mean) ** 2).sum(axis=1).mean()
    return np.column_stack([scale * rotation, target_mean - scale * rotation @ source_mean])


def similarity(scale: float, angle_rad: float, shift: tuple[float, float], mirrored: bool = False) -> Matrix:
    cos, sin = scale * np.cos(angle_rad), scale * np.sin(angle_rad)
    matrix = np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]])
    return matrix * [-1, 1, 1] if mirrored else matrix


def moved(points: Matrix, matrix: Matrix) -> Matrix:
    return points @ matrix[:, :2].T + matrix[:, 2]


def template_points(name: str = "arcface_112") -> Matrix:
    return TEMPLATES[name].points_at(TEMPLATES[name].size_px)


def misfits(landmarks: FloatArray) -> list[float]:
    return [Alignment.fit(points).misfit for points in landmarks]


# The transform

transforms = st.builds(
    similarity,
    scale=st.floats(0.02, 50),
    angle_rad=st.floats(-np.pi, np.pi),
    shift=st.tuples(st.floats(-4000, 4000), st.floats(-4000, 4000)),
    mirrored=st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(transform=transforms, seed=st.integers(0, 2**32 - 1), noise=st.floats(0, 0.2))
def test_the_closed_form_agrees_on_random_landmarks(transform: Matrix, seed: int, noise: float) -> None:
    points = template_points()
    spread = noise * 30 * np.random.default_rng(seed).standard_normal((5, 2))
    landmarks = moved(points + spread, transform)
    matrix = Alignment.fit(landmarks).matrix
    expected = umeyama(landmarks, points)
    assert np.abs(moved(landmarks, matrix) - moved(landmarks, expected)).max() < 1e-5
    assert np.linalg.det(matrix[:, :2]) > 0
    assert np.allclose(matrix[0, :2], [matrix[1, 1], -matrix[1, 0]])


@settings(max_examples=30, deadline=None)
@given(transform=transforms.filter(lambda matrix: float(np.linalg.det(matrix[:, :2])) > 0))
def test_landmarks_of_the_templates_shape_land_on_it(transform: Matrix) -> None:
    points = template_points()
    landmarks = moved(points, transform)
    assert np.abs(moved(landmarks, Alignment.fit(landmarks).matrix) - points).max() < 1e-6


def test_no_other_similarity_fits_better() -> None:
    random = np.random.default_rng(5)
    points = template_points()
    landmarks = moved(points + random.normal(0, 3, (5, 2)), similarity(2.5, 0.4, (300, 200)))
    matrix = Alignment.fit(landmarks).matrix
    best = ((moved(landmarks, matrix) - points) ** 2).sum()
    for _ in range(200):
        cos, sin, x, y = random.normal(0, [1e-3, 1e-3, 0.3, 0.3])
        other = matrix + np.array([[cos, -sin, x], [sin, cos, y]])
        assert ((moved(landmarks, other) - points) ** 2).sum() > best


def test_mirrored_landmarks_get_the_best_transform_that_does_not_mirror() -> None:
    mirrored = template_points() * [-1, 1] + [112, 0]
    matrix = Alignment.fit(mirrored).matrix
    assert np.linalg.det(matrix[:, :2]) > 0
    assert np.allclose(matrix, umeyama(mirrored, template_points()))


def test_scikit_image_finds_the_same() -> None:
    import skimage.transform

    newer: Any = skimage.transform.SimilarityTransform
    theirs = newer.from_estimate(ASTRONAUT_LANDMARKS[0].astype(np.float64), template_points()).params[:2]
    assert np.allclose(Alignment.fit(ASTRONAUT_LANDMARKS[0]).matrix, theirs, rtol=1e-12, atol=1e-12)


DEGENERATE: dict[str, tuple[Matrix, str]] = {
    "not a number": (np.where(np.eye(5, 2) > 0, np.nan, 50.0), "not finite"),
    "infinite": (template_points() * [np.inf, 1], "not finite"),
    "all zero": (np.zeros((5, 2)), "in one point"),
    "one point": (np.full((5, 2), 77.7), "in one point"),
    "nearly one point": (template_points() * 1e-4 + 50, "in one point"),
    "larger than any photo": (template_points() * 1e9, "no alignment fits"),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_landmarks_are_a_clear_error(astronaut: UInt8Array, name: str) -> None:
    landmarks, reason = DEGENERATE[name]
    with pytest.raises(LandmarkError, match=reason):
        Alignment.fit(landmarks)
    good_and_bad = np.stack([ASTRONAUT_LANDMARKS[0], landmarks.astype(np.float32)])
    with pytest.raises(LandmarkError, match=f"face 1: .*{reason}"):
        align_faces(astronaut, good_and_bad)


def test_points_on_a_line_still_determine_a_transform() -> None:
    matrix = Alignment.fit([[0.0, 0.0], [0.0, 10.0], [0.0, 20.0], [0.0, 30.0], [0.0, 40.0]]).matrix
    assert np.linalg.det(matrix[:, :2]) > 0


@pytest.mark.parametrize("shape", [(5, 2), (1, 4, 2), (1, 10), (1, 5, 3)])
def test_landmarks_of_another_shape_are_named(astronaut: UInt8Array, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected landmarks of shape \(n, 5, 2\), got"):
        align_faces(astronaut, np.zeros(shape, np.float32))


# Templates


def test_templates_hold_five_points_inside_their_crop() -> None:
    for name, template in TEMPLATES.items():
        points = template_points(name)
        assert template.name == name
        assert template.source
        assert points.shape == (5, 2)
        assert (points > 0).all()
        assert (points < template.size_px).all()
        assert points[0, 0] < points[1, 0]
        assert points[3, 0] < points[4, 0]
        assert points[0, 1] < points[2, 1] < points[3, 1]


def test_facenet_160_is_arcface_112_with_a_margin_of_16_px(astronaut: UInt8Array) -> None:
    wide = align_faces(astronaut, ASTRONAUT_LANDMARKS, "facenet_160")[0]
    tight = align_faces(astronaut, ASTRONAUT_LANDMARKS, "arcface_112", 128)[0]
    assert wide.shape == (160, 160, 3)
    assert np.abs(wide[16:144, 16:144].astype(int) - tight).mean() < 1


def test_an_unknown_template_lists_the_known(astronaut: UInt8Array) -> None:
    with pytest.raises(UsageError, match="'arcface_1120'; known are arcface_112, facenet_160"):
        align_faces(astronaut, ASTRONAUT_LANDMARKS, "arcface_1120")


# The warp


def spots(image: UInt8Array, landmarks: FloatArray, radius: float) -> UInt8Array:
    """The photo with a soft bright spot at each landmark."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    glow = sum(np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * radius**2)) for x, y in landmarks)
    lit: UInt8Array = np.clip(image * 0.5 + 120 * np.asarray(glow)[..., None], 0, 255).astype(np.uint8)
    return lit


@pytest.mark.parametrize("angle_rad", [0.0, 0.5, -2.0])
@pytest.mark.parametrize("scale", [0.7, 1.3, 2.0, 2.9, 3.0, 5.3])
def test_landmarks_land_on_the_template(astronaut: UInt8Array, scale: float, angle_rad: float) -> None:
    photo = cv2.resize(astronaut, (1101, 903), interpolation=cv2.INTER_AREA).astype(np.uint8)
    centred = similarity(scale, angle_rad, (0, 0))
    centred[:, 2] = (550.3, 450.6) - centred[:, :2] @ (56, 56)
    landmarks = moved(template_points(), centred).astype(np.float32)[None]
    marked = align_faces(spots(photo, landmarks[0], 2.5 * scale), landmarks)[0]
    plain = align_faces(spots(photo, landmarks[0, :0], 2.5 * scale), landmarks)[0]
    glow = np.clip(marked.astype(float) - plain, 0, None).sum(axis=2)
    for x, y in template_points():
        left, top = round(x) - 7, round(y) - 7
        window = glow[top : top + 15, left : left + 15]
        rows, columns = np.mgrid[top : top + 15, left : left + 15]
        assert abs((window * columns).sum() / window.sum() - x) < 0.15
        assert abs((window * rows).sum() / window.sum() - y) < 0.15


def test_the_portrait_is_upright_after_any_turn(astronaut: UInt8Array) -> None:
    straight = align_faces(astronaut, ASTRONAUT_LANDMARKS)[0]
    turned = np.rot90(astronaut).copy()
    landmarks = np.stack([ASTRONAUT_LANDMARKS[..., 1], 511 - ASTRONAUT_LANDMARKS[..., 0]], axis=-1)
    assert np.abs(straight.astype(int) - align_faces(turned, landmarks)[0]).mean() < 1.5


def test_a_batch_equals_its_faces_one_by_one(astronaut: UInt8Array) -> None:
    random = np.random.default_rng(3)
    landmarks = ASTRONAUT_LANDMARKS + random.normal(0, 15, (12, 1, 2)).astype(np.float32)
    landmarks *= random.uniform(0.5, 1.8, (12, 1, 1)).astype(np.float32)
    batch = align_faces(astronaut, landmarks)
    assert batch.shape == (12, 112, 112, 3)
    assert batch.dtype == np.uint8
    for row in range(12):
        assert np.array_equal(batch[row], align_faces(astronaut, landmarks[row : row + 1])[0])


@pytest.mark.parametrize("size_px", [1, 96, 224])
def test_sizes(astronaut: UInt8Array, size_px: int) -> None:
    crops = align_faces(astronaut, ASTRONAUT_LANDMARKS, size_px=size_px)
    assert crops.shape == (1, size_px, size_px, 3)


def test_no_faces_give_no_crops(astronaut: UInt8Array) -> None:
    assert align_faces(astronaut, np.zeros((0, 5, 2), np.float32)).shape == (0, 112, 112, 3)


def test_the_warp_is_of_the_full_photo_and_black_outside(astronaut: UInt8Array) -> None:
    white = np.full((400, 400, 3), 255, np.uint8)
    corner = moved(template_points(), similarity(1, 0, (-40, -30))).astype(np.float32)[None]
    crop = align_faces(white, corner)[0]
    assert (crop[32:, 42:] == 255).all()
    assert (crop[:29] == 0).all()
    assert (crop[:, :39] == 0).all()
    far = corner + np.float32(10_000)
    assert not align_faces(white, far).any()
    assert not align_faces(white, corner * 4 - 2000).any()
    assert align_faces(astronaut, ASTRONAUT_LANDMARKS)[0].min(axis=2).mean() > 20


def test_the_edge_of_the_photo_is_sharp_for_large_faces_too() -> None:
    white = np.full((1603, 1601, 3), 255, np.uint8)
    landmarks = moved(template_points(), similarity(7.3, 0, (-300, 0))).astype(np.float32)[None]
    row = align_faces(white, landmarks)[0, 50, :, 0]
    edge = 300 / 7.3
    assert (row[: int(edge) - 1] == 0).all()
    assert (row[int(edge) + 2 :] == 255).all()


def supersampled(photo: UInt8Array, matrix: Matrix, times: int = 8) -> npt.NDArray[np.generic]:
    finer = np.vstack([matrix, [0, 0, 1]])
    finer = np.array([[times, 0, (times - 1) / 2], [0, times, (times - 1) / 2], [0, 0, 1]]) @ finer
    large = cv2.warpAffine(photo, finer[:2], (112 * times, 112 * times), flags=cv2.INTER_LINEAR)
    return cv2.resize(large, (112, 112), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("scale", [2.2, 3.1, 4.4])
def test_large_faces_are_averaged_and_not_aliased(astronaut: UInt8Array, scale: float) -> None:
    landmarks = moved(template_points(), similarity(scale, 0.2, (30, 5))).astype(np.float32)
    matrix = Alignment.fit(landmarks).matrix
    ideal = supersampled(astronaut, matrix).astype(float)
    plain = cv2.warpAffine(astronaut, matrix, (112, 112)).astype(float)
    ours = align_faces(astronaut, landmarks[None])[0].astype(float)
    assert ((ours - ideal) ** 2).mean() < 0.6 * ((plain - ideal) ** 2).mean()


def test_photos_wider_than_opencv_can_warp() -> None:
    panorama = np.zeros((120, 40_000, 3), np.uint8)
    panorama[:, 39_000:] = 200
    landmarks = moved(template_points(), similarity(1, 0, (39_500, 4))).astype(np.float32)[None]
    assert (align_faces(panorama, landmarks) == 200).all()


def test_aligning_imports_neither_scikit_image_nor_scipy() -> None:
    program = """if True:
        import sys, numpy, facepipe.align
        facepipe.align.align_faces(numpy.zeros((99, 99, 3), numpy.uint8), numpy.random.rand(1, 5, 2) * 99)
        sys.exit("skimage" in sys.modules or "scipy" in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_misfit_is_zero_for_the_template_itself_however_it_is_placed() -> None:
    points = template_points()
    angle = np.deg2rad(30)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    placed = (2.5 * points @ turn.T + (400, 90)).astype(np.float32)
    assert misfits(np.stack([points.astype(np.float32), placed])) == pytest.approx([0, 0], abs=1e-4)


def test_misfit_grows_as_a_face_turns_away() -> None:
    points = template_points().astype(np.float32)
    centre = points[:, 0].mean()
    turned = np.stack([points] * 3)
    for face, width in zip(turned, (1.0, 0.6, 0.2), strict=True):
        face[:, 0] = centre + width * (points[:, 0] - centre)
    front, half, side = misfits(turned)
    assert front < half < side
    assert half < 0.08 < side


# Alignments


def test_faces_without_an_alignment_have_none() -> None:
    broken = np.full((5, 2), np.nan, np.float32)
    found = fit_alignments(np.stack([ASTRONAUT_LANDMARKS[0], broken]))
    assert [alignment is None for alignment in found] == [False, True]
    assert fit_alignments(np.zeros((0, 5, 2), np.float32)) == []


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("size_px", [96, 160])
def test_one_alignment_fits_every_template_as_a_fit_to_it_would(template: str, size_px: int) -> None:
    landmarks = ASTRONAUT_LANDMARKS[0].astype(np.float64)
    alignment = Alignment.fit(landmarks)
    fitted = umeyama(landmarks, TEMPLATES[template].points_at(size_px))
    np.testing.assert_allclose(TEMPLATES[template].matrix_at(alignment, size_px), fitted, atol=1e-9)
    assert alignment.scale(template, size_px) == pytest.approx(np.sqrt(np.linalg.det(fitted[:, :2])))


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_reduced_copy_is_aligned_as_its_own_landmarks_would_be(
    astronaut: UInt8Array, reduction: int
) -> None:
    whole = Alignment.fit(ASTRONAUT_LANDMARKS[0])
    in_copy = Alignment.fit((ASTRONAUT_LANDMARKS[0].astype(np.float64) - (reduction - 1) / 2) / reduction)
    found = whole.in_reduced_copy(reduction)
    np.testing.assert_allclose(found.matrix, in_copy.matrix, atol=1e-9)
    assert found.misfit == whole.misfit
    small = cv2.resize(astronaut, None, fx=1 / reduction, fy=1 / reduction, interpolation=cv2.INTER_AREA)
    crop, expected = (warp_faces(np.asarray(small, np.uint8), [fit]) for fit in (found, in_copy))
    assert np.array_equal(crop, expected)
