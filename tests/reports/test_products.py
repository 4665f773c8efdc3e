"""No command destroys a file that it did not write itself."""

from __future__ import annotations

import io
import os
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from batch_helpers import job_of
from cli_helpers import Said, facepipe
from gallery_helpers import ENCODER, person_vectors, templates
from pipeline_helpers import faces_at
from video_helpers import numbered, write_video

from facepipe.batch.job import Job
from facepipe.batch.job_file import JOB_FILE
from facepipe.batch.models import ReportOptions
from facepipe.batch.page import write_report
from facepipe.batch.results import require_places, write_records
from facepipe.core import overwriting as products
from facepipe.core.errors import OutputError
from facepipe.core.faces import Match, UInt8Array
from facepipe.core.overwriting import Form, require_replaceable
from facepipe.evaluation.pages import write_report as write_evaluation
from facepipe.gallery import Gallery
from facepipe.images.reading import read_image, write_image
from facepipe.pipeline import PhotoResult
from facepipe.reports.html import page
from facepipe.reports.pictures import PictureFolder, write_page
from facepipe.reports.records import save_embeddings
from facepipe.xmp.sidecars import write_sidecar

PRECIOUS = b"the only copy of a novel"
Command = Callable[..., Said]


@pytest.fixture
def place(tmp_path: Path, astronaut: UInt8Array) -> Path:
    """A gallery, a photo and a video."""
    with Gallery.open(tmp_path / "gallery", ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(1, 3)))
        gallery.match(person_vectors(1, 1))
    write_image(tmp_path / "photo.png", astronaut[:64, :64])
    write_video(tmp_path / "video.mp4", [numbered(i) for i in range(3)])
    return tmp_path


COMMANDS: dict[str, tuple[str, ...]] = {
    "page.html": ("cluster", "--gallery", "gallery", "--html"),
    "audit.html": ("gallery", "audit", "--gallery", "gallery", "--html"),
    "vectors.npz": ("embed", "photo.png", "--out"),
    "people.zip": ("gallery", "export", "--gallery", "gallery"),
    "drawn.mp4": ("video", "video.mp4", "--gallery", "gallery", "--annotate"),
}
"""By the name of their file, the commands that write one; the file's path comes last."""
QUICK = [name for name in COMMANDS if name not in ("vectors.npz", "drawn.mp4")]
"""Those that need no network."""


@pytest.mark.parametrize("name", COMMANDS)
def test_the_file_of_another_is_refused_before_any_work(
    place: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    (place / name).write_bytes(PRECIOUS)
    said = facepipe(*COMMANDS[name], name)
    assert said.code == 1
    assert "exists, and is not" in said.err
    assert "replace it with --force" in said.err
    assert said.out == ""
    assert (place / name).read_bytes() == PRECIOUS


@pytest.mark.parametrize("name", QUICK)
def test_its_own_and_empty_files_are_replaced_and_others_with_force(
    place: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    (place / name).touch()
    for force in ([], [], ["--force"]):
        if force:
            (place / name).write_bytes(PRECIOUS)
        assert facepipe(*COMMANDS[name], name, *force).code == 0
        assert (place / name).stat().st_size > len(PRECIOUS)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    "target",
    ["gallery/gallery.sqlite3", "gallery/gallery.sqlite3-wal", f"job/{JOB_FILE}", f"job/{JOB_FILE}-shm"],
)
def test_no_force_replaces_a_database(
    place: Path, name: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one of another name: what counts is the content."""
    monkeypatch.chdir(place)
    job_of(place / "job", {})
    (place / Path(target).parent / "copy").write_bytes((place / target.partition("-")[0]).read_bytes())
    file = Path(target) if name != "drawn.mp4" else Path(target).with_suffix(".mp4")
    if name == "drawn.mp4":
        (place / "gallery.sqlite3").write_bytes((place / "gallery" / "gallery.sqlite3").read_bytes())
        file.write_bytes((place / "gallery" / "gallery.sqlite3").read_bytes())
    for forced in (file, Path(target).parent / "copy") if name != "drawn.mp4" else (file,):
        before = forced.read_bytes() if forced.exists() else None
        said = facepipe(*COMMANDS[name], forced, "--force")
        assert said.code == 1
        assert "belongs to the database" in said.err
        assert (forced.read_bytes() if forced.exists() else None) == before


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("kind", ["device", "pipe", "socket", "link", "broken link", "folder"])
def test_no_force_replaces_what_is_no_ordinary_file(
    place: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    file = Path(name)
    if kind == "device":
        if name == "drawn.mp4":
            pytest.skip("no device has such a suffix")
        file = Path("/dev/null")
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(name)
    elif kind == "folder":
        file.mkdir()
    else:
        (place / "target").write_bytes(PRECIOUS) if kind == "link" else None
        file.symlink_to("target")
    mode = os.lstat(file).st_mode
    said = facepipe(*COMMANDS[name], file, "--force")
    assert said.code == 1
    assert "is a folder" in said.err if kind == "folder" else "link, a pipe or a device" in said.err
    assert os.lstat(file).st_mode == mode
    if kind == "link":
        assert (place / "target").read_bytes() == PRECIOUS


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "drawn.mp4"])
def test_no_force_replaces_a_photo(place: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    before = (place / "photo.png").read_bytes()
    said = facepipe(*COMMANDS[name], "photo.png", "--force")
    assert said.code == 1
    assert "photo.png: is the name of a photo" in said.err
    assert (place / "photo.png").read_bytes() == before


def test_no_force_replaces_an_input_of_another_name(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (place / "photo.png").rename(place / "photo")
    said = facepipe("embed", "photo", "--out", "./photo", "--force")
    assert (said.code, "is one of the files to be read" in said.err) == (1, True)
    said = facepipe("video", "video.mp4", "--annotate", "video.mp4", "--force", "--gallery", "gallery")
    assert (said.code, "is the video itself" in said.err) == (2, True)


# Folders of results


@pytest.mark.parametrize("name", ["results.jsonl", "faces.csv", "report.html"])
def test_a_batch_replaces_nobody_elses_file(place: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (place / "out").mkdir()
    (place / "out" / name).write_bytes(PRECIOUS)
    for command in (("batch", "photo.png"), ("watch", "gallery")):
        said = facepipe(*command, "--out", "out", "--gallery", "gallery")
        assert said.code == 1
        assert f"out/{name}: exists, and is not" in said.err
        assert "--force" not in said.err
    assert (place / "out" / name).read_bytes() == PRECIOUS
    assert os.listdir("out") == [name]


def test_a_batch_replaces_its_own_files(place: Path) -> None:
    job_folder = job_of(place / "job", {place / "photo.png": ["Ada"]})
    for _ in range(2):
        require_places(job_folder)
        with Job(job_folder) as job:
            write_records(job, "results.jsonl")
            write_records(job, "faces.csv")
            write_report(job, ReportOptions(1.0, paths=True))
    writers: list[Callable[[Job], object]] = [
        lambda job: write_records(job, "faces.csv"),
        lambda job: write_report(job, ReportOptions(1.0, paths=True)),
    ]
    for write in writers:
        for name in ("faces.csv", "report.html"):
            (job_folder / name).write_bytes(PRECIOUS)
        with Job(job_folder) as job, pytest.raises(OutputError, match="exists, and is not"):
            write(job)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp", ".gif"])
def test_pictures_replace_pictures_of_facepipe_only(
    tmp_path: Path, astronaut: UInt8Array, suffix: str
) -> None:
    """A backup of the photos has the names that annotated photos get."""
    photo = tmp_path / "in" / f"1{suffix}"
    pictures = PictureFolder(tmp_path / "out", [photo])
    result = PhotoResult(photo, astronaut, faces_at((50, 50, 200, 200)))
    writers: list[Callable[[], list[Path]]] = [
        lambda: [pictures.write_annotated(result)],
        lambda: pictures.write_crops(result),
    ]
    for write in writers:
        for _ in range(2):
            (written,) = write()
        assert read_image(written).ndim == 3
        written.write_bytes(PRECIOUS)
        with pytest.raises(OutputError, match="not a picture of facepipe"):
            write()
        assert written.read_bytes() == PRECIOUS


def test_a_photo_that_another_program_wrote_is_no_picture_of_facepipe(
    tmp_path: Path, astronaut: UInt8Array
) -> None:
    from PIL import Image

    for suffix in ("png", "jpg", "webp", "tif"):
        file = tmp_path / f"photo.{suffix}"
        Image.fromarray(astronaut).save(file)
        with pytest.raises(OutputError, match="exists"):
            require_replaceable(file, products.PICTURE)


def test_an_evaluation_replaces_only_another_one(tmp_path: Path) -> None:
    for _ in range(2):
        write_evaluation(tmp_path / "ours", "encoder", page("Encoder", {}), {})
    for name in ("encoder.html", "encoder.json"):
        folder = tmp_path / f"with {name}"
        folder.mkdir()
        (folder / name).write_bytes(PRECIOUS)
        with pytest.raises(OutputError, match="exists, and is not"):
            write_evaluation(folder, "encoder", page("Encoder", {}), {})
        assert os.listdir(folder) == [name]


def test_a_demo_replaces_nobody_elses_photo(tmp_path: Path) -> None:
    (tmp_path / "portrait.png").write_bytes(PRECIOUS)
    assert facepipe("demo", "--out", tmp_path).code == 1
    assert (tmp_path / "portrait.png").read_bytes() == PRECIOUS


# What is known again


def zip_of(*names: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return data.getvalue()


def test_only_files_of_the_same_form_are_known_again(tmp_path: Path) -> None:
    """Each form against the files of all others, and against files that are nearly such."""
    forms = [value for value in vars(products).values() if isinstance(value, Form)]
    write_page(tmp_path / "PAGE", page("Title", {}))
    save_embeddings(tmp_path / "VECTORS", [])
    write_image(tmp_path / "p.png", np.zeros((9, 9, 3), np.uint8))
    (tmp_path / "p.png").rename(tmp_path / "PICTURE")
    write_sidecar(
        tmp_path / "gone.jpg", (9, 9), faces_at((1, 1, 5, 5)).with_matches([Match("Ada", 0.5, 1.0)])
    )
    (tmp_path / "gone.jpg.xmp").rename(tmp_path / "NAMED_COPY")  # as the photo that it is embedded in
    (tmp_path / "ARCHIVE").write_bytes(zip_of("people.json", "vectors.safetensors", "crops/0"))
    with Job(job_of(tmp_path / "job", {tmp_path / "PAGE": ["Ada"]})) as job:
        write_records(job, "results.jsonl")
        write_records(job, "faces.csv")
    (tmp_path / "job" / "results.jsonl").rename(tmp_path / "RECORDS")
    (tmp_path / "job" / "faces.csv").rename(tmp_path / "TABLE")
    (tmp_path / "DECISIONS").write_bytes(b'{"format": "facepipe decisions", "version": 1}')
    others = {
        "html": b"<!doctype html><title>facepipe</title>",
        "zip": zip_of("people.json"),
        "npz": zip_of("paths.npy", "boxes.npy", "embeddings.npy", "mine.npy"),
        "torn": zip_of("people.json", "vectors.safetensors")[:-9],
        "json": b'{"photos": 1}',
        "csv": b"photo,error,face\n",
        "png": b"\x89PNG facepipe",
    }
    for name, data in others.items():
        (tmp_path / name).write_bytes(data)
    names = {form: name for name, form in vars(products).items() if isinstance(form, Form)}
    assert len(forms) == 9
    for form in forms:
        for file in tmp_path.iterdir():
            if file.name == names[form]:
                require_replaceable(file, form)
            elif file.is_file():
                with pytest.raises(OutputError, match="exists, and is not"):
                    require_replaceable(file, form)
