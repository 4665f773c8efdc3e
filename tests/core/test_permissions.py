"""Everything that commands write is for the user alone, whatever the umask and the folder allow."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import facepipe
from video_helpers import write_video

from facepipe.batch.job import Job
from facepipe.core.faces import UInt8Array
from facepipe.evaluation.pages import write_report
from facepipe.gallery import Gallery
from facepipe.images.reading import write_image
from facepipe.reports.html import page
from facepipe.weights.files import write_weight
from facepipe.weights.registry import DEFAULT_ENCODER, load_card

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs permission bits")


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    """New files are open to everybody unless a program says otherwise."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def place(tmp_path: Path, astronaut: UInt8Array, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos with the rights of a shared disk, and a video."""
    place = tmp_path / "place"
    for folder in (place, place / "photos", place / "photos" / "Eileen Collins"):
        folder.mkdir(mode=0o755)
    photo = place / "photos" / "Eileen Collins" / "her.png"
    write_image(photo, astronaut)
    photo.chmod(0o664)
    write_video(place / "video.mp4", [astronaut] * 3)
    monkeypatch.chdir(place)
    return place


def done(*arguments: str) -> None:
    said = facepipe(*arguments)
    assert said.code == 0, said.err


def write_everything() -> None:
    """Every command that writes files, into `out`."""
    at = ("--gallery", "out/gallery")
    done("enroll", "photos", "--keep-crops", *at)
    done("identify", "photos", "--annotate", "out/deep/annotated", "--crops", "out/crops", *at)
    done("detect", "photos", "--annotate", "out/boxes", "--crops", "out/cut")
    done("embed", "photos", "--out", "out/vectors/v.npz")
    done("batch", "photos", "--out", "out/job", "--annotate", "--crops", "--xmp", *at)
    done("sort", "out/job", "--to", "out/sorted")
    done("video", "video.mp4", "--annotate", "out/drawn.mp4", *at)
    done("cluster", "--html", "out/pages/groups.html", *at)
    done("gallery", "audit", "--html", "out/audit.html", *at)
    done("gallery", "export", "out/people.zip", *at)
    done("gallery", "backup", "out/backup", *at)
    done("gallery", "import", "out/people.zip", "--gallery", "out/imported")
    done("demo", "--out", "out/demo")
    write_report(Path("out/evaluation"), "encoder", page("Encoder", {}), {})


@pytest.mark.parametrize("wide", [False, True], ids=["new folder", "folder open to all"])
def test_nobody_else_reads_what_any_command_writes(place: Path, wide: bool) -> None:
    pytest.importorskip("lxml", reason="needs the [xmp] extra")
    if wide:
        for folder in ("out", "out/job", "out/crops", "out/gallery", "out/backup", "out/sorted", "out/demo"):
            Path(folder).mkdir(mode=0o777)
    open_folders = {path for path in Path().rglob("*") if path.is_dir()}
    write_everything()
    from_photos = {Path("out/sorted/Eileen Collins/her.png"), Path("out/sorted/Eileen Collins/her.png.xmp")}
    written = set(Path("out").rglob("*"))
    for suffix in ("html", "npz", "zip", "mp4", "png", "jpg", "csv", "jsonl"):
        assert any(path.suffix == f".{suffix}" for path in written), suffix
    assert len([path for path in written if path.is_file()]) > 25
    for path in written | {Path("out")}:
        expected = 0o700 if path.is_dir() else 0o664 if path in from_photos else 0o600
        if path not in open_folders:
            assert (path, oct(stat.S_IMODE(path.stat().st_mode))) == (path, oct(expected))
    assert stat.S_IMODE(Path("photos/Eileen Collins/her.png.xmp").stat().st_mode) == 0o664


def test_a_job_that_is_open_has_private_logs(place: Path) -> None:
    Path("out").mkdir(mode=0o777)
    with Job(Path("out"), create=True) as job:
        job.plan([place / "photos" / "Eileen Collins" / "her.png"])
        assert {oct(stat.S_IMODE(file.stat().st_mode)) for file in Path("out").iterdir()} == {"0o600"}
        assert len(os.listdir("out")) > 1


def test_weights_are_shared(tmp_path: Path) -> None:
    """They hold nothing personal; an administrator imports them for all."""
    card = replace(load_card(DEFAULT_ENCODER).card, name="mine")
    write_weight(tmp_path, card, {"w": np.ones(3, np.float32)}, b"onnx")
    assert {oct(stat.S_IMODE(file.stat().st_mode)) for file in tmp_path.iterdir()} == {"0o666"}


def test_a_gallery_in_an_open_folder_stays_private_when_it_is_repaired(place: Path) -> None:
    Path("gallery").mkdir(mode=0o777)
    done("enroll", "photos", "--gallery", "gallery")
    data = bytearray(Path("gallery/gallery.sqlite3").read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    Path("gallery/gallery.sqlite3").write_bytes(data)
    facepipe("gallery", "repair", "--gallery", "gallery", "--encoder-weights", DEFAULT_ENCODER)
    asides = list(place.glob("gallery.damaged-*"))
    assert asides
    for path in (*asides, *asides[0].iterdir(), *Path("gallery").iterdir()):
        assert not path.stat().st_mode & 0o077, path
    shutil.rmtree(asides[0])
    Gallery.open(Path("gallery")).close()
