"""The cures that are told work with this installation, whatever it was made from."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from facepipe.core import installation
from facepipe.core.errors import MissingExtraError
from facepipe.core.installation import extra_command, reinstall_advice

EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]
Install = Callable[[dict[str, Any] | str | None], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Make facepipe's metadata be those of an installation from somewhere."""

    def made(source: dict[str, Any] | str | None) -> None:
        folder = tmp_path / "facepipe-0.1.0.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", "Name: facepipe", "Version: 0.1.0", "Requires-Dist: numpy>=1.26"]
        lines += [
            f'Requires-Dist: {package}; extra == "{extra}"' for extra in EXTRAS for package in EXTRAS[extra]
        ]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")
        if source is not None:
            text = source if isinstance(source, str) else json.dumps(source)
            (folder / "direct_url.json").write_text(text)
        distribution = metadata.PathDistribution(folder)
        monkeypatch.setattr(metadata, "distribution", lambda name: distribution)

    return made


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", unknown)
    monkeypatch.setattr(installation, "__file__", str(ROOT / "facepipe" / "core" / "installation.py"))


def packages(extra: str) -> str:
    return " ".join(f'"{package}"' for package in EXTRAS[extra])


@pytest.mark.parametrize("extra", sorted(set(EXTRAS) - {"dev"}))
def test_an_extra_is_told_as_packages_that_an_index_has(extra: str, install: Install) -> None:
    install(None)
    assert extra_command(extra) == f"pip install {packages(extra)}"
    assert "facepipe[" not in str(MissingExtraError("this", extra))
    assert str(MissingExtraError("this", extra)).endswith(f"extra: pip install {packages(extra)}")


@pytest.mark.usefixtures("not_installed")
def test_a_checkout_that_is_not_installed_knows_its_extras() -> None:
    assert extra_command("train") == f"pip install {packages('train')}"
    assert reinstall_advice() == "Install facepipe again from where you got it"


def test_an_extra_that_is_not_known_names_nothing_that_is_not_there(install: Install) -> None:
    install(None)
    assert extra_command("other") == "install facepipe with its [other] extra from where you got it"


def test_this_installation_knows_its_extras() -> None:
    assert '"openvino>=' in extra_command("openvino")


SOURCES: dict[str, tuple[dict[str, Any] | str | None, str]] = {
    "a checkout, editable": (
        {"url": "file:///src/face%20pipe", "dir_info": {"editable": True}},
        "Restore the files in /src/face pipe, for example from git",
    ),
    "a checkout": (
        {"url": "file:///src/face%20pipe", "dir_info": {}},
        'Reinstall facepipe: pip install --force-reinstall --no-deps "/src/face pipe"',
    ),
    "a wheel": (
        {"url": "file:///x/facepipe-0.1.0-py3-none-any.whl", "archive_info": {}},
        "Reinstall facepipe: pip install --force-reinstall --no-deps "
        '"file:///x/facepipe-0.1.0-py3-none-any.whl"',
    ),
    "a repository": (
        {"url": "https://example.org/f.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
        'Reinstall facepipe: pip install --force-reinstall --no-deps "git+https://example.org/f.git@abc"',
    ),
    "an index, or a tool that writes nothing": (None, "Install facepipe again from where you got it"),
    "a torn file": ("{", "Install facepipe again from where you got it"),
    "another form": ("[]", "Install facepipe again from where you got it"),
    "no address": ("{}", "Install facepipe again from where you got it"),
}


@pytest.mark.parametrize(("source", "told"), SOURCES.values(), ids=SOURCES)
def test_reinstalling_starts_from_where_facepipe_came(
    install: Install, source: dict[str, Any] | str | None, told: str
) -> None:
    install(source)
    assert reinstall_advice() == told


def test_no_text_names_facepipe_as_if_an_index_had_it() -> None:
    files = [ROOT / "README.md", ROOT / "cli.py", *(ROOT / "docs").glob("*.md")]
    files += [
        path
        for name in ("facepipe", "gallery", "weights", "training")
        for path in (ROOT / name).rglob("*.py")
    ]
    found = [
        f"{path}: {line}"
        for path in files
        for line in path.read_text(encoding="utf-8").splitlines()
        if "facepipe[" in line or ("pip install" in line and line.rstrip("`'\"").endswith(" facepipe"))
    ]
    assert found == []
