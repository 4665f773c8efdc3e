"""Bad input of every kind: one clear line on stderr, the documented exit code, and nothing lost."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import facepipe
from pipeline_helpers import write_broken_photos

from facepipe.core.faces import UInt8Array
from facepipe.gallery import Gallery
from facepipe.images.reading import write_image
from facepipe.pipeline import card_identity
from facepipe.weights.registry import DEFAULT_ENCODER, load_card

FAILURE, USAGE, PARTIAL = 1, 2, 3


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, astronaut: UInt8Array) -> Path:
    """A folder of good and bad things, to be copied."""
    folder = tmp_path_factory.mktemp("prepared")
    list(write_broken_photos(folder, astronaut))
    write_image(folder / "pixel.png", np.zeros((1, 1, 3), np.uint8))
    (folder / "no_photos").mkdir()
    (folder / "no_photos" / "notes.txt").write_text("nothing here")
    (folder / "people" / "Her").mkdir(parents=True)
    (folder / "album").mkdir()
    shutil.copy(folder / "whole.jpg", folder / "people" / "Her" / "her.jpg")
    shutil.copy(folder / "whole.jpg", folder / "album" / "whole.jpg")
    (folder / "file").write_text("a file in the place of a folder")
    said = facepipe("enroll", "--name", "Her", folder / "whole.jpg", "--gallery", folder / "g")
    assert said.code == 0
    other = replace(card_identity(load_card(DEFAULT_ENCODER).card), name="other", fingerprint="0" * 16)
    Gallery.open(folder / "other", other, create=True).close()
    shutil.copytree(folder / "g", folder / "torn")
    data = (folder / "torn" / "gallery.sqlite3").read_bytes()
    (folder / "torn" / "gallery.sqlite3").write_bytes(data[:100] + b"\xff" * 5000 + data[5100:])
    return folder


@pytest.fixture(autouse=True)
def here(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FACEPIPE_HOME", str(tmp_path / "home"))
    shutil.copytree(prepared, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def state(folder: Path) -> dict[str, bytes]:
    """Every file and what is in it; what a gallery derives and may make again does not count."""
    derived = ("index.faiss", "index.faiss.json", "-shm", "-wal")
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(derived))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# Photos

BROKEN = {
    "empty.jpg": "the file is empty",
    "cut.jpg": "damaged or cut off",
    "text.jpg": "not a photo in a known format",
    "bomb.png": "more than 200,000,000 pixels",
    "missing.jpg": "no such file",
    "no_photos/notes.txt": "not a photo in a known format",
}


@pytest.mark.parametrize("photo", BROKEN)
@pytest.mark.parametrize("command", ["identify", "detect", "embed", "enroll"])
def test_a_photo_that_cant_be_read(command: str, photo: str) -> None:
    options = {
        "identify": ("--gallery", "g"),
        "detect": (),
        "embed": ("--out", "v.npz"),
        "enroll": ("--name", "New", "--gallery", "g"),
    }[command]
    alone, among = facepipe(command, photo, *options), facepipe(command, photo, "whole.jpg", *options)
    assert (alone.code, among.code) == (FAILURE, PARTIAL)
    for said in (alone, among):
        place = said.lines if command == "enroll" else said.complaints
        told = [line for line in place if photo in line]
        assert len(told) == 1
        assert BROKEN[photo] in told[0]
        assert told[0].count(photo) == 1
    assert Path("v.npz").exists() == (command == "embed")


def test_an_old_result_survives_a_run_in_which_every_photo_fails() -> None:
    Path("v.npz").write_bytes(b"of last week")
    assert facepipe("embed", "empty.jpg", "--out", "v.npz").code == FAILURE
    assert Path("v.npz").read_bytes() == b"of last week"


def test_one_pixel_is_a_photo_without_faces() -> None:
    said = facepipe("identify", "pixel.png", "--gallery", "g")
    assert (said.code, said.out, said.complaints) == (0, "pixel.png: no faces\n", [])
    refused = facepipe("enroll", "--name", "Dot", "pixel.png", "--gallery", "g")
    assert refused.code == FAILURE
    assert refused.lines == ["refused   Dot  pixel.png: no face found"]


@pytest.mark.skipif(os.name == "nt", reason="file names are text there")
def test_names_in_any_script_and_in_none(here: Path) -> None:
    photos = ["日本 é ☃.jpg", "--name.jpg", "\u202eoverride.jpg", "bad\udcff.jpg", "two\nlines.jpg"]
    for photo in photos:
        shutil.copy("whole.jpg", photo)
    for command in (["identify", "--gallery", "g"], ["detect", "--json"], ["detect", "--csv"]):
        said = facepipe(*command, "--annotate", "out", "--crops", "out2", "--", *photos)
        assert said.code == 0
        assert "bad\\udcff.jpg" in said.out.replace("\\\\", "\\")
        said.out.encode("utf-8")
    assert {path.name for path in Path("out").iterdir()} == set(photos)
    said = facepipe("enroll", "--name", "--force", "--gallery", "new", "--", *photos[:4])
    assert (said.code, len(said.lines)) == (0, 4)
    assert [line.split()[0] for line in said.lines] == ["enrolled", "known", "known", "known"]


def test_one_pictures_trouble_does_not_end_the_others(here: Path) -> None:
    """A folder stands where the first annotated photo must go, and a file where the second's folder must."""
    photos = ["whole.jpg", "album/whole.jpg", f"{'a' * 251}.jpg"]
    shutil.copy("whole.jpg", photos[2])
    Path("out/whole.jpg").mkdir(parents=True)
    Path("out/album").write_text("a file")
    said = facepipe("detect", "--json", *photos, "--annotate", "out", "--crops", "faces")
    assert said.code == PARTIAL
    assert [line.split(": ")[1] for line in said.complaints] == ["out/whole.jpg", "out/album"]
    assert len(said.lines) == 3
    assert Path("out", photos[2]).is_file()
    assert len({crop.name.split("_face")[0] for crop in Path("faces").rglob("*_face0_*")}) == 2
    assert len(list(Path("faces").rglob("*_face0_*"))) == 3
    assert facepipe("detect", photos[0], "--annotate", "out").code == FAILURE


# Folders, galleries, outputs


@pytest.mark.parametrize(
    "words",
    [
        ["enroll", "people", "--gallery", ""],
        ["enroll", "--name", "Ada", ""],
        ["identify", "", "--gallery", "g"],
        ["identify", "whole.jpg", "--gallery", "g", "--key-file", ""],
        ["batch", "", "--out", "out"],
        ["batch", "album", "--out", ""],
        ["watch", "", "--out", "out"],
        ["sort", "out", "--to", ""],
        ["gallery", "list", "--gallery", ""],
        ["gallery", "backup", "", "--gallery", "g"],
        ["serve", "--library", ""],
        ["face", "reject", "0123", "--library", "out", "--gallery", ""],
    ],
    ids=" ".join,
)
def test_an_empty_path_is_not_the_present_folder(words: list[str]) -> None:
    """Such as that of a variable which is not set."""
    before = sorted(os.listdir())
    said = facepipe(*words)
    assert (said.code, "expected a path, got an empty text" in said.err) == (USAGE, True), said.err
    assert sorted(os.listdir()) == before


CASES: dict[str, tuple[str, int, str]] = {
    "folder without photos": ("identify no_photos --gallery g", USAGE, "no photos match this folder"),
    "glob without photos": ("identify *.tiff --gallery g", USAGE, "no photos match this pattern"),
    "no photos named": ("identify --gallery g", USAGE, "Missing argument 'PHOTOS...'"),
    "enroll nothing": ("enroll --gallery g", USAGE, "Name a folder with one sub-folder per person"),
    "enroll a photo without a name": ("enroll whole.jpg", USAGE, "whole.jpg: not a folder"),
    "enroll a folder without people": ("enroll no_photos", USAGE, "has no sub-folders"),
    "enroll a missing folder": ("enroll nowhere", USAGE, "nowhere: not a folder"),
    "CSV and folder": ("enroll people --csv file", USAGE, "--csv goes alone"),
    "CSV of another form": ("enroll --csv file", USAGE, "file, line 1: expected path,name"),
    "missing CSV": ("enroll --csv none.csv", USAGE, "none.csv: can't read this CSV"),
    "gallery missing": ("identify whole.jpg --gallery none", FAILURE, "none: there is no gallery: make one"),
    "gallery is a file": ("identify whole.jpg --gallery file", FAILURE, "file: a gallery is a folder"),
    "gallery below a file": ("enroll people --gallery file/g", FAILURE, "the folder can't be made"),
    "gallery of another encoder": (
        "identify whole.jpg --gallery other",
        FAILURE,
        "other: this gallery holds vectors of other (fingerprint 0000000000000000, 128-d)",
    ),
    "enroll into another encoder's": ("enroll people --gallery other", FAILURE, "can't be compared"),
    "gallery is torn": ("identify whole.jpg --gallery torn", FAILURE, "gallery"),
    "manage a missing gallery": ("gallery list --gallery none", FAILURE, "none: there is no gallery"),
    "show nobody": ("gallery show Nobody --gallery g", FAILURE, "nobody is named 'Nobody'"),
    "remove nobody": ("gallery remove Nobody --gallery g", FAILURE, "nobody is named 'Nobody'"),
    "rename nobody": ("gallery rename Nobody X --gallery g", FAILURE, "nobody is named 'Nobody'"),
    "merge with oneself": ("gallery merge Her Her --gallery g", FAILURE, "into the same person"),
    "export into a file": ("gallery export file/x.zip --gallery g", FAILURE, "file: can't make this folder"),
    "export onto a folder": ("gallery export people --gallery g", FAILURE, "people"),
    "export into itself": ("gallery export g/x.zip --gallery g", FAILURE, "the gallery's own folder"),
    "import what is no archive": ("gallery import file --gallery g", FAILURE, "not a gallery archive"),
    "import nothing": ("gallery import none.zip --gallery g", FAILURE, "none.zip: can't be read"),
    "annotate into a file": (
        "identify whole.jpg --annotate file --gallery g",
        FAILURE,
        "can't make this folder",
    ),
    "crops below a file": ("detect whole.jpg --crops file/x", FAILURE, "can't make this folder"),
    "annotate over the photos": ("detect whole.jpg --annotate .", USAGE, "holds the photos themselves"),
    "crops among the photos": ("detect whole.jpg --crops .", USAGE, "holds the photos themselves"),
    "annotate over other photos": (
        "detect whole.jpg album/whole.jpg --annotate album",
        USAGE,
        "album: holds the photos themselves",
    ),
    "vectors without a place": ("embed whole.jpg", USAGE, "Missing option '--out'"),
    "vectors onto a folder": ("embed whole.jpg --out people", FAILURE, "people: is a folder; name a file"),
    "vectors below a file": ("embed whole.jpg --out file/v.npz", FAILURE, "can't make this folder"),
    "demo into a file": ("demo --out file", FAILURE, "can't make this folder"),
    "doctor of a file": ("doctor --gallery file", FAILURE, ""),
    "two forms": (
        "identify whole.jpg --json --csv --gallery g",
        USAGE,
        "--json and --csv exclude each other",
    ),
    "unknown command": ("recognise whole.jpg", USAGE, "No such command 'recognise'"),
    "unknown weight": ("weights show retinafce", FAILURE, "no weight is called 'retinafce'"),
    "unknown weight to verify": ("weights verify nonsense", FAILURE, ""),
    "fetch the unknown": ("weights fetch nonsense", FAILURE, "no published weight is called 'nonsense'"),
    "import a photo as weight": ("weights import whole.jpg --name x", FAILURE, "whole.jpg"),
    "import a missing weight": ("weights import none.pth --name x", FAILURE, "none.pth: can't read"),
    "import out of the folder": ("weights import file --name ../x", FAILURE, "can't name a weight"),
    "import over a shipped one": (
        f"weights import file --name {DEFAULT_ENCODER}",
        FAILURE,
        "ships with facepipe",
    ),
}


@pytest.mark.parametrize(("command", "code", "told"), CASES.values(), ids=CASES)
def test_a_request_that_cant_be_met(here: Path, command: str, code: int, told: str) -> None:
    if command.startswith("weights import"):
        pytest.importorskip("torch")
    before = state(here)
    said = facepipe(*command.split())
    assert said.code == code
    assert told in said.err
    if code == FAILURE and told:
        assert len(said.complaints) == 1
        assert said.complaints[0].startswith("facepipe: ")
    assert state(here) == before


# Options

VALUES: dict[str, tuple[str, int]] = {
    "--threshold nan": ("threshold: expected 0..2", USAGE),
    "--threshold inf": ("threshold: expected 0..2", USAGE),
    "--threshold -1": ("threshold: expected 0..2", USAGE),
    "--threshold 1e300": ("threshold: expected 0..2", USAGE),
    "--threshold close": ("'close' is not a valid float", USAGE),
    "--score-threshold 1.1": ("score threshold: expected 0..1", USAGE),
    "--score-threshold nan": ("score threshold: expected 0..1", USAGE),
    "--nms-iou 0": ("NMS IoU", USAGE),
    "--max-side -5": ("longest side: expected at least 32 px, got -5", USAGE),
    "--max-side 0": ("longest side: expected at least 32 px, got 0", USAGE),
    "--max-side 640.5": ("is not a valid integer", USAGE),
    "--max-side 640 --original-size": ("--max-side and --original-size exclude each other", USAGE),
    "--min-face nan": ("smallest face", USAGE),
    "--min-face -1": ("smallest face", USAGE),
    "--top-k 0": ("top-k: expected at least 1", USAGE),
    "--max-megapixels nan": ("--max-megapixels: expected more than 0, got nan", USAGE),
    "--max-megapixels inf": ("--max-megapixels", USAGE),
    "--max-megapixels 0": ("--max-megapixels", USAGE),
    "--max-megapixels 0.1": ("whole.jpg: more than 100,000 pixels", FAILURE),
    "--device gpu": ("unknown device 'gpu'", USAGE),
    "--device cuda:99": ("cuda:99", FAILURE),
    "--runtime caffe": ("unknown runtime 'caffe'", USAGE),
    "--runtime onnx --device cuda": ("runtime onnx runs on the CPU only", USAGE),
    "--detector-weights nonsense": ("no weight is called 'nonsense'", FAILURE),
    f"--detector-weights {DEFAULT_ENCODER}": ("is an encoder, not a detector", FAILURE),
    "--encoder-weights retinaface_mobilenet025": ("is a detector, not an encoder", FAILURE),
    "--encoder-weights ./none.json": ("none.json: can't read this card", FAILURE),
    "--encoder-weights file.json": ("file.json: can't read this card", FAILURE),
}


@pytest.mark.parametrize("options", VALUES)
def test_option_values_that_make_no_sense(options: str) -> None:
    told, code = VALUES[options]
    said = facepipe("identify", "whole.jpg", "--gallery", "g", *options.split())
    assert said.code == code
    assert told in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--mean 1,2", "expected three numbers such as 104,117,123, got '1,2'"),
        ("--std a,b,c", "expected three numbers"),
        ("--anchors 16,32", "expected sizes such as"),
        ("--anchors 0,1/2,3/4,5", "expected sizes such as"),
        ("--anchors x/y/z", "expected sizes such as"),
        ("--channels grb", "is not one of 'rgb', 'bgr'"),
    ],
)
def test_import_options_of_another_form(options: str, told: str) -> None:
    said = facepipe("weights", "import", "file", "--name", "x", *options.split())
    assert said.code == USAGE
    assert told in said.err


@pytest.mark.parametrize("name", ["", "   ", "two\nlines", "bell\a", "x" * 201])
def test_names_that_nobody_can_have(here: Path, name: str) -> None:
    before = state(here)
    for command in (
        ["enroll", "--name", name, "whole.jpg"],
        ["gallery", "rename", "Her", name],
        ["gallery", "rename", name, "Her"],
        ["gallery", "merge", "Her", name],
        ["gallery", "show", name],
        ["gallery", "remove", name],
        ["gallery", "threshold", "0.9", "--person", name],
        ["face", "move", "1", name],
    ):
        said = facepipe(*command, "--gallery", "g")
        assert said.code == USAGE, command
        assert "name" in said.err
    assert state(here) == before


def test_a_bad_folder_name_is_told_before_anybody_is_stored() -> None:
    shutil.copytree("people/Her", "people/bell\a")
    said = facepipe("enroll", "people", "--gallery", "new")
    assert said.code == USAGE
    assert said.out == ""
    assert not Path("new").exists()
