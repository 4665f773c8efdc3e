"""Annotated photos: colours, labels that stay inside, and names of any kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageDraw

from facepipe.core.faces import Faces, Match, UInt8Array
from facepipe.images.drawing import draw_faces

GREEN, ORANGE, GRAY = (0, 214, 90), (255, 160, 0), (200, 200, 200)
YELLOW = (255, 230, 80)
POINTS = np.array([[0.25, 0.35], [0.75, 0.35], [0.5, 0.6], [0.3, 0.8], [0.7, 0.8]], np.float32)


def faces_in(*boxes_xyxy: tuple[float, float, float, float]) -> Faces:
    boxes = np.array(boxes_xyxy, np.float32).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    landmarks = boxes[:, None, :2] + POINTS * sides[:, None]
    return Faces(boxes, np.linspace(0.99, 0.9, len(boxes), dtype=np.float32), landmarks.astype(np.float32))


def named(faces: Faces, *names: str | None) -> Faces:
    return faces.with_matches([Match(name, 0.71, 1.1) for name in names])


def where(image: UInt8Array, rgb: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a colour."""
    rows, columns = np.nonzero((image == rgb).all(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def share(image: UInt8Array, rgb: tuple[int, int, int]) -> float:
    return float((image == rgb).all(axis=2).mean())


PORTRAIT = faces_in((180, 66, 269, 176))


@pytest.mark.parametrize(
    ("faces", "rgb"),
    [
        (named(PORTRAIT, "Eileen Collins"), GREEN),
        (PORTRAIT.with_matches([Match(None, 0.9, 1.1, candidate_name="Eileen Collins")]), YELLOW),
        (named(PORTRAIT, None), ORANGE),
        (PORTRAIT, GRAY),
    ],
    ids=["known", "unsure", "unknown", "no gallery asked"],
)
def test_the_colour_says_what_is_known(
    astronaut: UInt8Array, faces: Faces, rgb: tuple[int, int, int]
) -> None:
    before = astronaut.copy()
    drawn = draw_faces(astronaut, faces)
    assert np.array_equal(astronaut, before)
    assert drawn.shape == astronaut.shape
    assert drawn.dtype == np.uint8
    for other in (GREEN, YELLOW, ORANGE, GRAY):
        assert (share(drawn, other) > 0.002) == (other == rgb)
    left, top, _, bottom = where(drawn, rgb)
    assert abs(left - 180) <= 1
    assert abs(bottom - 176) <= 1
    assert 30 < top < 60  # the label stands above the box
    assert np.array_equal(drawn[200:], astronaut[200:])


def test_landmarks_are_drawn(astronaut: UInt8Array) -> None:
    drawn = draw_faces(astronaut, named(PORTRAIT, "A"))
    for x, y in PORTRAIT.landmarks[0]:
        assert tuple(drawn[round(float(y)), round(float(x))]) == GREEN


def test_a_photo_without_faces_is_as_it_was(astronaut: UInt8Array) -> None:
    assert np.array_equal(draw_faces(astronaut, Faces.empty()), astronaut)


BOXES_AT_EDGES = [
    (0, 0, 60, 60),
    (450, 0, 511, 60),
    (0, 450, 60, 511),
    (450, 450, 511, 511),
    (0, 0, 511, 511),
    (-50, -50, 600, 600),
    (-80, 200, -20, 260),
]


@pytest.mark.parametrize("box", BOXES_AT_EDGES)
@pytest.mark.parametrize("name", ["Eileen Collins", "W" * 24, "many words " * 20])
@pytest.mark.parametrize("size_wh", [(512, 512), (90, 400)])
def test_the_whole_label_is_inside_the_photo(
    monkeypatch: pytest.MonkeyPatch,
    size_wh: tuple[int, int],
    name: str,
    box: tuple[float, float, float, float],
) -> None:
    labels: list[tuple[int, int, int, int]] = []

    def note(pen: ImageDraw.ImageDraw, place: tuple[int, int, int, int], **style: Any) -> None:
        if "fill" in style:
            labels.append(place)

    monkeypatch.setattr(ImageDraw.ImageDraw, "rectangle", note)
    width, height = size_wh
    draw_faces(np.zeros((height, width, 3), np.uint8), named(faces_in(box), name))
    [(left, top, right, bottom)] = labels
    assert 0 <= left < right < width
    assert 0 <= top < bottom < height


def test_lines_and_letters_grow_with_the_photo() -> None:
    small = draw_faces(np.zeros((300, 300, 3), np.uint8), named(faces_in((100, 100, 200, 200)), "Ada"))
    large = draw_faces(np.zeros((3000, 3000, 3), np.uint8), named(faces_in((1000, 1000, 2000, 2000)), "Ada"))
    heights = [1000 - where(large, GREEN)[1], 100 - where(small, GREEN)[1]]
    assert heights[0] > 4 * heights[1]
    assert heights[1] >= 13
    assert tuple(large[1010, 1500]) == GREEN


def test_labels_of_neighbours_keep_off_each_other_and_off_faces() -> None:
    names = ["Maximilian Mustermann", "Wilhelmina Weatherwax"]
    boxes = [(200.0, 200.0, 240.0, 250.0), (250.0, 205.0, 290.0, 255.0)]
    black = np.zeros((512, 512, 3), np.uint8)
    both = (draw_faces(black, named(faces_in(*boxes), *names)) == GREEN).all(axis=2).sum()
    alone = [
        (draw_faces(black, named(faces_in(box), name)) == GREEN).all(axis=2).sum()
        for box, name in zip(boxes, names, strict=True)
    ]
    assert both == pytest.approx(sum(alone), rel=0.02)


def labels_of(faces: Faces, size_wh: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Where the labels of named faces stand in an empty photo."""
    places: list[tuple[int, int, int, int]] = []

    def note(pen: ImageDraw.ImageDraw, place: tuple[int, int, int, int], **style: Any) -> None:
        if "fill" in style:
            places.append(place)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageDraw.ImageDraw, "rectangle", note)
        draw_faces(np.zeros((size_wh[1], size_wh[0], 3), np.uint8), faces)
    return places


def covered_px(boxes: np.ndarray, places: list[tuple[int, int, int, int]]) -> int:
    low = np.maximum(boxes[:, None, :2], np.array(places)[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], np.array(places)[None, :, 2:])
    return int(np.prod(np.clip(high - low + 1, 0, None), axis=2).sum())


def crowd(columns: int, rows: int, size_px: int, gap_px: int) -> Faces:
    """Faces in rank and file, all of long names."""
    step = size_px + gap_px
    corners = [(gap_px + x * step, gap_px + y * step) for y in range(rows) for x in range(columns)]
    boxes = [(float(x), float(y), float(x + size_px), float(y + size_px)) for x, y in corners]
    return named(faces_in(*boxes), *(f"Wilhelmina Weatherwax {i}" for i in range(len(boxes))))


@pytest.mark.parametrize(("size_px", "gap_px"), [(40, 30), (60, 20), (24, 40), (100, 16)])
def test_labels_of_a_crowd_cover_no_face_and_no_label(size_px: int, gap_px: int) -> None:
    """Between faces there is room for a line of small letters, not for the whole name in large ones."""
    faces = crowd(12, 6, size_px, gap_px)
    wide = 12 * (size_px + gap_px) + gap_px
    places = labels_of(faces, (wide, 6 * (size_px + gap_px) + gap_px))
    assert len(places) == len(faces)
    assert covered_px(faces.boxes_xyxy.round().astype(int), places) == 0
    for i, place in enumerate(places):
        assert covered_px(np.array([place]), places[:i] or [(-9, -9, -9, -9)]) == 0


def test_a_label_stands_beside_a_face_that_has_others_above_and_below() -> None:
    stack = named(faces_in(*[(100.0, 20.0 + 42 * i, 140.0, 60.0 + 42 * i) for i in range(8)]), *"ABCDEFGH")
    places = labels_of(stack, (400, 380))
    assert covered_px(stack.boxes_xyxy.round().astype(int), places) == 0
    assert sum(left > 140 or right < 100 for left, _, right, _ in places) >= 6


def test_without_any_room_a_label_is_on_its_own_face_and_on_no_other() -> None:
    faces = crowd(8, 6, 50, 1)
    boxes = faces.boxes_xyxy.round().astype(int)
    for i, place in enumerate(labels_of(faces, (8 * 51 + 1, 6 * 51 + 1))):
        assert covered_px(np.delete(boxes, i, axis=0), [place]) == 0
        assert covered_px(boxes[[i]], [place]) < 0.3 * 51 * 51


@given(
    st.lists(
        st.tuples(st.integers(-20, 420), st.integers(-20, 320), st.integers(4, 90), st.integers(4, 90)),
        min_size=1,
        max_size=25,
    )
)
@settings(deadline=None, max_examples=40)
def test_wherever_faces_are_labels_are_inside_the_photo(corners: list[tuple[int, int, int, int]]) -> None:
    boxes = [(float(x), float(y), float(x + w), float(y + h)) for x, y, w, h in corners]
    for left, top, right, bottom in labels_of(named(faces_in(*boxes), *["Ada"] * len(boxes)), (400, 300)):
        assert 0 <= left <= right < 400
        assert 0 <= top <= bottom < 300


def test_lines_of_small_faces_leave_them_to_be_seen() -> None:
    black = np.zeros((1600, 2400, 3), np.uint8)
    drawn = draw_faces(black, named(faces_in((1000, 800, 1024, 824)), "Ada"))
    inside = drawn[802:823, 1002:1023]
    assert (inside.any(axis=2)).mean() < 0.25


NAMES = [
    "Zoë Łukasz Ñandú",
    "王小明",
    "Ωμέγα Привет",
    "שלום مرحبا",
    "😀",
    "a\nb\tc\x00d",
    "\u202eabc",
    "\ud800 lone surrogate",
    "",
    " ",
    "x" * 5000,
    "é" * 5000,
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize("size_wh", [(512, 512), (112, 96), (20, 20), (1, 1), (3000, 40)])
def test_any_name_on_a_photo_of_any_size(name: str, size_wh: tuple[int, int]) -> None:
    width, height = size_wh
    photo = np.zeros((height, width, 3), np.uint8)
    face = faces_in((width * 0.4, height * 0.4, width * 0.6, height * 0.7))
    assert draw_faces(photo, named(face, name)).shape == photo.shape
    assert draw_faces(photo, face.with_matches([Match(name, None, 1.1)])).shape == photo.shape


def test_accents_no_font_has_are_left_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facepipe.images.drawing._SYSTEM_FONTS", ("no such font.ttf",))
    black = np.zeros((300, 500, 3), np.uint8)
    face = faces_in((200, 100, 280, 200))
    assert np.array_equal(draw_faces(black, named(face, "Zoë Ñu")), draw_faces(black, named(face, "Zoe Nu")))


def test_shortened_names_keep_their_distance() -> None:
    black = np.zeros((300, 120, 3), np.uint8)
    face = faces_in((40, 100, 80, 150))
    long, longer = (draw_faces(black, named(face, "Bartholomew " * n)) for n in (3, 30))
    assert np.array_equal(long, longer)
    other = draw_faces(black, face.with_matches([Match("Bartholomew " * 3, 0.99, 1.1)]))
    assert not np.array_equal(long, other)
