"""Finding photos in files, folders and globs, whatever else lies there."""

from __future__ import annotations

import fnmatch
import logging
import os
import string
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from cli_helpers import bound_by_permissions, facepipe, finished, start
from hypothesis import given, settings
from hypothesis import strategies as st

from facepipe import cli
from facepipe.core.errors import UsageError
from facepipe.core.faces import UInt8Array
from facepipe.images.finding import find_photos, is_wanted, natural_key
from facepipe.images.reading import PHOTO_SUFFIXES, write_image


def write(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")


def names_below(folder: Path, **options: list[str]) -> list[str]:
    return [photo.relative_to(folder).as_posix() for photo in find_photos([folder], **options)]


def link(at: Path, to: Path | str) -> None:
    try:
        at.symlink_to(to)
    except OSError:
        pytest.skip("this system makes no links here")


@pytest.fixture
def album(tmp_path: Path) -> Path:
    names = [
        "img10.jpg",
        "img2.JPG",
        "Img1.heic",
        "notes.txt",
        ".hidden.jpg",
        "sub/b.png",
        "sub/deep/a.webp",
        ".secret/c.jpg",
        "empty/readme.md",
        "[odd] name.jpg",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


ALL = ["[odd] name.jpg", "Img1.heic", "img2.JPG", "img10.jpg", "sub/b.png", "sub/deep/a.webp"]
FOUND: dict[str, tuple[list[str], list[str]]] = {
    "a folder, files first, natural order": (["."], ALL),
    "an odd suffix as given": (["notes.txt"], ["notes.txt"]),
    "a missing file as given": (["gone.jpg", "img2.JPG"], ["gone.jpg", "img2.JPG"]),
    "order as given, duplicates once": (
        ["sub", "img10.jpg", "sub/b.png", "./img10.jpg", "sub/../img10.jpg"],
        ["sub/b.png", "sub/deep/a.webp", "img10.jpg"],
    ),
    "a glob": (["img*.jpg"], ["img10.jpg"]),
    "a glob takes photos and folders only": (["*"], ALL),
    "a recursive glob": (["**/*.webp"], ["sub/deep/a.webp"]),
    "a file whose name looks like a glob": (["[odd] name.jpg"], ["[odd] name.jpg"]),
    "a hidden file or folder by name": ([".hidden.jpg", ".secret"], [".hidden.jpg", ".secret/c.jpg"]),
    "nothing": ([], []),
}


@pytest.mark.parametrize("case", FOUND)
def test_find_photos(album: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(album)
    paths, expected = FOUND[case]
    assert [path.as_posix() for path in find_photos(paths)] == expected
    assert find_photos(map(Path, paths)) == find_photos(paths)


@pytest.mark.parametrize("path", ["empty", "*.tiff", "sub/*.jpg"])
def test_a_folder_or_glob_without_photos_is_named(
    album: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(album)
    with pytest.raises(UsageError) as caught:
        find_photos([path])
    assert str(caught.value).startswith(f"{path}: no photos")


def test_links_are_followed_and_loops_end(album: Path) -> None:
    link(album / "sub" / "loop", album)
    link(album / "link.jpg", album / "img10.jpg")
    link(album / "broken.jpg", album / "gone.jpg")
    names = [path.relative_to(album).as_posix() for path in find_photos([album])]
    assert len(names) == len(ALL) + 1
    assert "broken.jpg" in names


# What must not end a walk


def test_digits_that_are_no_numbers(tmp_path: Path) -> None:
    odd = ["12²3.jpg", "①.jpg", "٣.jpg", "²"]
    write(*(tmp_path / name for name in odd[:3]), tmp_path / "²" / "2.jpg", tmp_path / "²" / "10.jpg")
    assert sorted(names_below(tmp_path)) == sorted([*odd[:3], "²/10.jpg", "²/2.jpg"])
    assert names_below(tmp_path / "²") == ["2.jpg", "10.jpg"]


@contextmanager
def deep_folders(top: Path, depth: int) -> Iterator[None]:
    """Folders `d` in folders `d`, made and removed without a path that the system finds too long."""
    here = os.getcwd()
    try:
        os.chdir(top)
        for _ in range(depth):
            os.mkdir("d")
            os.chdir("d")
        Path("deep.jpg").write_bytes(b"x")
        os.chdir(here)
        yield
    finally:
        os.chdir(top)
        for _ in range(depth):
            os.chdir("d")
        os.unlink("deep.jpg")
        for _ in range(depth):
            os.chdir("..")
            os.rmdir("d")
        os.chdir(here)


@pytest.mark.skipif(os.name == "nt", reason="folders there are not so deep")
def test_folders_deeper_than_any_recursion(tmp_path: Path) -> None:
    with deep_folders(tmp_path, 1100):
        assert names_below(tmp_path) == ["d/" * 1100 + "deep.jpg"]
        assert len(find_photos([tmp_path / "**" / "*.jpg"])) == 1


@pytest.mark.skipif(os.name == "nt", reason="folders there are not so deep")
def test_folders_deeper_than_any_path_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.jpg")
    with deep_folders(tmp_path, 2500):
        assert names_below(tmp_path) == ["a.jpg"]
    assert "File name too long" in caplog.text


def test_links_that_lead_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.jpg")
    link(tmp_path / "itself", "itself")
    link(tmp_path / "itself.jpg", "itself.jpg")
    link(tmp_path / "0", "a.jpg")
    for number in range(1, 1200):
        link(tmp_path / str(number), str(number - 1))
    link(tmp_path / "far.jpg", "1199")
    assert names_below(tmp_path) == ["a.jpg", "far.jpg", "itself.jpg"]  # reading the last two says why not
    assert f"{tmp_path / 'itself'}: passed over (Too many levels of symbolic links)" in caplog.text


def test_what_may_not_be_read(tmp_path: Path) -> None:
    """In a process without the superuser's rights, to whom nothing is closed."""
    closed = tmp_path / "closed"
    write(closed / "inner" / "a.jpg", tmp_path / "walk" / "b.jpg", tmp_path / "walk" / "locked" / "c.jpg")
    link(tmp_path / "walk" / "door", closed / "inner")
    link(tmp_path / "walk" / "door.jpg", closed / "inner" / "a.jpg")
    (tmp_path / "walk" / "locked").chmod(0)
    closed.chmod(0)
    try:
        said = finished(start("detect", "walk", home=tmp_path, preexec=bound_by_permissions()))
    finally:
        closed.chmod(0o700)
        (tmp_path / "walk" / "locked").chmod(0o700)
    told = "\n".join(said.complaints)
    assert f"walk{os.sep}door: passed over (Permission denied)" in told
    assert f"walk{os.sep}locked: folder passed over (Permission denied)" in told
    assert "door.jpg: no permission to read it" in told
    assert "b.jpg: not a photo" in told
    assert "Traceback" not in said.err


def test_names_that_no_system_takes() -> None:
    for name in ("a\0b.jpg", "[a\0b]*.jpg"):
        assert all("\0" in str(path) for path in ([] if "[" in name else find_photos([name])))
    with pytest.raises(UsageError, match="no photos match this pattern"):
        find_photos(["[a\0b]*.jpg"])


# Names of any kind

ANY_TEXT = st.text(st.characters(codec=None, categories=None), max_size=12)
TRICKY_TEXT = st.text("019٣²①aAßﬁİ\ud800\udcff.", max_size=8)
NAMES = ANY_TEXT | TRICKY_TEXT


@given(st.lists(NAMES, min_size=3, max_size=3))
def test_the_natural_order_is_total(names: list[str]) -> None:
    keys = [natural_key(name) for name in names]
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert (keys[a] < keys[b]) + (keys[b] < keys[a]) + (names[a] == names[b]) == 1
    first, second, third = sorted(names, key=natural_key)
    assert natural_key(first) <= natural_key(second) <= natural_key(third)
    assert natural_key(first) <= natural_key(third)


@given(ANY_TEXT, st.integers(0, 10**30), st.integers(0, 10**30), st.integers(0, 3))
def test_numbers_are_in_their_order(text: str, a: int, b: int, zeros: int) -> None:
    text = text.rstrip(string.digits)
    low, high = (f"{text}{'0' * zeros}{min(a, b)}.jpg", f"{text}{max(a, b)}.jpg")
    assert a == b or natural_key(low) < natural_key(high)


def test_numbers_of_thousands_of_digits_are_in_their_order() -> None:
    assert natural_key("1" * 5000) < natural_key("2" + "0" * 4999) < natural_key("1" + "0" * 5000)


FILE_NAMES = st.binary(min_size=1, max_size=10).filter(lambda name: not set(name) & set(b"/\0"))


@pytest.mark.skipif(os.name == "nt", reason="names are of text there")
@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(FILE_NAMES, min_size=1, max_size=4), max_size=6), st.sampled_from(["", "link"]))
def test_any_tree_is_walked_each_photo_once_in_order(trees: list[list[bytes]], kind: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        top = os.fsencode(root)
        wanted = set()
        for parts in trees:
            if any(part in (b".", b"..") for part in parts):
                continue
            path = os.path.join(top, *parts[:-1], parts[-1] + b".jpg")
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                os.symlink(path, path) if kind else open(path, "xb").close()
            except OSError:  # two names that get in each other's way
                continue
            if not any(part.startswith(b".") for part in (*parts[:-1], parts[-1] + b".jpg")):
                wanted.add(os.fsdecode(path))
        try:
            found = find_photos([root])
        except UsageError:
            found = []
        assert {str(photo) for photo in found} == wanted
        assert len(found) == len(wanted)
        for first, second in pairwise(found):
            if first.parent == second.parent:
                assert natural_key(first.name) < natural_key(second.name)


# Folders of the system, and what the user passes over

SYSTEM = ["@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "$Recycle.Bin", "System Volume Information"]
SYSTEM += ["lost+found", "__MACOSX", ".picasaoriginals"]


@pytest.mark.parametrize("name", SYSTEM)
def test_folders_of_the_system_are_passed_over_and_taken_by_name(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a.jpg", tmp_path / "b" / name / "deep" / "c.jpg", tmp_path / name / "d.jpg")
    assert names_below(tmp_path) == ["a.jpg"]
    assert [path.name for path in find_photos([tmp_path / "**" / "*.jpg"])] == ["a.jpg"]
    assert [path.name for path in find_photos([tmp_path / name])] == ["d.jpg"]
    assert not is_wanted(tmp_path / "b" / name / "deep" / "c.jpg", [tmp_path])
    assert is_wanted(tmp_path / name / "d.jpg", [tmp_path / name])


def test_a_photo_of_that_name_is_a_photo(tmp_path: Path) -> None:
    write(tmp_path / "@eaDir.jpg")
    assert names_below(tmp_path) == ["@eaDir.jpg"]


def test_patterns_are_passed_over(tmp_path: Path) -> None:
    write(*(tmp_path / name for name in ("a.jpg", "b.png", "cache/c.jpg", "x/2019/raw/d.jpg", "x/raw/e.jpg")))
    for exclude, kept in (
        (["cache"], ["a.jpg", "b.png", "x/2019/raw/d.jpg", "x/raw/e.jpg"]),
        (["*.png", "2019/raw"], ["a.jpg", "cache/c.jpg", "x/raw/e.jpg"]),
        ([str(tmp_path / "x")], ["a.jpg", "b.png", "cache/c.jpg"]),
    ):
        assert names_below(tmp_path, exclude=exclude) == kept
        wanted = [path for path in find_photos([tmp_path]) if is_wanted(path, [tmp_path], exclude)]
        assert [path.relative_to(tmp_path).as_posix() for path in wanted] == kept
    below = [path.name for path in find_photos([tmp_path / "**" / "*.jpg"], exclude=["cache", "raw"])]
    assert below == ["a.jpg"]
    for empty in ("", "."):
        with pytest.raises(UsageError, match="exclude: expected"):
            find_photos([tmp_path], exclude=[empty])


def test_what_is_above_a_watched_folder_does_not_matter(tmp_path: Path) -> None:
    root = tmp_path / ".hidden" / "@eaDir" / "album"
    write(root / "a.jpg", root / ".b" / "c.jpg")
    assert is_wanted(root / "a.jpg", [root])
    assert not is_wanted(root / ".b" / "c.jpg", [root])
    assert not is_wanted(root / "notes.txt", [root])
    assert not is_wanted(tmp_path / "elsewhere.jpg", [root])


# Globs


@pytest.mark.parametrize("folder", ["[2019] trip", "a[b", "what?", "st*r", "[!x]", "**"])
def test_a_glob_below_a_folder_whose_name_looks_like_one(tmp_path: Path, folder: str) -> None:
    if os.name == "nt" and set(folder) & set("*?"):
        pytest.skip("no such names there")
    write(tmp_path / folder / "1.jpg", tmp_path / folder / "sub" / "2.jpg", tmp_path / "2" / "3.jpg")
    assert [path.name for path in find_photos([tmp_path / folder / "*.jpg"])] == ["1.jpg"]
    assert [path.name for path in find_photos([tmp_path / folder / "**" / "*.jpg"])] == ["1.jpg", "2.jpg"]


@pytest.mark.parametrize("pattern", ["*", "*/", "**", "s*/*.jpg", "s*", "[ab].*", "../*/a.jpg", "?.jpg"])
def test_globs_match_what_the_standard_library_matches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    import glob

    top = tmp_path / "top"
    write(*(top / name for name in ("a.jpg", "b.png", "c.txt", "s1/a.jpg", "s2/d/e.jpg", ".h/f.jpg")))
    monkeypatch.chdir(top)
    expected = set()
    for match in glob.glob(pattern, recursive=True):
        for path in find_photos([match]) if os.path.isdir(match) else [Path(match)]:
            if path.suffix in PHOTO_SUFFIXES:
                expected.add(os.path.realpath(path))
    assert {os.path.realpath(path) for path in find_photos([pattern])} == expected != set()


def test_hidden_files_are_found_by_a_glob_that_says_so(tmp_path: Path) -> None:
    write(tmp_path / ".a.jpg", tmp_path / ".b" / "c.jpg", tmp_path / "d.jpg")
    assert [path.name for path in find_photos([tmp_path / ".*"])] == [".a.jpg", "c.jpg"]
    assert fnmatch.fnmatch(".a.jpg", "*")  # which takes it; folders' listings leave it out
    assert [path.name for path in find_photos([tmp_path / "*"])] == ["d.jpg"]


# What is not read


def test_raw_files_and_videos_are_counted_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(*(tmp_path / name for name in ("a.jpg", "a.CR2", "b.nef", "s/c.dng", "s/v.MOV", "w.jxl", "n.txt")))
    write(tmp_path / "@eaDir" / "x.mp4", tmp_path / ".y.mp4")
    with caplog.at_level(logging.INFO, "facepipe"):
        assert names_below(tmp_path) == ["a.jpg"]
    (message,) = caplog.messages
    assert message.startswith(
        "passed over 3 raw files (.cr2 .dng .nef), 1 video (.mov), 1 other picture (.jxl): export raw files"
    )


def test_a_folder_of_raw_files_only_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.arw")
    with caplog.at_level(logging.INFO, "facepipe"), pytest.raises(UsageError, match="no photos match"):
        find_photos([tmp_path])
    assert "passed over 1 raw file (.arw): export raw files as JPEG" in caplog.text


def test_nothing_is_said_where_nothing_was_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "a.jpg", tmp_path / "notes.txt", tmp_path / "a.jpg.xmp")
    with caplog.at_level(logging.INFO, "facepipe"):
        find_photos([tmp_path])
    assert not caplog.messages


# On the command line


def test_every_command_on_photos_has_the_same_exclude() -> None:
    walking = ("enroll", "identify", "detect", "embed", "batch", "watch")
    options = {
        name: [option for option in command.params if option.name == "exclude"]
        for name, command in cli.main.commands.items()
    }
    assert {name for name, found in options.items() if found} == set(walking)
    assert len({options[name][0].help for name in walking}) == 1


@pytest.mark.parametrize(
    "command", ["enroll --name Her", "identify", "detect", "embed --out v.npz", "batch --out o"]
)
def test_commands_pass_over_and_count(
    tmp_path: Path, astronaut: UInt8Array, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    write_image(tmp_path / "photos" / "a.png", astronaut)
    write(tmp_path / "photos" / "private" / "b.png", tmp_path / "photos" / "c.mov")
    gallery = () if command.startswith(("detect", "embed")) else ("--gallery", "g")
    if gallery:
        facepipe("enroll", "photos/a.png", "--name", "Her", *gallery)
    said = facepipe(*command.split(), "photos", "--exclude", "private", *gallery)
    assert said.code == 0
    (told,) = [line for line in said.complaints if "passed over" in line]
    assert told.startswith("facepipe: passed over 1 video (.mov)")
    assert facepipe(*command.split(), "photos", "--exclude", "", *gallery).code == 2
