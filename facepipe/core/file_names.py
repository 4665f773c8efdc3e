"""File and folder names made of people's names: allowed on every file system, and one name for one person."""

from __future__ import annotations

import hashlib
import re
import unicodedata

_NAME_BYTES_MAX = 255  # on all common file systems
_PERSON_BYTES_MAX = 120  # leaves room on those that encrypt names
_HASH_DIGITS = 10
_ENDS_WITH_HASH = re.compile(rf"-[0-9a-f]{{{_HASH_DIGITS}}}$", re.IGNORECASE)
# Separators and wildcards of Windows, control characters, lone surrogates, and code points that are no text.
_FORBIDDEN = re.compile(
    r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef'
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, 0x110000, 0x10000))
    + "]"
)
_WINDOWS_DEVICE = re.compile(
    r"(con|prn|aux|nul|(com|lpt)[0-9¹²³]|conin\$|conout\$|clock\$) *(\.|$)", re.IGNORECASE
)
# Unicode's Default_Ignorable_Code_Point: some file systems pass over them when they compare names.
_IGNORABLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)

_WORD = re.compile("[^\\W_](?:[^\\W_]|[\u0300-\u036f])*")  # letters, digits and accents


def file_name_of(person: str, max_bytes: int = _PERSON_BYTES_MAX) -> str:
    """The name of a folder, or a part of a file's name, for a person: a function of the person's name alone.

    No two people share one, even where capitals, the way accents are composed and invisible characters make
    no difference (Windows, macOS). A name that every file system takes and whose words have a capital first
    and small letters after it stays as it is. Any other is too long, holds what some file system forbids, or
    could differ from another name in capitals only: it is mended and ends with 10 digits of its hash.

    Args:
        person: Any text.
        max_bytes: Longest result in bytes of UTF-8, at least 16.
    """
    mended = _FORBIDDEN.sub("_", person).strip(" .") or "_"
    if _WINDOWS_DEVICE.match(mended):
        mended = f"_{mended}"
    is_plain = person == mended == _in_usual_case(person) and not _ENDS_WITH_HASH.search(person)
    return person if is_plain and _size_bytes(person) <= max_bytes else _with_hash(mended, person, max_bytes)


def with_ending(name: str, ending: str) -> str:
    """A file's name followed by `ending`. Where both are too long, the name is cut and its hash follows."""
    max_bytes = _NAME_BYTES_MAX - _size_bytes(ending)
    return (name if _size_bytes(name) <= max_bytes else _with_hash(name, name, max_bytes)) + ending


def _in_usual_case(name: str) -> str:
    """One spelling for all names that a file system may take for the same."""
    visible = unicodedata.normalize("NFD", _IGNORABLE.sub("", name))
    folded = unicodedata.normalize("NFC", visible.casefold())
    # `capitalize` chooses between the two small sigmas only where it meets the capital one.
    usual = _WORD.sub(lambda word: word[0].capitalize(), folded.replace("\u03c3", "\u03a3"))
    return unicodedata.normalize("NFC", usual)


def _with_hash(start: str, name: str, max_bytes: int) -> str:
    """As much of `start` as there is room for, then the hash of `name`."""
    digits = hashlib.sha256(_utf_8(name)).hexdigest()[:_HASH_DIGITS]
    while start and _size_bytes(start) > max_bytes - len(digits) - 1:
        start = start[:-1]
    return f"{start.rstrip(' .')}-{digits}"


def _size_bytes(text: str) -> int:
    return len(_utf_8(text))


def _utf_8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
