"""With --log-json every line on stderr is JSON with its time, whatever happens."""

from __future__ import annotations

import json
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import Said, facepipe

from facepipe.batch.run import Batch
from facepipe.core.faces import UInt8Array
from facepipe.images.reading import write_image


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, astronaut: UInt8Array) -> Path:
    """A good photo and a broken one, and her in the gallery."""
    monkeypatch.setenv("FACEPIPE_HOME", str(tmp_path / "home"))
    (tmp_path / "photos").mkdir()
    write_image(tmp_path / "photos" / "good.png", astronaut)
    assert facepipe("enroll", "--name", "Ada", tmp_path / "photos" / "good.png").code == 0
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no photo")
    return tmp_path / "photos"


def batch(photos: Path, *more: str) -> Said:
    return facepipe("batch", photos, "--out", photos.parent / "out", "--log-json", *more)


def records(said: Said) -> list[dict[str, Any]]:
    """Of the lines on stderr; each has a time of now, with its zone."""
    lines = [json.loads(line) for line in said.err.splitlines()]
    for line in lines:
        time = datetime.fromisoformat(line["time"])
        assert time.utcoffset() == timedelta(0)
        assert abs(datetime.now(UTC) - time) < timedelta(minutes=10)
        assert line["event"] in ("progress", "log")
        if line["event"] == "log":
            assert set(line) == {"time", "event", "level", "message"}
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    return lines


def messages(said: Said, level: str) -> list[str]:
    return [line["message"] for line in records(said) if line.get("level") == level]


def test_a_batch_from_its_first_line_to_its_last(photos: Path) -> None:
    said = batch(photos)
    assert said.code == 3
    assert any(message.startswith("running on ONNX Runtime") for message in messages(said, "INFO"))
    assert any(message.startswith("2 photos, 2 of them analyzed now") for message in messages(said, "INFO"))
    assert any(message.startswith("1 photo failed") for message in messages(said, "WARNING"))
    assert [line["total"] for line in records(said) if line["event"] == "progress"][-1] == 2


def test_quiet_keeps_to_what_must_be_said(photos: Path) -> None:
    assert [line for line in records(batch(photos, "--quiet")) if line["event"] == "progress"] == []


@pytest.mark.parametrize(
    ("more", "code", "told"),
    [
        (("--gallery", "/dev/null"), 1, "/dev/null: "),
        (("--no-such-option",), 2, "No such option"),
        (("--workers", "0"), 2, "Invalid value for '--workers'"),
        (("--threshold", "nan"), 2, "threshold"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_errors(photos: Path, more: tuple[str, ...], code: int, told: str) -> None:
    said = batch(photos, *more)
    assert said.code == code
    (message,) = messages(said, "ERROR")
    assert told in message


@pytest.mark.parametrize(
    ("error", "code", "level", "told"),
    [
        (KeyboardInterrupt(), 130, "WARNING", "interrupted; 0 of"),
        (OSError(28, "No space left on device", "job"), 1, "ERROR", "No space left on device"),
        (ZeroDivisionError("a fault"), 1, "ERROR", "ZeroDivisionError: a fault"),
    ],
    ids=["Ctrl-C", "full disk", "fault"],
)
def test_what_ends_it(
    photos: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, level: str, told: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Batch, "run", fail)
    said = batch(photos)
    assert said.code == code
    assert told in messages(said, level)[-1]


def test_warnings_of_python(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take = Batch.take

    def warn(self: Batch, *arguments: Any) -> None:
        warnings.warn("something is old", DeprecationWarning, stacklevel=1)
        take(self, *arguments)

    monkeypatch.setattr(Batch, "take", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        said = batch(photos)
    assert any("something is old" in message for message in messages(said, "WARNING"))


def test_without_it_lines_are_plain(photos: Path) -> None:
    said = facepipe("batch", photos, "--out", photos.parent / "out")
    assert all(line.startswith("facepipe: ") for line in said.err.splitlines())
