"""A batch with an encrypted gallery: nobody reads the job without the key."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from batch_helpers import MATCHES, NAME, VECTORS, do, each, enroll_her, files, write_checksums
from cli_helpers import Said, facepipe

from facepipe.batch.damage import DamagedJobError
from facepipe.batch.job import Job
from facepipe.batch.job_file import JOB_FILE, JobFile
from facepipe.batch.models import FailedPhoto, OutputFiles
from facepipe.core.errors import FacepipeError, GalleryError
from facepipe.core.faces import UInt8Array
from facepipe.gallery.storage.encryption import KEY_FILE_VARIABLE, KEY_VARIABLE
from facepipe.images.reading import photo_sha256, write_image

pytest.importorskip("cryptography", reason="needs the [encryption] extra")

KEY = b"correct horse battery staple"


@pytest.fixture(autouse=True)
def quick_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that are quick to make, and none in the environment."""
    monkeypatch.setattr("facepipe.gallery.storage.encryption._SCRYPT_COST", 2)
    for variable in (KEY_VARIABLE, KEY_FILE_VARIABLE):
        monkeypatch.delenv(variable, raising=False)


def all_bytes(out: Path) -> bytes:
    return b"".join(file.read_bytes() for file in out.glob(f"{JOB_FILE}*"))


def fill(job: Job, photos: list[Path]) -> list[bytes]:
    """Everything that a job can hold; answers what nobody is to find in its file."""
    job.plan(photos)
    do(job, failing=frozenset({"broken.jpg"}))
    job.outputs.remember("crops", {1: OutputFiles("hash", ("crop of Somebody.jpg",))})
    return [
        b"Somebody",
        b"Other",
        b"holiday",
        b"broken",
        b"crop of",
        *(vector.tobytes() for vector in VECTORS),
        photo_sha256(photos[0]).encode(),
    ]


def contents(job: Job) -> list[object]:
    unknown = [(f.photo_id, f.photo_sha256, f.row, f.embedding.tobytes()) for f in job.faces.unknown_faces()]
    records = [(r.id, r.result.path, r.result.error, r.size_wh) for r in job.records()]
    matches = [r.result.faces.matches for r in job.records() if r.result.faces is not None]
    pictures = [job.faces.pictures(id) for id, *_ in records]
    return [unknown, records, matches, pictures, job.counts(), job.photos(), job.outputs.get("crops", 1)]


@pytest.mark.parametrize("when", ["before the first photo", "afterwards", "killed while it wiped"])
def test_no_plain_byte_is_left_and_all_comes_back(
    tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = files(tmp_path / "holiday", "1.jpg", "broken.jpg", "2.jpg")
    with Job(tmp_path / "plain", create=True) as job:
        secrets = fill(job, photos)
        expected = contents(job)
    assert all(secret in all_bytes(tmp_path / "plain") for secret in secrets)
    out = tmp_path / "out"
    with Job(out, create=True, secret=KEY) as job:
        if when == "before the first photo":
            assert job.require_encryption()
            fill(job, photos)
        else:
            fill(job, photos)
            if when == "killed while it wiped":
                monkeypatch.setattr(JobFile, "wipe", lambda self: None)
            assert job.require_encryption()
            monkeypatch.undo()
            monkeypatch.setattr("facepipe.gallery.storage.encryption._SCRYPT_COST", 2)
        assert not job.require_encryption()
    with Job(out, secret=KEY) as job:
        assert contents(job) == expected
        assert [secret for secret in secrets if secret in all_bytes(out)] == []
        job.plan(photos)
        assert do(job) == []
        photos[0].rename(moved := photos[0].with_name("moved.jpg"))
        assert job.plan([moved, *photos[1:]]).moved == 1
        assert do(job) == []
        name = Mock(return_value=MATCHES)
        job.faces.name_again(each(name), "other names", 4)
        np.testing.assert_array_equal(name.call_args[0][0].embeddings[[0, 2]], VECTORS)
    assert [secret for secret in secrets if secret in all_bytes(out)] == []


def test_without_the_key_nothing_is_read_or_changed(tmp_path: Path) -> None:
    photos = files(tmp_path / "holiday", "1.jpg", "broken.jpg")
    with Job(tmp_path / "out", create=True) as job, pytest.raises(GalleryError, match="--key-file"):
        job.require_encryption()
    with Job(tmp_path / "out", secret=KEY) as job:
        job.require_encryption()
        fill(job, photos)
    for secret, told in ((None, "the job is encrypted: give .*--key-file"), (b"wrong", "not the key")):
        with pytest.raises(GalleryError, match=told):
            Job(tmp_path / "out", secret=secret)
    Job(tmp_path / "out", secret=KEY).close()


def test_altered_ciphertext_is_refused(tmp_path: Path) -> None:
    photos = files(tmp_path / "holiday", "1.jpg", "broken.jpg")
    with Job(tmp_path / "out", create=True, secret=KEY) as job:
        job.require_encryption()
        fill(job, photos)
    for told in ("have another checksum", "a stored matches can't be deciphered"):
        with closing(sqlite3.connect(tmp_path / "out" / JOB_FILE)) as database:
            database.execute("UPDATE photos SET matches = vectors WHERE matches IS NOT NULL")
            if "deciphered" in told:
                write_checksums(database)
            database.commit()
        with pytest.raises(DamagedJobError, match=told):
            Job(tmp_path / "out", secret=KEY)


def test_damage_is_told_before_anything_is_deciphered_wrongly(tmp_path: Path) -> None:
    photos = files(tmp_path / "holiday", "1.jpg", "broken.jpg", "2.jpg")
    with Job(tmp_path / "out", create=True, secret=KEY) as job:
        job.require_encryption()
        fill(job, photos)
        expected = contents(job)
    file = tmp_path / "out" / JOB_FILE
    whole, refused = file.read_bytes(), 0
    for seed in range(120):
        chance, data = random.Random(seed), bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        file.write_bytes(data)
        try:
            with Job(tmp_path / "out", secret=KEY) as job:
                found = contents(job)
        except FacepipeError as error:
            refused += 1
            told = str(error)
        else:
            assert found == expected
            continue
        assert told.startswith(str(file))
    assert refused > 5


def test_failures_are_known_again(tmp_path: Path) -> None:
    photos = files(tmp_path / "holiday", "broken.jpg")
    with Job(tmp_path / "out", create=True, secret=KEY) as job:
        job.require_encryption()
        for newly_failed in (1, 0):
            job.plan(photos, retry_failed=True)
            (task,) = job.waiting()
            job.save([FailedPhoto(task, "broken.jpg: broken")], "names")
            assert job.counts().newly_failed == newly_failed
            job.note_failures_reported()


def test_the_commands(astronaut: UInt8Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is encrypted with the gallery, said once, and sorts with the key."""
    (tmp_path / "photos").mkdir()
    write_image(tmp_path / "photos" / "her.png", astronaut)
    key = tmp_path / "key"
    key.write_bytes(KEY)
    gallery, out = tmp_path / "gallery", tmp_path / "out"
    enroll_her(gallery, astronaut)

    def batch(*more: str | Path) -> Said:
        return facepipe("batch", tmp_path / "photos", "--gallery", gallery, "--out", out, *more)

    plain = batch()
    assert (plain.code, NAME.encode() in all_bytes(out)) == (0, True)
    assert facepipe("gallery", "encrypt", "--gallery", gallery, "--key-file", key).code == 0
    assert batch().code == 1
    first, second = batch("--key-file", key), batch("--key-file", key)
    assert (first.code, second.code) == (0, 0), first.err
    warning = "hold names and faces in the clear"
    assert (first.err.count(warning), second.err.count(warning)) == (1, 0)
    assert "0 of them analyzed now" in first.err
    for secret in (NAME.encode(), b"her.png", b"RIFF"):
        assert secret not in all_bytes(out)
    assert NAME in (out / "faces.csv").read_text()
    refused = facepipe("sort", out, "--to", tmp_path / "sorted")
    assert (refused.code, "--key-file" in refused.err) == (1, True)
    assert facepipe("sort", out, "--to", tmp_path / "sorted", "--key-file", key).code == 0
    assert (tmp_path / "sorted" / NAME / "her.png").exists()
