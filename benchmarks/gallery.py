"""Speed, size and recall of galleries of a thousand to millions of faces.

    python benchmarks/gallery.py [--size N]... [--engine NAME]... [--queries N] [--json FILE] [--folder DIR]

Needs no data: the embeddings are made up, as far from one another as those of real faces. Prints a table
for each size; hnswlib and usearch are compared where they are installed. A million faces need 4 GB of disk,
3 GB of memory and, with hnswlib and usearch, half an hour; ten million (`--size 10000000`) ten times as much.

Times are those of a clock; beside them, in brackets, the processor time of the searching thread. Where both
differ the machine was busy, and the second is what a quiet one would take.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # run as a file

from benchmarks.engines import BATCH, ENGINES, Latency, latency_of, measure_engine, resident_bytes, timed
from benchmarks.made_up_faces import DIMENSIONS, FACES_A_PERSON, FaceMaker, Faces, distances_made, make_faces
from facepipe.core.faces import FloatArray
from facepipe.gallery import EncoderIdentity, Gallery, NewTemplate
from facepipe.gallery.models import Contents, PersonContents

ENCODER = EncoderIdentity("made up", "0" * 16, DIMENSIONS, threshold_l2=1.04)
"""The threshold is about that of the shipped encoder for small galleries."""
FPIR = 0.01
"""Share of strangers that get a name at the threshold called calibrated."""
_FILLED_AT_ONCE = 50_000


@dataclass(frozen=True, slots=True)
class GalleryFigures:
    """Measurements of a gallery of one size; seconds are those of a clock."""

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
        filling = timed(lambda: _fill(gallery, faces.enrolled))[0]
        saving = timed(gallery.close)[0]
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
        adding = timed(lambda: gallery.add_contents(contents))[0]
        matching = timed(lambda: gallery.match(newcomers[500:501]))[0]
        assert gallery.match(newcomers[500:501])[0].distance_l2 == 0
        removing = timed(lambda: gallery.remove(str(first_person + 50)))[0]
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

    queries[:BATCH] @ queries.T  # Nor are the buffers that BLAS makes.
    before = resident_bytes()
    started = time.perf_counter()
    with Gallery.open(folder, ENCODER) as gallery:

        def match(some: FloatArray) -> list[Any]:
            return list(gallery.match(some, threshold_l2=2.0, one_person_per_photo=False))

        match(queries[:1])
        opened = time.perf_counter() - started
        latency = latency_of(match, queries)
        matches = [match(query[None])[0] for query in queries]
        memory = resident_bytes() - before
    return {
        "open_s": opened,
        "latency": asdict(latency),
        "memory_bytes": memory,
        "names": [match.name for match in matches],
        "distances": [match.distance_l2 for match in matches],
    }


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


@click.command()
@click.option("--size", "sizes", multiple=True, type=int, default=(1000, 10_000, 100_000, 1_000_000))
@click.option("--engine", "engines", multiple=True, type=click.Choice(list(ENGINES)), default=list(ENGINES))
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
    click.echo(f"{os.cpu_count()} processors, load {load:.1f} at the start; {distances_made()}")
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
                    engine = measure_engine(ENGINES[name], faces)
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
