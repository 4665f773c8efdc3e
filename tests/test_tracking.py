"""Tracks: which faces are linked, with made boxes and vectors, and with real people in slideshows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_helpers import faces_at, noise

from facepipe.core.errors import UsageError
from facepipe.core.faces import FloatArray, Match, UInt8Array
from facepipe.gallery import NewTemplate
from facepipe.images.reading import read_image
from facepipe.pipeline import FacePipeline
from facepipe.tracking import Frame, Linker, ShotCounter, Sighting, Track, VideoOptions, find_tracks

ONE_PERSON_L2 = 1.0
FRAME_S = 0.2


def sighting(time_s: float, left: float, angle_deg: float | None, shot: int = 0) -> Sighting:
    """A face of 50 px, and a vector of two dimensions: 60 degrees are a distance of 1."""
    vector = None
    if angle_deg is not None:
        turn = np.deg2rad(angle_deg)
        vector = np.array([np.cos(turn), np.sin(turn)], np.float32)
    return Sighting(time_s, faces_at((left, 0, left + 50, 50)), vector, shot)


def linked(*frames: Sequence[Sighting], every_s: float = FRAME_S) -> list[tuple[Sighting, ...]]:
    """The tracks of these faces, frame by frame; frames without faces come `every_s` after the one before."""
    linker, time_s = Linker(VideoOptions(), ONE_PERSON_L2), -every_s
    for seen in frames:
        time_s = seen[0].time_s if seen else time_s + every_s
        linker.add(time_s, seen)
    return linker.tracks


def in_place(*angles_deg: float | None, shots: Sequence[int] = ()) -> list[list[Sighting]]:
    """One face a frame, always at the same place."""
    numbers = shots or [0] * len(angles_deg)
    return [
        [sighting(i * FRAME_S, 0, angle, shot)]
        for i, (angle, shot) in enumerate(zip(angles_deg, numbers, strict=True))
    ]


def test_near_faces_are_linked_whether_they_have_vectors_or_not() -> None:
    assert len(linked(*in_place(0, None, None, 5, None, 10))) == 1


def test_vectors_of_two_people_are_never_linked_however_the_boxes_lie() -> None:
    cut = linked(*in_place(0, 0, 0, 90, 90, 90))
    assert [len(track) for track in cut] == [3, 3]


@pytest.mark.parametrize("between", [1, 3, 40])
def test_faces_without_vectors_chain_no_two_people(between: int) -> None:
    tracks = linked(*in_place(0, 0, *[None] * between, 90, 90))
    assert [len(track) for track in tracks] == [2 + between, 2]


def test_a_dissolve_chains_no_two_people() -> None:
    dissolve = range(0, 91, 15)
    tracks = linked(*in_place(*[0] * 10, *dissolve, *[90] * 10))
    assert len(tracks) == 2
    for track in tracks:
        vectors = np.array([seen.embedding for seen in track])
        assert np.linalg.norm(vectors[:, None] - vectors[None], axis=-1).max() < np.sqrt(2)


def test_a_person_at_another_place_needs_a_nearer_vector() -> None:
    jumps = ((sighting(FRAME_S, 500, angle),) for angle in (40, 50, None))
    assert [len(linked([sighting(0, 0, 0)], jump)) for jump in jumps] == [1, 2, 2]


def test_after_a_cut_places_say_nothing() -> None:
    shots = (0, 0, 1, 1)
    assert len(linked(*in_place(0, 0, 40, 40, shots=shots))) == 1
    assert len(linked(*in_place(0, 0, 50, 50, shots=shots))) == 2
    assert len(linked(*in_place(0, None, None, 90, shots=shots))) == 2
    assert len(linked(*in_place(0, None, None, None, shots=shots))) == 2


def test_people_who_cross_keep_their_tracks() -> None:
    """Both are without vectors near the middle, and one of them is hidden there."""
    frames = []
    for i, left in enumerate(range(0, 401, 20)):
        hidden, unsure = abs(left - 200) < 30, abs(left - 200) < 70
        front = sighting(i * FRAME_S, left, None if unsure else 0)
        behind = sighting(i * FRAME_S, 400 - left, None if unsure else 90)
        frames.append([front] if hidden else [front, behind])
    tracks = linked(*frames)
    for track in tracks:
        angles = {
            np.round(np.rad2deg(np.arctan2(*seen.embedding[::-1])))
            for seen in track
            if seen.embedding is not None
        }
        assert len(angles) <= 1
    assert len(max(tracks, key=len)) >= 19


def test_two_alike_keep_their_places() -> None:
    frames = [[sighting(i * FRAME_S, 200, 0), sighting(i * FRAME_S, 10 * i, 1)] for i in range(5)]
    tracks = linked(*frames)
    assert [len(track) for track in tracks] == [5, 5]
    assert {seen.face.boxes_xyxy[0, 0] for seen in tracks[0]} == {200}


def test_one_face_a_track_and_frame() -> None:
    assert len(linked([sighting(0, 0, 0)], [sighting(FRAME_S, 0, 0), sighting(FRAME_S, 1, 0)])) == 2


def test_a_face_that_was_away_for_long_begins_a_new_track() -> None:
    assert len(linked([sighting(0, 0, 0)], [], [], [sighting(0.8, 0, 0)])) == 1
    assert len(linked([sighting(0, 0, 0)], *[[]] * 24, [sighting(5.0, 0, 0)])) == 2
    rare = linked([sighting(0, 0, 0)], [sighting(5.0, 0, 0)], [sighting(10.0, 0, 0)])
    assert len(rare) == 1, "missing in no frame that was looked at"


@st.composite
def videos(draw: st.DrawFn) -> list[list[Sighting]]:
    """Some faces a frame, at few places, some with vectors all around, in several shots."""
    frames, shot = [], 0
    for i in range(draw(st.integers(1, 12))):
        shot += draw(st.booleans())
        faces = st.tuples(st.integers(0, 6), st.none() | st.integers(0, 23))
        seen = draw(st.lists(faces, max_size=4))
        frames.append([sighting(i * FRAME_S, 20 * at, turn and 15 * turn, shot) for at, turn in seen])
    return frames


@given(videos())
@settings(max_examples=100, deadline=None)
def test_every_face_is_in_one_track_and_no_track_holds_two_people_in_a_row(
    frames: list[list[Sighting]],
) -> None:
    tracks = linked(*frames)
    ids = [id(seen) for track in tracks for seen in track]
    assert sorted(ids) == sorted(id(seen) for frame in frames for seen in frame)
    for track in tracks:
        times = [seen.time_s for seen in track]
        assert times == sorted(set(times))
        assert all(
            later - earlier <= VideoOptions().lost_after_s + 1e-9 for earlier, later in pairwise(times)
        )
        vectors = [seen.embedding for seen in track if seen.embedding is not None]
        assert all(_distance_l2(one, next_one) <= ONE_PERSON_L2 + 1e-6 for one, next_one in pairwise(vectors))


def _distance_l2(one: FloatArray, other: FloatArray) -> float:
    return float(np.linalg.norm(one - other))


def test_a_track_is_drawn_within_a_shot_and_not_between_two() -> None:
    def track(shot: int) -> Track:
        match = Match(None, None, 1.0)
        return Track((sighting(0, 0, 0), sighting(0.5, 50, 0, shot), sighting(1.0, 90, 0, shot)), match)

    middle = track(0).at(0.25)
    assert middle is not None
    assert middle.boxes_xyxy[0].tolist() == [25, 0, 75, 50]
    assert track(1).at(0.25) is None
    assert track(1).at(0.75) is not None
    at_the_cut = track(1).at(0.5)
    assert at_the_cut is not None
    assert at_the_cut.boxes_xyxy[0, 0] == 50
    assert track(0).at(1.01) is None


def test_shots(astronaut: UInt8Array) -> None:
    black = np.zeros_like(astronaut)
    brighter = cv2.convertScaleAbs(astronaut, alpha=1.3, beta=20)
    moved = np.roll(astronaut, 25, axis=1)
    shots = ShotCounter()
    frames = [astronaut, brighter, moved, noise(0, 64, 64), black, black, astronaut]
    assert [shots.number(np.asarray(rgb, np.uint8)) for rgb in frames] == [0, 0, 0, 1, 2, 2, 3]


def test_options() -> None:
    for wrong in ({"every_s": 0}, {"every_s": float("nan")}, {"lost_after_s": -1}):
        with pytest.raises(UsageError, match="seconds"):
            VideoOptions(**wrong)


# Real people


PEOPLE, FRAMES = 4, 6


@pytest.fixture(scope="module")
def people(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    with FacePipeline.load(tmp_path_factory.mktemp("people") / "gallery", create_gallery=True) as pipeline:
        yield People(pipeline, shared_data / "photos" / "people")


class People:
    """Four enrolled people, and a portrait of each, framed alike: the face at one place, 110 px high."""

    def __init__(self, pipeline: FacePipeline, photos: Path) -> None:
        self.pipeline = pipeline
        self.portraits: dict[str, UInt8Array] = {}
        folders = sorted((photos / "enroll").iterdir())[:PEOPLE]
        for folder in folders:
            self._enrol(folder)
        for name in (folder.name for folder in folders):
            probes = sorted((photos / "probe" / "known" / name).iterdir())
            framed = (self._framed(read_image(probe)) for probe in probes)
            self.portraits[name] = next(rgb for rgb in framed if self._names(rgb) == name)

    def _enrol(self, folder: Path) -> None:
        assert self.pipeline.gallery is not None
        for file in sorted(folder.iterdir()):
            photo = read_image(file)
            faces = self.pipeline.embed(photo)
            assert faces.embeddings is not None
            vector = faces.embeddings[int(faces.sizes_px.argmax())]
            self.pipeline.gallery.add(folder.name, [NewTemplate(embedding=vector)])

    def _names(self, rgb: UInt8Array) -> str | None:
        faces = self.pipeline.identify(rgb)
        return faces.matches[int(faces.sizes_px.argmax())].name if faces.matches else None

    def _framed(self, photo: UInt8Array) -> UInt8Array:
        faces = self.pipeline.detect(photo)
        left, top, right, bottom = faces.boxes_xyxy[int(faces.sizes_px.argmax())]
        scale = 110 / (bottom - top)
        shift = [160 - scale * (left + right) / 2, 150 - scale * (top + bottom) / 2]
        matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]], np.float32)
        return np.asarray(cv2.warpAffine(photo, matrix, (320, 320), borderMode=cv2.BORDER_REFLECT), np.uint8)

    def frames(self, blurred: Sequence[int] = (), dissolved: int = 0) -> Iterator[Frame]:
        """Each portrait for six frames: some blurred, the first ones mixed with the portrait before."""
        portraits = list(self.portraits.values())
        for number in range(PEOPLE * FRAMES):
            person, i = divmod(number, FRAMES)
            rgb = portraits[person]
            if person and i < dissolved:
                share = (i + 1) / (dissolved + 1)
                mixed = cv2.addWeighted(portraits[person - 1], 1 - share, rgb, share, 0)
                rgb = np.asarray(mixed, np.uint8)
            if i in blurred:
                rgb = np.asarray(cv2.GaussianBlur(rgb, (0, 0), 6), np.uint8)
            yield Frame(number * FRAME_S, rgb)

    def shown(self, time_s: float) -> str:
        """Whose portrait is shown."""
        return list(self.portraits)[round(time_s / FRAME_S) // FRAMES]


@pytest.mark.parametrize(
    ("blurred", "dissolved"), [((), 0), ((0, 1, 5), 0), ((), 3)], ids=["cuts", "blurred at cuts", "dissolves"]
)
def test_a_slideshow_names_everybody_who_is_shown(
    people: People, blurred: Sequence[int], dissolved: int
) -> None:
    tracks = find_tracks(people.pipeline, people.frames(blurred, dissolved))
    named = {track.match.name for track in tracks} - {None}
    assert named == set(people.portraits)
    for track in tracks:
        whole = [seen for seen in track.sightings if round(seen.time_s / FRAME_S) % FRAMES >= dissolved]
        shown = {people.shown(seen.time_s) for seen in whole}
        assert len(shown) <= 1
        assert track.match.name is None or track.match.name in shown or not shown
