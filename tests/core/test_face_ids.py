"""Ids of faces are stable, and different faces of a photo have different ones."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from facepipe.core.face_ids import face_id, is_face_id, same_faces

PHOTO = "ab" * 32
SIDES = st.floats(-1e6, 1e6, width=32)


@given(st.lists(st.tuples(SIDES, SIDES, SIDES, SIDES), min_size=1, max_size=5))
def test_no_two_faces_of_a_photo_have_one_id(boxes: list[tuple[float, float, float, float]]) -> None:
    ids: list[str] = []
    for box in [*boxes, boxes[0]]:
        ids.append(face_id(PHOTO, box, ids))
    assert len(set(ids)) == len(ids)
    assert all(map(is_face_id, ids))


def test_an_id_is_the_same_everywhere() -> None:
    assert face_id(PHOTO, (1.2, 2.0, 30.4, 40.9)) == face_id(PHOTO, (1, 2, 30, 41)) == "3cb732a8c932"
    assert face_id("cd" * 32, (1, 2, 30, 41)) != face_id(PHOTO, (1, 2, 30, 41))
    assert not is_face_id("3CB732A8C932")
    assert not is_face_id("3cb732a8c932\n")


@given(arrays(np.float32, (4, 4), elements=st.floats(0, 100, width=32)), st.permutations(range(4)))
def test_boxes_find_themselves_in_any_order(boxes: np.ndarray, order: list[int]) -> None:
    boxes = (
        np.concatenate([boxes[:, :2], boxes[:, :2] + 10], axis=1)
        + 200 * np.arange(4, dtype=np.float32)[:, None]
    )
    assert [order[row] for row in same_faces(boxes, boxes[order]) if row is not None] == [0, 1, 2, 3]


def test_faces_that_hardly_overlap_are_others() -> None:
    boxes = np.array([[0, 0, 10, 10]], np.float32)
    assert same_faces(boxes, np.array([[8, 0, 18, 10]], np.float32)) == [None]
    assert same_faces(boxes, np.zeros((0, 4), np.float32)) == [None]
    assert same_faces(np.zeros((0, 4), np.float32), boxes) == []
