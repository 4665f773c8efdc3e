"""Photos into a folder per person: each into the right one, whatever the order, the names and the trouble."""

from __future__ import annotations

import errno
import filecmp
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from batch_helpers import job_of
from cli_helpers import facepipe
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_helpers import faces_at

from facepipe.batch.job import Job
from facepipe.batch.models import PhotoRecord
from facepipe.batch.planning import Remembered, file_state
from facepipe.batch.sort import TransferMode, finish_move, plan_sorting, transfer
from facepipe.core.faces import Match
from facepipe.core.file_names import file_name_of
from facepipe.pipeline import PhotoResult
from facepipe.xmp.sidecars import sidecar_path

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

    def records(self) -> Iterator[PhotoRecord]:
        """One photo after the other."""
        for number, (path, name) in enumerate(self._people.items()):
            faces = faces_at((0, 0, 9, 9)).with_matches([Match(name, 0.5, 1.0)])
            yield PhotoRecord(number, PhotoResult(path, faces=faces), (10, 10))

    def remembered_photo(self, photo_id: int) -> Remembered:
        """Return a photo as it is now."""
        path = list(self._people)[photo_id]
        return Remembered(photo_id, path, file_state(path), True, None)


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
        for placement in plan_sorting(FakeJob(people), base / "sorted", TransferMode.LINK):
            transfer(placement, TransferMode.LINK, FakeJob(people))
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


@pytest.mark.parametrize("options", [["--dry-run"], ["--move"], ["--link"], []])
def test_another_photo_of_the_same_name_is_not_sorted_as_the_one_that_was_analyzed(
    tmp_path: Path, options: list[str]
) -> None:
    touched, replaced = photo(tmp_path / "touched.jpg", "touched"), photo(tmp_path / "replaced.jpg", "old")
    job = job_of(tmp_path / "job", {replaced: ["Ada"], touched: ["Ada"]})
    photo(replaced, "another")
    os.utime(touched, (1, 1))
    said = facepipe("sort", job, "--to", tmp_path / "sorted", *options)
    assert said.code == PARTIAL
    assert said.lines == [f"{touched} -> {tmp_path / 'sorted' / 'Ada' / 'touched.jpg'}"]
    assert f"{replaced}: it has changed since it was analyzed; run `facepipe batch` again" in said.err
    assert replaced.read_text() == "another"


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


# Photos and their sidecars


def pair(folder: Path, name: str = "1.jpg") -> Path:
    """A photo of Ada and its sidecar."""
    photo(folder / f"{name}.xmp", f"sidecar of {name}")
    return photo(folder / name, f"photo {name}")


def is_whole(path: Path) -> bool:
    return path.exists() and sidecar_path(path).exists()


def other_file_system(*_: object, **__: object) -> None:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


def killed_at(step: int, act: Callable[[], object]) -> bool:
    """Run it in a process that ends at once at this step on the disk; answers whether it came to that."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
    left = step
    with suppress(BaseException):
        for name in ("link", "unlink", "replace", "rename", "symlink", "fsync"):
            real = getattr(os, name)

            def step_on_disk(
                *arguments: object, real: Callable[..., object] = real, **named: object
            ) -> object:
                nonlocal left
                if not left:
                    os._exit(9)
                left -= 1
                return real(*arguments, **named)

            setattr(os, name, step_on_disk)
        act()
        os._exit(0)
    os._exit(1)


def sort_all(job_folder: Path, target: Path, way: TransferMode) -> None:
    with Job(job_folder) as job:
        finish_move(job, target)
        for placement in plan_sorting(job, target, way):
            if not placement.is_done:
                transfer(placement, way, job)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("across", [False, True], ids=["one file system", "across file systems"])
@pytest.mark.parametrize("way", list(TransferMode))
def test_a_pair_stays_a_pair_wherever_a_process_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: TransferMode, across: bool
) -> None:
    if across:
        monkeypatch.setattr("os.link", other_file_system)
    for step in range(40):
        base = tmp_path / str(step)
        source, target = pair(base / "in"), base / "sorted" / "Ada" / "1.jpg"
        job = job_of(base / "job", {source: ["Ada"]})
        was_killed = killed_at(step, partial(sort_all, job, base / "sorted", way))
        assert is_whole(source) or (way is TransferMode.MOVE and is_whole(target))
        assert is_whole(target) or not os.path.lexists(target)
        sort_all(job, base / "sorted", way)
        assert sorted(path.name for path in target.parent.iterdir()) == ["1.jpg", "1.jpg.xmp"]
        assert target.read_text() == "photo 1.jpg"
        assert list((base / "in").iterdir()) == [] if way is TransferMode.MOVE else is_whole(source)
        if not was_killed:
            break
    assert 1 < step < 39


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("stays", ["1.jpg", "1.jpg.xmp"])
def test_a_move_that_fails_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stays: str, across: bool
) -> None:
    """One of the two can't be removed from where it was."""
    source, target = pair(tmp_path / "in"), tmp_path / "sorted" / "Ada" / "1.jpg"
    job = job_of(tmp_path / "job", {source: ["Ada"]})
    unlink = os.unlink

    def refused(path: os.PathLike[str], **named: object) -> None:
        if Path(path) == source.with_name(stays):
            raise PermissionError(errno.EPERM, "not permitted")
        unlink(path, **named)  # type: ignore[arg-type]

    if across:
        monkeypatch.setattr("os.link", other_file_system)
    with monkeypatch.context() as patch:
        patch.setattr("os.unlink", refused)
        said = facepipe("sort", job, "--to", tmp_path / "sorted", "--move")
    assert (said.code, said.lines) == (1, [])
    assert f"can't move {source} there (not permitted)" in said.err
    assert is_whole(source)
    assert list(target.parent.iterdir()) == []
    assert facepipe("sort", job, "--to", tmp_path / "sorted", "--move").lines == [f"{source} -> {target}"]
    assert is_whole(target)


def test_a_move_that_was_killed_is_told_when_it_is_finished(tmp_path: Path) -> None:
    source, target = pair(tmp_path / "in"), tmp_path / "sorted" / "Ada" / "1.jpg"
    job_folder = job_of(tmp_path / "job", {source: ["Ada"]})
    shutil.copytree(source.parent, target.parent)
    with Job(job_folder) as job:
        job.begin_move(source, target)
    dry = facepipe("sort", job_folder, "--to", tmp_path / "sorted", "--move", "--dry-run")
    assert is_whole(source)
    assert dry.lines == []
    said = facepipe("sort", job_folder, "--to", tmp_path / "sorted", "--move")
    assert said.lines == [f"{source} -> {target}"]
    assert list(source.parent.iterdir()) == []
    assert is_whole(target)


@pytest.mark.parametrize("changed", ["source", "target", "gone", "link"])
def test_a_killed_move_removes_nothing_that_is_not_the_same(tmp_path: Path, changed: str) -> None:
    source, target = pair(tmp_path / "in"), tmp_path / "sorted" / "Ada" / "1.jpg"
    job_folder = job_of(tmp_path / "job", {source: ["Ada"]})
    shutil.copytree(source.parent, target.parent)
    with Job(job_folder) as job:
        job.begin_move(source, target)
        if changed in ("gone", "link"):
            target.unlink()
        if changed == "link":
            target.symlink_to(source)
        if changed in ("source", "target"):
            (source if changed == "source" else target).write_text("edited")
        assert finish_move(job, target.parent.parent) is None
        assert job.unfinished_move() is None
    assert is_whole(source)


def test_a_photo_never_gets_the_sidecar_of_another(tmp_path: Path) -> None:
    """A sidecar without its photo is in the way: both get another name."""
    source, ada = pair(tmp_path / "in"), tmp_path / "sorted" / "Ada"
    photo(ada / "1.jpg.xmp", "of a photo that somebody deleted")
    job = job_of(tmp_path / "job", {source: ["Ada"]})
    said = facepipe("sort", job, "--to", tmp_path / "sorted", "--move")
    assert said.lines == [f"{source} -> {ada / '1 (2).jpg'}"]
    assert is_whole(ada / "1 (2).jpg")
    assert (ada / "1.jpg.xmp").read_text() == "of a photo that somebody deleted"


def test_a_numbered_photo_of_a_long_name_keeps_its_sidecar(tmp_path: Path) -> None:
    name = f"{'a' * 247}.jpg"
    people = {pair(tmp_path / where, name): ["Ada"] for where in "ab"}
    (tmp_path / "b" / name).write_text("another photo")
    job = job_of(tmp_path / "job", people)
    assert facepipe("sort", job, "--to", tmp_path / "sorted", "--move").code == 0
    photos = [path for path in (tmp_path / "sorted" / "Ada").iterdir() if path.suffix == ".jpg"]
    assert len(photos) == 2
    assert all(map(is_whole, photos))


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("is_relative", [False, True])
def test_links_stay_valid_when_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_relative: bool, across: bool
) -> None:
    """Also into a folder that is itself reached by a link."""
    real = pair(tmp_path / "real")
    link = tmp_path / "in" / "deeper" / "1.jpg"
    link.parent.mkdir(parents=True)
    for path, leads_to in ((link, real), (sidecar_path(link), sidecar_path(real))):
        path.symlink_to(os.path.relpath(leads_to, link.parent) if is_relative else leads_to)
    (tmp_path / "far" / "away" / "sorted").mkdir(parents=True)
    (tmp_path / "sorted").symlink_to(tmp_path / "far" / "away" / "sorted")
    if across:
        monkeypatch.setattr("os.link", other_file_system)
    job = job_of(tmp_path / "job", {link: ["Ada"]})
    assert facepipe("sort", job, "--to", tmp_path / "sorted", "--move").code == 0
    moved = tmp_path / "sorted" / "Ada" / "1.jpg"
    assert list(link.parent.iterdir()) == []
    for path, leads_to in ((moved, real), (sidecar_path(moved), sidecar_path(real))):
        assert path.samefile(leads_to)
        assert os.path.isabs(os.readlink(path)) is not is_relative


def test_links_to_photos_of_a_relative_job_lead_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = job_of(Path("job"), {pair(tmp_path / "in"): ["Ada"]})
    assert facepipe("sort", job, "--to", "sorted", "--link").code == 0
    assert Path("sorted/Ada/1.jpg").samefile("in/1.jpg")
    assert Path("sorted/Ada/1.jpg.xmp").samefile("in/1.jpg.xmp")


def test_a_copy_across_file_systems_keeps_content_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pair(tmp_path / "in")
    os.utime(source, (1e9, 1e9))
    shutil.copytree(source.parent, tmp_path / "before")
    monkeypatch.setattr("os.link", other_file_system)
    job = job_of(tmp_path / "job", {source: ["Ada"]})
    assert facepipe("sort", job, "--to", tmp_path / "sorted", "--move").code == 0
    moved = tmp_path / "sorted" / "Ada"
    assert filecmp.cmpfiles(moved, tmp_path / "before", ["1.jpg", "1.jpg.xmp"], shallow=False)[0] == [
        "1.jpg",
        "1.jpg.xmp",
    ]
    assert (moved / "1.jpg").stat().st_mtime == 1e9


def test_what_is_there_already_is_told(tmp_path: Path) -> None:
    job = job_of(tmp_path / "job", {pair(tmp_path / "in"): ["Ada"]})
    assert "1 photo sorted" in facepipe("sort", job, "--to", tmp_path / "sorted").err
    said = facepipe("sort", job, "--to", tmp_path / "sorted", "--move")
    assert "0 photos sorted" in said.err
    assert "1 there already" in said.err
