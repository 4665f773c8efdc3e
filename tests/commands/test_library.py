"""From photos without a name to names: groups, faces and decisions on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_helpers import facepipe
from library_helpers import make_batch
from PIL import Image

from facepipe.core.faces import UInt8Array

PHOTOS = {"one": ["ada", "bob"], "two": ["ada"], "three": ["bob"], "four": ["ada"], "none": []}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return make_batch(tmp_path, PHOTOS)


def group_of(out: Path, photo: str) -> tuple[int, list[str]]:
    """Number and face ids of the group with a face of this photo."""
    groups = [json.loads(line) for line in facepipe("cluster", "--library", out, "--json").lines]
    return next(
        (group["group"], [face["id"] for face in group["faces"]])
        for group in groups
        if any(Path(face["photo"]).stem == photo for face in group["faces"])
    )


def test_a_group_of_the_report_is_named_by_its_number(out: Path) -> None:
    number, ids = group_of(out, "two")
    said = facepipe("name", number, "Ada", "--library", out)
    assert (said.code, said.out) == (0, "")
    assert said.complaints[0] == f"facepipe: {len(ids)} faces of group {number} confirmed as 'Ada'"
    named = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert {Path(r["photo"]).stem for r in named for face in r["faces"] if face["name"] == "Ada"} == {
        "one",
        "two",
        "four",
    }
    assert facepipe("gallery", "list", "--gallery", out.parent / "gallery").out.split()[-1] == "Ada"
    again = facepipe("name", number, "Ada", "--library", out)
    assert again.code == 2
    assert f"there is no group {number}" in again.err


def test_one_face_is_shown_named_rejected_and_removed(out: Path) -> None:
    _, ids = group_of(out, "two")
    shown = facepipe("face", "show", ids[0], "--library", out)
    assert shown.lines[0] == f"face {ids[0]}: unknown"
    assert facepipe("face", "reject", ids[0], "--library", out).code == 2  # it has no name
    assert facepipe("face", "name", ids[0][:6], "Ada", "--library", out).code == 0
    record = json.loads(facepipe("face", "show", ids[0], "--library", out, "--json").out)
    assert (record["match"]["name"], record["verdict"]) == ("Ada", "is")
    other = facepipe("face", "show", ids[1], "--library", out)
    assert other.lines[0] == f"face {ids[1]}: Ada"
    assert facepipe("face", "reject", ids[1], "--library", out).code == 0
    assert "not      Ada" in facepipe("face", "show", ids[1], "--library", out).lines
    assert facepipe("face", "remove", ids[1], "--library", out).code == 0
    assert "reason   not_a_face" in facepipe("face", "show", ids[1], "--library", out).lines
    undone = facepipe("library", "undo", "--library", out)
    assert undone.complaints == ["facepipe: undone: 1 box without a face"]
    missing = facepipe("face", "show", "0" * 12, "--library", out)
    assert (missing.code, "there is no face" in missing.err) == (2, True)


def test_redundant_faces_are_set_aside_and_listed(out: Path) -> None:
    _, ids = group_of(out, "two")
    assert facepipe("library", "templates", "Ada", "--library", out).code == 2
    for id in ids:
        facepipe("face", "name", id, "Ada", "--library", out)
    lines = facepipe("library", "templates", "Ada", "--library", out).lines
    assert sorted(line[11:23] for line in lines) == sorted(ids)
    kinds = [line[:9].strip() for line in lines]
    gallery = facepipe("gallery", "show", "Ada", "--gallery", out.parent / "gallery").lines
    assert kinds.count("template") == len(gallery) < len(ids)


def test_decisions_are_exported_and_imported(out: Path, tmp_path: Path) -> None:
    number, ids = group_of(out, "two")
    facepipe("name", number, "Ada", "--library", out)
    file, other = tmp_path / "decisions.json", make_batch(tmp_path / "other", PHOTOS)
    assert facepipe("library", "export", file, "--library", out).code == 0
    assert facepipe("library", "export", file, "--library", out).code == 0  # its own file is replaced
    (tmp_path / "letter.json").write_text("{}")
    refused = facepipe("library", "export", tmp_path / "letter.json", "--library", out)
    assert (refused.code, (tmp_path / "letter.json").read_text()) == (1, "{}")
    taken = facepipe("library", "import", file, "--library", other)
    assert taken.complaints == [f"facepipe: {len(ids)} decisions taken over, 0 older left out"]
    assert facepipe("face", "show", ids[0], "--library", other).lines[0] == f"face {ids[0]}: Ada (confirmed)"
    assert facepipe("library", "import", tmp_path / "letter.json", "--library", other).code == 1


def test_a_folder_without_a_batch_is_refused(tmp_path: Path) -> None:
    for arguments in (["name", 1, "Ada"], ["cluster"], ["face", "show", "0" * 12], ["library", "undo"]):
        said = facepipe(*arguments, "--library", tmp_path / "nothing")
        assert (said.code, "no batch was run" in said.err) == (2, True), arguments
    assert facepipe("cluster", "--library", tmp_path, "--distance", "1").code == 2


def test_the_first_evening(tmp_path: Path, astronaut: UInt8Array) -> None:
    """Photos, no gallery, no name; then every photo of the group has one, without being opened."""
    photos, out, gallery = tmp_path / "photos", tmp_path / "out", tmp_path / "gallery"
    photos.mkdir()
    for number, side in enumerate((256, 288, 320)):
        Image.fromarray(astronaut).resize((side, side)).save(photos / f"{number}.png")
    done = facepipe("batch", photos, "--out", out, "--gallery", gallery, "--quiet")
    assert done.code == 0
    number, ids = group_of(out, "0")
    assert len(ids) == 3
    for photo in photos.iterdir():
        photo.unlink()
    assert facepipe("name", number, "Eileen", "--library", out).code == 0
    names = [
        json.loads(line)["faces"][0]["name"] for line in (out / "results.jsonl").read_text().splitlines()
    ]
    assert names == ["Eileen"] * 3
