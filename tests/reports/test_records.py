"""The stable forms of results: what docs/results.md promises to programs."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT
from pipeline_helpers import faces_at

from facepipe.core.csv_files import csv_line, plain_cell
from facepipe.core.errors import OutputError
from facepipe.core.faces import Faces, Match, MatchStatus
from facepipe.core.json_lines import record_to_json
from facepipe.enrollment import Outcome
from facepipe.gallery import Person, Template
from facepipe.gallery.audit import Remark
from facepipe.gallery.matching import Doubt
from facepipe.pipeline import PhotoResult
from facepipe.quality_rules import Reason
from facepipe.reports.records import CSV_COLUMNS, csv_rows, printer, save_embeddings, table_lines, to_json

FACE_KEYS = [
    *("id", "box_xyxy", "score", "landmarks", "name", "distance_l2", "threshold_l2", "runner_up"),
    *("status", "candidate", "reason"),
]
NAMED = Match("Zoë, the 1st", 0.71239, 1.05, 'Bob "B"', 1.40001)
UNKNOWN = Match(None, 1.25, 1.05, "Bob", 1.3, reason="nobody_near")
UNSURE = Match(None, 0.91, 1.05, "Bob", 0.93, candidate_name="Ada", reason="between_people")
NOT_COMPARED = Match(None, None, 1.05, reason="too_small")
PHOTO = Path("holiday/día 1.jpg")


def identified(*matches: Match) -> PhotoResult:
    boxes = [(10.0 + i, 20.5, 110.123, 140.987) for i in range(len(matches))]
    return PhotoResult(PHOTO, faces=faces_at(*boxes).with_matches(matches))


def detected() -> PhotoResult:
    return PhotoResult(PHOTO, faces=faces_at((10, 20, 110, 140), scores=(0.98765,)))


NOBODY = PhotoResult(PHOTO, faces=Faces.empty().with_matches([]))
FAILED = PhotoResult(PHOTO, error="holiday/día 1.jpg: the file is empty")


def strictly(text: str) -> Any:
    """Parsed JSON without Python's NaN and Infinity, which are none."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


# JSON


@pytest.mark.parametrize(
    "result",
    [identified(NAMED, UNKNOWN, NOT_COMPARED), detected(), NOBODY, FAILED],
    ids=["identified", "detected", "nobody", "failed"],
)
def test_the_schema_is_the_same_whatever_happened(result: PhotoResult) -> None:
    line = to_json(result)
    assert "\n" not in line
    record = strictly(line)
    assert list(record) == ["photo", "error", "faces", "warnings"]
    assert record["photo"] == "holiday/día 1.jpg"
    for face in record["faces"]:
        assert list(face) == FACE_KEYS
        assert len(face["box_xyxy"]) == 4
        assert np.shape(face["landmarks"]) == (5, 2)
        assert face["runner_up"] is None or list(face["runner_up"]) == ["name", "distance_l2"]


def test_values_of_a_named_face() -> None:
    (face,) = strictly(to_json(identified(NAMED)))["faces"]
    assert face["box_xyxy"] == [10, 20.5, 110.12, 140.99]
    assert (face["name"], face["distance_l2"], face["threshold_l2"]) == ("Zoë, the 1st", 0.7124, 1.05)
    assert face["runner_up"] == {"name": 'Bob "B"', "distance_l2": 1.4}


def test_an_unsure_face_has_no_name_but_a_candidate() -> None:
    faces = strictly(to_json(identified(NAMED, UNSURE, UNKNOWN, NOT_COMPARED)))["faces"]
    assert [(face["status"], face["name"], face["candidate"], face["reason"]) for face in faces] == [
        ("named", "Zoë, the 1st", None, None),
        ("unsure", None, "Ada", "between_people"),
        ("unknown", None, None, "nobody_near"),
        ("unknown", None, None, "too_small"),
    ]
    row = parsed(identified(UNSURE))[0]
    assert (row["name"], row["status"], row["candidate"], row["reason"]) == (
        "",
        "unsure",
        "Ada",
        "between_people",
    )
    line = table_lines(identified(UNSURE))[1]
    assert line.split()[0] == "Ada?"
    assert "between people" in line


@pytest.mark.parametrize(("scale", "warned"), [(1.0, False), (0.34, False), (0.33, True), (0.05, True)])
def test_nothing_found_in_a_much_reduced_photo_is_told(scale: float, warned: bool) -> None:
    result = replace(NOBODY, scale=scale)
    assert strictly(to_json(result))["warnings"] == (["much_reduced"] if warned else [])
    (line,) = table_lines(result)
    assert (f"no faces (analyzed at {100 * scale:.0f}% of its size; --original-size" in line) == warned
    for other in (replace(identified(UNKNOWN), scale=scale), replace(FAILED, scale=scale)):
        assert strictly(to_json(other))["warnings"] == []


def test_null_where_there_is_nothing() -> None:
    faces = strictly(to_json(identified(UNKNOWN, NOT_COMPARED)))["faces"]
    assert [(f["name"], f["distance_l2"], f["threshold_l2"]) for f in faces] == [
        (None, 1.25, 1.05),
        (None, None, 1.05),
    ]
    assert faces[0]["runner_up"] == {"name": "Bob", "distance_l2": 1.3}
    assert faces[1]["runner_up"] is None
    (face,) = strictly(to_json(detected()))["faces"]
    assert face["score"] == 0.9876
    assert [face[key] for key in FACE_KEYS[4:]] == [None] * 7
    assert strictly(to_json(NOBODY)) == {
        "photo": "holiday/día 1.jpg",
        "error": None,
        "faces": [],
        "warnings": [],
    }
    failed = strictly(to_json(FAILED))
    assert (failed["error"], failed["faces"]) == ("holiday/día 1.jpg: the file is empty", [])


def test_file_names_that_are_no_text_stay_apart_and_printable() -> None:
    photos = [strictly(to_json(PhotoResult(Path(f"bad{c}.jpg"))))["photo"] for c in ("\udcff", "\udcfe")]
    assert photos == ["bad\\udcff.jpg", "bad\\udcfe.jpg"]
    to_json(PhotoResult(Path("x\udcff"), error="x\udcff: broken")).encode("utf-8")
    line = record_to_json({"a": "x\udcff", "b": Path("x\udcff"), "c": ["x\udcff"]})
    assert strictly(line.encode("utf-8").decode()) == {"a": "x\\udcff", "b": "x\\udcff", "c": ["x\\udcff"]}


def test_records_of_other_kinds() -> None:
    person = Person("Zoë", 2, "2025-01-01T00:00:00+00:00", "2025-01-02T00:00:00+00:00")
    assert strictly(record_to_json(person))["template_count"] == 2
    assert strictly(record_to_json({"photo": Path("a/b.jpg")})) == {"photo": "a/b.jpg"}
    with pytest.raises(ValueError, match="JSON"):
        record_to_json({"value": float("nan")})


def test_the_documented_forms_are_these() -> None:
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    words = [*FACE_KEYS, "photo", "error"]
    words += [code.value for codes in (Reason, Outcome, Doubt, MatchStatus, Remark) for code in codes]
    assert [word for word in words if f"`{word}`" not in text] == []
    assert ",".join(CSV_COLUMNS) in text
    for kind, keys in ((Person, Person.__slots__), (Template, Template.__slots__)):
        listed = ", ".join(f'"{key}"' for key in keys)
        assert f"`{{{listed}}}`" in text, kind


# CSV


def parsed(*results: PhotoResult) -> list[dict[str, str]]:
    lines = printer("csv")
    text = "\n".join([*lines.header, *(line for result in results for line in lines.of(result))])
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_columns_are_stable() -> None:
    assert printer("csv").header == (
        "photo,error,face,left,top,right,bottom,score,"
        "name,distance_l2,threshold_l2,runner_up,runner_up_distance_l2,status,candidate,reason",
    )
    for result in (identified(NAMED), detected(), NOBODY, FAILED):
        assert [len(row) for row in csv_rows(result)] == [len(CSV_COLUMNS)]


def test_a_row_a_face_and_one_for_a_photo_without() -> None:
    first, second, third, none, failed = parsed(identified(NAMED, UNKNOWN, NOT_COMPARED), NOBODY, FAILED)
    assert (first["face"], first["name"], first["runner_up"]) == ("0", "Zoë, the 1st", 'Bob "B"')
    assert [float(first[side]) for side in ("left", "top", "right", "bottom")] == [10, 20.5, 110.12, 140.99]
    assert (second["face"], second["name"], second["distance_l2"]) == ("1", "", "1.25")
    assert (third["distance_l2"], third["threshold_l2"], third["runner_up"]) == ("", "1.05", "")
    assert (none["photo"], none["error"], none["face"]) == ("holiday/día 1.jpg", "", "")
    assert (failed["error"], failed["score"]) == ("holiday/día 1.jpg: the file is empty", "")


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=1", "'=1", "''-1"]
HARMLESS = ["Ada", "'t Hooft", "a=b", "1-2", " =1", "", "'"]


@pytest.mark.parametrize("text", FORMULAS)
def test_nothing_in_a_csv_is_taken_for_a_formula(text: str) -> None:
    match = Match(None, 0.9, 1.05, text, 0.93, candidate_name=text, reason="between_people")
    result = PhotoResult(Path(text), faces=faces_at((10, 20, 110, 140)).with_matches([match]))
    (row,) = parsed(result)
    for column in ("photo", "runner_up", "candidate"):
        assert row[column] == f"'{text}"
        assert plain_cell(row[column]) == text
    assert float(row["distance_l2"]) == 0.9


@given(st.text() | st.sampled_from([*FORMULAS, *HARMLESS]))
def test_every_cell_comes_back_and_begins_harmlessly(text: str) -> None:
    (cell,) = next(csv.reader(io.StringIO(csv_line([text]), newline="")), [""])
    assert plain_cell(cell) == text
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert cell == text or text.lstrip("'")[0] in "=+-@\t\r\n＝＋－＠"  # noqa: RUF001


@pytest.mark.parametrize("text", HARMLESS)
def test_other_cells_are_as_they_were(text: str) -> None:
    assert csv_line([text, -1.5, 0]) == f"{text},-1.5,0"


def test_a_byte_order_mark_begins_the_header_only() -> None:
    plain, marked = printer("csv"), printer("csv", bom=True)
    assert marked.header == (f"\ufeff{plain.header[0]}",)
    assert marked.of(NOBODY) == plain.of(NOBODY)


def test_odd_file_names_survive_csv() -> None:
    odd = PhotoResult(Path('a,"b"\nc.jpg'), faces=Faces.empty())
    assert parsed(odd)[0]["photo"] == 'a,"b"\nc.jpg'


# Tables


def test_the_table_says_it_in_words() -> None:
    lines = table_lines(identified(NAMED, UNKNOWN, NOT_COMPARED))
    assert lines[0] == "holiday/día 1.jpg: 3 faces"
    assert "Zoë, the 1st" in lines[1]
    assert 'distance 0.71, next Bob "B" 1.40' in lines[1]
    assert "at 10,20 100x121 px, score 0.99" in lines[1]
    assert lines[2].split()[:3] == ["unknown", "distance", "1.25,"]
    assert "distance" not in lines[3]
    assert table_lines(detected()) == ["holiday/día 1.jpg: 1 face", "  at 10,20 100x120 px, score 0.99"]
    assert table_lines(NOBODY) == ["holiday/día 1.jpg: no faces"]
    assert table_lines(FAILED) == []
    assert printer("table").header == printer("json").header == ()


# Vectors


def test_vectors_are_written_without_pickle(tmp_path: Path) -> None:
    file = tmp_path / "vectors.npz"
    two = faces_at((0, 0, 10, 10), (5, 5, 9, 9)).with_embeddings(np.eye(2, 128, dtype=np.float32))
    one = faces_at((1, 2, 3, 4)).with_embeddings(np.ones((1, 128), np.float32))
    none = Faces.empty().with_embeddings(np.zeros((0, 128), np.float32))
    results = [
        PhotoResult(Path("a.jpg"), faces=two),
        PhotoResult(Path("none.jpg"), faces=none),
        FAILED,
        PhotoResult(Path("é\udcff.jpg"), faces=one),
    ]
    assert save_embeddings(file, results) == 3
    with np.load(file, allow_pickle=False) as saved:
        assert sorted(saved) == ["boxes", "embeddings", "paths"]
        assert saved["paths"].tolist() == ["a.jpg", "a.jpg", "é\\udcff.jpg"]
        assert saved["boxes"].dtype == saved["embeddings"].dtype == np.float32
        np.testing.assert_array_equal(saved["boxes"], np.concatenate([two.boxes_xyxy, one.boxes_xyxy]))
        assert saved["embeddings"].shape == (3, 128)
        assert saved["embeddings"][2].sum() == 128


def test_no_faces_at_all(tmp_path: Path) -> None:
    none = Faces.empty().with_embeddings(np.zeros((0, 128), np.float32))
    assert save_embeddings(tmp_path / "v.npz", [PhotoResult(Path("a.jpg"), faces=none)]) == 0
    with np.load(tmp_path / "v.npz", allow_pickle=False) as saved:
        assert (saved["boxes"].shape, saved["embeddings"].shape) == ((0, 4), (0, 128))
        assert saved["paths"].shape == (0,)


def test_a_place_that_cant_be_written_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file" / "v.npz", tmp_path / "none" / "v.npz", tmp_path):
        with pytest.raises(OutputError, match="can't be written"):
            save_embeddings(target, [])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
