"""The reference of every setting of the trainers, made of their configurations and what these document.

python -m facepipe.training.reference > docs/settings.md
"""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from facepipe.training.detection.config import DetectorConfig
from facepipe.training.engine.config import to_plain
from facepipe.training.engine.loop_config import RunConfig
from facepipe.training.recognition.config import EncoderConfig

_HEAD = """# Settings

Every setting of `facepipe train`, for `--set SECTION.KEY=VALUE` and the TOML files of recipes; `none` is
nothing. [Training](training.md) says what they are for. This page is made of the code:
`python -m facepipe.training.reference > docs/settings.md`.
"""
_TRAINERS = {"Both trainers": RunConfig, "The detector": DetectorConfig, "The encoder": EncoderConfig}
_PLURALS = {
    "whole number": "whole numbers",
    "number": "numbers",
    "text": "texts",
    "list of whole numbers": "lists of whole numbers",
}
_NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}


def settings_page() -> str:
    """Return the page in Markdown."""
    shared = {item.name for item in fields(RunConfig)}
    parts = [_HEAD]
    for title, config in _TRAINERS.items():
        own = [item for item in fields(config) if config is RunConfig or item.name not in shared]
        parts += [f"## {title}\n", *_tables("", config, own)]
    return "\n".join(parts)


def _tables(section: str, config: type[Any], items: list[Field[Any]]) -> Iterator[str]:
    """Yield the table of a section's own settings, then those of the sections in it."""
    hints, meanings, inner = get_type_hints(config), documented(config), []
    rows = []
    for item in items:
        kind, is_list = _dataclass_of(hints[item.name])
        path = f"{section}.{item.name}" if section else item.name
        if kind is None:
            text = meanings[item.name].replace("|", "\\|")
            rows.append(f"| `{path}` | {_type(hints[item.name])} | {_default(item)} | {text} |")
        else:
            inner.append((f"{path}.N" if is_list else path, kind))
    if rows:
        yield "\n".join(("| setting | values | default | meaning |", "|---|---|---|---|", *rows, ""))
    for path, kind in inner:
        summary = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
        yield f"### `{path}`\n\n{summary}\n"
        yield from _tables(path, kind, list(fields(kind)))


def documented(config: type[Any]) -> dict[str, str]:
    """Return what a dataclass and those it inherits from say of their attributes, in one line each."""
    meanings: dict[str, str] = {}
    for kind in reversed(config.__mro__[:-1]):
        text = inspect.cleandoc(kind.__doc__ or "")
        _, _, listed = text.partition("Attributes:\n")
        for names, meaning in re.findall(r"^    ([\w, ]+): (.*(?:\n {5,}.*)*)", listed, re.MULTILINE):
            for name in names.split(", "):
                meanings[name] = " ".join(meaning.split())
    return meanings


def _dataclass_of(hint: Any) -> tuple[type[Any] | None, bool]:
    """Return the dataclass of a section, and whether there is a list of them."""
    either = get_args(hint) if _is_union(hint) else (hint,)
    kind, *others = [option for option in either if option is not type(None)]
    is_list = get_origin(kind) is tuple
    if is_list:
        kind = get_args(kind)[0]
    is_section = not others and isinstance(kind, type) and is_dataclass(kind)
    return (kind, is_list) if is_section else (None, False)


def _type(hint: Any) -> str:
    if _is_union(hint):
        return " or ".join(_type(option) for option in get_args(hint))
    if hint is type(None):
        return "none"
    if get_origin(hint) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    if get_origin(hint) is tuple:
        return f"list of {_PLURALS[_type(get_args(hint)[0])]}"
    return _NAMES[hint]


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _default(item: Field[Any]) -> str:
    if item.default is MISSING:
        return "required"
    shown = to_plain(item.default)
    if shown is None:
        return "none"
    return f"`{str(shown).lower() if isinstance(shown, bool) else shown}`" if shown != [] else "empty"


if __name__ == "__main__":
    sys.stdout.write(settings_page())
