"""Commands that install missing or damaged parts, from the source of facepipe: no package index has it."""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

_NAME = "facepipe"
_EXTRA = re.compile(r"""extra\s*==\s*["']([^"']+)["']""")


def extra_command(extra: str) -> str:
    """`pip install ...` of the packages that one of facepipe's extras stands for."""
    packages = _requirements(extra)
    if not packages:
        return f"install facepipe with its [{extra}] extra from where you got it"
    return " ".join(["pip install", *(f'"{package}"' for package in packages)])


def reinstall_advice() -> str:
    """Return how to replace damaged files of this installation."""
    source = _source()
    url, directory, vcs = (source.get(key) for key in ("url", "dir_info", "vcs_info"))
    if not isinstance(url, str):
        return "Install facepipe again from where you got it"
    place = _path_of(url) if directory is not None else url
    if directory and directory.get("editable"):
        return f"Restore the files in {place}, for example from git"
    if vcs:
        place = f"{vcs.get('vcs')}+{url}@{vcs.get('commit_id')}"
    return f'Reinstall facepipe: pip install --force-reinstall --no-deps "{place}"'


def _requirements(extra: str) -> list[str]:
    """Requirements such as `torch>=2.5`; none where the extra or facepipe's metadata is not known."""
    try:
        lines = [line.partition(";") for line in metadata.requires(_NAME) or []]
    except metadata.PackageNotFoundError:
        return _requirements_of_checkout(extra)
    return [package.strip() for package, _, marker in lines if extra in _EXTRA.findall(marker)]


def _requirements_of_checkout(extra: str) -> list[str]:
    """As `_requirements`, where facepipe runs from a checkout that is not installed."""
    import tomllib

    try:
        text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    except OSError:
        return []
    extras: dict[str, list[str]] = tomllib.loads(text)["project"]["optional-dependencies"]
    return extras.get(extra, [])


def _source() -> dict[str, Any]:
    """What the installer wrote down about where facepipe came from (direct_url.json); empty: nothing."""
    try:
        text = metadata.distribution(_NAME).read_text("direct_url.json")
        source = json.loads(text or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        return {}
    return source if isinstance(source, dict) else {}


def _path_of(url: str) -> str:
    parts = urlsplit(url)
    return url2pathname(parts.path) if parts.scheme == "file" else unquote(url)
