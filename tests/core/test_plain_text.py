"""Names and paths command no terminal, add no lines and turn no text around, wherever people read them."""

from __future__ import annotations

import ast
import json
import logging
import re
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
from batch_helpers import job_of
from cli_helpers import facepipe
from click.testing import CliRunner
from gallery_helpers import ENCODER, person_vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT
from pipeline_helpers import faces_at

from facepipe import cli
from facepipe.batch.job import Job
from facepipe.batch.models import ReportOptions
from facepipe.batch.page import write_report
from facepipe.commands.output import Output, echo, log, redraw
from facepipe.core.faces import Match
from facepipe.core.json_lines import record_to_json
from facepipe.core.logs import JsonFormatter, LineFormatter
from facepipe.core.plain_text import visible, visible_json, visible_line
from facepipe.gallery import Gallery, NewTemplate
from facepipe.pipeline import PhotoResult
from facepipe.reports.html import Figure, page, paragraph, sheet, table

ATTACKS = [
    "\x1b]0;owned\x07",
    "\x1b[2J\x1b[H",
    "\x9b31m",
    "a\rfacepipe: 9 photos sorted",
    "photo.jpg: 0 faces\nfacepipe: all is well",
    "\u202egpj.exe",
    "\u2066hidden\u2069",
    "\u2028line\u2029",
    "\x7f\x08\x08",
    "bad\udcff\udc1b",
]
HOSTILE = st.one_of(
    st.sampled_from(ATTACKS),
    st.text(st.sampled_from("a \x1b\x07\r\n\t\x00\x7f\x85\x9b\u202a\u202e\u2066\u2069\u2028\udcff[2J🙂é")),
    st.text(st.characters()),
)
FILE_NAMES = HOSTILE.map(lambda name: re.sub("[/\0]", "", name)[:40]).filter(
    lambda name: (
        name not in ("", ".", "..") and not any("\ud800" <= c <= "\udc7f" or c > "\udcff" for c in name)
    )
)
"""With bytes that are no text, as Python reads them from a disk."""


def is_harmless(text: str) -> bool:
    """Neither a control character but line breaks and tabs, nor a bidirectional one or half a character."""
    return all(
        character in "\n\t"
        or (
            unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")
            and unicodedata.bidirectional(character)
            not in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
        )
        for character in text
    )


def printed(print_it: Callable[[], None]) -> tuple[str, str]:
    """What comes out on stdout and on stderr, of a command that does this."""
    result = CliRunner().invoke(click.Command("test", callback=print_it))
    assert result.exception is None, result.exception
    return result.stdout, result.stderr


@given(text=HOSTILE)
def test_what_is_shown_is_harmless_and_ordinary_text_stays(text: str) -> None:
    assert is_harmless(visible(text))
    assert "\n" not in visible_line(text)
    if is_harmless(text):
        assert visible(text) == text


@given(text=HOSTILE)
def test_different_harmful_texts_are_not_shown_alike(text: str) -> None:
    shown = visible(text)
    assert len(shown) == sum(1 if is_harmless(c) else 4 if ord(c) < 0x100 else 6 for c in text)


@given(text=HOSTILE)
def test_json_keeps_its_value(text: str) -> None:
    clean = text.encode("utf-8", "backslashreplace").decode("utf-8")
    line = record_to_json({"text": text, text: 1})
    assert is_harmless(line)
    assert json.loads(line) == {"text": clean, clean: 1}
    plain = json.dumps([clean], ensure_ascii=False)
    assert json.loads(visible_json(plain)) == [clean]


@given(text=HOSTILE)
def test_a_line_that_is_printed_is_one_line(text: str) -> None:
    def print_it() -> None:
        echo(text)
        echo(text, err=True)
        log(text)

    out, err = printed(print_it)
    assert is_harmless(out + err)
    assert (out.count("\n"), err.count("\n")) == (1, 2)
    _, drawn = printed(lambda: redraw(text))
    assert is_harmless(drawn.removeprefix("\r"))
    record = logging.LogRecord("facepipe", logging.WARNING, "", 0, "%s", (text,), None)
    assert is_harmless(LineFormatter().format(record))
    assert "\n" not in LineFormatter().format(record)


@given(text=HOSTILE)
def test_a_traceback_is_lines_for_people_and_a_field_in_json(text: str) -> None:
    try:
        raise ValueError(text)
    except ValueError:
        record = logging.LogRecord("facepipe", logging.ERROR, "", 0, "it failed", (), sys.exc_info())
    lines = LineFormatter().format(record)
    assert is_harmless(lines)
    first, traceback, *more = lines.split("\n")
    assert (first, traceback) == ("facepipe: it failed", "    Traceback (most recent call last):")
    assert all(line.startswith("    ") for line in more), "nothing in it looks like another record"
    assert any(line.startswith("      File ") for line in more)
    (line,) = JsonFormatter().format(record).split("\n")
    assert json.loads(line)["message"].startswith("it failed\nTraceback (most recent call last):\n  File ")


@given(name=HOSTILE, path=HOSTILE)
def test_tables_of_results_are_harmless(name: str, path: str) -> None:
    match = Match(name or None, 0.5, 1.0, name, 0.9)
    results = [
        PhotoResult(Path(path), faces=faces_at((0, 0, 9, 9)).with_matches([match])),
        PhotoResult(Path(path), faces=faces_at()),
        PhotoResult(Path(path), error=f"{path}: broken"),
    ]

    def show() -> None:
        with pytest.raises(SystemExit):
            Output([], False, False, None, None).show(results)

    out, err = printed(show)
    assert is_harmless(out + err)
    assert (out.count("\n"), err.count("\n")) == (3, 1)


@given(text=HOSTILE)
def test_pages_are_harmless(text: str) -> None:
    pieces = [paragraph(text), table([text], [[text]]), sheet([Figure(None, text, (text,))])]
    assert is_harmless(page(text, {text: pieces}))


@settings(deadline=None, max_examples=15)
@given(name=HOSTILE.filter(lambda name: name and not re.search("[\ud800-\udfff]", name)), file=FILE_NAMES)
def test_the_report_of_a_batch_and_what_sort_prints_are_harmless(
    tmp_path_factory: pytest.TempPathFactory, name: str, file: str
) -> None:
    folder = tmp_path_factory.mktemp("job")
    photo = folder / file
    photo.write_bytes(b"x")
    job_folder = job_of(folder / "job of it", {photo: [name]})
    with Job(job_folder) as job:
        write_report(job, ReportOptions(1.0, paths=True))
    assert is_harmless((job_folder / "report.html").read_text(encoding="utf-8"))
    photo.unlink()
    photo.with_name("1.jpg").write_bytes(b"y")
    for more in (["--dry-run"], [], ["--link", "--move"], ["--unknown" + file]):
        said = facepipe("sort", job_folder, "--to", folder / "sorted", *more)
        assert is_harmless(said.out + said.err)


@settings(deadline=None, max_examples=15)
@given(file=FILE_NAMES)
def test_what_gallery_commands_print_is_harmless(tmp_path_factory: pytest.TempPathFactory, file: str) -> None:
    folder = tmp_path_factory.mktemp("gallery")
    source = str(folder / file).encode("utf-8", "backslashreplace").decode("utf-8")
    vector = person_vectors(1, 1)[0]
    with Gallery.open(folder / "g", ENCODER, create=True) as gallery:
        gallery.add("Ada", [NewTemplate(np.asarray(vector), source=source, photo_sha256="0" * 64)])
    for command in (["show", "Ada"], ["show", "Ada", "--json"], ["list"], ["audit"], ["show", file]):
        said = facepipe("gallery", *command, "--gallery", folder / "g")
        assert is_harmless(said.out + said.err)
    refused: list[list[object]] = [
        ["audit", "--html", folder / "g" / "page" / file],
        ["list"],
        ["import", folder / file],
    ]
    for words in refused:
        said = facepipe("gallery", *words, "--gallery", folder / "g" / file)
        assert said.code != 0
        assert is_harmless(said.out + said.err)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(
    "words",
    [["--{}"], ["{}"], ["identify", "--{}"], ["identify", "--threshold", "{}", "a"], ["gallery", "{}"]],
)
def test_what_is_wrong_with_an_option_is_harmless(words: list[str], attack: str) -> None:
    result = CliRunner().invoke(cli.main, [word.format(attack) for word in words])
    assert result.exit_code == 2
    assert "Error: " in result.stderr
    assert is_harmless(result.output)


def test_every_command_prints_by_way_of_one_function() -> None:
    """`click.echo` and `print` would let through what they are given."""
    home = ROOT / "facepipe" / "commands" / "output.py"
    found = []
    for file in (
        ROOT / "cli.py",
        *(f for p in ("facepipe", "gallery", "training", "weights") for f in (ROOT / p).rglob("*.py")),
    ):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "click.echo",
                "print",
                "click.secho",
            ):
                found.append(file)
    assert set(found) == {home}
    assert len(found) == 3, "echo, redraw, echo_record"
