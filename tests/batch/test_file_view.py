"""Whether two machines see the same file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from facepipe.batch.file_view import view_of

NOON = (10**18, 10**18)


def written(path: Path, content: bytes, times_ns: tuple[int, int] = NOON) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=times_ns)
    return path


@pytest.mark.parametrize("size", [0, 1, 4096, 5000, 100_000])
def test_a_copy_with_its_time_is_the_same_file(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    here, there = (written(tmp_path / name / "photo.jpg", content) for name in ("here", "there"))
    assert view_of(here) == view_of(there) is not None


@pytest.mark.parametrize(
    ("content", "times_ns"),
    [
        (b"a" * 20_000, (10**18, 10**18 + 1)),
        (b"a" * 20_001, NOON),
        (b"b" + b"a" * 19_999, NOON),
        (b"a" * 19_999 + b"b", NOON),
    ],
    ids=["time", "size", "beginning", "end"],
)
def test_another_file_is_not(tmp_path: Path, content: bytes, times_ns: tuple[int, int]) -> None:
    here = written(tmp_path / "here" / "photo.jpg", b"a" * 20_000)
    assert view_of(here) != view_of(written(tmp_path / "there" / "photo.jpg", content, times_ns))


def test_what_is_no_file_is_not_seen(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in ("missing.jpg", "pipe.jpg", "."):
        assert view_of(tmp_path / name) is None
