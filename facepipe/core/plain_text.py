"""Text without characters that control a terminal or change the order of reading."""

from __future__ import annotations

import os
import re

_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f"
_BIDIRECTIONAL = "\u2028-\u202e\u2066-\u2069"  # line separators, embeddings, overrides, isolates
_HARMFUL = re.compile(
    f"[{_CONTROLS}{_BIDIRECTIONAL}\ud800-\udfff]"
)  # and bytes of file names that are no text


def text_of(value: str | os.PathLike[str]) -> str:
    r"""Return text that UTF-8 can hold: bytes of file names that are no text become `\udcff`."""
    return os.fspath(value).encode("utf-8", "backslashreplace").decode("utf-8")


def visible(text: object) -> str:
    r"""Escape control characters, bidirectional ones and lone surrogates: `\x1b`, `\u202e`.

    Line breaks and tabs stay. A terminal would obey the others: names of files and people can hold any.
    """
    return _HARMFUL.sub(_escaped, str(text))


def visible_line(text: object) -> str:
    r"""Escape line breaks as `\n` besides what `visible` escapes."""
    return visible(text).replace("\n", "\\n")


def visible_json(line: str) -> str:
    """Escape such characters in JSON, where they can be in strings only."""
    return _HARMFUL.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
