"""Videos: their frames, times and ends, and copies with names; on videos that are made here."""

from __future__ import annotations

import csv
import io
import json
import os
import socket
import sys
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
from batch_helpers import NAME, enroll_her
from bomb_files import write_video as write_huge_video
from cli_helpers import facepipe, finished, start
from video_helpers import ffmpeg, number_of, numbered, write_timed, write_video

from facepipe import tracking
from facepipe import video as facepipe_video
from facepipe.commands.output import INTERRUPTED, PARTIAL, time_progress
from facepipe.core.errors import OutputError, PhotoError, UsageError
from facepipe.core.faces import UInt8Array
from facepipe.pipeline import FacePipeline
from facepipe.tracking import Frame, find_tracks
from facepipe.video import is_cut_off, read_frames, stated_duration_s, write_annotated

FRAMES_PER_S = 10
SIZE_WH = (640, 320)


def her_frames(astronaut: UInt8Array) -> Iterator[UInt8Array]:
    """Two seconds of her, moving to the right; two of nobody; one of her at the left again."""
    her = cv2.resize(astronaut, (320, 320))
    for number in range(5 * FRAMES_PER_S):
        frame = np.full((SIZE_WH[1], SIZE_WH[0], 3), 90, np.uint8)
        second = number / FRAMES_PER_S
        if second < 2 or second >= 4:
            left = round(second * 150) if second < 2 else 0
            frame[:, left : left + 320] = her
        yield frame


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory, astronaut: UInt8Array) -> Path:
    file = tmp_path_factory.mktemp("video") / "her.mp4"
    write_video(file, her_frames(astronaut))
    return file


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory, astronaut: UInt8Array) -> Path:
    folder = tmp_path_factory.mktemp("video") / "gallery"
    enroll_her(folder, astronaut)
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
    (tmp_path / "empty.mp4").touch()
    reasons = {
        "text.mp4": "no video that can",
        "empty.mp4": "no video that can",
        "missing.mp4": "no such file",
    }
    for name, reason in {**reasons, ".": "a folder"}.items():
        with pytest.raises(PhotoError, match=reason):
            next(read_frames(str(tmp_path / name)))
        assert facepipe("video", tmp_path / name, "--gallery", gallery).code == 1
    assert facepipe("video", "0", "--annotate", tmp_path / "x.mp4", "--gallery", gallery).code == 2


# Times

UNEVEN_S = [0, 0.1, 0.2, 0.5, 2, 2.05, 2.1, 2.15, 4, 4.4]


@pytest.fixture(params=[".mp4", ".mkv", ".webm", ".gif"])
def uneven(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Frames at `UNEVEN_S`, each with its number."""
    file = tmp_path / f"uneven{request.param}"
    write_timed(file, [numbered(i) for i in range(len(UNEVEN_S))], UNEVEN_S)
    return file


def shown_at(frames: Sequence[Frame], time_s: float) -> int:
    """The number of the frame that a player shows."""
    return number_of(frames[bisect_right([frame.time_s for frame in frames], time_s) - 1].rgb)


def test_times_are_the_containers(uneven: Path) -> None:
    frames = list(read_frames(str(uneven)))
    np.testing.assert_allclose([frame.time_s for frame in frames], UNEVEN_S, atol=0.002)
    assert [number_of(frame.rgb) for frame in frames] == list(range(len(UNEVEN_S)))
    some = [frame.time_s for frame in read_frames(str(uneven), 0.2)]
    np.testing.assert_allclose(some, [0, 0.2, 0.5, 2, 4, 4.4], atol=0.002)


def test_the_copy_shows_at_each_time_what_the_video_shows(uneven: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.mp4"
    write_annotated(str(uneven), copy, [])
    frames, copied = (list(read_frames(str(file))) for file in (uneven, copy))
    for begin, end in zip(UNEVEN_S, [*UNEVEN_S[1:], 4.45], strict=True):
        for time_s in (begin + 0.02, (begin + end) / 2, end - 0.02):
            assert shown_at(copied, time_s) == shown_at(frames, time_s), time_s
    assert copied[-1].time_s < 4.4 + 0.4


@pytest.mark.parametrize("rate", [10, 12.346, 23.976, 25, 29.97, 59.94, 120])
def test_a_constant_rate_is_copied_frame_by_frame(rate: float, tmp_path: Path) -> None:
    video, copy = tmp_path / "video.mp4", tmp_path / "copy.mp4"
    write_video(video, map(numbered, range(60)), rate)
    write_annotated(str(video), copy, [])
    frames, copied = (list(read_frames(str(file))) for file in (video, copy))
    assert [number_of(frame.rgb) for frame in copied] == list(range(60))
    np.testing.assert_allclose([f.time_s for f in copied], [f.time_s for f in frames], atol=1e-3)


def test_of_more_than_60_frames_a_second_some_are_left_out(tmp_path: Path) -> None:
    times_s = [0.0, 1.0, *(1 + i / 200 for i in range(1, 40))]
    video, copy = tmp_path / "video.mp4", tmp_path / "copy.mp4"
    write_timed(video, [numbered(i) for i in range(len(times_s))], times_s)
    write_annotated(str(video), copy, [])
    frames, copied = (list(read_frames(str(file))) for file in (video, copy))
    assert len(copied) <= 60 * 1.2 + 2
    for frame in copied:
        assert abs(number_of(frame.rgb) - shown_at(frames, frame.time_s)) <= 2


def test_a_stream_without_times_goes_by_its_rate(tmp_path: Path) -> None:
    write_video(tmp_path / "video.mp4", map(numbered, range(30)), 10)
    raw = tmp_path / "raw.h264"
    ffmpeg("-i", str(tmp_path / "video.mp4"), "-c:v", "libx264", str(raw))
    times = [frame.time_s for frame in read_frames(str(raw))]
    assert len(times) == 30
    np.testing.assert_allclose(np.diff(times), times[1], atol=1e-6)


def test_times_that_begin_again_go_on(tmp_path: Path) -> None:
    write_video(tmp_path / "video.mp4", map(numbered, range(30)), 10)
    stream = tmp_path / "video.ts"
    ffmpeg("-i", str(tmp_path / "video.mp4"), "-c:v", "libx264", str(stream))
    (tmp_path / "twice.ts").write_bytes(stream.read_bytes() * 2)
    once, twice = (
        [frame.time_s for frame in read_frames(str(file))] for file in (stream, tmp_path / "twice.ts")
    )
    assert len(twice) == 2 * len(once)
    assert min(np.diff(twice)) > 0
    assert twice[-1] == pytest.approx(2 * once[-1] + 0.1, abs=0.01)


def test_nothing_ends_after_the_video(astronaut: UInt8Array, gallery: Path, tmp_path: Path) -> None:
    """She is shown from 3 s on, in a tenth of all frames but for most of the time."""
    times_s = [*np.arange(0, 3, 0.1).tolist(), 3.0, 4.0, 5.0]
    her, nobody = cv2.resize(astronaut, (320, 320)), np.full((320, 320, 3), 90, np.uint8)
    file = tmp_path / "video.mp4"
    write_timed(file, [nobody] * 30 + [np.asarray(her, np.uint8)] * 3, times_s)
    said = facepipe("video", file, "--gallery", gallery)
    (track,) = [record for line in said.lines if (record := json.loads(line))["name"] == NAME]
    assert (track["first_s"], track["last_s"]) == (3.0, 5.0)
    assert [seen["time_s"] for seen in track["sightings"]] == [3.0, 4.0, 5.0]


def test_unusual_videos(tmp_path: Path) -> None:
    write_video(tmp_path / "one.mp4", [numbered(7)])
    write_video(tmp_path / "odd.avi", [numbered(i, (65, 49)) for i in range(5)], codec="MJPG")
    for name, count in (("one.mp4", 1), ("odd.avi", 5)):
        write_annotated(str(tmp_path / name), tmp_path / "copy.mp4", [])
        assert len(list(read_frames(str(tmp_path / "copy.mp4")))) == count
    assert stated_duration_s(str(tmp_path / "odd.avi")) == pytest.approx(0.5)


def test_absurd_times(video: Path, gallery: Path) -> None:
    for seconds in ("-1", "nan"):
        assert facepipe("video", video, "--gallery", gallery, "--seconds", seconds).code == 2
    assert len(list(read_frames(str(video), 1e-320))) == 50
    assert len(list(read_frames(str(video), float("inf")))) == 1


# Ends


@pytest.fixture(scope="module")
def whole_videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Whole ones, some of which state more frames than they show."""
    folder = tmp_path_factory.mktemp("whole")
    plain = folder / "plain.mp4"
    write_video(plain, map(numbered, range(40)), 10)
    write_video(folder / "plain.avi", map(numbered, range(40)), 10, "MJPG")
    fast = folder / "fast.mp4"
    ffmpeg("-i", str(plain), "-c:v", "mpeg4", "-g", "20", "-movflags", "+faststart", str(fast))
    ffmpeg("-i", str(fast), "-c", "copy", str(folder / "plain.mkv"))
    ffmpeg("-i", str(plain), "-c:v", "libvpx", str(folder / "plain.webm"))
    ffmpeg("-ss", "1.5", "-i", str(fast), "-c", "copy", str(folder / "trimmed.mp4"))
    sound = ("-f", "lavfi", "-i", "sine=d=9", "-c:v", "copy")
    ffmpeg("-i", str(fast), *sound, str(folder / "long_sound.mkv"))
    ffmpeg("-i", str(fast), "-c", "copy", "-f", "matroska", "-live", "1", str(folder / "live.mkv"))
    (folder / "more_behind.mp4").write_bytes(fast.read_bytes() + b"\xff\xfe trailer of a camera" * 9)
    return sorted(folder.iterdir())


def test_whole_files_are_not_cut_off(whole_videos: list[Path]) -> None:
    assert [video.name for video in whole_videos if is_cut_off(str(video))] == []


@pytest.mark.parametrize("share", [0.5, 0.95])
@pytest.mark.parametrize("name", ["fast.mp4", "plain.mp4", "plain.avi", "plain.mkv", "plain.webm"])
def test_cut_off_files_are(name: str, share: float, whole_videos: list[Path], tmp_path: Path) -> None:
    (whole,) = [video for video in whole_videos if video.name == name]
    data = whole.read_bytes()
    cut = tmp_path / name
    cut.write_bytes(data[: int(len(data) * share)])
    assert is_cut_off(str(cut))


@pytest.mark.parametrize(
    "data", [b"", b"\x1a\x45\xdf\xa3", b"RIFF", b"\0\0\0\x18ftyp", b"\x1a\x45\xdf\xa3\0"]
)
def test_stubs_of_files_end_somewhere(data: bytes, tmp_path: Path) -> None:
    for length in range(40):
        (tmp_path / "stub").write_bytes(data + bytes(length))
        is_cut_off(str(tmp_path / "stub"))


def test_a_cut_off_video_is_told_and_its_results_are_kept(
    astronaut: UInt8Array, gallery: Path, tmp_path: Path
) -> None:
    file, annotated = tmp_path / "her.avi", tmp_path / "named.mp4"
    write_video(file, her_frames(astronaut), FRAMES_PER_S, "MJPG")
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    said = facepipe("video", file, "--gallery", gallery, "--annotate", annotated, "--every", 0.5)
    assert said.code == PARTIAL
    assert NAME in {json.loads(line)["name"] for line in said.lines}
    assert "cut off" in said.complaints[-1]
    assert 5 < len(list(read_frames(str(annotated)))) < 5 * FRAMES_PER_S
    first = facepipe("video", file, "--gallery", gallery, "--seconds", 0.5)
    assert (first.code, first.complaints) == (0, []), "it was not read as far as that"


def test_a_cut_off_video_without_its_index(video: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.mp4").write_bytes(video.read_bytes()[:5000])
    with pytest.raises(PhotoError, match=r"cut off.*copy it again"):
        next(read_frames(str(tmp_path / "cut.mp4")))


def test_ctrl_c_keeps_what_was_seen(
    video: Path, gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, frames = tracking.Tracker.add, iter(range(6))

    def interrupted(tracker: tracking.Tracker, frame: Frame) -> None:
        if next(frames) == 5:
            raise KeyboardInterrupt
        add(tracker, frame)

    monkeypatch.setattr(tracking.Tracker, "add", interrupted)
    said = facepipe("video", video, "--gallery", gallery, "--annotate", tmp_path / "named.mp4")
    assert said.code == INTERRUPTED
    (track,) = [record for line in said.lines if (record := json.loads(line))["name"] == NAME]
    assert len(track["sightings"]) == 5
    assert "the timeline ends at 0.8 s; no annotated video" in said.complaints[-1]
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_is_the_end_of_a_webcam(video: Path, gallery: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_the_camera(
        source: str | int, every_s: float = 0.0, *, for_s: float | None = None
    ) -> Iterator[Frame]:
        assert source == 0
        yield from read_frames(str(video), every_s, for_s=0.5)
        raise KeyboardInterrupt

    monkeypatch.setattr(facepipe_video, "read_frames", from_the_camera)
    said = facepipe("video", "0", "--gallery", gallery)
    assert (said.code, said.complaints) == (0, [])
    assert NAME in {json.loads(line)["name"] for line in said.lines}


def test_progress_is_shown_on_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = {}
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        for total_s in (90.0, None):
            with time_progress(total_s, "looking") as show:
                for time_s in (0.0, 45.0, 100.0):
                    show(time_s)
                    time.sleep(0.12)  # the bar is drawn ten times a second at most
        shown[type(stream)] = stream.getvalue()
    assert shown[io.StringIO] == ""
    assert "00:45 of 01:30" in shown[Terminal]
    assert "looking, 00:45" in shown[Terminal]


# Files


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_no_utf8(video: Path, gallery: Path, tmp_path: Path) -> None:
    """In a process of its own: OpenCV ends it where it gets such a name."""
    folder = tmp_path / os.fsdecode(b"folder \xff")
    folder.mkdir()
    source = folder / os.fsdecode(b"her \xfe.mp4")
    source.write_bytes(video.read_bytes())
    options = ("--gallery", gallery, "--every", "1", "--annotate")
    said = finished(start("video", source, *options, folder / os.fsdecode(b"named \xfd.mp4"), home=tmp_path))
    assert (said.code, said.complaints) == (0, [])
    assert len(said.lines) == 2
    (copy,) = set(folder.iterdir()) - {source}
    assert len(list(read_frames(str(copy)))) == 50
    missing = finished(start("video", folder / os.fsdecode(b"\xff.mp4"), *options[:2], home=tmp_path))
    assert (missing.code, "no such file" in missing.complaints[-1]) == (1, True)


def test_an_annotated_video_is_no_other_format_and_not_the_video_itself(
    video: Path, gallery: Path, tmp_path: Path
) -> None:
    file = tmp_path / "her.mp4"
    file.write_bytes(video.read_bytes())
    assert facepipe("video", file, "--gallery", gallery, "--annotate", file).code == 2
    wrong = facepipe("video", file, "--gallery", gallery, "--annotate", tmp_path / os.fsdecode(b"x.mp4\xfd"))
    assert (wrong.code, "use one of .mp4" in wrong.complaints[-1]) == (2, True)
    with pytest.raises(UsageError, match="is the video itself"):
        write_annotated(str(file), tmp_path / ".." / tmp_path.name / "her.mp4", [])
    assert file.read_bytes() == video.read_bytes()


def test_a_full_disk_is_told(video: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="Windows limits no file sizes")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OutputError, match="make room"):
            write_annotated(str(video), tmp_path / "copy.mp4", [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_frame_without_a_picture_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV reports damaged frames of motion JPEG as read, and gives no picture."""

    class Capture:
        """Of three frames, the second is damaged."""

        frames = iter([numbered(0), None, numbered(2)])

        def grab(self) -> bool:
            self.frame = next(self.frames, "end")
            return not isinstance(self.frame, str)

        def retrieve(self) -> tuple[bool, object]:
            return True, self.frame

        def get(self, _: int) -> float:
            return 0.0

    monkeypatch.setattr(facepipe_video, "_opened", lambda _: nullcontext(Capture()))
    assert len(list(read_frames("damaged.avi", 0))) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("kind", ["pipe", "device", "link to a device"])
def test_pipes_and_devices_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "video.mp4"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file = Path("/dev/zero")
    else:
        file.symlink_to("/dev/zero")
    for read in (read_frames, lambda source: [stated_duration_s(source)]):
        with pytest.raises(PhotoError, match=f"{file}: not an ordinary file"):
            next(iter(read(str(file))))
    assert not is_cut_off(str(file))


# The network


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server on this machine that nobody is expected to call."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        yield server


def is_called(server: socket.socket) -> bool:
    try:
        connection, _ = server.accept()
    except TimeoutError:
        return False
    connection.close()
    return True


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4", "list.txt", "list.sdp", "http:", "list.asx"])
def test_no_file_causes_a_connection(
    tmp_path: Path, listener: socket.socket, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Playlists name addresses; a folder `http:` makes a path look like one."""
    monkeypatch.chdir(tmp_path)
    port = listener.getsockname()[1]
    address = f"http://127.0.0.1:{port}/x.ts"
    playlists = {
        "list.txt": f"ffconcat version 1.0\nfile {address}\n",
        "list.sdp": f"v=0\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} TCP/RTP/AVP 96\n",
        "list.asx": f'<ASX version="3.0"><ENTRY><REF HREF="{address}"/></ENTRY></ASX>',
    }
    file = Path(name if name != "http:" else address)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(playlists.get(name, f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{address}\n"))
    with pytest.raises(PhotoError, match="no video that can be read"):
        next(read_frames(name if name != "http:" else address))
    assert not is_called(listener)


@pytest.mark.parametrize("scheme", ["file", "concat", "data", "subfile", "pipe", "x"])
def test_only_addresses_of_streams_are_called(tmp_path: Path, scheme: str, video: Path) -> None:
    with pytest.raises(PhotoError, match="no such file"):
        next(read_frames(f"{scheme}://{video}"))


def test_a_stream_is_read_once(tmp_path: Path, listener: socket.socket) -> None:
    address = f"HTTP://127.0.0.1:{listener.getsockname()[1]}/a.mp4"
    said = facepipe("video", address, "--annotate", tmp_path / "a.mp4", "--gallery", tmp_path)
    assert (said.code, "it needs a file" in said.err) == (2, True)
    assert not is_called(listener)


def test_videos_of_huge_frames_are_refused_before_one_is_decoded(tmp_path: Path) -> None:
    file = tmp_path / "huge.avi"
    write_huge_video(file)
    assert file.stat().st_size < 1_000_000
    with pytest.raises(PhotoError, match=r"huge\.avi: frames of 100 megapixels, at most 40"):
        next(read_frames(str(file)))
