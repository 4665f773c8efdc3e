"""Commands, options, settings, recipes and weights that documents, recipes and cards name exist."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
import pytest
from paths import ROOT

from facepipe.align import TEMPLATES
from facepipe.cli import main
from facepipe.facenet import network as facenet
from facepipe.retinaface import network as retinaface
from facepipe.training.detection.config import DetectorConfig
from facepipe.training.engine.config import RECIPES, from_plain, recipe_names
from facepipe.training.recognition.config import EncoderConfig
from facepipe.weights.published import PUBLISHED
from facepipe.weights.registry import shipped_folder

CARDS = sorted(shipped_folder().glob("*.json"))
TEXTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(RECIPES.glob("*.toml")),
    *CARDS,
]
CONFIGS = (DetectorConfig, EncoderConfig)
RECORDED = [
    card
    for card in (json.loads(path.read_text(encoding="utf-8")) for path in CARDS)
    if "recipe_of_the_last_phase" in card["training"]
]

GONE = {
    "facenet_dense",
    "facenet_dense_128",
    "retinaface_mobilenet025_detail_light",
}
"""Networks of which the history tells (docs/research/), and which are no longer there."""

GONE_SETTINGS = {"loss.distil_enlarged"}
"""Settings of which the history tells."""

OF_OTHERS = {"retinaface_gt_v1", "retinaface_strong", "facenet_pytorch"}
"""Files and packages of other people."""


def _code(path: Path) -> list[str]:
    """Return the lines of a document's code, those of a recipe, or the sentences of a card."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return re.split(r"[;:]|[.,] |\\n", text)
    if path.suffix == ".toml":
        return re.sub(r"\n#     +", " ", text).splitlines()
    spans = re.findall(r"```(?:sh)?\n(.*?)```|`([^`]+)`", text, re.DOTALL)
    return [line for block, span in spans for line in (block or span).replace("\\\n", " ").splitlines()]


def _calls(path: Path) -> Iterator[list[str]]:
    """Yield the words that follow `facepipe` and the name of a command, in code."""
    for line in _code(path):
        for found in re.finditer(r"\bfacepipe ([a-z][a-z-]* [^&|;#()]*|[a-z][a-z-]*$)", line):
            try:
                words = shlex.split(found[1])
            except ValueError:  # a quotation of the text around it
                words = found[1].split()
            if main.get_command(click.Context(main), words[0]) is not None:
                yield words


def _unknown_word(words: list[str]) -> str | None:
    """Return the first command or option of a call that is not there."""
    command: click.Command = main
    known = {"--help"}
    for word in words:
        if isinstance(command, click.Group) and re.fullmatch("[a-z][a-z-]*", word):
            inner = command.get_command(click.Context(command), word)
            if inner is None:
                return None if command.invoke_without_command else word
            command = inner
            known |= {option for item in command.params for option in (*item.opts, *item.secondary_opts)}
        elif (option := re.match("--[a-z][a-z-]*", word)) and option[0] not in known:
            return option[0]
    return None


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_commands_and_options_exist(path: Path) -> None:
    unknown = {" ".join(words): word for words in _calls(path) if (word := _unknown_word(words))}
    assert not unknown


def test_calls_are_found_and_what_is_not_there_is_seen(tmp_path: Path) -> None:
    document = tmp_path / "document.md"
    document.write_text(
        "`facepipe export A --coarse-bias 1`, the facepipe project\n"
        "```sh\nfacepipe train encoder RUN \\\n    --recipes x --help\nfacepipe weights steal\n```\n"
    )
    assert [_unknown_word(words) for words in _calls(document)] == ["--coarse-bias", "--recipes", "steal"]
    assert len([words for path in TEXTS for words in _calls(path)]) > 150


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_recipes_weights_and_architectures_exist(path: Path) -> None:
    architectures = {name for module in (facenet, retinaface) for name in vars(module)}
    known = {
        *recipe_names(),
        *(card.stem for card in CARDS),
        *PUBLISHED,
        *TEMPLATES,
        *architectures,
        *OF_OTHERS,
    }
    known |= {"retinaface_mobilenet025_detail", "retinaface_mobilenet025_focus"}
    known |= GONE if path.parent.name == "research" else set()
    named = re.findall(r"\b(?:retinaface|facenet)_[a-z0-9_]*[a-z0-9]", path.read_text(encoding="utf-8"))
    assert set(named) - known == set()
    recipes = re.findall(r"--recipe[ =]([a-z0-9_]+)(?!\S*\.toml)", path.read_text(encoding="utf-8"))
    assert set(recipes) <= {*recipe_names(), "paper"}


def _inner(kind: Any, key: str) -> Any:
    """Return the type of a field or item of a setting's type; None: there is none of this name."""
    for option in (kind, *get_args(kind)):
        if dataclasses.is_dataclass(option):
            if key in get_type_hints(option):
                return get_type_hints(option)[key]
        elif key.isdecimal() and get_args(option):
            return get_args(option)[0]
    return None


def _is_setting(path: str) -> bool:
    for config in CONFIGS:
        kind: Any = config
        for key in path.split("."):
            kind = _inner(kind, key)
        if kind is not None:
            return True
    return False


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_settings_exist(path: Path) -> None:
    sections = {field.name for config in CONFIGS for field in dataclasses.fields(config)}
    named = re.findall(
        rf"(?<![\w./-])((?:{'|'.join(sections)})(?:\.[a-z0-9][a-z0-9_]*)+)(?![\w/(])", "\n".join(_code(path))
    )
    files = (
        ".md",
        ".py",
        ".csv",
        ".json",
        ".txt",
        ".tar",
        ".zip",
        ".npz",
        ".jsonl",
        ".jpg",
        ".html",
        ".sqlite3",
    )
    gone = GONE_SETTINGS if path.parent.name == "research" else set()
    assert {name for name in named if not name.endswith(files) and not _is_setting(name)} <= gone


@pytest.mark.parametrize("card", RECORDED, ids=lambda card: card["name"])
def test_the_record_of_a_cards_last_phase_is_a_recipe(card: dict[str, Any]) -> None:
    record = card["training"]["recipe_of_the_last_phase"]
    config: DetectorConfig | EncoderConfig
    if card["kind"] == "detector":
        config = from_plain(DetectorConfig, record)
    else:
        config = from_plain(EncoderConfig, record)
    assert config.network.architecture == card["architecture"]
