"""Videos and webcams: frames with their times, and videos written again with names drawn."""

from __future__ import annotations

import errno
import math
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from facepipe.core.errors import OutputError, PhotoError, UsageError
from facepipe.core.faces import Faces, UInt8Array
from facepipe.core.files import atomic_path, utf8_name
from facepipe.images.drawing import draw_faces
from facepipe.tracking import Frame, Track

_MAX_FRAME_PIXELS = 40_000_000
"""Of videos of 8,192 x 4,320 pixels and a little more."""
_USUAL_RATE = 25.0
_MAX_STATED_RATE = 1000.0
"""Containers that state more frames a second than this state the unit of their times."""
_MAX_COPY_RATE = 60.0
"""Frames a second of the copy of a video without a constant rate, at most."""
_WRITTEN = (".mp4", ".m4v", ".mov", ".avi", ".mkv")
_CLOCK_SLACK_S = 1.0
"""Times that go back by more begin again: two videos in one file."""
_LEAST_STEP_S = 0.001
_STREAMS = frozenset(("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "srt", "udp", "tcp", "http", "https"))


def read_frames(source: str | int, every_s: float = 0.0, *, for_s: float | None = None) -> Iterator[Frame]:
    """Yield the frames of a video file, or of a webcam by its number: one at most in every `every_s` seconds.

    Times are the container's, which need no constant rate. They rise from frame to frame.

    Args:
        source: A file's path, the address of a stream (which is read from the network; files never are the
            cause of a connection, whatever they hold), or a webcam's number.
        every_s: 0: all frames.
        for_s: Stop after so many seconds; None: at the end of the file, for webcams never.

    Raises:
        PhotoError: It can't be opened, or holds no frame.
        UsageError: `for_s` is no time.
    """
    if for_s is not None and not for_s >= 0:
        raise UsageError(f"expected 0 seconds or more to be looked at, got {for_s}")
    found, due_s = False, 0.0
    with _opened(source) as capture:
        for time_s in _grabbed(capture, source, for_s):
            if time_s + 1e-6 < due_s:
                continue
            readable, bgr = capture.retrieve()
            if readable and bgr is not None:  # Of a damaged frame OpenCV may give neither picture nor error.
                found = True
                due_s = _next_multiple(time_s, every_s) if every_s > _LEAST_STEP_S else 0.0
                yield Frame(time_s, np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8))
    if not found:
        raise PhotoError(f"{source}: {_why_unreadable(source)}")


def _next_multiple(time_s: float, every_s: float) -> float:
    return (math.floor((time_s + 1e-6) / every_s) + 1) * every_s


def stated_duration_s(source: str | int) -> float | None:
    """Return how long a file states to be, about; None where it does not, and for webcams and streams.

    Raises:
        PhotoError: It can't be opened.
    """
    if isinstance(source, int) or is_stream(source):
        return None
    with _opened(source) as capture:
        count = float(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        return count / _stated_rate(capture) if count > 0 else None


def is_cut_off(source: str) -> bool:
    """Return whether a file ends before the length its container states (MP4, Matroska, WebM, AVI).

    Other containers don't say. How many frames a container states tells nothing: trimmed videos, and those
    whose sound goes on for longer, hold fewer.
    """
    path = Path(source)
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        size, start = os.fstat(stream.fileno()).st_size, stream.read(12)
        if start[:4] == b"\x1a\x45\xdf\xa3":
            return _matroska_is_cut(stream, size)
        if start[:4] == b"RIFF":
            return _avi_is_cut(stream, size)
        return start[4:8] in _FIRST_BOXES and _mp4_is_cut(stream, size)


# Opening


@contextmanager
def _opened(source: str | int) -> Iterator[cv2.VideoCapture]:
    """Yield a capture, which is closed at the end.

    Raises:
        PhotoError: A file is missing or may not be read, or its frames are too large.
    """
    if isinstance(source, int) or is_stream(source):
        capture = cv2.VideoCapture(source)
    else:
        _require_readable(source)
        with utf8_name(os.path.abspath(source)) as name:
            capture = cv2.VideoCapture(name)
    try:
        _require_usual_size(capture, source)
        yield capture
    finally:
        capture.release()


def _require_usual_size(capture: cv2.VideoCapture, source: str | int) -> None:
    """Decoders hold several frames at once, so a small file of huge ones would take gigabytes."""
    pixels = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH) * capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    if pixels > _MAX_FRAME_PIXELS:
        raise PhotoError(
            f"{source}: frames of {pixels / 1e6:.0f} megapixels, at most {_MAX_FRAME_PIXELS / 1e6:.0f} are "
            "read: scale the video down"
        )


def is_stream(source: str) -> bool:
    """Return whether it is the address of a stream, which is read from the network, and no file."""
    scheme, separator, _ = source.partition("://")
    return bool(separator) and scheme.lower() in _STREAMS and not os.path.exists(source)


def _require_readable(path: str) -> None:
    if not os.path.exists(path):
        raise PhotoError(f"{path}: no such file; check the path")
    if os.path.isdir(path):
        raise PhotoError(f"{path}: this is a folder; name a video in it")
    if not os.path.isfile(path):  # reading a pipe could wait for ever
        raise PhotoError(
            f"{path}: not an ordinary file; save the video to disk, or name a webcam by its number"
        )
    if not os.access(path, os.R_OK):
        raise PhotoError(f"{path}: no permission to read it; change its permissions")


def _why_unreadable(source: str | int) -> str:
    if isinstance(source, int):
        return "no webcam of this number; try another"
    if is_cut_off(source):
        return "the file is cut off, and what is left of it can't be read; copy it again from where it came"
    return "no video that can be read; convert it to H.264 in an MP4, or try another"


# Times


def _grabbed(capture: cv2.VideoCapture, source: str | int, for_s: float | None) -> Iterator[float]:
    """Yield the time of each frame, which is not converted yet."""
    times = _container_times(capture) if isinstance(source, str) else _clock_times(capture)
    for time_s in times:
        if for_s is not None and time_s > for_s:
            return
        yield time_s


def _clock_times(capture: cv2.VideoCapture) -> Iterator[float]:
    start = time.monotonic()
    while capture.grab():
        yield time.monotonic() - start


def _container_times(capture: cv2.VideoCapture) -> Iterator[float]:
    """Yield the container's times; where it has none, one frame's length after the frame before."""
    step_s, shift_s = 1 / _stated_rate(capture), 0.0
    last_s: float | None = None
    while capture.grab():
        position_s = float(capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000
        if last_s is None:
            shift_s = max(0.0, -position_s)
            last_s = position_s + shift_s
        elif position_s == 0:  # not known: no frame but the first is there
            last_s += step_s
        else:
            if last_s - (position_s + shift_s) > _CLOCK_SLACK_S:
                shift_s = last_s + step_s - position_s
            last_s = max(position_s + shift_s, last_s + _LEAST_STEP_S)
        yield last_s


def _stated_rate(capture: cv2.VideoCapture) -> float:
    """Frames a second, of a constant rate or on average."""
    rate = float(capture.get(cv2.CAP_PROP_FPS))
    return rate if 0 < rate <= _MAX_STATED_RATE else _USUAL_RATE


# Where files end

_FIRST_BOXES = frozenset((b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"))
_BOXES_WITH_FRAMES = frozenset((b"moov", b"moof", b"mdat"))
_SEGMENT = b"\x18\x53\x80\x67"


def _mp4_is_cut(stream: BinaryIO, size: int) -> bool:
    at = 0
    while at + 16 <= size:
        stream.seek(at)
        length, kind, long_length = struct.unpack(">I4sQ", stream.read(16))
        if length == 1:
            length = long_length
        if at + length > size:
            return kind in _BOXES_WITH_FRAMES  # else bytes that somebody has put behind the video
        if length < 8:  # 0: to the end of the file
            return False
        at += length
    return False


def _avi_is_cut(stream: BinaryIO, size: int) -> bool:
    at = 0
    while at + 8 <= size:
        stream.seek(at)
        kind, length = struct.unpack("<4sI", stream.read(8))
        if kind != b"RIFF" or length == 0:
            return False
        at += 8 + length + length % 2
    return at > size + 1  # the last byte may be missing where it only fills up


def _matroska_is_cut(stream: BinaryIO, size: int) -> bool:
    stream.seek(4)
    header_bytes = _ebml_size(stream)
    if header_bytes is None:
        return False
    stream.seek(header_bytes, os.SEEK_CUR)
    if stream.read(4) != _SEGMENT:
        return False
    segment_bytes = _ebml_size(stream)
    return segment_bytes is not None and stream.tell() + segment_bytes > size


def _ebml_size(stream: BinaryIO) -> int | None:
    """A size of 1 to 8 bytes, the first of which states how many; None: not known, as in live recordings."""
    first = stream.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    bits = 7 * (more + 1)
    value = int.from_bytes(first + stream.read(more)) & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value


# Writing


def write_annotated(
    source: str,
    target: Path,
    tracks: Sequence[Track],
    on_frame: Callable[[float], None] | None = None,
    *,
    for_s: float | None = None,
) -> None:
    """Write the video again (MPEG-4, without sound) with faces and names drawn into every frame.

    What the video shows at a time, the copy shows at that time. Its rate is constant: the video's own, one
    frame for one, where that is constant; else frames are repeated, or left out where more than 60 come in a
    second. The file appears whole or not at all.

    Args:
        source: A video file.
        target: Where to; best `.mp4`.
        tracks: Of that video.
        on_frame: Called with the time of each frame that is done.
        for_s: Stop after so many seconds of the video.

    Raises:
        OutputError: It can't be written.
        UsageError: As `require_target`.
    """
    require_target(source, target)
    try:
        with (
            utf8_name(os.path.abspath(target.parent)) as folder,
            atomic_path(target, target.suffix) as temporary,  # the suffix selects the container
        ):
            name = os.path.join(folder, temporary.name)
            written = _write_copy(source, name, tracks, on_frame, for_s)
            if abs(_frame_count(name) - written) > 1:  # the writer itself reports nothing
                raise OutputError(f"{target}: can't be written whole; make room there")
    except OSError as error:
        raise OutputError(f"{target}: can't be written ({error.strerror}); choose another place") from error


def require_target(source: str, target: Path) -> None:
    """Check where an annotated video is to go, before the work whose result it is.

    Raises:
        UsageError: It is the video itself, or of a form that is not written.
    """
    if target.suffix.lower() not in _WRITTEN:
        raise UsageError(f"{target}: can't write this format; use one of {' '.join(_WRITTEN)}")
    if os.path.exists(source) and target.exists() and target.samefile(source):
        raise UsageError(f"{target}: is the video itself; choose another file for the annotated one")


def _write_copy(
    source: str,
    name: str,
    tracks: Sequence[Track],
    on_frame: Callable[[float], None] | None,
    for_s: float | None,
) -> int:
    """Return how many frames were written."""
    with _opened(source) as capture:
        rate, last_repeats = _copy_clock(list(_grabbed(capture, source, for_s)), _stated_rate(capture))
    writer, size_wh, written = cv2.VideoWriter(), (0, 0), 0
    try:
        for frame, repeats in _held(read_frames(source, for_s=for_s), rate, last_repeats):
            if not writer.isOpened():
                size_wh = (frame.rgb.shape[1], frame.rgb.shape[0])
                if not writer.open(name, cv2.VideoWriter.fourcc(*"mp4v"), rate, size_wh):
                    raise OSError(errno.EIO, "OpenCV opens no writer there")
            if repeats:
                drawn = cv2.resize(_drawn(frame, tracks), size_wh)  # a video may change its size on the way
                for _ in range(repeats):
                    writer.write(cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
            written += repeats
            if on_frame is not None:
                on_frame(frame.time_s)
    finally:
        writer.release()
    return written


def _copy_clock(times_s: Sequence[float], stated_rate: float) -> tuple[float, int]:
    """Return the rate of a copy, and how many of its frames the video's last one fills."""
    rate = _writable(stated_rate)
    if len(times_s) < 2:
        return rate, 1
    steps_s = np.diff(times_s)
    if not (np.diff(np.rint(np.multiply(times_s, rate))) == 1).all():
        rate = _writable(min(_MAX_COPY_RATE, max(stated_rate, 1 / float(steps_s.min()))))
    return rate, max(1, round(float(np.median(steps_s)) * rate))


def _writable(rate: float) -> float:
    """Return the rate that OpenCV writes for this one: it is rounded to three decimals at most."""
    return next(near for decimals in range(4) if abs((near := round(rate, decimals)) - rate) <= 1e-3)


def _held(frames: Iterator[Frame], rate: float, last_repeats: int) -> Iterator[tuple[Frame, int]]:
    """Yield each frame with how many frames of a constant rate it fills, until the next one's time."""
    written, before = 0, None
    for frame in frames:
        if before is not None:
            until = round(frame.time_s * rate)
            yield before, until - written
            written = until
        before = frame
    if before is not None:
        yield before, last_repeats


def _drawn(frame: Frame, tracks: Sequence[Track]) -> UInt8Array:
    faces = [face for track in tracks if (face := track.at(frame.time_s)) is not None]
    return draw_faces(frame.rgb, _together(faces)) if faces else frame.rgb


def _together(faces: Sequence[Faces]) -> Faces:
    return Faces(
        np.concatenate([face.boxes_xyxy for face in faces]),
        np.concatenate([face.scores for face in faces]),
        np.concatenate([face.landmarks for face in faces]),
        matches=tuple(match for face in faces for match in face.matches or ()),
    )


def _frame_count(file: str) -> int:
    capture = cv2.VideoCapture(file)
    try:
        return int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    finally:
        capture.release()
