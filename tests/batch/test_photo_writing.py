"""Names in the photos themselves: nothing else changes, nothing is analyzed anew, and kills leave no half."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import facepipe
from image_helpers import encode
from library_helpers import analyze, face_of, make_batch, names_in
from PIL import Image
from pipeline_helpers import noise
from xmp_helpers import FOREIGN, exiftool, exiftool_json, needs_exiftool

from facepipe.batch.forgetting import forget_person
from facepipe.batch.job import Job
from facepipe.batch.photo_writing import finish_photo_writes, write_into_photos
from facepipe.core.errors import FacepipeError, PhotoError
from facepipe.core.faces import UInt8Array
from facepipe.gallery import Gallery
from facepipe.images.reading import photo_sha256, read_image, read_xmp, write_image
from facepipe.library.library import Library
from facepipe.xmp import verifying
from facepipe.xmp.exiftool import run_exiftool
from facepipe.xmp.packets import items, new_root, parse, properties, tag
from facepipe.xmp.regions import REGIONS
from facepipe.xmp.sidecars import sidecar_path

pytestmark = needs_exiftool
PHOTOS = {"one": ["ada", "bob"], "two": ["ada"], "three": ["bob"], "none": []}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A batch in which Ada was confirmed in photo two, and found in photo one."""
    out = make_batch(tmp_path, PHOTOS)
    with Library.open(out) as library:
        library.confirm([face_of(library, "two")], "Ada")
        library.name_everything()
    return out


def photo(out: Path, name: str) -> Path:
    """Where a photo of the batch is."""
    return out.parent / "photos" / f"{name}.png"


def write(out: Path) -> tuple[int, list[str]]:
    """Write the names into the photos; returns how many failed, and why."""
    errors: list[FacepipeError] = []
    with Job(out) as job, Gallery.open(out.parent / "gallery") as gallery:
        failed = write_into_photos(job, on_failure=errors.append)
        finish_photo_writes(job, gallery)
    return failed, [str(error) for error in errors]


def waiting(out: Path) -> list[str]:
    """Photos that a new run of the batch would analyze."""
    with Job(out) as job:
        job.plan(sorted((out.parent / "photos").glob("[!.]*")))
        return [task.path.name for task in job.waiting()]


def tags(path: Path) -> tuple[list[str], list[str]]:
    """Names of the regions and keywords in a photo, or in a sidecar."""
    packets = [path.read_bytes()] if path.suffix == ".xmp" else read_xmp(path)
    root = parse(packets[0]) if packets else new_root()
    keywords = properties(root, "http://purl.org/dc/elements/1.1/", "subject")
    names = [name for item in root.iter() if (name := item.get(tag(REGIONS, "Name")))]
    return names, [item.text for listed in keywords for item in items(listed)]


def contents(out: Path) -> dict[str, str]:
    """Content hash of every photo."""
    files = sorted((out.parent / "photos").glob("[!.]*"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_only_photos_with_names_change_and_nothing_is_analyzed_anew(out: Path) -> None:
    before, old = contents(out), photo(out, "one").stat()
    pixels = read_image(photo(out, "one"))
    photo(out, "one").chmod(0o640)
    with Library.open(out) as library:
        ids, named = set(library.faces), names_in(library)
    assert write(out) == (0, [])
    now = contents(out)
    assert {name for name in now if now[name] != before[name]} == {"one.png", "two.png"}
    assert tags(photo(out, "one")) == tags(photo(out, "two")) == (["Ada"], ["Ada"])
    assert np.array_equal(read_image(photo(out, "one")), pixels)
    new = photo(out, "one").stat()
    assert (stat.S_IMODE(new.st_mode), new.st_mtime_ns) == (0o640, old.st_mtime_ns)
    assert waiting(out) == []
    assert write(out) == (0, [])
    assert contents(out) == now
    with Library.open(out) as library:
        assert (set(library.faces), names_in(library)) == (ids, named)
        two = library.faces[face_of(library, "two")]
        assert two.decision is not None
        assert two.decision.photo_sha256 == now["two.png"] == library.photos[two.photo_id].sha256
        assert [t.photo_sha256 for t in library.gallery.templates("Ada")] == [now["two.png"]]
        library.name_everything()
        assert len(library.gallery.templates("Ada")) == 1


def test_names_in_photos_follow_what_people_decide_and_are_taken_back(out: Path) -> None:
    original = photo(out, "one").read_bytes()
    write(out)
    with Library.open(out) as library:
        library.rename("Ada", "Eve")
        library.name_everything()
        library.write_results()
        first = library.photos[library.faces[face_of(library, "one")].photo_id]
        assert first.sha256 == photo_sha256(photo(out, "one"))
    assert tags(photo(out, "one")) == (["Eve"], ["Eve"])
    assert facepipe("face", "name", _id(out, "three"), "Bob", "--library", out).code == 0
    assert tags(photo(out, "one")) == (["Eve", "Bob"], ["Eve", "Bob"])
    assert facepipe("library", "undo", "--library", out).code == 0
    assert facepipe("face", "reject", _id(out, "one"), "--library", out).code == 0
    assert tags(photo(out, "three")) == ([], [])
    assert waiting(out) == []
    assert photo(out, "one").stat().st_size == len(original)
    (record,) = exiftool_json("-XMP:all", photo(out, "one"))
    assert set(record) == {"SourceFile"}


def _id(out: Path, name: str) -> str:
    with Library.open(out) as library:
        return face_of(library, name)


def test_a_forgotten_person_leaves_the_photos(out: Path) -> None:
    write(out)
    with Job(out) as job:
        assert forget_person(job, {"Ada"}) == 2
    for file in [*out.iterdir(), *(out.parent / "photos").iterdir()]:
        assert b"Ada" not in file.read_bytes(), file
    with Job(out) as job, Gallery.open(out.parent / "gallery") as gallery:
        finish_photo_writes(job, gallery)
        assert gallery.templates("Ada")[0].photo_sha256 == photo_sha256(photo(out, "two"))


def test_a_photo_that_was_replaced_keeps_no_one_from_being_forgotten(out: Path) -> None:
    with Library.open(out) as library:
        library.confirm([face_of(library, "three")], "Bob")
        library.name_everything()
    write(out)
    assert tags(photo(out, "one")) == (["Ada", "Bob"], ["Ada", "Bob"])
    write_image(photo(out, "one"), noise(1, 300, 400))
    write_image(photo(out, "two"), noise(2, 300, 400))
    before = contents(out)
    with Job(out) as job:
        assert forget_person(job, {"Ada"}) == 2
        assert [task.path.name for task in job.waiting()] == ["one.png", "two.png"]
    assert contents(out) == before


def test_nobody_is_forgotten_while_an_edited_photo_holds_the_name(out: Path) -> None:
    write(out)
    with photo(out, "one").open("ab") as stream:
        stream.write(b"more")
    before = contents(out)
    with Job(out) as job:
        with pytest.raises(PhotoError, match=r"one\.png: it has changed since .* run `facepipe batch` again"):
            forget_person(job, {"Ada"})
        assert contents(out)["one.png"] == before["one.png"]
        job.plan(sorted((out.parent / "photos").glob("*.png")))
        assert [task.path.name for task in job.waiting()] == ["one.png"]
        analyze(job, PHOTOS)
    with Library.open(out) as library:
        library.name_everything()
    with Job(out) as job:
        assert forget_person(job, {"Ada"}) == 2
    assert tags(photo(out, "one")) == tags(photo(out, "two")) == ([], [])


def test_copies_and_links_of_a_photo_stay_what_they_are(out: Path) -> None:
    two, link, copy = photo(out, "two"), photo(out, "link"), photo(out, "copy")
    copy.write_bytes(two.read_bytes())
    link.symlink_to(two)
    with Job(out) as job:
        job.plan(sorted((out.parent / "photos").iterdir()))
        analyze(job, {**PHOTOS, "copy": ["ada"], "link": ["ada"]})
    with Library.open(out) as library:
        library.name_everything()
        ids = set(library.faces)
    assert write(out) == (0, [])
    assert link.is_symlink()
    assert photo_sha256(two) == photo_sha256(copy)
    assert tags(copy) == tags(two) == (["Ada"], ["Ada"])
    assert waiting(out) == []
    with Library.open(out) as library:
        assert set(library.faces) == ids
        assert [t.photo_sha256 for t in library.gallery.templates("Ada")] == [photo_sha256(two)]


@pytest.mark.parametrize("hindrance", ["hard link", "read-only", "changed", "changed meanwhile", "owner"])
def test_a_photo_that_can_not_be_replaced_is_left_alone(
    out: Path, monkeypatch: pytest.MonkeyPatch, hindrance: str
) -> None:
    two = photo(out, "two")
    told = {
        "hard link": "2 names (hard links)",
        "read-only": "the file is read-only",
        "changed": "it has changed since it was analyzed",
        "changed meanwhile": "another program has changed it",
        "owner": "belongs to another user or group",
    }[hindrance]
    match hindrance:
        case "hard link":
            os.link(two, out.parent / "other.png")
        case "read-only":
            two.chmod(0o444)
        case "changed":
            Image.new("RGB", (100, 100), "blue").save(two)
        case "changed meanwhile":
            real = run_exiftool

            def edited(options: Sequence[str], folder: Path, verified: Path) -> bytes:
                if verified.name == two.name:  # photos are verified in threads
                    with two.open("ab") as stream:
                        stream.write(b"more")
                return real(options, folder, verified)

            monkeypatch.setattr(verifying, "run_exiftool", edited)
        case "owner":
            if os.geteuid() != 0:
                pytest.skip("a file of another user needs root")
            os.chown(two, 12345, 12345)

            def refuse(*_: object) -> None:
                raise PermissionError

            monkeypatch.setattr(os, "chown", refuse)
    before = contents(out)
    failed, errors = write(out)
    assert failed == len(errors) == 1
    assert errors[0].startswith(str(two))
    assert told in errors[0]
    now = contents(out)
    assert hindrance == "changed meanwhile" or now["two.png"] == before["two.png"]
    assert now["one.png"] != before["one.png"]
    assert not [file for file in two.parent.iterdir() if file.name.startswith(".")]


def test_what_exiftool_got_wrong_is_found(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exiftool("-EXIF:Artist=somebody", photo(out, "two"))
    assert waiting(out) == ["two.png"]
    with Job(out) as job:
        job.plan(sorted((out.parent / "photos").iterdir()))
        analyze(job, PHOTOS)
    with Library.open(out) as library:
        library.name_everything()
    real = subprocess.run

    def forgetful(command: list[str], **options: object) -> object:
        wrong = [*command[:-1], "-EXIF:Artist=", command[-1]] if "-overwrite_original" in command else command
        return real(wrong, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", forgetful)
    before = contents(out)
    failed, errors = write(out)
    assert (failed, len(errors)) == (1, 1)
    assert "exiftool's copy has another PNG:PNG-eXIf:Artist" in errors[0].replace(
        "EXIF:IFD0:Artist", "PNG:PNG-eXIf:Artist"
    )
    assert contents(out)["two.png"] == before["two.png"]


@pytest.mark.parametrize("kind", ["BMP", "GIF"])
def test_a_photo_that_can_not_hold_names_gets_a_sidecar(
    out: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    two = photo(out, "two")
    picture = Image.open(two).convert("RGB")
    if kind == "BMP":
        picture.save(two, "BMP")
    else:
        picture.save(two, "GIF", save_all=True, append_images=[Image.new("RGB", picture.size, "blue")])
    with Job(out) as job:
        job.plan(sorted((out.parent / "photos").glob("*.png")))
        analyze(job, PHOTOS)
    with Library.open(out) as library:
        library.confirm([face_of(library, "two")], "Ada")
        library.name_everything()
    before = two.read_bytes()
    assert write(out) == (0, [])
    assert two.read_bytes() == before
    assert "they are in its sidecar" in caplog.text
    assert tags(sidecar_path(two)) == (["Ada"], ["Ada"])
    caplog.clear()
    write(out)
    assert not caplog.text
    sidecar_path(two).unlink()
    two.write_bytes(before + b"more")
    failed, (error,) = write(out)
    assert (failed, sidecar_path(two).exists()) == (1, False)
    assert f"{two}: it has changed since it was analyzed" in error
    two.write_bytes(before)
    assert write(out) == (0, [])
    with Job(out) as job:
        forget_person(job, {"Ada"})
    assert b"Ada" not in sidecar_path(two).read_bytes()


def exif_of(path: Path) -> dict[str, object]:
    """All EXIF data but where in the file the picture is."""
    (record,) = exiftool_json("-a", "-u", "-EXIF:all", path)
    return {key: value for key, value in record.items() if key != "StripOffsets"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "HEIC", "AVIF"])
def test_all_kinds_of_photos_keep_everything_else(tmp_path: Path, astronaut: UInt8Array, kind: str) -> None:
    out = make_batch(tmp_path, {"two": ["ada"]})
    two = photo(out, "two")
    exif = Image.Exif()
    exif[0x013B] = "somebody"
    xmp = FOREIGN.format(w=100, h=100).replace('x="0.5"', 'x="0.95"').encode()
    picture = Image.fromarray(np.ascontiguousarray(astronaut[:100, :100]))
    two.write_bytes(encode(picture, kind, exif=exif.tobytes(), **({} if kind == "PNG" else {"xmp": xmp})))
    pixels = read_image(two)
    with Job(out) as job:
        job.plan([two])
        analyze(job, {"two": ["ada"]})
    with Library.open(out) as library:
        library.confirm([face_of(library, "two")], "Ada")
        library.name_everything()
    before, old = two.read_bytes(), exif_of(two)
    assert write(out) == (0, [])
    regions, keywords = tags(two)
    assert "Ada" in keywords
    assert regions[-1] == "Ada"
    assert exif_of(two) == old
    assert np.array_equal(read_image(two), pixels)
    assert waiting(out) == []
    after = two.read_bytes()
    assert write(out) == (0, [])
    assert two.read_bytes() == after
    with Library.open(out) as library:
        library.reject([face_of(library, "two")], "Ada")
        library.name_everything()
        library.write_results()
    regions, keywords = tags(two)
    assert "Ada" not in [*regions, *keywords]
    assert ("Grandmother" in regions) == ("Grandmother" in before.decode("latin-1"))


STEPS = (
    "facepipe.batch.photo_writing.embedded_copy",
    "facepipe.batch.job_writes.JobWrites.begin",
    "facepipe.batch.photo_writing._replace",
    "facepipe.batch.job_writes.JobWrites.end",
    "facepipe.batch.photo_writing._follow",
    "facepipe.gallery.Gallery.change_photos",
    "facepipe.batch.job_outputs.JobOutputs.remember",
)
"""Functions after which a process is killed."""
_KILLED = """
import os, signal, sys, threading
from pathlib import Path
from pkgutil import resolve_name
from facepipe.batch.job import Job
from facepipe.batch.photo_writing import finish_photo_writes, write_into_photos
from facepipe.gallery import Gallery

out, step = Path(sys.argv[1]), sys.argv[2]
owner, name = step.rsplit(".", 1)
function = getattr(resolve_name(owner), name)

def killed(*arguments, **options):
    function(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(resolve_name(owner), name, killed)
with Job(out) as job, Gallery.open(out.parent / "gallery") as gallery:
    write_into_photos(job)
    finish_photo_writes(job, gallery)
"""


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_process_leaves_whole_photos_and_is_repeated(tmp_path: Path, step: str) -> None:
    out = make_batch(tmp_path, {"two": ["ada"], "none": []})
    with Library.open(out) as library:
        library.confirm([face_of(library, "two")], "Ada")
        library.name_everything()
    old = contents(out)
    words = [sys.executable, "-c", _KILLED, str(out), step]
    assert subprocess.run(words, check=False, timeout=60).returncode == -signal.SIGKILL
    is_new = contents(out)["two.png"] != old["two.png"]
    assert tags(photo(out, "two")) == ((["Ada"], ["Ada"]) if is_new else ([], []))
    assert is_new == (STEPS.index(step) >= STEPS.index("facepipe.batch.photo_writing._replace"))
    with Library.open(out) as library:  # finishes what was left
        assert names_in(library)["two"] == ["Ada"]
    assert waiting(out) == []
    assert write(out) == (0, [])
    assert waiting(out) == []
    now = contents(out)
    assert {name for name in now if now[name] != old[name]} == {"two.png"}
    assert not list(photo(out, "two").parent.glob(".*"))
    with Library.open(out) as library:
        two = library.faces[face_of(library, "two")]
        assert two.decision is not None
        assert two.decision.photo_sha256 == now["two.png"]
        assert [t.photo_sha256 for t in library.gallery.templates("Ada")] == [now["two.png"]]
