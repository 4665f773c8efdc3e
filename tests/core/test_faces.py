"""The column type that carries faces: shapes are checked, rows are chosen, nothing is lost on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
from pipeline_helpers import faces_at

from facepipe.core.faces import LANDMARK_NAMES, Faces, Match

UNKNOWN = Match(None, 1.3, 1.05, "Ada", 1.4)


def three() -> Faces:
    faces = faces_at((0, 0, 10, 20), (5, 5, 45, 35), (1, 2, 3, 4), scores=(0.9, 0.8, 0.7))
    named = [Match(name, 0.5, 1.05) for name in ("Ada", "Bob", "Cleo")]
    return faces.with_embeddings(np.eye(3, 128, dtype=np.float32)).with_matches(named)


def names(faces: Faces) -> list[str | None]:
    assert faces.matches is not None
    return [match.name for match in faces.matches]


def test_iterating_and_indexing_give_faces_one_by_one() -> None:
    faces = three()
    assert [face.name for face in faces] == ["Ada", "Bob", "Cleo"]
    for row, face in enumerate(faces):
        for same in (faces[row], faces[np.int64(row)], faces[row - 3]):
            assert same.score == face.score == pytest.approx(float(faces.scores[row]))
            assert np.array_equal(same.box_xyxy, faces.boxes_xyxy[row])
            assert np.array_equal(same.landmarks, faces.landmarks[row])
            assert same.embedding is not None
            assert np.array_equal(same.embedding, np.eye(3, 128)[row])
            assert (same.name, same.distance_l2, same.enrollable) == (face.name, 0.5, None)
    for row in (3, -4):
        with pytest.raises(IndexError):
            _ = faces[row]
    assert list(Faces.empty()) == []


def test_what_was_not_done_to_a_face_is_none() -> None:
    (face,) = faces_at((0, 0, 10, 20))
    assert (face.embedding, face.match, face.name, face.distance_l2, face.enrollable) == (None,) * 5
    (face,) = faces_at((0, 0, 10, 20)).with_embeddings(np.full((1, 128), np.nan, np.float32))
    assert face.embedding is None  # A row of NaN is a face that was not encoded.
    (face,) = faces_at((0, 0, 10, 20)).with_matches([UNKNOWN]).with_enrollable(np.array([True]))
    assert (face.name, face.distance_l2, face.enrollable) == (None, 1.3, True)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (slice(1, None), ["Bob", "Cleo"]),
        (slice(None, None, -1), ["Cleo", "Bob", "Ada"]),
        ([2, 0], ["Cleo", "Ada"]),
        (np.array([True, False, True]), ["Ada", "Cleo"]),
        ([], []),
    ],
    ids=["slice", "reversed", "indices", "mask", "none"],
)
def test_slices_masks_and_several_indices_give_faces_again(rows: Any, expected: list[str]) -> None:
    some = three()[rows]
    assert isinstance(some, Faces)
    assert names(some) == expected


WRONG: dict[str, tuple[Callable[[Faces], Any], str]] = {
    "boxes of three numbers": (
        lambda f: replace(f, boxes_xyxy=f.boxes_xyxy[:, :3]),
        r"boxes_xyxy of shape \(3, 4\), got \(3, 3\)",
    ),
    "fewer scores": (lambda f: replace(f, scores=f.scores[:2]), r"scores of shape \(3,\), got \(2,\)"),
    "flat landmarks": (
        lambda f: replace(f, landmarks=f.landmarks.reshape(3, 10)),
        r"landmarks of shape \(3, 5, 2\), got \(3, 10\)",
    ),
    "fewer vectors": (
        lambda f: f.with_embeddings(np.zeros((2, 128), np.float32)),
        r"embeddings of shape \(3, 128\), got \(2, 128\)",
    ),
    "more matches": (lambda f: f.with_matches([UNKNOWN] * 4), "expected 3 matches, got 4"),
}


@pytest.mark.parametrize(("change", "told"), WRONG.values(), ids=WRONG)
def test_columns_of_other_shapes_are_refused(change: Callable[[Faces], Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        change(three())


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([2, 0], ["Cleo", "Ada"]),
        (np.array([True, False, True]), ["Ada", "Cleo"]),
        (np.array([1]), ["Bob"]),
        (range(2), ["Ada", "Bob"]),
        ([], []),
        (np.array([False] * 3), []),
        ([-1], ["Cleo"]),
    ],
    ids=["indices", "mask", "array", "range", "none", "empty mask", "from the end"],
)
def test_rows_are_chosen_from_every_column(rows: Any, expected: list[str]) -> None:
    faces, chosen = three(), three().select(rows)
    assert names(chosen) == expected
    order = [names(faces).index(name) for name in expected]
    np.testing.assert_array_equal(chosen.boxes_xyxy, faces.boxes_xyxy[order])
    np.testing.assert_array_equal(chosen.scores, faces.scores[order])
    np.testing.assert_array_equal(chosen.landmarks, faces.landmarks[order])
    assert chosen.embeddings is not None
    assert faces.embeddings is not None
    np.testing.assert_array_equal(chosen.embeddings, faces.embeddings[order])


def test_choosing_before_encoding_leaves_later_columns_empty() -> None:
    chosen = faces_at((0, 0, 10, 10), (0, 0, 20, 20)).select([1])
    assert chosen.embeddings is None
    assert chosen.matches is None


def test_a_row_that_is_not_there_is_an_error() -> None:
    with pytest.raises(IndexError):
        three().select([3])


def test_size_is_the_shorter_side() -> None:
    np.testing.assert_array_equal(three().sizes_px, [10, 30, 2])


def test_no_faces() -> None:
    nobody = Faces.empty()
    assert len(nobody) == 0
    assert nobody.sizes_px.shape == (0,)
    assert len(nobody.select([])) == 0
    assert nobody.with_matches([]).matches == ()
    assert nobody.with_embeddings(np.zeros((0, 128), np.float32)).embeddings is not None


def test_faces_and_matches_are_values() -> None:
    faces = three()
    with pytest.raises(FrozenInstanceError):
        faces.scores = faces.scores  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        UNKNOWN.name = "Eve"  # type: ignore[misc]
    assert len(LANDMARK_NAMES) == 5
