"""What the tests of videos share: videos of pictures, of any frame times."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from facepipe.core.faces import UInt8Array

SIZE_WH = (640, 320)


def write_video(
    file: Path, frames: Iterable[UInt8Array], frames_per_s: float = 10, codec: str = "mp4v"
) -> None:
    """Write RGB frames of one size at a constant rate."""
    writer = cv2.VideoWriter()
    for rgb in frames:
        if not writer.isOpened():
            size_wh = (rgb.shape[1], rgb.shape[0])
            assert writer.open(str(file), cv2.VideoWriter.fourcc(*codec), frames_per_s, size_wh)
        writer.write(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    writer.release()


def write_timed(file: Path, frames: Sequence[UInt8Array], times_s: Sequence[float], *options: str) -> None:
    """Write RGB frames that are shown at these times, with ffmpeg.

    Args:
        file: Its suffix names the container.
        frames: RGB uint8, all of one size.
        times_s: Rising, in milliseconds at the finest.
        options: For ffmpeg, before the file.
    """
    require_ffmpeg()
    lengths_s = [*np.diff(times_s).tolist(), 0.1]
    script = ["ffconcat version 1.0"]
    for number, (rgb, length_s) in enumerate(zip(frames, lengths_s, strict=True)):
        name = f"{file.stem}_{number:04}.png"
        cv2.imwrite(str(file.with_name(name)), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
        script += [f"file {name}", "option framerate 1000", f"duration {length_s:.3f}"]
    file.with_suffix(".txt").write_text("\n".join(script))
    source = ["-f", "concat", "-safe", "0", "-i", str(file.with_suffix(".txt"))]
    ffmpeg(*source, "-vsync", "vfr", "-pix_fmt", "yuv420p", *options, str(file))


def ffmpeg(*arguments: str) -> None:
    require_ffmpeg()
    subprocess.run(["ffmpeg", "-v", "error", "-nostdin", "-y", *arguments], check=True)


def require_ffmpeg() -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed: it makes videos that OpenCV can't write")


def numbered(number: int, size_wh: tuple[int, int] = (64, 48)) -> UInt8Array:
    """A picture by whose colours its number, 0..63, can be told after any compression."""
    levels = [number // 16, number // 4 % 4, number % 4]
    stripes = np.repeat(np.array(levels, np.uint8) * 80, size_wh[0] // 3 + 1)[: size_wh[0]]
    return np.ascontiguousarray(np.broadcast_to(stripes[None, :, None], (size_wh[1], size_wh[0], 3)))


def number_of(rgb: UInt8Array) -> int:
    """The number that `numbered` was given."""
    middle = rgb[rgb.shape[0] // 2].mean(axis=1)
    thirds = [middle[round(len(middle) * (third + 0.5) / 3)] for third in range(3)]
    high, middle_level, low = (round(float(level) / 80) for level in thirds)
    return high * 16 + middle_level * 4 + low
