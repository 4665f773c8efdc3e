"""Plain data, as JSON and TOML give it, checked and converted to dataclasses by msgspec."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

Data = TypeVar("Data")

LARGEST_NUMBER = 2**53
"""Up to it, whole numbers are exact as float64."""

_MESSAGE = re.compile(r"(?P<reason>.*) - at `\$\.?(?P<path>.*)`", re.DOTALL)


def convert(value: Any, kind: type[Data], dec_hook: Callable[[type, Any], Any] | None = None) -> Data:
    """Convert dictionaries, lists, numbers and text to a dataclass.

    Args:
        value: Plain data.
        kind: A dataclass of numbers, text, tuples, mappings and further dataclasses.
        dec_hook: Converts to types that msgspec does not know, see `msgspec.convert`.

    Raises:
        ValueError: A key is missing or unknown, or a value of the wrong type or larger than
            `LARGEST_NUMBER`; names the key.
    """
    try:
        converted = msgspec.convert(value, kind, dec_hook=dec_hook)
    except msgspec.ValidationError as error:
        raise ValueError(_key_first(str(error), kind)) from error
    _require_known(value, converted, "")
    return converted


def decode_json(text: bytes, kind: type[Data]) -> Data:
    """Read a dataclass from JSON; unknown keys are passed over.

    Raises:
        ValueError: Not JSON, a key is missing, or a value of the wrong type; names the key.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:
        raise ValueError(_key_first(str(error), kind)) from error


def _key_first(message: str, kind: Any) -> str:
    """msgspec's message in the form of facepipe's, with the choices where there are some."""
    found = _MESSAGE.fullmatch(message)
    if found is None:
        return message
    path, reason = found["path"], found["reason"][:1].lower() + found["reason"][1:]
    choices = _choices(_type_at(kind, path))
    if choices:
        reason = f"expected one of {', '.join(choices)}: {reason}"
    return f"{path}: {reason}"


def _type_at(kind: Any, path: str) -> Any:
    for name in re.findall(r"[^\W\d]\w*", path):
        owner = next(part for part in (kind, *get_args(kind)) if is_dataclass(part))
        kind = get_type_hints(owner)[name]
    return kind


def _choices(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    return [choice for part in get_args(kind) for choice in _choices(part)]


def _require_known(value: Any, converted: Any, path: str) -> None:
    """Refuse misspelt keys, which msgspec passes over in dataclasses, and numbers without bounds."""
    if is_dataclass(converted):
        known = [field.name for field in fields(converted)]
        for key, inner in value.items():
            inner_path = f"{path}.{key}" if path else str(key)
            if key not in known:
                raise ValueError(f"unknown key {inner_path:.80}{_suggestion(str(key), known)}")
            _require_known(inner, getattr(converted, key), inner_path)
    elif isinstance(converted, tuple):
        for index, (inner, item) in enumerate(zip(value, converted, strict=True)):
            _require_known(inner, item, f"{path}[{index}]")
    elif isinstance(converted, int | float) and not abs(converted) <= LARGEST_NUMBER:  # true of NaN, too
        raise ValueError(f"{path}: expected a number up to {LARGEST_NUMBER:g}")


def _suggestion(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(known)}"
