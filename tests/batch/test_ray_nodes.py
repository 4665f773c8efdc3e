"""Batches over a cluster of three machines that are killed and cut off: nothing lost, nothing twice."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from batch_helpers import enroll_her, identified, write_archive
from cluster_helpers import HEAD, Machines
from cluster_workers import DEADLY, HOLD

from benchmarks.namespaces import NoNamespacesError
from facepipe.batch.job_copy import copy_job_file
from facepipe.batch.job_file import JOB_FILE
from facepipe.core.faces import UInt8Array
from facepipe.images.finding import find_photos
from facepipe.pipeline import FacePipeline

PHOTOS = 60


@pytest.fixture(scope="module")
def folder(astronaut: UInt8Array) -> Iterator[Path]:
    """Photos and a gallery, at a short path: Ray's sockets have to fit into 100 characters."""
    with tempfile.TemporaryDirectory() as name:
        enroll_her(Path(name) / "gallery", astronaut)
        write_archive(Path(name) / "photos", astronaut, PHOTOS)
        yield Path(name)


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[str]:
    with FacePipeline.load(folder / "gallery") as pipeline:
        return list(identified(pipeline, find_photos([folder / "photos"])))


@pytest.fixture(scope="module")
def machines(folder: Path) -> Iterator[Machines]:
    """A head without processors, and two that analyze, of which one does not see the photos."""
    with ExitStack() as opened:
        try:
            three = opened.enter_context(Machines(folder, 3, {HOLD: str(folder / "hold")}))
        except NoNamespacesError as error:
            pytest.skip(str(error))
        three.start_ray(0, processors=0)
        three.start_ray(1)
        three.start_ray(2, hides=folder / "photos")
        three.wait_for_nodes(3)
        yield three


@pytest.fixture
def hold(folder: Path) -> Iterator[Path]:
    """A file; until it is deleted, no worker goes on after its first call, so that no batch ends."""
    file = folder / "hold"
    file.touch()
    yield file
    file.unlink(missing_ok=True)


class Driver:
    """A batch that runs on the first machine, and its lines on stderr as they come."""

    def __init__(self, machines: Machines, folder: Path, out: Path) -> None:
        script = Path(__file__).parents[1] / "cluster_workers.py"
        places: list[str | Path] = [folder / "photos", "--gallery", folder / "gallery", "--out", out]
        self.process = machines.run([sys.executable, script, "batch", *places, "--ray", HEAD])
        self.out, self._log = out, ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._log += line

    def wait_for(self, is_so: Callable[[str], object], timeout_s: float = 90.0) -> None:
        """Until something is so of what it has said."""
        end = time.monotonic() + timeout_s
        while not is_so(self._log):
            assert self.process.poll() is None, f"it ended before that\n{self._log}"
            assert time.monotonic() < end, f"it did not come to that\n{self._log}"
            time.sleep(0.02)

    def wait_for_workers(self, count: int) -> None:
        self.wait_for(lambda said: said.count("a worker is ready") >= count)

    def wait_for_photos(self) -> None:
        """Until the results of a photo have been saved."""
        self.wait_for(lambda _: self._photos_saved())

    def _photos_saved(self) -> int:
        query = "SELECT count(*) FROM photos WHERE state != 'waiting'"
        with tempfile.TemporaryDirectory() as copy:
            copy_job_file(self.out, Path(copy))
            with closing(sqlite3.connect(Path(copy) / JOB_FILE)) as job:
                (count,) = job.execute(query).fetchone()
        return int(count)

    def finished(self, timeout_s: float = 120.0) -> str:
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._reader.join()
        return self._log


def test_a_machine_dies_and_comes_back_and_a_photo_kills_its_workers(
    machines: Machines, folder: Path, hold: Path, expected: list[str], tmp_path: Path
) -> None:
    (folder / "photos" / DEADLY).write_bytes(b"looks like any other")
    try:
        driver = Driver(machines, folder, tmp_path / "out")
        driver.wait_for_workers(2)
        driver.wait_for_photos()
        machines.kill(1)
        driver.wait_for(lambda said: "node 10.213.0.2 has gone" in said)
        machines.start_ray(1)
        hold.unlink()
        said = driver.finished()
    finally:
        (folder / "photos" / DEADLY).unlink()
    assert driver.process.returncode == 3, said
    lines = (tmp_path / "out/results.jsonl").read_text(encoding="utf-8").splitlines()
    (deadly,) = (line for line in lines if DEADLY in line)
    assert "died, twice" in deadly
    assert [line for line in lines if line != deadly] == expected
    assert f"{PHOTOS + 1} photos, {PHOTOS + 1} of them analyzed now" in said


def test_a_machine_is_cut_off_and_the_driver_killed(
    machines: Machines, folder: Path, hold: Path, expected: list[str], tmp_path: Path
) -> None:
    machines.wait_for_nodes(3)
    driver = Driver(machines, folder, tmp_path / "out")
    driver.wait_for_workers(2)
    driver.wait_for_photos()
    machines.cut(2)
    try:
        driver.wait_for(lambda said: "node 10.213.0.3 has gone" in said)
        driver.process.kill()
        driver.finished()
        hold.unlink()
    finally:
        machines.mend(2)
    machines.kill(2)  # what Ray left there ends by itself, in a while
    machines.start_ray(2, hides=folder / "photos")
    machines.wait_for_nodes(3)
    goes_on = Driver(machines, folder, tmp_path / "out")
    said = goes_on.finished()
    assert goes_on.process.returncode == 3, said
    assert (tmp_path / "out/results.jsonl").read_text(encoding="utf-8").splitlines() == expected
    found = re.search(r"(\d+) of them analyzed now", said)
    assert found is not None
    assert int(found[1]) < PHOTOS
    assert "node 10.213.0.3: a worker is ready" in said
