"""The thread that has the library."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

import pytest
from library_helpers import face_of, make_batch

from facepipe.core.errors import UsageError
from facepipe.gallery import Gallery
from facepipe.library.library import Library
from facepipe.server.pages import library_thread
from facepipe.server.pages.library_thread import LibraryThread

PHOTOS = {f"photo{number}": ["Ada"] for number in range(6)}


def test_functions_run_in_order_and_names_follow(tmp_path: Path) -> None:
    out = make_batch(tmp_path, PHOTOS)

    async def decide(thread: LibraryThread) -> int:
        first = await thread.run(lambda library: face_of(library, "photo0"))
        await asyncio.gather(
            thread.run(lambda library: library.confirm([first], "Eve")),
            thread.run(lambda library: library.rename("Eve", "Ada")),
        )
        return await thread.run(lambda library: len(library.faces_of("Ada")))

    with LibraryThread(lambda: Library.open(out)) as thread:
        assert asyncio.run(decide(thread)) >= 1
        deadline = time.monotonic() + 20
        while thread.photos_left and time.monotonic() < deadline:
            time.sleep(0.02)
        assert asyncio.run(thread.run(lambda library: len(library.faces_of("Ada")))) == len(PHOTOS)
    assert "Ada" in (out / "results.jsonl").read_text()


def test_errors_come_back_and_the_thread_goes_on(tmp_path: Path) -> None:
    out = make_batch(tmp_path, PHOTOS)
    with LibraryThread(lambda: Library.open(out)) as thread:
        with pytest.raises(UsageError, match="there is no face"):
            asyncio.run(thread.run(lambda library: library.face("0123456789ab")))
        assert asyncio.run(thread.run(lambda library: len(library.faces))) == len(PHOTOS)


def test_a_library_that_can_not_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        LibraryThread(lambda: Library.open(tmp_path / "nothing"))


def test_unknown_faces_are_grouped_anew_after_some_decisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_thread, "_REGROUP_AFTER", 2)
    out = make_batch(tmp_path, {"one": ["Ada"], "two": ["Ada"], "three": ["Ada"]})
    with LibraryThread(lambda: Library.open(out)) as thread:
        thread.call(lambda library: library.confirm(list(library.faces), "Ada"))
        thread.call(lambda library: library.reset(list(library.faces)))  # in no group now
        assert thread.call(lambda library: library.groups()) == []
        deadline = time.monotonic() + 20
        while not thread.call(lambda library: library.groups()) and time.monotonic() < deadline:
            time.sleep(0.6)  # that is idle
        assert [len(group.face_ids) for group in thread.call(lambda library: library.groups())] == [3]


def wait_until_named(thread: LibraryThread, count: int) -> int:
    """Wait until so many faces are Ada's; answers the version of then."""
    deadline = time.monotonic() + 20
    while thread.call(lambda library: len(library.faces_of("Ada"))) != count:
        assert time.monotonic() < deadline
        time.sleep(0.6)  # that is idle
    return thread.version


def test_a_threshold_that_another_process_sets_reaches_the_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_thread, "_LOOK_S", 0.01)
    out = make_batch(tmp_path, {"one": ["Ada"], "two": ["Ada"], "three": ["Bob"]})
    with LibraryThread(lambda: Library.open(out)) as thread:
        thread.call(lambda library: library.confirm([face_of(library, "one")], "Ada"))
        before = wait_until_named(thread, 2)
        with Gallery.open(tmp_path / "gallery") as gallery:
            gallery.set_threshold(0.1)
        assert wait_until_named(thread, 1) > before


def test_a_gallery_that_is_lost_for_a_while_is_used_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_thread, "_LOOK_S", 0.01)
    out = make_batch(tmp_path, {"one": ["Ada"], "two": ["Ada"], "three": ["Ada"]})
    with LibraryThread(lambda: Library.open(out)) as thread:
        thread.call(lambda library: library.confirm([face_of(library, "one")], "Ada"))
        wait_until_named(thread, 3)
        shutil.move(tmp_path / "gallery", tmp_path / "away")
        thread.call(lambda library: library.confirm([face_of(library, "two")], "Bea"))
        time.sleep(0.8)
        shutil.copytree(tmp_path / "away", tmp_path / "back")  # another file than before
        (tmp_path / "back").rename(tmp_path / "gallery")
        with Gallery.open(tmp_path / "gallery") as gallery:
            gallery.set_threshold(0.1)
        wait_until_named(thread, 1)
        counts = thread.call(lambda library: {p.name: p.template_count for p in library.people()})
        assert counts == {"Ada": 1, "Bea": 1}
    lost = [message for message in caplog.messages if "the gallery can't be read" in message]
    assert len(lost) == 1
    assert "not there" in lost[0]
    assert not any(record.exc_info for record in caplog.records)
