"""Shares of photos: by content alone, each photo in exactly one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from batch_helpers import do, files

from facepipe.batch.damage import DamagedJobError
from facepipe.batch.job import Job
from facepipe.batch.shards import Shard, parse_shard
from facepipe.core.errors import UsageError


def shares(photos: list[Path], count: int) -> list[set[Path]]:
    return [set(Shard(number, count).select(photos)) for number in range(1, count + 1)]


def test_every_photo_is_in_exactly_one_share_and_copies_in_the_same(tmp_path: Path) -> None:
    photos = files(tmp_path, *(f"{number}.jpg" for number in range(300)))
    copies = [Path(shutil.copy(photo, tmp_path / f"copy of {photo.name}")) for photo in photos]
    for count in (1, 2, 7):
        found = shares(photos + copies, count)
        assert sum(map(len, found)) == len(photos + copies)
        assert set.union(*found) == {*photos, *copies}
        assert min(map(len, found)) > 0.7 * len(photos + copies) / count
        for photo, copy in zip(photos, copies, strict=True):
            assert next(share for share in found if photo in share) >= {copy}


def test_a_share_depends_on_content_alone(tmp_path: Path) -> None:
    photos = files(tmp_path / "a", *(f"{number}.jpg" for number in range(50)))
    before = {photo.read_bytes() for photo in shares(photos, 3)[1]}
    (tmp_path / "b").mkdir()
    moved = [photo.rename(tmp_path / "b" / f"new {photo.name}") for photo in reversed(photos)]
    os.utime(moved[0], (1, 1))
    assert {photo.read_bytes() for photo in shares(moved, 3)[1]} == before
    large = tmp_path / "large.jpg"
    for content in (b"x" * 100_000, b"x" * 100_001, b"y" + b"x" * 99_999):  # size and head count
        large.write_bytes(content)
        assert len(Shard(1, 10**6).select([large])) == 0
    selected = Shard(2, 3).select(moved)
    assert list(selected.values()) == [moved.index(photo) for photo in selected]


def test_what_cannot_be_read_is_in_every_share(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe.jpg")
    for photo in (tmp_path / "missing.jpg", tmp_path, pipe, Path("a\0b.jpg")):
        assert [list(share) for share in shares([photo], 3)] == [[photo]] * 3


@pytest.mark.parametrize(
    "text", ["", "1", "0/4", "5/4", "-1/4", "1/0", "1/4/2", "1 / 4", "a/b", "1/2.5", "1/9999999", "\u0661/4"]
)
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a share"):
        parse_shard(text)


def test_a_job_remembers_its_share_and_its_places(tmp_path: Path) -> None:
    photos = files(tmp_path / "photos", "1.jpg", "2.jpg", "3.jpg")
    with Job(tmp_path / "out", create=True) as job:
        job.plan([photos[2], photos[0]], places=[7, 3], shard=Shard(2, 4))
        do(job)
    with Job(tmp_path / "out") as job:
        assert (job.shard, job.photos()) == (Shard(2, 4), [photos[0], photos[2]])
        job.plan(photos)
        assert (job.shard, job.photos()) == (None, photos)
        with job.file.changing() as database:
            database.execute("INSERT INTO settings (key, value) VALUES ('shard', '\"9/4\"')")
    with pytest.raises(DamagedJobError, match="share"):
        Job(tmp_path / "out")
