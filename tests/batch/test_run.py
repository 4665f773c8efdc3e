"""Whole folders: the same results however the work is spread, stopped, killed or repeated."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batch_helpers import NAME, enroll_her, identified, in_a_corner, large_jpeg, work_through, write_archive
from cli_helpers import facepipe, finished, start

from facepipe.batch import analysis
from facepipe.batch.analysis import AnalysisOptions, PhotoAnalyzer
from facepipe.batch.engine import Engine, EngineOptions
from facepipe.batch.job import Job
from facepipe.batch.models import PREVIEW, OpenedPhoto, PhotoAnalysis, PhotoTask
from facepipe.batch.run import BatchOptions, BatchProgress, analysis_settings
from facepipe.commands.batch import ProgressReporter
from facepipe.core.errors import UsageError
from facepipe.core.faces import UInt8Array
from facepipe.images.decoding import ReducedPhoto
from facepipe.images.decoding_memory import PhotoMemory
from facepipe.images.face_crops import face_thumbnail
from facepipe.images.finding import find_photos
from facepipe.images.reading import read_image, read_reduced, write_image
from facepipe.images.small_pictures import small_jpeg
from facepipe.pipeline import FacePipeline, NamingOptions
from facepipe.quality import needed_scale

PHOTOS = 40
BROKEN = 2


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory, astronaut: UInt8Array) -> Path:
    folder = tmp_path_factory.mktemp("batch") / "gallery"
    enroll_her(folder, astronaut)
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, astronaut: UInt8Array) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write_archive(folder, astronaut, PHOTOS)
    return folder


@pytest.fixture(scope="module")
def pipeline(gallery: Path):  # type: ignore[no-untyped-def]
    with FacePipeline.load(gallery) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def expected(pipeline: FacePipeline, archive: Path) -> list[str]:
    """What identifying one photo after the other says."""
    return list(identified(pipeline, find_photos([archive])))


@pytest.mark.parametrize(
    "engine",
    [
        EngineOptions(),
        EngineOptions(workers=1, detector_batch=1, encoder_batch=1),
        EngineOptions(workers=5, detector_batch=3, encoder_batch=4),
        EngineOptions(workers=2, detector_batch=64, detector_batch_pixels=10**9, encoder_batch=1000),
        EngineOptions(workers=3, held_pixels=1),
    ],
    ids=["as usual", "one by one", "many threads", "large batches", "next to no memory"],
)
def test_results_are_those_of_identify_however_the_work_is_spread(
    pipeline: FacePipeline, archive: Path, expected: list[str], tmp_path: Path, engine: EngineOptions
) -> None:
    summary, lines = work_through(pipeline, [archive], tmp_path / "out", BatchOptions(engine=engine))
    assert lines == expected
    assert summary.here == PHOTOS
    assert summary.counts.failed == sum('"error": null' not in line for line in lines) == BROKEN
    assert 0 < summary.counts.known == sum(NAME in line for line in lines) < PHOTOS


def test_a_second_run_looks_at_nothing_and_says_the_same(
    pipeline: FacePipeline, archive: Path, expected: list[str], tmp_path: Path
) -> None:
    work_through(pipeline, [archive], tmp_path / "out")
    summary, lines = work_through(pipeline, [archive], tmp_path / "out")
    assert (summary.here, summary.named_again) == (0, 0)
    assert lines == expected
    retried, lines = work_through(pipeline, [archive], tmp_path / "out", BatchOptions(retry_failed=True))
    assert (retried.here, lines) == (BROKEN, expected)
    everything, lines = work_through(pipeline, [archive], tmp_path / "out", BatchOptions(again=True))
    assert (everything.here, lines) == (PHOTOS, expected)


def test_a_changed_gallery_names_again_without_a_look(
    pipeline: FacePipeline, archive: Path, tmp_path: Path
) -> None:
    _, before = work_through(pipeline, [archive], tmp_path / "out")
    assert pipeline.gallery is not None
    pipeline.gallery.rename(NAME, "Colonel Collins")
    try:
        summary, after = work_through(pipeline, [archive], tmp_path / "out")
        assert (summary.here, summary.named_again) == (0, PHOTOS - BROKEN)
        assert after == [line.replace(NAME, "Colonel Collins") for line in before]
        assert after == list(identified(pipeline, find_photos([archive])))
    finally:
        pipeline.gallery.rename("Colonel Collins", NAME)
    strict = BatchOptions(naming=NamingOptions(threshold_l2=0.0001))
    summary, lines = work_through(pipeline, [archive], tmp_path / "out", strict)
    assert (summary.here, summary.counts.known) == (0, 0)
    assert not any(f'"name": "{NAME}"' in line.split("runner_up")[0] for line in lines)


def test_the_focus_map_is_a_setting_of_a_job_where_it_is_left_out(pipeline: FacePipeline) -> None:
    """Jobs of versions without it, begun with weights that have none, go on."""
    usual = pipeline.detector.options
    everywhere = pipeline.detector.with_options(replace(usual, focus=False))
    held, other = (
        analysis_settings(FacePipeline(detector, pipeline.encoder), AnalysisOptions())["detector options"]
        for detector in (pipeline.detector, everywhere)
    )
    assert "focus" not in held
    assert other == held | {"focus": False}


def test_other_rules_need_another_analysis(pipeline: FacePipeline, archive: Path, tmp_path: Path) -> None:
    work_through(pipeline, [archive], tmp_path / "out")
    analysis = AnalysisOptions(rules=replace(AnalysisOptions().rules, min_size_px=99.0))
    with pytest.raises(UsageError, match=r"rules .*--again"):
        work_through(pipeline, [archive], tmp_path / "out", BatchOptions(analysis=analysis))
    again = BatchOptions(analysis=analysis, again=True)
    summary, _ = work_through(pipeline, [archive], tmp_path / "out", again)
    assert (summary.here, summary.counts.known) == (PHOTOS, 0)


def test_what_is_no_photos_fault_stops_the_work(
    pipeline: FacePipeline, archive: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(PhotoAnalyzer, "detect", fail)
    with pytest.raises(RuntimeError, match="out of order"):
        work_through(pipeline, [archive], tmp_path / "out")


def test_few_photos_are_held_at_a_time(
    pipeline: FacePipeline, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, most, lock = set[Path](), 0, threading.Lock()
    really_open, really_crop = PhotoAnalyzer.open, PhotoAnalyzer.crop

    def opening(self: PhotoAnalyzer, task: PhotoTask, memory: PhotoMemory) -> OpenedPhoto:
        nonlocal most
        opened = really_open(self, task, memory)
        with lock:
            held.add(task.path)
            most = max(most, len(held))
        return opened

    def cropping(
        self: PhotoAnalyzer, analysis: PhotoAnalysis, photo: ReducedPhoto, memory: PhotoMemory
    ) -> PhotoAnalysis:
        cropped = really_crop(self, analysis, photo, memory)
        with lock:
            held.remove(analysis.task.path)
        return cropped

    monkeypatch.setattr(PhotoAnalyzer, "open", opening)
    monkeypatch.setattr(PhotoAnalyzer, "crop", cropping)
    tasks = (PhotoTask(id, path) for id, path in enumerate(find_photos([archive])))
    outcomes = list(
        Engine(PhotoAnalyzer(pipeline), tasks, EngineOptions(workers=2, held_pixels=1)).outcomes()
    )
    assert len(outcomes) == PHOTOS
    assert not held
    assert most <= 4


# Reduced decoding


def test_a_large_jpeg_is_decoded_small_and_named_the_same(
    pipeline: FacePipeline, astronaut: UInt8Array, tmp_path: Path
) -> None:
    whole = large_jpeg(tmp_path / "large.jpg", astronaut, 8)
    analyzer = PhotoAnalyzer(pipeline)
    opened = analyzer.open(PhotoTask(1, tmp_path / "large.jpg"))
    assert opened.photo.full_size_wh == (4096, 4096)
    assert opened.photo.rgb.shape == (2048, 2048, 3)
    (found,) = analyzer.detect([opened])
    cropped = analyzer.crop(found, opened.photo, opened.memory)
    expected = pipeline.embed(whole)
    assert expected.embeddings is not None
    np.testing.assert_allclose(found.faces.boxes_xyxy[0], expected.boxes_xyxy[0], atol=4)
    np.testing.assert_allclose(found.faces.landmarks[0], expected.landmarks[0], atol=4)
    (encoded,) = analyzer.encode([cropped])
    assert encoded.faces.embeddings is not None
    assert np.linalg.norm(encoded.faces.embeddings[0] - expected.embeddings[0]) < 0.1


def test_a_small_face_in_a_large_jpeg_is_cut_from_all_its_pixels(
    pipeline: FacePipeline, astronaut: UInt8Array, tmp_path: Path
) -> None:
    file = tmp_path / "large.jpg"
    whole = large_jpeg(file, in_a_corner(astronaut, 2560), 1)
    analyzer = PhotoAnalyzer(pipeline)
    opened = analyzer.open(PhotoTask(1, file))
    assert opened.photo.reduction == 2
    (found,) = analyzer.detect([opened])
    cropped = analyzer.crop(found, opened.photo, opened.memory)
    crops = pipeline.encoder.align(whole, found.faces.select([cropped.reasons.index(None)]))
    np.testing.assert_array_equal(cropped.crops[:1], crops)


@pytest.mark.parametrize("factor", [2, 3])
def test_a_photo_is_read_again_with_the_pixels_that_its_face_needs(
    pipeline: FacePipeline,
    astronaut: UInt8Array,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    factor: int,
) -> None:
    file = tmp_path / "large.jpg"
    large_jpeg(file, in_a_corner(astronaut, 2560), factor)
    analyzer, read = PhotoAnalyzer(pipeline), []

    def reading(*args: Any, **options: Any) -> ReducedPhoto:
        read.append(read_reduced(*args, **options))
        return read[-1]

    monkeypatch.setattr(analysis, "read_reduced", reading)
    opened = analyzer.open(PhotoTask(1, file))
    (found,) = analyzer.detect([opened])
    cropped = analyzer.crop(found, opened.photo, opened.memory)
    assert len(cropped.crops) == 1
    assert [photo.reduction for photo in read] == [4, 2]
    scale = needed_scale(found.alignments, pipeline.encoder.crop)
    assert 1 / 4 < scale <= 1 / 2
    first, again = read
    assert cropped.pictures == {
        PREVIEW: small_jpeg(first.rgb, 200, 35),
        0: face_thumbnail(again.rgb, found.faces.boxes_xyxy[0] / np.float32(2)),
    }


def test_a_panorama_keeps_the_pixels_that_the_detector_takes(
    pipeline: FacePipeline, astronaut: UInt8Array, tmp_path: Path
) -> None:
    panorama = np.zeros((1000, 8000, 3), np.uint8)
    panorama[400:912, 4000:4512] = astronaut
    write_image(tmp_path / "wide.jpg", panorama)
    opened = PhotoAnalyzer(pipeline).open(PhotoTask(1, tmp_path / "wide.jpg"))
    assert opened.photo.rgb.shape == (1000, 8000, 3)  # half would be 4000, and 5120 are taken
    write_image(tmp_path / "usual.jpg", np.zeros((3000, 4000, 3), np.uint8))
    opened = PhotoAnalyzer(pipeline).open(PhotoTask(2, tmp_path / "usual.jpg"))
    assert opened.photo.rgb.shape == (1500, 2000, 3)


def test_what_is_not_reduced_is_read_as_ever(
    pipeline: FacePipeline, astronaut: UInt8Array, tmp_path: Path
) -> None:
    for name in ("photo.jpg", "photo.png"):
        write_image(tmp_path / name, astronaut)
        opened = PhotoAnalyzer(pipeline).open(PhotoTask(1, tmp_path / name))
        assert opened.photo.reduction == 1
        np.testing.assert_array_equal(opened.photo.rgb, read_image(tmp_path / name))


# In processes of their own


def command(gallery: Path, archive: Path, out: Path) -> list[str | float | Path]:
    return ["batch", archive, "--gallery", gallery, "--out", out, "--workers", 1, "--batch-size", 1]


def test_killed_again_and_again_it_ends_as_if_nothing_had_been(
    gallery: Path, archive: Path, expected: list[str], tmp_path: Path
) -> None:
    dice = random.Random(7)
    out, kills = tmp_path / "out", 0
    done: list[int] = []
    for _ in range(40):
        process = start(*command(gallery, archive, out), home=tmp_path)
        wait_for_photos(process, out, dice.randint(1, 8))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        with Job(out, create=True) as job:
            counts = job.counts()
        assert counts.total in (0, PHOTOS)
        assert not done or counts.done + counts.failed >= done[-1], "what was done stays done"
        done.append(counts.done + counts.failed)
        if kills >= 5 or process.returncode == 3:
            break
    assert any(0 < count < PHOTOS for count in done), "killed on the way, not before or after it"
    said = finished(start(*command(gallery, archive, out), home=tmp_path))
    assert said.code == 3, said.err
    assert (out / "results.jsonl").read_text(encoding="utf-8").splitlines() == expected
    assert not list(out.glob("*.part"))


def wait_for_photos(process: subprocess.Popen[str], out: Path, more: int) -> None:
    """Until some more photos are in the log of the job file, by its size, or it has ended."""
    log = out / "job.sqlite3-wal"
    start_bytes = None
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        size = log.stat().st_size if log.exists() else 0
        if size and start_bytes is None:
            start_bytes = size
        if start_bytes is not None and size > start_bytes + more * 4096:
            return
        time.sleep(0.005)


def test_ctrl_c_stops_soon_and_says_how_to_go_on(
    gallery: Path, archive: Path, expected: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(*command(gallery, archive, out), home=tmp_path)
    assert process.stderr is not None
    while f"0/{PHOTOS} photos" not in (line := process.stderr.readline()):
        assert line, "it ended before it began"
    before = time.monotonic()
    process.send_signal(signal.SIGINT)
    said = finished(process)
    assert time.monotonic() - before < 10
    assert said.code == 130, said.err
    assert "the same command goes on from there" in said.err
    assert "Traceback" not in said.err
    said = facepipe(*command(gallery, archive, out))
    assert said.code == 3
    assert (out / "results.jsonl").read_text(encoding="utf-8").splitlines() == expected


# The command


def test_exit_codes_and_what_is_told(
    gallery: Path, archive: Path, astronaut: UInt8Array, tmp_path: Path
) -> None:
    some = facepipe(*command(gallery, archive, tmp_path / "some"))
    assert (some.code, some.out) == (3, "")
    for words in (f"{BROKEN} photos failed", f"{PHOTOS}/{PHOTOS} photos", "--retry-failed"):
        assert words in some.err
    good, bad = tmp_path / "good", tmp_path / "bad"
    for folder in (good, bad):
        folder.mkdir()
    write_image(good / "her.png", astronaut)
    (bad / "her.png").write_bytes(b"no photo")
    assert facepipe(*command(gallery, good, tmp_path / "1")).code == 0
    assert facepipe(*command(gallery, bad, tmp_path / "2")).code == 1
    assert facepipe(*command(gallery, tmp_path / "none", tmp_path / "3")).code in (1, 2)
    quiet = facepipe(*command(gallery, good, tmp_path / "4"), "--quiet")
    assert (quiet.code, quiet.complaints) == (0, [])


def test_its_own_folder_and_what_is_excluded_are_passed_over(
    gallery: Path, astronaut: UInt8Array, tmp_path: Path
) -> None:
    for name in ("1.png", "raw/2.png", "3.copy.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_image(tmp_path / name, astronaut)
    (tmp_path / "loop").symlink_to(tmp_path)
    out = tmp_path / "out"
    words = ["batch", tmp_path, "--gallery", gallery, "--out", out, "--annotate", "--crops"]
    for exclude, count in (([], 3), (["--exclude", "raw", "--exclude", "*.copy.*"], 1)):
        assert facepipe(*words, *exclude).code == 0
        assert len((out / "results.jsonl").read_text().splitlines()) == count
    assert (out / "annotated").is_dir()


PROGRESS = BatchProgress(total=40, done=10, failed=2, faces=9, known=4, here=6, elapsed_s=3.0)


@pytest.mark.parametrize(
    ("quiet", "as_json", "told"),
    [
        (
            False,
            False,
            ["facepipe: 12/40 photos, 2.0/s, 9 faces (4 known, 5 unknown), 2 failed, 0:00:14 left"] * 3,
        ),
        (True, False, []),
        (False, True, [14.0, 14.0, 14.0]),
    ],
    ids=["lines", "quiet", "json"],
)
def test_progress_without_a_terminal_is_a_line_every_ten_seconds(
    quiet: bool,
    as_json: bool,
    told: list[object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reporter = ProgressReporter(quiet, as_json)
    for second in range(100, 118):  # says it at 100 and 110, and at the end
        monkeypatch.setattr(time, "monotonic", lambda second=second: float(second))
        reporter.report(PROGRESS)
    reporter.end()
    lines = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["left_s"] if as_json else line for line in lines] == told
