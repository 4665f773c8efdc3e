"""Names as keywords: where photo managers look for them, following the names, and nobody else's touched."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree
from pipeline_helpers import faces_at
from xmp_helpers import FOREIGN, exiftool, exiftool_json, needs_exiftool, needs_exiv2

from facepipe.core.faces import Faces, Match
from facepipe.xmp.sidecars import sidecar_path, write_sidecar

SIZE_WH = (400, 200)
KEYWORDS = ("Subject", "PersonInImage", "HierarchicalSubject", "TagsList")
ADA, BOB = "Ada Lovelace", "Bob"


def named(*names: str | None) -> Faces:
    boxes = [(50.0 * at, 20.0, 50.0 * at + 40.0, 60.0) for at in range(len(names))]
    return faces_at(*boxes).with_matches(Match(name, 0.5, 1.0) for name in names)


def read(sidecar: Path) -> dict[str, Any]:
    (record,) = exiftool_json("-Validate", *(f"-{name}" for name in KEYWORDS), sidecar)
    return record


def listed(record: dict[str, Any], name: str) -> list[str]:
    """A list of one is a string to exiftool where it has no structure."""
    found = record.get(name, [])
    return found if isinstance(found, list) else [found]


def of(*names: str) -> dict[str, list[str]]:
    return {
        "Subject": list(names),
        "PersonInImage": list(names),
        "HierarchicalSubject": [f"People|{name}" for name in names],
        "TagsList": [f"People/{name}" for name in names],
    }


def keywords(sidecar: Path) -> dict[str, list[str]]:
    record = read(sidecar)
    assert record["Validate"] == "OK"
    return {name: listed(record, name) for name in KEYWORDS}


@needs_exiftool
def test_exiftool_reads_them_where_photo_managers_do(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    write_sidecar(photo, SIZE_WH, named(ADA, None, BOB, ADA), tags=True)
    assert keywords(sidecar_path(photo)) == of(ADA, BOB)


@needs_exiv2
def test_exiv2_reads_them(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    write_sidecar(photo, SIZE_WH, named(ADA, BOB), tags=True)
    command = ["exiv2", "-PXkv", str(sidecar_path(photo))]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = {key: value.strip() for key, _, value in (line.partition(" ") for line in lines)}
    assert found["Xmp.dc.subject"] == f"{ADA}, {BOB}"
    assert found["Xmp.iptcExt.PersonInImage"] == f"{ADA}, {BOB}"
    assert found["Xmp.lr.hierarchicalSubject"] == f"People|{ADA}, People|{BOB}"
    assert found["Xmp.digiKam.TagsList"] == f"People/{ADA}, People/{BOB}"


@needs_exiftool
@pytest.mark.parametrize("tags", [True, False])
def test_they_follow_the_names_and_those_of_others_stay(tmp_path: Path, tags: bool) -> None:
    photo = tmp_path / "photo.jpg"
    sidecar = sidecar_path(photo)
    exiftool(
        f"-XMP-dc:Subject={BOB}", "-XMP-dc:Subject=holiday", "-XMP-digiKam:TagsList=Places/Rome", sidecar
    )
    write_sidecar(photo, SIZE_WH, named(ADA, BOB), tags=True)
    both = of(ADA, BOB)
    places = ["Places/Rome"]
    assert keywords(sidecar) == both | {
        "Subject": [BOB, "holiday", ADA],
        "TagsList": places + both["TagsList"],
    }
    exiftool("-XMP-dc:Subject+=added later", "-XMP-xmp:Rating=4", sidecar)
    write_sidecar(photo, SIZE_WH, named("Ada Byron", None), tags=tags)
    renamed = of("Ada Byron")
    assert keywords(sidecar) == renamed | {
        "Subject": [BOB, "holiday", "added later", "Ada Byron"],
        "TagsList": places + renamed["TagsList"],
    }
    write_sidecar(photo, SIZE_WH, named(None), tags=tags)
    left = {"Subject": [BOB, "holiday", "added later"], "TagsList": places}
    assert keywords(sidecar) == of() | left
    assert "facepipe:" not in sidecar.read_text()


@needs_exiv2
def test_the_list_of_our_keywords_outlives_another_program(tmp_path: Path) -> None:
    """What digiKam writes sidecars with keeps it."""
    photo = tmp_path / "photo.jpg"
    write_sidecar(photo, SIZE_WH, named(ADA), tags=True)
    subprocess.run(["exiv2", "-Mset Xmp.xmp.Rating 4", str(sidecar_path(photo))], check=True)
    write_sidecar(photo, SIZE_WH, named(BOB))
    text = sidecar_path(photo).read_text()
    assert ADA not in text
    assert text.count(f"{BOB}</rdf:li>") == 8  # four keywords, and the list of ours
    assert "Rating" in text


def test_a_face_that_somebody_else_has_named_gives_no_keyword(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    sidecar_path(photo).write_text(FOREIGN.format(w=800, h=400))
    at_grandmother = faces_at((184.0, 84.0, 220.0, 120.0)).with_matches([Match(ADA, 0.5, 1.0)])
    write_sidecar(photo, SIZE_WH, at_grandmother, tags=True)
    assert ADA not in sidecar_path(photo).read_text()


@needs_exiftool
def test_levels_of_a_tree_are_not_made_by_names(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    write_sidecar(photo, SIZE_WH, named("A|B/C"), tags=True)
    assert keywords(sidecar_path(photo)) == {
        "Subject": ["A|B/C"],
        "PersonInImage": ["A|B/C"],
        "HierarchicalSubject": ["People|A_B/C"],
        "TagsList": ["People/A|B_C"],
    }


PEOPLE = st.lists(st.sampled_from(["Ada", "Bob", "holiday", "Zoë <&>", None]), max_size=3)


@pytest.mark.parametrize("theirs", ["", FOREIGN.format(w=800, h=400)])
@settings(deadline=None, max_examples=40)
@given(histories=st.tuples(st.lists(PEOPLE, max_size=3), st.lists(PEOPLE, max_size=3)), last=PEOPLE)
def test_keywords_depend_on_the_last_names_only(
    tmp_path_factory: pytest.TempPathFactory, theirs: str, histories: tuple[Any, Any], last: list[str | None]
) -> None:
    photo = tmp_path_factory.mktemp("photo") / "photo.jpg"
    sidecar, written = sidecar_path(photo), []
    for history in histories:
        sidecar.unlink(missing_ok=True)
        if theirs:
            sidecar.write_text(theirs, encoding="utf-8")
        for names in (*history, ["Ada"], last):
            write_sidecar(photo, SIZE_WH, named(*names), tags=True)
        written.append(sidecar.read_bytes())
    assert written[0] == written[1]


XML_NAMES = st.text(
    st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters="\ufffe\uffff"), min_size=1
)


@settings(deadline=None, max_examples=60)
@given(names=st.lists(XML_NAMES, min_size=1, max_size=4), theirs=st.lists(XML_NAMES, max_size=3))
def test_what_is_added_is_removed_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], theirs: list[str]
) -> None:
    photo = tmp_path_factory.mktemp("photo") / "photo.jpg"
    rows = "".join(f"<rdf:li>{escape(text)}</rdf:li>" for text in theirs)
    foreign = FOREIGN.format(w=800, h=400).replace("<rdf:li>holiday</rdf:li>", rows)
    sidecar_path(photo).write_text(foreign, encoding="utf-8")
    write_sidecar(photo, SIZE_WH, named(*names), tags=True)
    write_sidecar(photo, SIZE_WH, named(), tags=True)
    subject = etree.parse(sidecar_path(photo)).find(".//{http://purl.org/dc/elements/1.1/}subject")
    after = [] if subject is None else [item.text or "" for item in subject.iter("{*}li")]
    assert after == theirs
