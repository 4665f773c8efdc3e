"""Batches over a Ray cluster on this machine: the same results, whatever becomes of workers."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from batch_helpers import enroll_her, identified, write_archive
from cli_helpers import facepipe, finished, start
from cluster_workers import DEADLY, BlindWorker, FailingWorker, MortalWorker, OlderWorker
from paths import ROOT

from facepipe.batch.analysis import AnalysisOptions
from facepipe.batch.engine import EngineOptions
from facepipe.batch.job import Job
from facepipe.batch.models import PhotoTask
from facepipe.batch.ray_cluster import RayCluster
from facepipe.batch.ray_engine import RayEngine, RayOptions
from facepipe.batch.ray_worker import Networks, PhotoWorker, WorkerSetup, installation_of
from facepipe.batch.run import Batch, BatchOptions, Summary
from facepipe.core.errors import ClusterError, UsageError
from facepipe.core.faces import UInt8Array
from facepipe.detector import DetectorOptions
from facepipe.images.finding import find_photos
from facepipe.pipeline import FacePipeline
from facepipe.reports.records import to_json
from facepipe.weights.registry import DEFAULT_DETECTOR, DEFAULT_ENCODER

PHOTOS = 24


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory, astronaut: UInt8Array) -> Path:
    folder = tmp_path_factory.mktemp("ray") / "gallery"
    enroll_her(folder, astronaut)
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, astronaut: UInt8Array) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write_archive(folder, astronaut, PHOTOS)
    return folder


@pytest.fixture(scope="module")
def pipeline(gallery: Path) -> Iterator[FacePipeline]:
    with FacePipeline.load(gallery) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def expected(pipeline: FacePipeline, archive: Path) -> list[str]:
    return list(identified(pipeline, find_photos([archive])))


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """Of two processors, on the loopback address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACEPIPE_THREADS", "2")
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
        with RayCluster("local") as connected:
            yield connected


def engine_of(
    cluster: RayCluster,
    pipeline: FacePipeline,
    tasks: Iterable[PhotoTask],
    worker: type[Any] = PhotoWorker,
    options: RayOptions | None = None,
) -> RayEngine:
    networks = Networks(DEFAULT_DETECTOR, DEFAULT_ENCODER, DetectorOptions(), "auto")
    setup = WorkerSetup(networks, AnalysisOptions(), EngineOptions())
    return RayEngine(cluster, tasks, setup, installation_of(pipeline, "auto"), options, worker)


def work_through(
    cluster: RayCluster,
    pipeline: FacePipeline,
    folder: Path,
    out: Path,
    worker: type[Any] = PhotoWorker,
    options: RayOptions | None = None,
    batch_options: BatchOptions | None = None,
) -> tuple[Summary, list[str]]:
    """A batch over the cluster, and its records."""
    with Job(out, create=True) as job:
        batch = Batch(
            pipeline, job, batch_options, lambda tasks: engine_of(cluster, pipeline, tasks, worker, options)
        )
        batch.find([folder])
        summary = batch.run()
        return summary, [to_json(record.result) for record in job.records()]


@pytest.mark.parametrize(
    ("worker", "options"),
    [
        (PhotoWorker, RayOptions(worker_processors=1)),
        (BlindWorker, RayOptions(worker_processors=2, held_photos=1, held_bytes=1)),
    ],
    ids=["two workers that see the photos", "one that is sent them, few at a time"],
)
def test_results_are_those_of_one_machine(
    cluster: RayCluster,
    pipeline: FacePipeline,
    archive: Path,
    expected: list[str],
    tmp_path: Path,
    worker: type[Any],
    options: RayOptions,
) -> None:
    summary, lines = work_through(cluster, pipeline, archive, tmp_path / "out", worker, options)
    assert lines == expected
    assert summary.here == PHOTOS
    assert summary.stage_s["detect"] > 0


def test_a_photo_that_kills_its_workers_is_named_and_passed_over(
    cluster: RayCluster,
    pipeline: FacePipeline,
    archive: Path,
    expected: list[str],
    astronaut: UInt8Array,
    tmp_path: Path,
) -> None:
    (archive / DEADLY).write_bytes(b"looks like any other")
    try:
        one = RayOptions(worker_processors=1)
        summary, lines = work_through(cluster, pipeline, archive, tmp_path / "out", MortalWorker, one)
        again, _ = work_through(cluster, pipeline, archive, tmp_path / "out", PhotoWorker, one)
    finally:
        (archive / DEADLY).unlink()
    (deadly,) = (line for line in lines if DEADLY in line)
    assert "died, twice" in deadly
    assert [line for line in lines if line != deadly] == expected
    assert summary.here == PHOTOS + 1
    assert again.here == 0


def test_tasks_are_read_as_workers_have_room(
    cluster: RayCluster, pipeline: FacePipeline, archive: Path
) -> None:
    """Of a million photos a few are on their way at a time."""
    photo = find_photos([archive])[0]
    read = 0

    def endless() -> Iterator[PhotoTask]:
        nonlocal read
        while True:
            read += 1
            yield PhotoTask(read, photo)

    options = RayOptions(worker_processors=2, held_photos=2)
    outcomes = engine_of(cluster, pipeline, endless(), options=options).outcomes()
    for count in range(1, 31):
        next(outcomes)
        assert read - count <= 2 * 3 + 2
    outcomes.close()


def test_a_node_with_another_facepipe_is_refused(
    cluster: RayCluster, pipeline: FacePipeline, archive: Path, tmp_path: Path
) -> None:
    another = r"node 127\.0\.0\.1 has another installation: package facepipe 0\.0\.1"
    with pytest.raises(ClusterError, match=another):
        work_through(cluster, pipeline, archive, tmp_path / "out", OlderWorker)


def test_what_is_no_photos_fault_stops_the_work(
    cluster: RayCluster, pipeline: FacePipeline, archive: Path, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="out of order"):
        work_through(cluster, pipeline, archive, tmp_path / "out", FailingWorker)


def test_ctrl_c_stops_soon_and_the_same_command_goes_on(
    gallery: Path, archive: Path, expected: list[str], tmp_path: Path
) -> None:
    """The command from beginning to end; it listens on the loopback address only."""
    words = ["batch", archive, "--gallery", gallery, "--out", tmp_path / "out", "--ray", "local"]
    process = start(*words, home=tmp_path)
    assert process.stderr is not None
    while "a worker is ready" not in (line := process.stderr.readline()):
        assert line, "it ended before it began"
    before = time.monotonic()
    process.send_signal(signal.SIGINT)
    said = finished(process)
    assert time.monotonic() - before < 15
    assert (said.code, said.out) == (130, "")
    assert "the same command goes on from there" in said.err
    assert "Traceback" not in said.err
    said = finished(start(*words, home=tmp_path))
    assert said.code == 3, said.err
    assert (tmp_path / "out/results.jsonl").read_text(encoding="utf-8").splitlines() == expected


def test_without_ray_and_without_a_cluster_the_cure_is_named(
    gallery: Path, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["batch", archive, "--gallery", gallery, "--out", tmp_path / "out", "--ray"]
    wrong = facepipe(*words, "ray://10.0.0.1:10001")
    assert (wrong.code, "HOST:PORT" in wrong.err) == (2, True)
    refused = facepipe(*words, "127.0.0.1:9")
    assert refused.code == 1
    assert "no Ray at 127.0.0.1:9" in refused.err
    assert "ray start --head" in refused.err
    device = facepipe(*words, "local", "--device", "cuda")
    assert (device.code, "--ray" in device.err) == (2, True)
    monkeypatch.setitem(sys.modules, "ray", None)
    missing = facepipe(*words, "local")
    assert (missing.code, "[ray] extra" in missing.err) == (1, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["", "local:", "10.0.0.1", "10.0.0.1:port", "http://10.0.0.1:80"])
def test_an_address_has_a_host_and_a_port(address: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        RayCluster(address)
