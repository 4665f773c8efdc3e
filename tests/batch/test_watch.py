"""Watching a folder: photos are handled as they arrive, into the job of `facepipe batch`."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from batch_helpers import NAME, enroll_her

from facepipe.batch.job import Job
from facepipe.batch.run import Batch
from facepipe.batch.watch import watch
from facepipe.core.faces import UInt8Array
from facepipe.images.reading import write_image
from facepipe.pipeline import FacePipeline
from facepipe.reports.records import to_json


def test_photos_are_handled_as_they_arrive(astronaut: UInt8Array, tmp_path: Path) -> None:
    pytest.importorskip("watchdog", reason="needs the [watch] extra")
    enroll_her(tmp_path / "gallery", astronaut)
    folder, stop = tmp_path / "photos", threading.Event()
    (folder / "deep").mkdir(parents=True)
    whole = tmp_path / "whole.png"
    write_image(whole, astronaut)
    seen: list[tuple[str, bool]] = []
    arriving = [folder / "first.png", folder / "deep" / "second.png"]

    with (
        FacePipeline.load(tmp_path / "gallery") as pipeline,
        Job(folder / "out", create=True) as job,
    ):

        def results() -> None:
            """Results are there: the next photo arrives, slowly, beside something that is none."""
            seen[:] = [(record.result.path.name, NAME in to_json(record.result)) for record in job.records()]
            if not arriving:
                stop.set()
                return
            target = arriving.pop(0)
            (folder / "notes.txt").write_text("no photo")
            write_image(folder / "out" / "not this.png", astronaut)
            threading.Thread(target=slowly, args=(whole.read_bytes(), target)).start()

        threading.Timer(60, stop.set).start()
        watch(Batch(pipeline, job), folder, on_results=results, stop=stop, settle_s=0.3)
    assert seen == [("first.png", True), ("second.png", True)]


def test_photos_that_are_renamed_or_removed_leave_the_results(astronaut: UInt8Array, tmp_path: Path) -> None:
    """The folder is watched through a link, which gives each photo two names."""
    pytest.importorskip("watchdog", reason="needs the [watch] extra")
    enroll_her(tmp_path / "gallery", astronaut)
    real, folder, stop = tmp_path / "real", tmp_path / "photos", threading.Event()
    for name in ("a.png", "b.png", "deep/c.png", "deep/d.png"):
        (real / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(real / name, astronaut[::4, ::4])
    folder.symlink_to(real)
    first = {"a.png", "b.png", "deep/c.png", "deep/d.png"}
    steps: list[tuple[Callable[[], object], set[str] | None]] = [
        (lambda: (real / "a.png").unlink(), first - {"a.png"}),
        (lambda: (real / "b.png").rename(real / "e.png"), {"e.png", "deep/c.png", "deep/d.png"}),
        (lambda: (real / "deep").rename(real / "deeper"), {"e.png", "deeper/c.png", "deeper/d.png"}),
        (lambda: (real / "e.png").rename(tmp_path / "away.png"), {"deeper/c.png", "deeper/d.png"}),
        (lambda: (real / "deeper/c.png").rename(real / ".c.png"), {"deeper/d.png"}),
        (lambda: shutil.rmtree(real / "deeper"), None),
    ]
    awaited: set[str] | None = first
    with FacePipeline.load(tmp_path / "gallery") as pipeline, Job(tmp_path / "out", create=True) as job:

        def shown() -> list[str]:
            return [str(record.result.path.relative_to(folder)) for record in job.records()]

        def results() -> None:
            """Take the next step when the results are those of the last one."""
            nonlocal awaited
            if set(shown()) == awaited:
                change, awaited = steps.pop(0)
                change()
                threading.Timer(2 if awaited is None else 60, stop.set).start()

        watch(Batch(pipeline, job), folder, on_results=results, stop=stop, settle_s=0.3)
        assert (awaited, steps) == (None, [])
        assert shown() == ["deeper/d.png"], "nothing is left: that may be an unmounted disk"


def slowly(data: bytes, target: Path) -> None:
    with target.open("wb") as file:
        for at in range(0, len(data), len(data) // 3 + 1):
            file.write(data[at : at + len(data) // 3 + 1])
            file.flush()
            time.sleep(0.1)
