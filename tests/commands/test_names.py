"""Unsure faces, unknown faces that become people, and audits, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_helpers import Said, facepipe
from click.testing import CliRunner
from gallery_helpers import person_vectors, template
from pipeline_helpers import shifted

from facepipe import cli
from facepipe.core.faces import UInt8Array
from facepipe.gallery import Gallery
from facepipe.images.reading import write_image
from facepipe.pipeline import card_identity
from facepipe.weights.registry import DEFAULT_ENCODER, load_card

HER = "Eileen Collins"
SURE = ("--score-threshold", "0.8", "--device", "cpu", "--runtime", "onnx")


@pytest.fixture
def photos(astronaut: UInt8Array, tmp_path: Path) -> Path:
    """Three photos of one person."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        write_image(folder / f"{i}.png", shifted(astronaut, 4 * i))
    return folder


def at(command: str, gallery: Path, *rest: str | float | Path) -> Said:
    return facepipe(*command.split(), *rest, "--gallery", gallery)


def test_unknown_faces_become_a_person(photos: Path, tmp_path: Path) -> None:
    gallery = tmp_path / "gallery"
    at("enroll", gallery, photos / "0.png", "--name", "Nobody", *SURE)
    at("gallery remove", gallery, "Nobody")
    assert at("cluster", gallery, "--json").out == ""
    assert at("identify", gallery, photos, "--remember-unknown", "--keep-crops", *SURE).code == 0
    page = tmp_path / "groups.html"
    said = at("cluster", gallery, "--json", "--html", page)
    (group,) = [json.loads(line) for line in said.lines]
    assert len(group["faces"]) == 3
    assert page.read_text(encoding="utf-8").count("data:image/jpeg") == 3
    (line,) = at("cluster", gallery).lines
    assert line.split()[:3] == [str(group["id"]), "3", "faces"]
    enrolled = at("enroll", gallery, "--cluster", group["id"], "--name", HER)
    assert enrolled.code == 0
    assert "3 faces of group" in enrolled.err
    (face,) = json.loads(at("identify", gallery, photos / "1.png", "--json", *SURE).lines[0])["faces"]
    assert (face["name"], face["status"], face["reason"]) == (HER, "named", None)
    gone = at("enroll", gallery, "--cluster", group["id"], "--name", HER)
    assert (gone.code, gone.complaints[0].endswith("see `facepipe cluster`")) == (1, True)


def test_an_audit_of_one_person_under_two_names(photos: Path, astronaut: UInt8Array, tmp_path: Path) -> None:
    gallery, page, between = tmp_path / "gallery", tmp_path / "audit.html", tmp_path / "between.png"
    write_image(between, shifted(astronaut, 2))  # halfway from the one to the other
    at("enroll", gallery, photos / "0.png", "--name", HER, *SURE)
    said = at("enroll", gallery, photos / "1.png", "--name", "Somebody", "--json", *SURE)
    (warning,) = json.loads(said.lines[0])["warnings"]
    assert (warning["code"], warning["name"]) == ("looks_like_other", HER)
    record = json.loads(at("gallery audit", gallery, "--json", "--html", page).out)
    assert [(c["first"], c["second"]) for c in record["same_people"]] == [(HER, "Somebody")]
    assert [person["name"] for person in record["few_photos"]] == [HER, "Somebody"]
    assert page.read_text(encoding="utf-8").count("data:image/jpeg") == 2  # Cut again from the photos.
    lines = at("gallery audit", gallery).lines
    assert lines[0].startswith(f"one person? {HER} and Somebody: 0.")
    assert lines[1] == f"few photos: {HER}: 1"
    (face,) = json.loads(at("identify", gallery, between, "--json", *SURE).lines[0])["faces"]
    assert (face["name"], face["status"], face["reason"]) == (None, "unsure", "between_people")
    assert face["candidate"] in (HER, "Somebody")
    assert at("identify", gallery, between, "--person-distance", "nearest", *SURE).code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("enroll", "--cluster", 1), "--cluster goes with --name"),
        (("enroll", "a.jpg", "--cluster", 1, "--name", "Ada"), "--cluster goes with --name"),
        (("identify", "a.jpg", "--keep-crops"), "--keep-crops goes with --remember-unknown"),
        (("identify", "a.jpg", "--person-distance", "mean"), "'mean' is not one of"),
    ],
)
def test_options_that_do_not_go_together(arguments: tuple[str | int, ...], told: str) -> None:
    said = facepipe(*map(str, arguments))
    assert said.code == 2
    assert told in said.err


def test_a_page_that_cant_be_written_is_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for command in (["cluster"], ["gallery", "audit"]):
        said = facepipe(*command, "--html", tmp_path / "folder", "--gallery", tmp_path / "none")
        assert (said.code, "is a folder" in said.err) == (1, True)


@pytest.mark.parametrize("charset", ["latin-1", "cp1252", "ascii"])
@pytest.mark.parametrize(
    "command",
    [
        "gallery list --json",
        "gallery show NAME --json",
        "gallery audit --json",
        "cluster --json",
        "detect --json",
    ],
)
def test_json_is_utf_8_whatever_the_locale(tmp_path: Path, command: str, charset: str) -> None:
    name, photo = "Zoë 王 😀", tmp_path / "día 王\udcff.jpg"
    photo.write_bytes(b"no photo")
    with Gallery.open(tmp_path / "g", card_identity(load_card(DEFAULT_ENCODER).card), create=True) as gallery:
        gallery.add(name, [template(vector, f"día 王 {i}") for i, vector in enumerate(person_vectors(1, 2))])
        gallery.remember_unknown([template(v, f"día 王 {i}") for i, v in enumerate(person_vectors(2, 2))])
    words = [name if word == "NAME" else word for word in command.split()]
    where = [str(photo)] if "detect" in command else ["--gallery", str(tmp_path / "g")]
    more = ["--distance", "1.5"] if "cluster" in command else []
    result = CliRunner(charset=charset).invoke(cli.main, [*words, *where, *more])
    assert not isinstance(result.exception, Exception), result.exception
    lines = result.stdout_bytes.decode("utf-8").splitlines()
    assert lines
    said = json.dumps([json.loads(line) for line in lines], ensure_ascii=False)
    assert name in said or "día 王" in said


def test_a_csv_for_spreadsheets(tmp_path: Path) -> None:
    (tmp_path / "=1 día.jpg").write_bytes(b"no photo")
    result = CliRunner(charset="latin-1").invoke(cli.main, ["detect", "--csv", "--bom", str(tmp_path)])
    header, row = result.stdout_bytes.decode("utf-8").splitlines()
    assert header.startswith("\ufeffphoto,error,")
    assert "=1 día.jpg" in row
    for command in ("detect", "identify", "video"):
        said = facepipe(command, tmp_path, "--bom")
        assert (said.code, "--bom goes with --csv" in said.err) == (2, True)
