"""Frozen dataclasses from TOML files and command-line overrides, with checks of keys and types."""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from facepipe.core.errors import FacepipeError, UsageError, one_line
from facepipe.core.home import expand_home
from facepipe.core.validation import convert

Config = TypeVar("Config")

_PHASE_NAME = re.compile("[a-z]{1,30}")
_GIVES_WAY_TO = {"loop.steps": "epochs"}
"""Of two settings of one thing the one that is set by a command counts: this neighbour is removed."""
RECIPES = Path(__file__).parents[1] / "recipes"
"""Folder of the recipes that come with facepipe."""


def recipe_names() -> list[str]:
    """Return the recipes that come with facepipe."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def read_configuration(
    kind: type[Config],
    recipe: str | Path | Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Config:
    """Read a configuration: the defaults of `kind`, changed by a recipe, options and overrides in turn.

    Args:
        kind: A dataclass of numbers, text, paths, tuples and further dataclasses.
        recipe: A TOML file, the name of one in `RECIPES`, or plain data as `to_plain` gives it; None:
            the defaults. Of one with phases the last.
        overrides: "section.key=value", the value as in TOML (quotes around text may be left off); "none"
            for nothing; an index for an item of a list: "data.0.weight=2".
        options: Plain data or paths by "section.key"; None leaves a setting as it is.

    Raises:
        UsageError: No such recipe, malformed, an unknown key, a wrong type, or a value out of range; names
            the key.
    """
    return read_phases(kind, recipe, overrides, options)[-1].config


@dataclass(frozen=True, slots=True)
class Phase(Generic[Config]):
    """A part of a recipe: a run that goes on from the one before.

    Attributes:
        name: Of the phase; empty where the recipe has no phases.
        config: Of its run.
    """

    name: str
    config: Config


def read_phases(
    kind: type[Config],
    recipe: str | Path | Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    options: Mapping[str, Any] = MappingProxyType({}),
) -> list[Phase[Config]]:
    """Read the configurations of a recipe's phases, its `[[phase]]` tables; of any other recipe the only one.

    What stands before the tables holds for all phases. It gives way to `options`, these to a phase's own
    table, and all to `overrides`. Arguments and errors are those of `read_configuration`, which returns the
    last phase.
    """
    if isinstance(recipe, Mapping):
        common = copy.deepcopy(dict(recipe))
    else:
        common = {} if recipe is None else _read_toml(_recipe_path(recipe))
    tables = _phase_tables(common)
    for key, value in options.items():
        if value is not None:
            _set(common, key, to_plain(value), key)
    phases = []
    for name, table in tables:
        values = _merged(common, table)
        for override in overrides:
            _apply(values, override)
        phases.append(Phase(name, from_plain(kind, values)))
    return phases


def _phase_tables(recipe: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Take the phases out of a recipe: their names and settings."""
    if "phase" not in recipe:
        return [("", {})]
    tables = recipe.pop("phase")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise UsageError("phase: expected tables, each with a name")
    names = [table.pop("name", None) for table in tables]
    for name in names:
        if not isinstance(name, str) or not _PHASE_NAME.fullmatch(name) or names.count(name) > 1:
            raise UsageError(
                f"phase.name: expected a name of small letters that no other phase has, got {_shown(name)}"
            )
    return list(zip(names, tables, strict=True))


def _merged(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those of a phase in their place, section by section."""
    merged = copy.deepcopy(dict(common))
    for key, value in own.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else copy.deepcopy(value)
    return merged


def from_plain(kind: type[Config], values: Mapping[str, Any], where: str = "") -> Config:
    """Make a dataclass of plain data, as TOML or JSON gives it or `to_plain` wrote it.

    Raises:
        UsageError: See `read_configuration`.
    """
    try:
        return convert(values, kind, _path)
    except UsageError:
        raise
    except (FacepipeError, ValueError, TypeError, ArithmeticError) as error:
        raise UsageError(f"{where or 'configuration'}: {one_line(error)}") from error


def to_plain(value: Any) -> Any:
    """Convert a configuration to dictionaries, lists, numbers and text, without what is None."""
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        items = {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
        return {key: item for key, item in items.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


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
    words = [word.strip() for word in path.split(".")]
    if not equals or not all(words):
        raise UsageError(f"{_shown(override)}: expected section.key=value")
    _set(values, ".".join(words), _parsed(text), override)


def _set(values: dict[str, Any], path: str, value: Any, override: str) -> None:
    """Set a value at "section.key"; `override` is named in errors."""
    *sections, key = path.split(".")
    target: Any = values
    for section, following in pairwise((*sections, key)):
        target = _descended(target, section, [] if following.isdecimal() else {}, override)
    if isinstance(target, list):
        _descended(target, key, {}, override)
        target[int(key)] = value
    else:
        target.pop(_GIVES_WAY_TO.get(path), None)
        target[key] = value


def _descended(target: Any, key: str, new: Any, override: str) -> Any:
    """Return the section or list below `key`, made where it is missing."""
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
    if text.strip() == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text.strip()


def _path(kind: type[Any], value: Any) -> Any:
    """Text as a path: what settings hold besides the types of JSON."""
    if kind is not Path or not isinstance(value, str) or "\0" in value:
        raise ValueError(f"expected a path, got {_shown(value)}")
    return expand_home(value)


def _shown(value: Any) -> str:
    try:
        return one_line(repr(value), 80)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"
