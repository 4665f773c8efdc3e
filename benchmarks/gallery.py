"""How fast, how large and how right is a gallery of a thousand, or of a million faces?

    python benchmarks/gallery.py [--size N]... [--engine NAME]... [--queries N] [--json FILE] [--folder DIR]

Needs no data: the vectors are made up, to be as far from one another as those of real faces. Prints a table
for each size; hnswlib and usearch are compared where they are installed. A million faces need 4 GB of disk,
3 GB of memory and, with hnswlib and usearch, half an hour; ten million (`--size 10000000`) ten times as much.

Times are those of a clock; beside them, in brackets, the processor time of the searching thread. Where both
differ the machine was busy, and the second is what a quiet one would take.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    del sys.path[0]  # Else `gallery` would be this file.

from facepipe.core.faces import FloatArray
from facepipe.gallery import EncoderIdentity, Gallery, NewTemplate
from facepipe.gallery.models import Contents, PersonContents

DIMENSIONS = 128
FACES_A_PERSON = 10
STRANGERS_L2 = (1.339, 0.111)
"""Mean and deviation of the distances between faces of different people: 2,442,422 couples among 2,217
aligned crops of 300 people (Families in the Wild, CelebA), by an early facenet_dense (blocks 1, 2, 2),
mirror images averaged."""
SAME_PERSON_L2 = (0.951, 0.182)
"""Of 14,014 couples of the same person among them."""
ENCODER = EncoderIdentity("made up", "0" * 16, DIMENSIONS, threshold_l2=1.04)
"""The threshold is about that of the shipped encoder for small galleries."""
FPIR = 0.01
"""Share of strangers that get a name at the threshold called calibrated."""
_BATCH = 64
_WARM_UP = 20
_CHUNK = 1 << 16
_FILLED_AT_ONCE = 50_000

Search = Callable[[FloatArray], npt.NDArray[np.int64]]
"""Queries to the numbers (from 0) of the nearest face of each."""


@dataclass(frozen=True, slots=True)
class Faces:
    """What is searched, and for what.

    Attributes:
        enrolled: float32 (n, d), mapped from a file; person i owns rows 10 i to 10 i + 9.
        known: float32 (q, d), other photos of enrolled people.
        strangers: float32 (q, d).
        nearest: int64 (2 q,), the nearest row of each query, known ones first, by exact search.
        people: int64 (2 q,), the nearest person: by rows and means of rows.
        people_l2: float64 (2 q,).
    """

    enrolled: FloatArray
    known: FloatArray
    strangers: FloatArray
    nearest: npt.NDArray[np.int64]
    people: npt.NDArray[np.int64]
    people_l2: npt.NDArray[np.float64]

    @property
    def queries(self) -> FloatArray:
        """Known ones first."""
        return np.concatenate([self.known, self.strangers])


class FaceMaker:
    """Makes up unit vectors with the distances measured of real faces.

    A face is the mean face, plus what is the person's own, plus what is the photo's own (of which some photos
    have more), in directions that matter unequally, as those of real vectors do; then the whole is turned at
    random. The weights were chosen so that the distances come out as measured; `main` prints what comes out.
    """

    def __init__(self, people: int, seed: int = 1) -> None:
        self._rng = np.random.default_rng(seed)
        self._turn = np.linalg.qr(self._rng.standard_normal((DIMENSIONS, DIMENSIONS)))[0].astype(np.float32)
        self._photo_scale = _spread(total=0.44, fading=25)
        self._people = self._rng.standard_normal((people, DIMENSIONS), np.float32)
        self._people *= _spread(total=0.46, fading=15)
        self._people += np.float32(0.317 / np.sqrt(DIMENSIONS))

    def photos(self, people: npt.NDArray[np.int64]) -> FloatArray:
        """float32 (n, d): one new photo of each person."""
        amount = np.exp(0.42 * self._rng.standard_normal((len(people), 1), np.float32))
        own = self._rng.standard_normal((len(people), DIMENSIONS), np.float32) * self._photo_scale
        faces = (self._people[people] + amount * own) @ self._turn
        return faces / np.linalg.norm(faces, axis=1, keepdims=True)


def _spread(total: float, fading: float) -> FloatArray:
    """Deviation (d,) along each direction; the variances fade exponentially and sum up to `total`."""
    variances = np.exp(-np.arange(DIMENSIONS) / fading)
    return np.sqrt(total * variances / variances.sum()).astype(np.float32)


def make_faces(size: int, queries: int, file: Path) -> Faces:
    """Enrolled faces in `file`, and queries with their exact answers."""
    people = size // FACES_A_PERSON
    maker = FaceMaker(people + queries)
    enrolled = np.lib.format.open_memmap(file, "w+", np.float32, (people * FACES_A_PERSON, DIMENSIONS))
    for at in range(0, len(enrolled), _CHUNK):
        rows = np.arange(at, min(at + _CHUNK, len(enrolled)))
        enrolled[rows] = maker.photos(rows // FACES_A_PERSON)
    known = maker.photos(np.random.default_rng(2).integers(0, people, queries))
    strangers = maker.photos(people + np.arange(queries))
    everybody = np.concatenate([known, strangers])
    nearest = nearest_by_brute_force(enrolled, everybody)
    return Faces(enrolled, known, strangers, nearest, *_nearest_people(enrolled, nearest, everybody))


def _nearest_people(
    enrolled: FloatArray, nearest: npt.NDArray[np.int64], queries: FloatArray
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The nearest person of each query, and how far: the nearest row's, or one with a nearer mean."""
    means = enrolled.reshape(-1, FACES_A_PERSON, DIMENSIONS).mean(axis=1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    by_mean = nearest_by_brute_force(means, queries)
    rows_l2, means_l2 = (
        np.linalg.norm(vectors.astype(np.float64) - queries, axis=1)
        for vectors in (enrolled[nearest], means[by_mean])
    )
    people = np.where(means_l2 < rows_l2, by_mean, nearest // FACES_A_PERSON)
    return people, np.minimum(rows_l2, means_l2)


def nearest_by_brute_force(enrolled: FloatArray, queries: FloatArray) -> npt.NDArray[np.int64]:
    """The nearest row of each query, by all products."""
    best = np.full(len(queries), -np.inf, np.float32)
    nearest = np.zeros(len(queries), np.int64)
    for at in range(0, len(enrolled), _CHUNK):
        scores = queries @ enrolled[at : at + _CHUNK].T
        column = scores.argmax(axis=1)
        score = scores[np.arange(len(queries)), column]
        nearest[score > best] = (at + column)[score > best]
        best = np.maximum(best, score)
    return nearest


@dataclass(frozen=True, slots=True)
class Latency:
    """Of one query and of a batch of 64, in milliseconds; `cpu` of the searching thread."""

    p50_ms: float
    p99_ms: float
    p50_cpu_ms: float
    p99_cpu_ms: float
    batch_p50_ms: float
    batch_p99_ms: float

    def __str__(self) -> str:
        return (
            f"one query {self.p50_ms:8.2f} ms, p99 {self.p99_ms:8.2f} ms "
            f"[{self.p50_cpu_ms:.2f}, {self.p99_cpu_ms:.2f}]; "
            f"batch of {_BATCH} {self.batch_p50_ms:8.1f} ms, p99 {self.batch_p99_ms:8.1f} ms"
        )


def latency_of(search: Callable[[FloatArray], object], queries: FloatArray) -> Latency:
    """Times every query by itself, and batches of 64 for as long."""
    for query in queries[:_WARM_UP]:
        search(query[None])
    singles = np.array([_timed(lambda query=query: search(query[None])) for query in queries])
    batches = [queries[at : at + _BATCH] for at in range(0, len(queries) - _BATCH + 1, _BATCH)]
    batched = np.array([_timed(lambda batch=batch: search(batch)) for batch in batches])
    (p50, p50_cpu), (p99, p99_cpu) = np.percentile(1000 * singles, [50, 99], axis=0)
    batch_p50, batch_p99 = np.percentile(1000 * batched[:, 0], [50, 99])
    return Latency(*map(float, (p50, p99, p50_cpu, p99_cpu, batch_p50, batch_p99)))


def _timed(act: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of this thread's processor time."""
    started, started_cpu = time.perf_counter(), time.thread_time()
    act()
    return time.perf_counter() - started, time.thread_time() - started_cpu


# The gallery


@dataclass(frozen=True, slots=True)
class GalleryFigures:
    """What the gallery does at one size; the seconds are those of a clock."""

    fill_faces_a_s: float
    save_s: float
    open_and_first_match_cold_s: float
    open_and_first_match_s: float
    latency: Latency
    recall_at_1: float
    agreement_at_threshold: float
    calibrated_l2: float
    agreement_calibrated: float
    agreement_worst: float
    agreement_worst_at_l2: float
    memory_bytes_a_face: float
    disk_bytes_a_face: float
    index_bytes_a_face: float
    add_1000_s: float
    add_1000_and_match_s: float
    remove_s: float
    is_removed_at_once: bool


def measure_gallery(faces: Faces, folder: Path) -> GalleryFigures:
    """Fill, close, open cold and warm, search, add and remove."""
    size = len(faces.enrolled)
    with Gallery.open(folder, ENCODER, create=True) as gallery:
        filling = _timed(lambda: _fill(gallery, faces.enrolled))[0]
        saving = _timed(gallery.close)[0]
    disk = {file.name: file.stat().st_size for file in folder.iterdir()}
    np.save(folder.parent / "queries.npy", faces.queries)
    cold = _in_another_process(folder, evict=True)
    warm = _in_another_process(folder, evict=False)
    names = [int(name) for name in warm["names"]]
    distances = np.array(warm["distances"])
    calibrated = float(np.quantile(faces.people_l2[len(faces.known) :], FPIR))
    steps = np.arange(0.4, 1.3, 0.005)
    agreements = [_agreement(faces, distances, step) for step in steps]
    return GalleryFigures(
        fill_faces_a_s=size / filling,
        save_s=saving,
        open_and_first_match_cold_s=cold["open_s"],
        open_and_first_match_s=warm["open_s"],
        latency=Latency(**warm["latency"]),
        recall_at_1=float((np.array(names) == faces.people).mean()),
        agreement_at_threshold=_agreement(faces, distances, ENCODER.threshold_l2),
        calibrated_l2=calibrated,
        agreement_calibrated=_agreement(faces, distances, calibrated),
        agreement_worst=min(agreements),
        agreement_worst_at_l2=float(steps[np.argmin(agreements)]),
        memory_bytes_a_face=warm["memory_bytes"] / size,
        disk_bytes_a_face=sum(disk.values()) / size,
        index_bytes_a_face=disk["index.faiss"] / size,
        **_measure_changes(folder),
    )


def _fill(gallery: Gallery, enrolled: FloatArray) -> None:
    """In transactions of some thousand faces, as merging galleries does; person i has the name i."""
    for at in range(0, len(enrolled), _FILLED_AT_ONCE):
        rows = enrolled[at : at + _FILLED_AT_ONCE]
        gallery.add_contents(_contents(rows, at // FACES_A_PERSON))


def _contents(vectors: FloatArray, first_person: int) -> Contents:
    people = {}
    for at in range(0, len(vectors), FACES_A_PERSON):
        person = first_person + at // FACES_A_PERSON
        templates = [
            _template(vector, f"{person}-{photo}")
            for photo, vector in enumerate(vectors[at : at + FACES_A_PERSON])
        ]
        people[str(person)] = PersonContents(templates)
    return Contents(people)


def _template(vector: FloatArray, photo: str) -> NewTemplate:
    return NewTemplate(
        np.array(vector),
        source=f"/home/photos/2024/{photo}.jpg",
        box_xyxy=(100.5, 50.25, 220.5, 210.75),
        quality=0.98,
        photo_sha256=hashlib.sha256(photo.encode()).hexdigest(),
    )


def _agreement(faces: Faces, distances: npt.NDArray[np.float64], threshold_l2: float) -> float:
    """Share of queries that get, or don't get, a name as exact search decides."""
    return float(((distances <= threshold_l2) == (faces.people_l2 <= threshold_l2)).mean())


def _measure_changes(folder: Path) -> dict[str, Any]:
    newcomers = FaceMaker(100, seed=9).photos(np.repeat(np.arange(100), FACES_A_PERSON))
    first_person = 10**9
    with Gallery.open(folder, ENCODER) as gallery:
        gallery.match(newcomers[:1])
        contents = _contents(newcomers, first_person)
        adding = _timed(lambda: gallery.add_contents(contents))[0]
        matching = _timed(lambda: gallery.match(newcomers[500:501]))[0]
        assert gallery.match(newcomers[500:501])[0].distance_l2 == 0
        removing = _timed(lambda: gallery.remove(str(first_person + 50)))[0]
        (match,) = gallery.match(newcomers[500:501])
        is_removed = str(first_person + 50) not in (match.name, match.runner_up_name)
    return {
        "add_1000_s": adding,
        "add_1000_and_match_s": adding + matching,
        "remove_s": removing,
        "is_removed_at_once": is_removed and match.distance_l2 != 0,
    }


def _in_another_process(folder: Path, evict: bool) -> dict[str, Any]:
    """What a new process measures of the gallery, of whose files nothing is in memory where `evict`."""
    if evict:
        for file in folder.iterdir():
            _evict(file)
    run = [sys.executable, __file__, "--measure", str(folder)]
    answer: dict[str, Any] = json.loads(subprocess.run(run, check=True, capture_output=True).stdout)
    return answer


def _evict(file: Path) -> None:
    """Drop a file from the page cache."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _measure_opened(folder: Path) -> dict[str, Any]:
    """Inside that process: opening, searching, memory."""
    queries = np.load(folder.parent / "queries.npy")
    import faiss  # noqa: F401  Its own import is no matter of size.

    queries[:_BATCH] @ queries.T  # Nor are the buffers that BLAS makes.
    before = _resident_bytes()
    started = time.perf_counter()
    with Gallery.open(folder, ENCODER) as gallery:

        def match(some: FloatArray) -> list[Any]:
            return list(gallery.match(some, threshold_l2=2.0, one_person_per_photo=False))

        match(queries[:1])
        opened = time.perf_counter() - started
        latency = latency_of(match, queries)
        matches = [match(query[None])[0] for query in queries]
        memory = _resident_bytes() - before
    return {
        "open_s": opened,
        "latency": asdict(latency),
        "memory_bytes": memory,
        "names": [match.name for match in matches],
        "distances": [match.distance_l2 for match in matches],
    }


def _resident_bytes() -> int:
    """All memory of this process that is in use, what it has mapped of files too; Linux only, else 0."""
    gc.collect()
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return 1024 * int(fields["VmRSS"].split()[0])


# The engines by themselves


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """An index without names, changes or files."""

    build_s: float
    latency: Latency
    recall_at_1: float
    memory_bytes_a_face: float


def measure_engine(build: Callable[[FloatArray], Search], faces: Faces) -> EngineFigures:
    """Build, search, and compare with exact search."""
    before = _resident_bytes()
    started = time.perf_counter()
    search = build(faces.enrolled)
    building = time.perf_counter() - started
    found = np.concatenate([search(query[None]) for query in faces.queries])
    latency = latency_of(search, faces.queries)
    memory = (_resident_bytes() - before) / len(faces.enrolled)
    return EngineFigures(building, latency, float((found == faces.nearest).mean()), memory)


def _numpy(enrolled: FloatArray) -> Search:
    held = np.array(enrolled)
    return lambda queries: nearest_by_brute_force(held, queries)


def _flat(enrolled: FloatArray) -> Search:
    import faiss

    index = faiss.IndexFlatL2(DIMENSIONS)
    for at in range(0, len(enrolled), _CHUNK):
        index.add(np.ascontiguousarray(enrolled[at : at + _CHUNK]))
    return lambda queries: np.asarray(index.search(queries, 1)[1][:, 0])


def _hnswlib(enrolled: FloatArray) -> Search:
    import hnswlib

    index = hnswlib.Index("ip", DIMENSIONS)
    index.init_index(max_elements=len(enrolled), M=16, ef_construction=200)
    for at in range(0, len(enrolled), _CHUNK):
        index.add_items(enrolled[at : at + _CHUNK])
    index.set_ef(400)
    return lambda queries: index.knn_query(queries, 1)[0][:, 0].astype(np.int64)


def _usearch(enrolled: FloatArray) -> Search:
    from usearch.index import Index

    index = Index(ndim=DIMENSIONS, metric="ip", dtype="f32", expansion_add=200, expansion_search=400)
    for at in range(0, len(enrolled), _CHUNK):
        index.add(np.arange(at, min(at + _CHUNK, len(enrolled))), np.array(enrolled[at : at + _CHUNK]))

    def search(queries: FloatArray) -> npt.NDArray[np.int64]:
        return np.asarray(index.search(queries, 1).keys, np.int64).reshape(-1)

    return search


_ENGINES = {
    "NumPy brute force": _numpy,
    "FAISS IndexFlatL2": _flat,
    "hnswlib M=16 ef=400": _hnswlib,
    "usearch M=16 ef=400": _usearch,
}


# The report


def _lines(figures: GalleryFigures) -> Iterator[str]:
    yield f"  fill {figures.fill_faces_a_s:,.0f} faces/s, close (index saved) {figures.save_s:.2f} s"
    yield (
        f"  open and first match {figures.open_and_first_match_cold_s:.2f} s cold, "
        f"{figures.open_and_first_match_s:.2f} s warm"
    )
    yield f"  {figures.latency}"
    yield (
        f"  right person at rank 1 as by exact search {figures.recall_at_1:.2%}; "
        f"same decision {figures.agreement_at_threshold:.2%} at {ENCODER.threshold_l2}, "
        f"{figures.agreement_calibrated:.2%} at {figures.calibrated_l2:.3f} (names {FPIR:.0%} of strangers), "
        f"at worst {figures.agreement_worst:.2%} (at {figures.agreement_worst_at_l2:.3f})"
    )
    yield (
        f"  memory {figures.memory_bytes_a_face:,.0f} bytes/face; disk {figures.disk_bytes_a_face:,.0f}, "
        f"of which index {figures.index_bytes_a_face:,.0f}"
    )
    gone = "yes" if figures.is_removed_at_once else "NO"
    yield (
        f"  add 1,000 faces {figures.add_1000_s:.2f} s, and find one {figures.add_1000_and_match_s:.2f} s; "
        f"remove a person {figures.remove_s:.2f} s, gone at once: {gone}"
    )


def _distances_made(seed: int = 5) -> str:
    """What the made-up faces' distances come out as, beside those of real ones."""
    maker = FaceMaker(2000, seed)
    people = np.arange(2000)
    one, other = maker.photos(people), maker.photos(people)
    same = np.linalg.norm(one - other, axis=1)
    strangers = np.linalg.norm(one - np.roll(other, 1, axis=0), axis=1)
    return (
        f"distances made: same person {same.mean():.3f} +- {same.std():.3f} "
        f"(real faces {SAME_PERSON_L2[0]} +- {SAME_PERSON_L2[1]}), "
        f"strangers {strangers.mean():.3f} +- {strangers.std():.3f} "
        f"(real {STRANGERS_L2[0]} +- {STRANGERS_L2[1]})"
    )


@click.command()
@click.option("--size", "sizes", multiple=True, type=int, default=(1000, 10_000, 100_000, 1_000_000))
@click.option("--engine", "engines", multiple=True, type=click.Choice(list(_ENGINES)), default=list(_ENGINES))
@click.option("--no-engines", is_flag=True, help="Only the gallery.")
@click.option("--queries", default=1000, show_default=True, help="Of known people, and as many strangers.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures here too.")
@click.option("--folder", type=click.Path(path_type=Path, exists=True), help="Where there is room.")
@click.option("--measure", type=click.Path(path_type=Path), hidden=True)
def main(
    sizes: tuple[int, ...],
    engines: tuple[str, ...],
    no_engines: bool,
    queries: int,
    json_file: Path | None,
    folder: Path | None,
    measure: Path | None,
) -> None:
    """Print a table for each size."""
    if measure:
        click.echo(json.dumps(_measure_opened(measure)))
        return
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    click.echo(f"{os.cpu_count()} processors, load {load:.1f} at the start; {_distances_made()}")
    report: dict[str, Any] = {"processors": os.cpu_count(), "load": load, "sizes": {}}
    for size in sizes:
        click.echo(f"{size:,} faces of {size // FACES_A_PERSON:,} people")
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            faces = make_faces(size, queries, Path(temporary) / "faces.npy")
            figures = measure_gallery(faces, Path(temporary) / "gallery")
            for line in _lines(figures):
                click.echo(line)
            report["sizes"][size] = {"gallery": asdict(figures), "engines": {}}
            for name in () if no_engines else engines:
                try:
                    engine = measure_engine(_ENGINES[name], faces)
                except ImportError as error:
                    click.echo(f"  {name}: left out ({error})")
                    continue
                report["sizes"][size]["engines"][name] = asdict(engine)
                click.echo(
                    f"  {name}: built in {engine.build_s:.1f} s; {engine.latency}; "
                    f"rank 1 {engine.recall_at_1:.2%}; {engine.memory_bytes_a_face:,.0f} bytes/face"
                )
    if json_file:
        json_file.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
