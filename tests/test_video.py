"""Videos: faces linked through time, each track named once; on a video that is made here of real photos."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from batch_helpers import NAME, enrol_her
from cli_helpers import facepipe
from pipeline_helpers import faces_at

from facepipe.errors import PhotoError, UsageError
from facepipe.faces import UInt8Array
from facepipe.pipeline import FacePipeline
from facepipe.video import Sighting, VideoOptions, find_tracks, link, read_frames

FRAMES_PER_S = 10
SIZE_WH = (640, 320)


def write_video(file: Path, astronaut: UInt8Array) -> None:
    """Two seconds of her, moving to the right; two of nobody; one of her at the left again."""
    her = cv2.resize(astronaut, (320, 320))
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), FRAMES_PER_S, SIZE_WH)
    for number in range(5 * FRAMES_PER_S):
        frame = np.full((SIZE_WH[1], SIZE_WH[0], 3), 90, np.uint8)
        second = number / FRAMES_PER_S
        if second < 2 or second >= 4:
            left = round(second * 150) if second < 2 else 0
            frame[:, left : left + 320] = her
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory, astronaut: UInt8Array) -> Path:
    file = tmp_path_factory.mktemp("video") / "her.mp4"
    write_video(file, astronaut)
    return file


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory, astronaut: UInt8Array) -> Path:
    folder = tmp_path_factory.mktemp("video") / "gallery"
    enrol_her(folder, astronaut)
    return folder


def test_frames_come_at_the_asked_distance(video: Path) -> None:
    times = [frame.time_s for frame in read_frames(str(video), 0.5)]
    np.testing.assert_allclose(times, np.arange(0, 5, 0.5), atol=0.11)
    assert [frame.time_s for frame in read_frames(str(video), 0.5, for_s=0.6)] == times[:2]
    assert next(read_frames(str(video))).rgb.shape == (320, 640, 3)


def test_a_person_who_comes_back_is_a_new_track_of_the_same_name(video: Path, gallery: Path) -> None:
    with FacePipeline.load(gallery) as pipeline:
        tracks = find_tracks(pipeline, read_frames(str(video), 0.2))
    hers = [track for track in tracks if track.match.name == NAME]
    assert len(hers) == 2
    spans = [(track.first_s, track.last_s) for track in hers]
    np.testing.assert_allclose(spans, [(0, 1.8), (4, 4.8)], atol=0.25)
    first = hers[0]
    middle = first.at(0.9)
    assert middle is not None
    lefts = [sighting.face.boxes_xyxy[0, 0] for sighting in first.sightings]
    assert lefts == sorted(lefts)
    assert lefts[0] + 100 < middle.boxes_xyxy[0, 0] < lefts[-1] - 100
    assert first.at(3.0) is None


def test_the_command_writes_timelines_and_the_annotated_video(
    video: Path, gallery: Path, tmp_path: Path
) -> None:
    annotated = tmp_path / "named.mp4"
    said = facepipe("video", video, "--gallery", gallery, "--annotate", annotated)
    assert said.code == 0, said.err
    records = [json.loads(line) for line in said.lines]
    hers = [record for record in records if record["name"] == NAME]
    assert [len(record["sightings"]) > 3 for record in hers] == [True, True]
    frames, plain = (list(read_frames(str(file))) for file in (annotated, video))
    assert len(frames) == len(plain) == 50
    changed = [(np.abs(a.rgb.astype(int) - b.rgb) > 60).sum() for a, b in zip(frames, plain, strict=True)]
    assert min(changed[1:17]) > 300, "boxes and names are drawn, also between the frames that were looked at"
    assert max(changed[25:35]) == 0
    rows = list(csv.DictReader(io.StringIO(facepipe("video", video, "--gallery", gallery, "--csv").out)))
    assert [row["name"] for row in rows] == [record["name"] or "" for record in records]


def test_what_is_no_video(gallery: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    for source in (tmp_path / "text.mp4", tmp_path / "missing.mp4"):
        with pytest.raises(PhotoError, match="no video that can be read"):
            next(read_frames(str(source)))
    with pytest.raises(UsageError, match="seconds above 0"):
        VideoOptions(every_s=0)
    assert facepipe("video", "0", "--annotate", tmp_path / "x.mp4", "--gallery", gallery).code == 2


def sighting(time_s: float, left: float, vector: tuple[float, float] | None) -> Sighting:
    known = None if vector is None else np.array(vector, np.float32)
    return Sighting(time_s, faces_at((left, 0, left + 50, 50)), known)


ONE, OTHER = (1.0, 0.0), (0.0, 1.0)


@pytest.mark.parametrize(
    ("second", "tracks"),
    [
        ([sighting(0.2, 10, None)], 2),
        ([sighting(0.2, 500, ONE)], 2),
        ([sighting(0.2, 500, None)], 3),
        ([sighting(5.0, 0, ONE)], 3),
        ([sighting(0.2, 200, ONE), sighting(0.2, 0, OTHER)], 2),
        ([sighting(0.2, 0, ONE), sighting(0.2, 1, ONE)], 3),
        ([], 2),
    ],
    ids=[
        "near by",
        "jumped, same vector",
        "jumped, no vector",
        "too late",
        "changed places",
        "two near one",
        "nobody",
    ],
)
def test_linking(second: list[Sighting], tracks: int) -> None:
    found: list[list[Sighting]] = []
    options = VideoOptions()
    link(found, [sighting(0.0, 0, ONE), sighting(0.0, 200, OTHER)], options)
    link(found, second, options)
    assert len(found) == tracks
