"""The memory of photos: counted before it is used, never above the limit, and nobody waits for ever."""

from __future__ import annotations

import gc
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from batch_helpers import in_a_corner
from image_helpers import encoded

from facepipe import FacePipeline
from facepipe.batch.analysis import PhotoAnalyzer
from facepipe.batch.engine import Engine, EngineOptions, Outcome
from facepipe.batch.models import FailedPhoto, PhotoTask
from facepipe.core.errors import PhotoError
from facepipe.core.faces import UInt8Array
from facepipe.images.decoding_memory import MemoryBusyError, PhotoMemory, allowed_bytes, taken_bytes
from facepipe.images.reading import read_image, read_reduced, write_image

LIMIT = 1000
SECONDS = 20


def test_threads_never_take_more_than_the_limit_and_all_come_to_an_end() -> None:
    most, lock = 0, threading.Lock()

    def use(number: int) -> None:
        nonlocal most
        dice = random.Random(number)
        with PhotoMemory(str(number), LIMIT) as memory:
            for _ in range(30):
                memory.take(dice.randint(0, LIMIT))
                with lock:
                    most = max(most, taken_bytes())
                if dice.random() < 0.2:
                    time.sleep(0.0005)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(24), timeout=SECONDS))
    assert 0 < most <= LIMIT
    assert taken_bytes() == 0


def test_who_does_not_wait_does_not_stand_in_line_either() -> None:
    """The one in line may wait for what the other holds."""
    held, waiting, second = (PhotoMemory(name, LIMIT) for name in ("held", "waiting", "second"))
    second.waits = False
    held.take(600)
    thread = threading.Thread(target=waiting.take, args=(LIMIT,))
    thread.start()
    time.sleep(0.05)
    assert not second.has_room(100)
    with pytest.raises(MemoryBusyError):
        second.take(100)
    held.take(500)
    held.release()
    thread.join(SECONDS)
    waiting.release()
    second.take(100)
    second.release()
    assert taken_bytes() == 0


def test_a_large_photo_is_not_passed_over_for_ever() -> None:
    """Those that come after it wait, though there would be room for them."""
    order: list[str] = []
    first, large, small = (PhotoMemory(name, LIMIT) for name in ("first", "large", "small"))
    first.take(600)

    def take(memory: PhotoMemory, need_bytes: int) -> None:
        memory.take(need_bytes)
        order.append(memory.name)
        memory.release()

    threads = [threading.Thread(target=take, args=args) for args in ((large, LIMIT), (small, 100))]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    assert order == []
    first.release()
    for thread in threads:
        thread.join(SECONDS)
    assert order == ["large", "small"]


def test_a_photo_that_is_dropped_gives_its_memory_back() -> None:
    dropped = PhotoMemory("dropped", LIMIT)
    dropped.take(700)
    del dropped
    gc.collect()
    assert taken_bytes() == 0


def test_who_does_not_wait_is_told_and_keeps_what_it_has() -> None:
    with PhotoMemory("a", LIMIT) as a, PhotoMemory("b", LIMIT, waits=False) as b:
        a.take(700)
        b.take(300)
        assert not b.has_room(301)
        with pytest.raises(MemoryBusyError) as caught:
            b.take(301)
        assert caught.value.need_bytes == 301
        assert taken_bytes() == 1000
        a.take(100)
        b.take(900)
    assert taken_bytes() == 0


def test_more_than_the_limit_is_refused_by_name() -> None:
    with (
        PhotoMemory("holiday.webp", 2_000_000_000) as memory,
        pytest.raises(PhotoError, match=r"^holiday\.webp: decoding it takes 2\.5 GB .* the 2\.0 GB allowed"),
    ):
        memory.take(2_500_000_000)
    assert taken_bytes() == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks")
def test_a_forked_process_has_its_own_count() -> None:
    with PhotoMemory("parent", LIMIT) as memory:
        memory.take(LIMIT)
        child = os.fork()
        if child == 0:
            with PhotoMemory("child", LIMIT, waits=False) as own:
                own.take(LIMIT)
            os._exit(0 if taken_bytes() == 0 else 1)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("file", [encoded("PNG"), encoded("WEBP"), encoded("PNG")[:9000], b"no photo"])
def test_whatever_becomes_of_a_photo_its_memory_is_given_back(file: bytes) -> None:
    try:
        read_image(file)
    except PhotoError:
        assert taken_bytes() == 0
    with PhotoMemory("kept", allowed_bytes(1)) as memory:
        rgb = read_reduced(encoded("PNG"), None, memory=memory).rgb
        assert taken_bytes() == rgb.nbytes
    assert taken_bytes() == 0


# In a batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, astronaut: UInt8Array) -> Path:
    """Photos of one size, and one of which the faces are cut from a second, larger reading."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(6):
        write_image(folder / f"{number}.png", astronaut)
    for number in range(2):
        write_image(folder / f"large {number}.jpg", in_a_corner(astronaut, 2560))
    return folder


def analyzed(folder: Path, analyzer: PhotoAnalyzer, workers: int) -> list[str]:
    tasks = [PhotoTask(number, path) for number, path in enumerate(sorted(folder.iterdir()))]
    outcomes = Engine(analyzer, tasks, EngineOptions(workers=workers)).outcomes()
    return [_told(outcome) for outcome in sorted(outcomes, key=lambda outcome: outcome.task.id)]


def _told(outcome: Outcome) -> str:
    if isinstance(outcome, FailedPhoto):
        return f"{outcome.task.path.name} {outcome.error}"
    return f"{outcome.task.path.name} {outcome.faces.boxes_xyxy.round().tolist()}"


@pytest.mark.parametrize("workers", [1, 4])
def test_a_batch_puts_photos_off_and_loses_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    with FacePipeline.load() as pipeline:
        analyzer = PhotoAnalyzer(pipeline)
        expected = analyzed(folder, analyzer, 2)
        most, put_off, lock = 0, 0, threading.Lock()
        really_take = PhotoMemory.take

        def take(self: PhotoMemory, need_bytes: int) -> None:
            nonlocal most, put_off
            try:
                really_take(self, need_bytes)
            except MemoryBusyError:
                with lock:
                    put_off += 1
                raise
            with lock:
                most = max(most, taken_bytes())

        limit = 100_000_000  # of one of the large ones
        monkeypatch.setattr(PhotoMemory, "take", take)
        monkeypatch.setattr(analyzer, "memory", lambda path: PhotoMemory(str(path), limit))
        for _ in range(8 if workers > 1 else 1):  # threads need not meet at the first try
            assert analyzed(folder, analyzer, workers) == expected
            if put_off:
                break
        assert 50_000_000 < most <= limit
        assert put_off > 0 or workers == 1
        assert taken_bytes() == 0


def test_a_batch_waits_for_photos_of_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 100_000_000
    with FacePipeline.load() as pipeline, PhotoMemory("of somebody else", limit) as other:
        analyzer = PhotoAnalyzer(pipeline)
        monkeypatch.setattr(analyzer, "memory", lambda path: PhotoMemory(str(path), limit))
        other.take(limit)
        threading.Timer(1, other.release).start()
        assert len(analyzed(folder, analyzer, 3)) == 8


def test_a_photo_that_is_too_large_for_a_batch_fails_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FacePipeline.load() as pipeline:
        analyzer = PhotoAnalyzer(pipeline)
        monkeypatch.setattr(analyzer, "memory", lambda path: PhotoMemory(path.name, 30_000_000))
        told = analyzed(folder, analyzer, 3)
    assert sum("decoding it takes" in line for line in told) == 2
    assert all(line.startswith("large") for line in told if "decoding it takes" in line)
