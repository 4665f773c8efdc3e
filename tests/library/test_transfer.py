"""Decisions go to another library and come back as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from json_helpers import places, replaced
from library_helpers import face_of, make_batch, names_in

from facepipe.core.errors import DataError
from facepipe.library.library import Library
from facepipe.library.transfer import ImportReport, export_decisions, import_decisions

PHOTOS = {"one": ["ada", "bob"], "two": ["ada"], "three": ["bob"], "none": []}
VALUES = [None, True, 0, -1, 1e300, "", "x", "\0", "is", [], ["x"], {}, {"x": 1}]


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with decisions of every kind."""
    out = make_batch(tmp_path_factory.mktemp("decided"), PHOTOS)
    with Library.open(out) as library:
        library.confirm([face_of(library, "two")], "Ada")
        library.reject([face_of(library, "three")], "Ada")
        library.ignore([face_of(library, "one", 1)])
        photo = next(p for p in library.photos.values() if p.path.stem == "none")
        library.draw_face(photo.id, (10, 10, 40, 45), "Eve")
        library.set_hidden("Eve", True)
        library.name_everything()
        export_decisions(library, out.parent / "decisions.json")
    return out


def test_another_library_of_the_same_photos_gets_the_names(decided: Path, tmp_path: Path) -> None:
    other = make_batch(tmp_path, PHOTOS)  # the same pictures, so the same contents
    with Library.open(decided) as library:
        expected = names_in(library), library.people(), library.decisions()
    with Library.open(other) as library:
        report = import_decisions(library, decided.parent / "decisions.json")
        assert report == ImportReport(taken=4, older=0, waiting=1)
        library.name_everything()
        photo = next(p for p in library.photos.values() if p.path.stem == "two")
        assert library.faces[photo.face_ids[0]].is_confirmed
        found = {stored.decision for stored in library.decisions()}
        assert found == {stored.decision for stored in expected[2]}
        assert import_decisions(library, decided.parent / "decisions.json").taken == 0
        library.confirm([face_of(library, "three")], "Bob")
        assert import_decisions(library, decided.parent / "decisions.json") == ImportReport(0, 4, 0)
        assert library.faces[face_of(library, "three")].is_confirmed
        while library.undo():
            pass
        library.name_everything()
        assert library.decisions() == []
        assert library.people() == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_that_was_changed_is_refused_or_harmless(
    decided: Path, tmp_path: Path, data: st.DataObject
) -> None:
    raw = json.loads((decided.parent / "decisions.json").read_text())
    place, value = data.draw(st.sampled_from(places(raw))), data.draw(st.sampled_from(VALUES))
    refused_or_taken(decided, tmp_path / "changed.json", replaced(raw, place, value))


def refused_or_taken(decided: Path, file: Path, raw: Any) -> None:
    file.write_text(json.dumps(raw))
    with Library.open(decided) as library:
        before = len(library.steps(1000))
        told = ""
        try:
            import_decisions(library, file)
        except DataError as error:
            told = str(error)
        if told:
            assert told.startswith(str(file))
            assert len(library.steps(1000)) == before
    Library.open(decided).close()  # not a word in the job that it refuses to read again


@pytest.mark.parametrize("content", [b"", b"not JSON", b"\xff", b"[]", b"null"])
def test_other_files_are_refused(decided: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.json").write_bytes(content)
    with Library.open(decided) as library, pytest.raises(DataError, match=r"other\.json"):
        import_decisions(library, tmp_path / "other.json")
    with Library.open(decided) as library, pytest.raises(DataError, match="can't be read"):
        import_decisions(library, tmp_path / "missing.json")
