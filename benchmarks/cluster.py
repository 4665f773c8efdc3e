"""What does a batch over a Ray cluster cost, how many photos can its driver feed, and how many workers?

    python -m benchmarks.cluster overhead [--photos N] [--rounds N] [--source DIR]
    python -m benchmarks.cluster driver [--photos N] [--faces N] [--people N]
    python -m benchmarks.cluster scaling [--workers N]... [--photo-s S] [--seconds S]
    python -m benchmarks.cluster memory [--photos N]

`overhead`: `facepipe batch` with and without `--ray local`, in turns, on the same processors.
`driver`: workers that answer at once, so that what the driver does for a photo is all there is: look at its
file, hand it out, name its faces, save them.
`scaling`: workers that sleep instead of computing; efficiency is what they get done by what they could.
`memory`: resident bytes of the driver while workers get the bytes of many photos.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from skimage import data

from benchmarks.measure import table
from benchmarks.pipeline import make_folder
from facepipe.batch.analysis import AnalysisOptions
from facepipe.batch.engine import EngineOptions
from facepipe.batch.job import Job
from facepipe.batch.models import PREVIEW, PhotoAnalysis
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
@click.option("--photos", default=120, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option(
    "--source", type=click.Path(path_type=Path, exists=True), help="Photos to make the folder from."
)
def overhead(photos: int, rounds: int, source: Path | None) -> None:
    """Compare `facepipe batch` with and without --ray local, in turns."""
    ways: dict[str, list[str]] = {"batch": [], "batch --ray local": ["--ray", "local"]}
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_folder(folder / "photos", source, photos)
        _enroll(folder / "gallery", 1)
        for _ in range(rounds):
            for way, words in ways.items():
                seconds[way].append(_command_seconds(folder, words))
        lines = [(folder / f"out{len(words)}/results.jsonl").read_bytes() for words in ways.values()]
    whole = {way: statistics.median(row[0] for row in rows) for way, rows in seconds.items()}
    alone = {way: statistics.median(row[1] for row in rows) for way, rows in seconds.items()}
    first = next(iter(ways))
    rows = [
        [
            way,
            f"{photos / alone[way]:.2f}",
            f"{alone[way] / alone[first]:.3f}",
            f"{min(row[1] for row in seconds[way]):.1f} to {max(row[1] for row in seconds[way]):.1f}",
            f"{whole[way] - alone[way]:.1f}",
        ]
        for way in ways
    ]
    click.echo(table(["", "photos/s", "times the first", "seconds", "seconds before and after"], rows))
    click.echo(f"\nresults equal: {'yes' if len(set(lines)) == 1 else 'NO'}")


def _command_seconds(folder: Path, words: list[str]) -> tuple[float, float]:
    """Of the whole command, and from the first worker that is ready to the last photo."""
    out = folder / f"out{len(words)}"
    shutil.rmtree(out, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "facepipe.cli",
        "batch",
        folder / "photos",
        "--gallery",
        folder / "gallery",
    ]
    started = time.perf_counter()
    begun, ended = 0.0, 0.0
    with subprocess.Popen(
        [*map(str, command), "--out", str(out), *words], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            now = time.perf_counter()
            begun = now if ("0/" in line and not begun) or "is ready" in line else begun
            ended = now if "photos, " in line and "analyzed now" not in line else ended
    return time.perf_counter() - started, ended - begun


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
        options = RayOptions(worker_processors=1)
        rate, busy = _run(folder, cluster, setup, options, people, profile=profile)
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
            options = RayOptions(worker_processors=1)
            rate, busy = _run(folder, cluster, setup, options, 1000, workers=count)
        rows.append([str(count), f"{rate:.1f}", f"{100 * rate * photo_s / count:.1f}%", f"{100 * busy:.0f}%"])
        click.echo(" ".join(rows[-1]), err=True)
    click.echo(table(["workers", "photos/s", "efficiency", "a processor's time of the driver"], rows))


@main.command()
@click.option("--photos", default=30_000, show_default=True)
def memory(photos: int) -> None:
    """Watch the driver's memory while bytes of photos are sent."""
    with _files(photos) as folder, _cluster(2) as cluster:
        setup = StubSetup(_NETWORKS, AnalysisOptions(), EngineOptions(), is_blind=True)
        sizes: list[tuple[int, int]] = []
        _run(folder, cluster, setup, RayOptions(worker_processors=1), 1, sizes=sizes)
    third = len(sizes) // 3
    rows = [
        [f"{part[0][0]} to {part[-1][0]}", f"{statistics.median(size for _, size in part) / 1e6:.0f} MB"]
        for part in (sizes[third * n : third * (n + 1)] for n in range(3))
    ]
    click.echo(table(["photos", "resident, median"], rows))


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


def _run(
    folder: Path,
    cluster: RayCluster,
    setup: StubSetup,
    options: RayOptions,
    people: int,
    *,
    workers: int = 1,
    profile: bool = False,
    sizes: list[tuple[int, int]] | None = None,
) -> tuple[float, float]:
    """Photos a second between a tenth and nine tenths of the work, and the driver's share of a processor."""
    _enroll(folder / "gallery", people)
    times: list[tuple[int, float, float]] = []

    def note(progress: BatchProgress) -> None:
        times.append((progress.here, time.perf_counter(), time.process_time()))
        if sizes is not None:
            sizes.append((progress.here, int(Path("/proc/self/statm").read_text().split()[1]) * 4096))

    def make_engine(tasks: Iterable[Any]) -> RayEngine:
        return RayEngine(cluster, tasks, setup, Installation({}, {}), options, StubWorker)

    with FacePipeline.load(folder / "gallery") as pipeline, Job(folder / "job", create=True) as job:
        batch = Batch(pipeline, job, make_engine=make_engine)
        batch.find([folder / "photos"])
        if profile:
            import cProfile

            with cProfile.Profile() as profiler:
                batch.run(note)
            profiler.print_stats("tottime")
        else:
            batch.run(note)
    total = times[-1][0]
    inner = [row for row in times if total / 10 <= row[0] <= total * 0.9]
    (first, begun, worked), (last, ended, done) = inner[0], inner[-1]
    return (last - first) / (ended - begun), (done - worked) / (ended - begun)


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
