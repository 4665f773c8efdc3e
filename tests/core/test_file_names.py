"""Names of folders and files from people's names: allowed everywhere, and never one for two people."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facepipe.core.file_names import file_name_of, with_ending

WINDOWS_FORBIDS = set('<>:"/\\|?*') | set(map(chr, range(32)))
WINDOWS_DEVICES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{n}" for port in ("com", "lpt") for n in "0123456789¹²³"),
}
IGNORABLE = ["\u200d", "\u200c", "\ufe0f", "\u00ad", "\u034f", "\u3164", "\u202e", "\U000e0041"]
LETTERS = st.sampled_from(
    [*"aAbBzZßẞ\u017fsSKkÅåÄéÉ\u0131Iiİ\u03c3ΣςǅǆǄ顔दा้ิ😀", "\u0301", "\u0308", "-", "'", " ", ".", "0", "9"]
)
NAMES = st.one_of(
    st.text(min_size=1, max_size=200),
    st.text(
        st.one_of(LETTERS, st.sampled_from(sorted(WINDOWS_FORBIDS) + IGNORABLE)), min_size=1, max_size=12
    ),
    st.sampled_from(
        ["Con", "con.jpg", "NUL", "Com1", "lpt³.a.b", "..", ".", "Ada-0123456789", "ada-ABCDEF0123"]
    ),
)
CHANGES: list[Callable[[str], str]] = [
    str.upper,
    str.lower,
    str.title,
    str.swapcase,
    str.casefold,
    lambda name: unicodedata.normalize("NFD", name),
    lambda name: unicodedata.normalize("NFC", name),
    lambda name: re.sub(r"\W", "_", name),
    lambda name: f"{name}.",
    lambda name: f"{name} ",
    lambda name: f".{name}",
    lambda name: f"{name}\u200d",
    lambda name: f"{name[:1]}\ufe0f{name[1:]}",
    file_name_of,
    lambda name: file_name_of(name).upper(),
    lambda name: file_name_of(name).title(),
]


def on_windows(name: str) -> str:
    """What NTFS and exFAT compare: capitals letter by letter; the dotless i has none there."""
    return "".join(c if c == "\u0131" or len(c.upper()) > 1 else c.upper() for c in name.rstrip(" ."))


def on_macos(name: str) -> str:
    folded = unicodedata.normalize("NFD", name).casefold()
    return unicodedata.normalize("NFD", "".join(c for c in folded if c not in IGNORABLE))


@given(name=NAMES, changes=st.lists(st.sampled_from(CHANGES), max_size=4))
def test_no_two_people_share_a_name(name: str, changes: list[Callable[[str], str]]) -> None:
    others = [name]
    for change in changes:
        others.append(change(others[-1]))
    people = set(others)
    for compared in (on_windows, on_macos):
        assert len({compared(file_name_of(person)) for person in people}) == len(people)


@settings(deadline=None)
@given(name=NAMES, max_bytes=st.integers(16, 255))
def test_every_file_system_takes_it(
    tmp_path_factory: pytest.TempPathFactory, name: str, max_bytes: int
) -> None:
    made = file_name_of(name, max_bytes)
    assert 1 <= len(made.encode()) <= max_bytes
    assert not set(made) & WINDOWS_FORBIDS
    assert not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in made)
    assert made.strip(" .") == made
    assert made.split(".")[0].rstrip(" ").casefold() not in WINDOWS_DEVICES
    folder = tmp_path_factory.getbasetemp() / "folders" / made
    folder.mkdir(parents=True, exist_ok=True)
    assert folder.parent == tmp_path_factory.getbasetemp() / "folders"


@pytest.mark.parametrize(
    "name",
    [
        "Ada Lovelace",
        "Zoë 李",
        "José",
        "Νίκος Παπαδόπουλος",
        "İbrahim I\u015f\u0131k",
        "Ибрагим Ёлкин",
        "दादी माँ",
        "สมชาย ใจดี",
        "ഉണ്ണി",
        "ابن سينا",
        "😀",
        "Jean-Baptiste O'Brien",
        "George_W_Bush",
        "Henry 3rd",
        "J.R.R. Tolkien",
    ],
)
def test_usual_names_stay_as_they_are(name: str) -> None:
    assert file_name_of(name) == name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b", "a_b-c14cddc033"),
        ("a_b", "a_b-648fa9b31b"),
        ("mum", "mum-f2d758f9e3"),
        ("MUM", "MUM-3afb55a30f"),
        ("../../etc/passwd", "_.._etc_passwd-3754d6cb3a"),
        ("..", "_-5ec1f7e700"),
        ("CON", "_CON-a3dbc4b644"),
        ("Ada.", "Ada-99cf926c7e"),
        ("李" * 200, f"{'李' * 36}-49b57a8fab"),
    ],
)
def test_other_names_are_the_same_for_ever(name: str, expected: str) -> None:
    """People have folders that a later run, of a later version too, must find again."""
    assert file_name_of(name) == expected


@given(
    name=st.text(
        st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=255
    ),
    ending=st.sampled_from([".jpg", "_face12_Ada.jpg", f"_face0_{'李' * 20}.jpg"]),
)
def test_an_ending_always_has_room(name: str, ending: str) -> None:
    made = with_ending(name, ending)
    assert made.endswith(ending)
    assert len(made.encode()) <= 255
    if len((name + ending).encode()) <= 255:
        assert made == name + ending
    else:
        assert made != with_ending(f"{name[:-1]}{'b' if name[-1] == 'a' else 'a'}", ending)


def test_an_ending_without_room_does_not_hang() -> None:
    assert with_ending("a", "." * 300).endswith("." * 300)


def test_names_that_are_no_text_are_cut_too(tmp_path: Path) -> None:
    name = b"\xff".decode("utf-8", "surrogateescape") * 250
    (tmp_path / with_ending(name, "_face0_Ada.jpg")).touch()
