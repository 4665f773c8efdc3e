"""Frozen dataclasses from TOML files and command-line overrides; unknown keys and wrong types are refused."""

from __future__ import annotations

import copy
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from facepipe.core.errors import FacepipeError, UsageError, one_line
from facepipe.core.home import expand_home

Config = TypeVar("Config")

RECIPES = Path(__file__).parents[1] / "recipes"
"""Folder of the recipes that come with facepipe."""

_LARGEST = 2**53
"""Of numbers, to which whole ones are exact as float64."""

_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def recipe_names() -> list[str]:
    """The recipes that come with facepipe."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def read_configuration(
    kind: type[Config], recipe: str | Path | Mapping[str, Any] | None = None, overrides: Sequence[str] = ()
) -> Config:
    """A configuration: the defaults of `kind`, changed by a recipe, changed by overrides.

    Args:
        kind: A dataclass of numbers, text, paths, tuples and further dataclasses.
        recipe: A TOML file, the name of one in `RECIPES`, or plain data as `to_plain` gives it; None:
            the defaults.
        overrides: "section.key=value", the value as in TOML (quotes around text may be left off); "none"
            for nothing; an index for an item of a list: "data.0.weight=2".

    Raises:
        UsageError: No such recipe, malformed, an unknown key, a wrong type, or a value out of range; names
            the key.
    """
    if isinstance(recipe, Mapping):
        values = copy.deepcopy(dict(recipe))
    else:
        values = {} if recipe is None else _read_toml(_recipe_path(recipe))
    for override in overrides:
        _apply(values, override)
    return from_plain(kind, values)


def from_plain(kind: type[Config], values: Mapping[str, Any], where: str = "") -> Config:
    """A dataclass from plain data, as TOML or JSON gives it or `to_plain` wrote it.

    Raises:
        UsageError: See `read_configuration`.
    """
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if not isinstance(key, str) or key not in known:
            shown = one_line(_joined(where, key), 80)
            raise UsageError(f"unknown setting {shown}{_suggestion(key, where, known)}")
    for key, item in known.items():
        if key not in values and item.default is MISSING and item.default_factory is MISSING:
            raise UsageError(f"missing setting {_joined(where, key)}")
    given = {key: _converted(hints[key], value, _joined(where, key)) for key, value in values.items()}
    try:
        return kind(**given)
    except UsageError:
        raise
    except (FacepipeError, ValueError, TypeError, ArithmeticError) as error:
        raise UsageError(f"{where or 'configuration'}: {one_line(error)}") from error


def to_plain(value: Any) -> Any:
    """A configuration as dictionaries, lists, numbers and text, without what is None."""
    if is_dataclass(value) and not isinstance(value, type):
        items = {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
        return {key: item for key, item in items.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def quoted(value: str | Path | None) -> str | None:
    """As a TOML string, for an override: a folder called 1 or [2] stays one."""
    return None if value is None else json.dumps(str(value), ensure_ascii=False)


def _recipe_path(recipe: str | Path) -> Path:
    path = Path(recipe)
    if path.is_file():
        return path
    shipped = RECIPES / f"{recipe}.toml"
    if shipped.is_file():
        return shipped
    raise UsageError(f"{recipe}: no such recipe; name a TOML file or one of {', '.join(recipe_names())}")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not a readable recipe: {one_line(error)}") from error


def _apply(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    *sections, key = (word.strip() for word in path.split("."))
    if not equals or not all((*sections, key)):
        raise UsageError(f"{_shown(override)}: expected section.key=value")
    target: Any = values
    for section, following in pairwise((*sections, key)):
        target = _descended(target, section, [] if following.isdecimal() else {}, override)
    if isinstance(target, list):
        _descended(target, key, {}, override)
        target[int(key)] = _parsed(text)
    else:
        target[key] = _parsed(text)


def _descended(target: Any, key: str, new: Any, override: str) -> Any:
    """The section or list below `key`, made where it is missing."""
    if isinstance(target, dict):
        inner = target.setdefault(key, new)
    else:
        if not (key.isdecimal() and len(key) < 10) or int(key) > len(target):
            raise UsageError(f"{_shown(override)}: expected an index from 0 to {len(target)}")
        if int(key) == len(target):
            target.append(new)
        inner = target[int(key)]
    if not isinstance(inner, (dict, list)):
        raise UsageError(f"{_shown(override)}: {one_line(key, 80)} is a value, not a section")
    return inner


def _parsed(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text.strip()


def _converted(hint: Any, value: Any, where: str) -> Any:
    """The value in the type of a field."""
    if get_origin(hint) in (Union, types.UnionType):
        inner = [kind for kind in get_args(hint) if kind is not type(None)]
        return None if value is None or value == "none" else _converted(inner[0], value, where)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise UsageError(f"{where}: expected one of {', '.join(get_args(hint))}, got {_shown(value)}")
        return value
    if get_origin(hint) is tuple:
        return _converted_tuple(get_args(hint), value, where)
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise UsageError(f"{where}: expected a section with settings, got {_shown(value)}")
        return from_plain(hint, value, where)
    return _converted_scalar(hint, value, where)


def _converted_tuple(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise UsageError(f"{where}: expected a list, got {_shown(value)}")
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise UsageError(f"{where}: expected {len(kinds)} values, got {len(value)}")
    return tuple(
        _converted(kind, item, f"{where}.{i}")
        for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )


def _converted_scalar(kind: Any, value: Any, where: str) -> Any:
    # By exact type: a bool is an int in Python. A whole number will do for a float.
    allowed = {float: (float, int), Path: (str,)}.get(kind, (kind,))
    if type(value) not in allowed:
        raise UsageError(f"{where}: expected {_NAMES[kind]}, got {_shown(value)}")
    if isinstance(value, int | float) and not abs(value) <= _LARGEST:  # nor what is no number
        raise UsageError(f"{where}: expected a number up to {_LARGEST:g}, got {_shown(value)}")
    if kind is Path:
        if "\0" in value:
            raise UsageError(f"{where}: expected a path, got {_shown(value)}")
        return expand_home(value)
    return kind(value)


def _shown(value: Any) -> str:
    try:
        return one_line(repr(value), 80)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"


def _joined(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _suggestion(key: str, where: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(str(key), known, n=1)
    if near:
        return f"; did you mean {_joined(where, near[0])}?"
    return f"; known here: {', '.join(known)}"
