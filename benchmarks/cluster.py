"""What does a batch over a Ray cluster cost, how many photos can its driver feed, and how many workers?

    python -m benchmarks.cluster overhead [--photos N] [--rounds N]
    python -m benchmarks.cluster driver [--photos N] [--faces N] [--people N]
    python -m benchmarks.cluster scaling [--workers N]... [--photo-s S] [--seconds S]
    python -m benchmarks.cluster memory [--photos N]

`overhead`: `facepipe batch` with and without `--ray local`, in turns, by processor time.
`driver`: workers that answer at once, so that what the driver does for a photo is all there is: look at its
file, hand it out, name its faces, save them.
`scaling`: workers that sleep instead of computing; efficiency is what they get done by what they could.
`memory`: resident bytes of the driver while workers get the bytes of many photos.
"""

from __future__ import annotations

import cProfile
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from skimage import data

from benchmarks.measure import table
from benchmarks.pipeline import make_folder
from facepipe.batch.analysis import AnalysisOptions
from facepipe.batch.engine import EngineOptions
from facepipe.batch.job import Job
from facepipe.batch.models import PREVIEW, PhotoAnalysis, PhotoTask
from facepipe.batch.ray_cluster import RayCluster
from facepipe.batch.ray_engine import RayEngine, RayOptions
from facepipe.batch.ray_worker import Answer, Installation, Networks, PhotoToAnalyze, WorkerSetup
from facepipe.batch.run import Batch, BatchProgress
from facepipe.core.faces import Faces
from facepipe.detector import DetectorOptions
from facepipe.gallery import NewTemplate
from facepipe.pipeline import FacePipeline
from facepipe.weights.registry import DEFAULT_DETECTOR, DEFAULT_ENCODER

_PREVIEW_BYTES, _THUMBNAIL_BYTES = 4000, 1500
"""As photos of 12 megapixels give."""
_FILE_BYTES, _LINKS = 20_000, 10_000
_FEWEST_MOMENTS = 6
_FEW_PHOTOS = 8
_NETWORKS = Networks(DEFAULT_DETECTOR, DEFAULT_ENCODER, DetectorOptions(), "auto")


@dataclass(frozen=True, slots=True)
class StubSetup(WorkerSetup):
    """What a stub is to do.

    Attributes:
        photo_s: Seconds that a photo takes a worker.
        faces: Of every photo.
        is_blind: It sees no files, so that they are sent.
    """

    photo_s: float = 0.0
    faces: int = 1
    is_blind: bool = False


class StubWorker:
    """Answers with faces of random vectors, at once or after a sleep."""

    def prepare(self, setup: StubSetup) -> Installation:
        """Make the faces that every photo has."""
        self._setup, self._lock = setup, threading.Lock()
        dice, count = np.random.default_rng(os.getpid()), setup.faces
        boxes = np.sort(dice.uniform(0, 1000, (count, 2, 2)), axis=1).reshape(count, 4).astype(np.float32)
        faces = Faces(
            boxes, np.ones(count, np.float32), dice.uniform(0, 1000, (count, 5, 2)).astype(np.float32)
        )
        vectors = dice.normal(size=(count, 128)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        faces = faces.with_enrollable(np.ones(count, np.bool_))
        self._faces = faces.with_embeddings(vectors, np.arange(count))
        self._pictures = {PREVIEW: dice.bytes(_PREVIEW_BYTES)}
        self._pictures |= {row: dice.bytes(_THUMBNAIL_BYTES) for row in range(count)}
        return Installation({}, {})

    def analyze(self, photos: Sequence[PhotoToAnalyze]) -> Answer:
        """Sleep for each photo that is seen."""
        seen = [not self._setup.is_blind or photo.view is None for photo in photos]
        with self._lock:
            time.sleep(self._setup.photo_s * sum(seen))
        outcomes = [
            self._analysis(photo) if is_seen else None for photo, is_seen in zip(photos, seen, strict=True)
        ]
        return Answer(list(outcomes), {})

    def _analysis(self, photo: PhotoToAnalyze) -> PhotoAnalysis:
        task, faces = photo.task, self._faces
        reasons = (None,) * len(faces)
        return PhotoAnalysis(
            type(task)(task.id, task.path),
            f"{task.id:064x}",
            (1000, 1000),
            faces,
            reasons=reasons,
            pictures=self._pictures,
        )


@click.group()
def main() -> None:
    """Measure batches over a cluster, on this machine."""


@main.command()
@click.option("--photos", default=104, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def overhead(photos: int, rounds: int) -> None:
    """Compare `facepipe batch` with and without --ray local, in turns, by processor time.

    It is that of all processes of the command, which a control group counts (Linux, as root).
    """
    ways: dict[str, list[str]] = {"batch": [], "batch --ray local": ["--ray", "local"]}
    with tempfile.TemporaryDirectory() as name, _control_group() as group:
        folder = Path(name)
        for count in (photos, _FEW_PHOTOS):
            make_folder(folder / f"photos{count}", None, count)
        _enroll(folder / "gallery", 1)
        worked: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, words in ways.items():
                many, few = (_command_s(folder, count, words, group) for count in (photos, _FEW_PHOTOS))
                worked[way].append(((many - few) / (photos - _FEW_PHOTOS), few))
        lines = [(folder / f"out{len(words)}-{photos}/results.jsonl").read_bytes() for words in ways.values()]
    a_photo = {way: statistics.median(row[0] for row in rows) for way, rows in worked.items()}
    first, *_ = a_photo.values()
    rows = [
        [
            way,
            f"{1000 * a_photo[way]:.1f}",
            f"{a_photo[way] / first:.3f}",
            ", ".join(f"{1000 * row[0]:.1f}" for row in worked[way]),
            f"{statistics.median(row[1] for row in worked[way]):.1f}",
        ]
        for way in ways
    ]
    click.echo(table(["", "ms a photo", "times the first", "rounds", f"s with {_FEW_PHOTOS} photos"], rows))
    click.echo(f"\nresults equal: {'yes' if len(set(lines)) == 1 else 'NO'}")


@contextmanager
def _control_group() -> Iterator[Path]:
    """A control group of version 1 or 2 that counts the processor time of its processes."""
    root = Path("/sys/fs/cgroup")
    group = (root / "cpuacct" if (root / "cpuacct").is_dir() else root) / f"facepipe-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        raise click.ClickException(
            f"{group}: can't be made ({error.strerror}); run as root, on Linux"
        ) from error
    try:
        yield group
    finally:
        group.rmdir()


def _command_s(folder: Path, photos: int, words: list[str], group: Path) -> float:
    """Seconds of processor time of a batch, in all its processes."""
    out = folder / f"out{len(words)}-{photos}"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "facepipe.cli", "batch", folder / f"photos{photos}"]
    enter = ["sh", "-c", f'echo $$ > "{group}/cgroup.procs" && exec "$@"', "sh"]
    before = _used_s(group)
    done = subprocess.run(
        [*enter, *map(str, command), "--gallery", str(folder / "gallery"), "--out", str(out), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise click.ClickException(done.stderr)
    while (group / "cgroup.procs").read_text(encoding="ascii"):
        time.sleep(0.1)
    return _used_s(group) - before


def _used_s(group: Path) -> float:
    if (group / "cpuacct.usage").exists():
        return int((group / "cpuacct.usage").read_text(encoding="ascii")) / 1e9
    return int((group / "cpu.stat").read_text(encoding="ascii").split()[1]) / 1e6


@main.command()
@click.option("--photos", default=20_000, show_default=True)
@click.option("--faces", default=1, show_default=True, help="Of every photo.")
@click.option("--people", default=1000, show_default=True, help="In the gallery.")
@click.option("--workers", default=2, show_default=True)
@click.option("--blind", is_flag=True, help="Workers see no files: bytes are sent.")
@click.option("--profile", is_flag=True)
def driver(photos: int, faces: int, people: int, workers: int, blind: bool, profile: bool) -> None:
    """Measure how many photos a second a driver deals with."""
    with _files(photos) as folder, _cluster(workers) as cluster:
        engine = EngineOptions(workers=RayOptions().worker_processors + 1)
        setup = StubSetup(_NETWORKS, AnalysisOptions(), engine, faces=faces, is_blind=blind)
        rate, busy = _rates(_run(folder, cluster, setup, people, workers=workers, profile=profile))
    click.echo(
        f"{rate:.0f} photos/s, {1e6 * busy / rate:.0f} us of processor time a photo; faces a photo: {faces}, "
        f"people: {people}, workers: {workers}"
    )


@main.command()
@click.option(
    "--workers", "counts", multiple=True, type=int, default=(1, 2, 4, 8, 16, 32, 64), show_default=True
)
@click.option("--photo-s", default=0.15, show_default=True, help="Seconds that a photo takes a worker.")
@click.option("--seconds", default=20.0, show_default=True, help="Work for so long.")
def scaling(counts: tuple[int, ...], photo_s: float, seconds: float) -> None:
    """Measure how much of their time workers have work."""
    rows = []
    for count in counts:
        photos = round(count * seconds / photo_s)
        with _files(photos) as folder, _cluster(count) as cluster:
            setup = StubSetup(_NETWORKS, AnalysisOptions(), EngineOptions(workers=3), photo_s=photo_s)
            rate, busy = _rates(_run(folder, cluster, setup, 1000, workers=count))
        rows.append([str(count), f"{rate:.1f}", f"{100 * rate * photo_s / count:.1f}%", f"{100 * busy:.0f}%"])
        click.echo(" ".join(rows[-1]), err=True)
    click.echo(table(["workers", "photos/s", "efficiency", "a processor's time of the driver"], rows))


@main.command()
@click.option("--photos", default=30_000, show_default=True)
def memory(photos: int) -> None:
    """Watch the driver's memory while bytes of photos are sent."""
    with _files(photos) as folder, _cluster(2) as cluster:
        setup = StubSetup(_NETWORKS, AnalysisOptions(), EngineOptions(), is_blind=True)
        moments = _run(folder, cluster, setup, 1, workers=2)
    third = len(moments) // 3
    parts = [moments[third * number : third * (number + 1)] for number in range(3)]
    rows = [
        [
            f"{part[0].photos} to {part[-1].photos}",
            f"{statistics.median(moment.resident_bytes for moment in part) / 1e6:.0f} MB",
            f"{max(moment.resident_bytes for moment in part) / 1e6:.0f} MB",
        ]
        for part in parts
    ]
    click.echo(table(["photos", "resident, median", "at most"], rows))


@contextmanager
def _files(count: int) -> Iterator[Path]:
    """A folder of so many files; most are links to others, and nobody decodes them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        for number in range(count):
            content = folder / f"content{number // _LINKS}"
            if number % _LINKS == 0:
                content.write_bytes(os.urandom(_FILE_BYTES))
            os.link(content, folder / f"photos/{number:07}.jpg")
        yield folder


@contextmanager
def _cluster(processors: int) -> Iterator[RayCluster]:
    os.environ["FACEPIPE_THREADS"] = str(processors)
    with RayCluster("local") as cluster:
        yield cluster


@dataclass(frozen=True, slots=True)
class _Moment:
    """How far a run was, and the processor time of the driver until then."""

    photos: int
    at_s: float
    worked_s: float
    resident_bytes: int


def _run(
    folder: Path,
    cluster: RayCluster,
    setup: StubSetup,
    people: int,
    *,
    workers: int,
    profile: bool = False,
) -> list[_Moment]:
    """Run a batch with stubs, and note its moments while all workers have work."""
    _enroll(folder / "gallery", people)
    moments: list[_Moment] = []
    ready = _ReadyWorkers()
    left = True

    def note(progress: BatchProgress) -> None:
        if left and ready.count >= workers:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            now = time.perf_counter(), time.process_time()
            moments.append(_Moment(progress.here, *now, pages * os.sysconf("SC_PAGESIZE")))

    def watched(tasks: Iterable[PhotoTask]) -> Iterator[PhotoTask]:
        nonlocal left
        yield from tasks
        left = False

    def make_engine(tasks: Iterable[PhotoTask]) -> RayEngine:
        options = RayOptions(worker_processors=1)
        return RayEngine(cluster, watched(tasks), setup, Installation({}, {}), options, StubWorker)

    logger = logging.getLogger("facepipe")
    logger.setLevel(logging.INFO)
    logger.addHandler(ready)
    with FacePipeline.load(folder / "gallery") as pipeline, Job(folder / "job", create=True) as job:
        batch = Batch(pipeline, job, make_engine=make_engine)
        batch.find([folder / "photos"])
        with cProfile.Profile() if profile else nullcontext() as profiler:
            batch.run(note)
    logger.removeHandler(ready)
    if profiler is not None:
        profiler.print_stats("tottime")
    if len(moments) < _FEWEST_MOMENTS:
        raise click.ClickException("not long enough: the workers never all had work; take more photos")
    return moments


class _ReadyWorkers(logging.Handler):
    """Counts the workers that are ready."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count a message of one."""
        self.count += "a worker is ready" in record.getMessage()


def _rates(moments: Sequence[_Moment]) -> tuple[float, float]:
    """Photos a second, and the driver's share of a processor."""
    first, last = moments[0], moments[-1]
    seconds = last.at_s - first.at_s
    return (last.photos - first.photos) / seconds, (last.worked_s - first.worked_s) / seconds


def _enroll(gallery: Path, people: int) -> None:
    """The astronaut, and others of random vectors."""
    dice = np.random.default_rng(0)
    with FacePipeline.load(gallery, create_gallery=True) as pipeline:
        faces = pipeline.embed(np.asarray(data.astronaut(), np.uint8))
        assert faces.embeddings is not None
        vectors = dice.normal(size=(people - 1, 128)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        assert pipeline.gallery is not None
        pipeline.gallery.add("Eileen Collins", [NewTemplate(embedding=faces.embeddings[0])])
        for number, vector in enumerate(vectors):
            pipeline.gallery.add(f"person {number}", [NewTemplate(embedding=vector)])


if __name__ == "__main__":
    main()
