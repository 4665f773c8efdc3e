"""Photos into a folder per person: each into the right one, whatever the order, the names and the trouble."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from batch_helpers import job_of
from cli_helpers import facepipe
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_helpers import faces_at

from facepipe.batch.job import Job, Record
from facepipe.batch.sorting import Way, carry_out, plan_sorting
from facepipe.faces import Match
from facepipe.file_names import file_name_of
from facepipe.pipeline import PhotoResult

PARTIAL = 3
NAMES = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20),
        st.text(st.sampled_from("aA/_दा.é "), min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=5,
    unique=True,
)


def photo(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def contents(folder: Path) -> dict[str, list[str]]:
    """What is in each person's folder."""
    return {
        person.name: sorted(file.read_text() for file in person.iterdir())
        for person in sorted(folder.iterdir())
    }


class FakeJob(Job):
    """A job of these photos with one person each, without a file."""

    def __init__(self, people: Mapping[Path, str]) -> None:
        self._people = people

    def records(self) -> Iterator[Record]:
        """One photo after the other."""
        for number, (path, name) in enumerate(self._people.items()):
            faces = faces_at((0, 0, 9, 9)).with_matches([Match(name, 0.5, 1.0)])
            yield Record(number, PhotoResult(path, faces=faces), (10, 10))


@settings(deadline=None)
@given(names=NAMES, data=st.data())
def test_nobody_gets_anothers_photos(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], data: st.DataObject
) -> None:
    """A later run, of other photos in another order, finds every folder again."""
    base = tmp_path_factory.mktemp("sort")
    expected: dict[str, list[str]] = {file_name_of(name): [] for name in names}
    assert len(expected) == len(names)
    for run in range(2):
        order = data.draw(st.permutations(names))[: data.draw(st.integers(1, len(names)))]
        people = {}
        for number, name in enumerate(order):
            people[photo(base / str(run) / str(number) / "same name.jpg", f"{run} {name}")] = name
            expected[file_name_of(name)].append(f"{run} {name}")
        for placement in plan_sorting(FakeJob(people), base / "sorted", Way.LINK):
            carry_out(placement, Way.LINK)
    assert contents(base / "sorted") == {folder: sorted(found) for folder, found in expected.items() if found}


def test_photos_that_are_gone_are_told_and_not_counted(tmp_path: Path) -> None:
    here, gone = photo(tmp_path / "here.jpg", "here"), photo(tmp_path / "gone.jpg", "gone")
    job = job_of(tmp_path / "job", {gone: ["Ada"], here: ["Ada"]})
    gone.unlink()
    for dry_run in (["--dry-run"], []):
        said = facepipe("sort", job, "--to", tmp_path / "sorted", *dry_run)
        assert said.code == PARTIAL
        assert said.lines == [f"{here} -> {tmp_path / 'sorted' / 'Ada' / 'here.jpg'}"]
        assert f"facepipe: {gone}: no such file" in said.err
        assert "facepipe: 1 photo " in said.err
    assert contents(tmp_path / "sorted") == {"Ada": ["here"]}


def test_moving_twice_moves_nothing_twice(tmp_path: Path) -> None:
    """Two photos of one name and other content, and a copy of the first."""
    people = {
        photo(tmp_path / where / "1.jpg", text): ["Ada"] for where, text in zip("abc", "xyx", strict=True)
    }
    job = job_of(tmp_path / "job", people)
    dry = facepipe("sort", job, "--to", tmp_path / "sorted", "--move", "--dry-run")
    first = facepipe("sort", job, "--to", tmp_path / "sorted", "--move")
    assert (first.code, first.lines) == (0, dry.lines)
    assert len(first.lines) == 2
    assert contents(tmp_path / "sorted") == {"Ada": ["x", "y"]}
    again = facepipe("sort", job, "--to", tmp_path / "sorted", "--move")
    assert (again.code, again.lines) == (0, [])
    assert "facepipe: 0 photos sorted" in again.err
    assert contents(tmp_path / "sorted") == {"Ada": ["x", "y"]}


def test_another_file_in_the_place_of_a_moved_photo_does_not_hide_that_it_is_gone(tmp_path: Path) -> None:
    lost = photo(tmp_path / "a" / "1.jpg", "lost")
    job = job_of(tmp_path / "job", {lost: ["Ada"]})
    lost.unlink()
    photo(tmp_path / "sorted" / "Ada" / "1.jpg", "another")
    said = facepipe("sort", job, "--to", tmp_path / "sorted", "--move")
    assert (said.code, said.lines) == (1, [])
    assert "no such file" in said.err


def test_one_photos_trouble_does_not_end_the_others(tmp_path: Path) -> None:
    long_name = f"{'a' * 251}.jpg"
    people = {
        photo(tmp_path / "a" / "1.jpg", "blocked"): ["Blocked"],
        photo(tmp_path / "a" / long_name, "long"): ["Ada"],
        photo(tmp_path / "b" / long_name, "long too"): ["Ada"],
        photo(tmp_path / "c" / "2.jpg", "short"): ["Ada"],
    }
    job = job_of(tmp_path / "job", people)
    photo(tmp_path / "sorted" / "Blocked", "a file where the folder must be")
    said = facepipe("sort", job, "--to", tmp_path / "sorted")
    assert said.code == PARTIAL
    assert "can't make this folder" in said.err
    assert "facepipe: 3 photos sorted" in said.err
    ada = tmp_path / "sorted" / "Ada"
    assert sorted(file.read_text() for file in ada.iterdir()) == ["long", "long too", "short"]
    shutil.rmtree(ada)
    (tmp_path / "sorted" / "Blocked").unlink()
    assert facepipe("sort", job, "--to", tmp_path / "sorted").code == 0
