"""Names of people: the form in which they are stored, and which of them people can't tell apart."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator

from facepipe.core.errors import GalleryError, UsageError

NAME_LENGTH_MAX = 200
"""Characters of a person's name."""

# Unicode's Default_Ignorable_Code_Point (zero-width and bidirectional controls, fillers, selectors, tags),
# the interlinear annotation controls, and the code points that are no characters.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufdd0-\ufdef\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0x10000, 0x110000, 0x10000))
    + "]"
)
_SELECTORS = re.compile("[\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_JOINER, _NON_JOINER, _EMOJI_SELECTOR = "\u200d", "\u200c", "\ufe0f"
_VIRAMA = 9
"""Unicode's combining class of the marks that join Indic consonants."""
_REFUSED = ("Cc", "Cs", "Zl", "Zp")
"""Categories of control characters, lone surrogates and line breaks."""


class BadNameError(GalleryError):
    """A text can't be a person's name."""

    exit_code = UsageError.exit_code


class UnknownPersonError(GalleryError):
    """Nobody in the gallery has this name."""


class NameTakenError(GalleryError):
    """Somebody else in the gallery has this name."""


def clean_name(name: str) -> str:
    """Return a person's name as stored: Unicode NFC, without invisible characters and outer white space.

    Joiners and variation selectors stay where they shape letters of Arabic, Indic, Mongolian or Chinese
    script, or emoji; all other zero-width and bidirectional control characters are removed.

    Raises:
        BadNameError: Nothing is left, it is too long, or it holds control characters or line breaks.
    """
    visible = "".join(
        character
        for at, character in enumerate(name)
        if not _INVISIBLE.match(character) or _shapes_neighbours(name, at)
    )
    cleaned = unicodedata.normalize("NFC", visible).strip()
    if not cleaned:
        raise BadNameError(f"a person needs a name of visible characters, got {name!r}")
    if len(cleaned) > NAME_LENGTH_MAX:
        raise BadNameError(f"a name has at most {NAME_LENGTH_MAX} characters, got {len(cleaned)}")
    if any(unicodedata.category(character) in _REFUSED for character in cleaned):
        raise BadNameError(f"a name is plain text without line breaks or control characters, got {name!r}")
    return cleaned


def stored_name(name: str, has: Callable[[str], bool]) -> str:
    """Return a name as its person has it: earlier versions stored names with invisible characters.

    Args:
        name: As it was given.
        has: Whether somebody has exactly this name.
    """
    cleaned = clean_name(name)
    return name if name != cleaned and has(name) else cleaned


def lookalike_key(name: str) -> str:
    """Return what names share that differ only in case, width, ligatures, spaces or invisible characters."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return " ".join(unicodedata.normalize("NFKC", _INVISIBLE.sub("", folded)).split())


def lookalikes(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the groups of names, two and more each, that share their `lookalike_key`, in sorted order."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(set(names)):
        groups[lookalike_key(name)].append(name)
    return sorted(tuple(group) for group in groups.values() if len(group) > 1)


def lookalike_sentence(names: Iterable[str]) -> str:
    """Say that names look the same, and what to do about it."""
    listed = " and ".join(map(repr, names))
    return (
        f"{listed} look the same; if they are one person, make them one with `facepipe gallery merge`: "
        "faces near both stay unsure"
    )


def mended_name(name: str, taken: Container[str]) -> str:
    """Return the name where it may be stored, else the one nearest to it that nobody of `taken` has.

    Raises:
        GalleryError: There is nothing to make a name of.
    """
    try:
        cleaned = clean_name(name)
        if cleaned == name:
            return name
    except BadNameError:
        printable = "".join(character if character.isprintable() else " " for character in name)
        try:
            cleaned = clean_name(printable.strip()[: NAME_LENGTH_MAX - len(" (999999999)")])
        except BadNameError as error:
            raise GalleryError(str(error)) from error
    return next(candidate for candidate in _numbered(cleaned) if candidate not in taken)


def _numbered(name: str) -> Iterator[str]:
    yield name
    for number in range(2, 1_000_000_000):
        ending = f" ({number})"
        yield f"{name[: NAME_LENGTH_MAX - len(ending)]}{ending}"


def _shapes_neighbours(name: str, at: int) -> bool:
    """Whether the invisible character at this place changes how the visible ones beside it are written."""
    before, after = name[at - 1 : at], name[at + 1 : at + 2]
    if not before:
        return False
    category = unicodedata.category(before)
    if _SELECTORS.match(name[at]):
        return category in ("So", "Lo")
    if name[at] not in (_JOINER, _NON_JOINER):
        return False
    if unicodedata.combining(before) == _VIRAMA:
        return True
    if name[at] == _JOINER and (category in ("So", "Sk") or before == _EMOJI_SELECTOR):
        return after != "" and unicodedata.category(after) == "So"
    return _joins(_base_before(name, at)) and _joins(after)


def _base_before(name: str, at: int) -> str:
    """Return the last character before a place that is no mark on another one; empty where there is none."""
    return next((character for character in reversed(name[:at]) if not unicodedata.combining(character)), "")


def _joins(character: str) -> bool:
    """Whether it is a letter of Arabic, Syriac or a like script, whose forms depend on their neighbours."""
    return character != "" and unicodedata.bidirectional(character) == "AL"
