"""Speed, size and recall of galleries of a thousand to millions of faces, in a folder and in PostgreSQL.

    python benchmarks/gallery.py [--size N]... [--engine NAME]... [--queries N] [--json FILE] [--folder DIR]
                                 [--postgres URL] [--processes N]

Needs no data: the embeddings are made up, as far from one another as those of real faces. Prints a table
for each size; hnswlib and usearch are compared where they are installed. A million faces need 4 GB of disk,
3 GB of memory and, with hnswlib and usearch, half an hour; ten million (`--size 10000000`) ten times as much.

With `--postgres` the same is measured of a gallery in that database (in a schema that is made and dropped),
searched in the memory of each process and by the server; the homes take turns.

Times are those of a clock; beside them, in brackets, the processor time of the searching thread. Where both
differ the machine was busy, and the second is what a quiet one would take.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # run as a file

from benchmarks.engines import ENGINES, Latency, measure_engine, timed
from benchmarks.made_up_faces import FACES_A_PERSON, FaceMaker, Faces, distances_made, make_faces
from benchmarks.opened_gallery import ENCODER, Many, Opened, many_opened, opened
from facepipe.core.faces import FloatArray
from facepipe.gallery import Gallery, NewTemplate
from facepipe.gallery.models import Contents, PersonContents
from facepipe.gallery.search.database import MEMORY_TEMPLATES_MAX

FPIR = 0.01
"""Share of strangers that get a name at the threshold called calibrated."""
_FILLED_AT_ONCE = 50_000
_ROUNDS = 3
SCHEMA = "facepipe_benchmark"


@dataclass(frozen=True, slots=True)
class Filling:
    """Measurements of filling a gallery; seconds are those of a clock.

    Attributes:
        faces_a_s: Added in transactions of 50,000.
        finish_s: To close it (a folder's index is saved) or to prepare the server for searching.
        disk_bytes_a_face: All that the gallery takes.
        index_bytes_a_face: Of these, what is derived from the faces for searching.
    """

    faces_a_s: float
    finish_s: float
    disk_bytes_a_face: float
    index_bytes_a_face: float


@dataclass(frozen=True, slots=True)
class Searching:
    """Measurements of opening and matching; the median of several rounds, where there are several."""

    open_and_first_match_cold_s: float | None
    open_and_first_match_s: float
    latency: Latency
    many: Many | None
    recall_at_1: float
    agreement_at_threshold: float
    calibrated_l2: float
    agreement_calibrated: float
    agreement_worst: float
    agreement_worst_at_l2: float
    memory_bytes_a_face: float


@dataclass(frozen=True, slots=True)
class Changing:
    """Measurements of changes to a full gallery."""

    add_1000_s: float
    add_1000_and_match_s: float
    remove_s: float
    is_removed_at_once: bool


@dataclass(frozen=True, slots=True)
class GalleryFigures:
    """Measurements of a gallery of one size in one home."""

    filling: Filling
    changing: Changing
    searching: Searching


def measure_folder(faces: Faces, folder: Path) -> dict[str, tuple[str, Filling, Changing]]:
    """Fill, close and change a gallery in a folder; returns its address and figures by the home's name."""
    with Gallery.open(folder, ENCODER, create=True) as gallery:
        filling_s = timed(lambda: _fill(gallery, faces.enrolled))[0]
        finish_s = timed(gallery.close)[0]
    disk = {file.name: file.stat().st_size for file in folder.iterdir()}
    filling = _filling(faces, filling_s, finish_s, sum(disk.values()), disk["index.faiss"])
    return {"folder": (str(folder), filling, _measure_changes(str(folder)))}


def measure_postgres(faces: Faces, url: str) -> dict[str, tuple[str, Filling, Changing]]:
    """Fill and change a gallery in a database, before and after its server is prepared for searching."""
    local, server = (
        f"{url}{'&' if '?' in url else '?'}schema={SCHEMA}&search={x}" for x in ("local", "server")
    )
    with Gallery.open(local, ENCODER, create=True) as gallery:
        filling_s = timed(lambda: _fill(gallery, faces.enrolled))[0]
        before = gallery.info().size_bytes
    changing = _measure_changes(local)
    finish_s = timed(lambda: Gallery.open(server, ENCODER).close())[0]
    with Gallery.open(server, ENCODER) as gallery:
        after = gallery.info().size_bytes
    return {
        "PostgreSQL, local": (local, _filling(faces, filling_s, 0.0, before, 0), changing),
        "PostgreSQL, server": (
            server,
            _filling(faces, filling_s, finish_s, after, after - before),
            _measure_changes(server),
        ),
    }


def _filling(faces: Faces, filling_s: float, finish_s: float, disk: int, index: int) -> Filling:
    size = len(faces.enrolled)
    return Filling(size / filling_s, finish_s, disk / size, index / size)


def measure_searching(
    faces: Faces, addresses: dict[str, str], queries: Path, processes: dict[str, int]
) -> dict[str, Searching]:
    """Open and match in new processes, the homes in turns, by the homes' names."""
    np.save(queries, faces.queries)
    cold = {"folder": opened(addresses["folder"], queries, evict=True).open_s}
    warm: dict[str, list[Opened]] = {name: [] for name in addresses}
    for _ in range(_ROUNDS):
        for name, address in addresses.items():
            warm[name].append(opened(address, queries))
    many = {
        name: many_opened(address, queries, processes[name])
        for name, address in addresses.items()
        if processes[name]
    }
    return {
        name: _searching(
            faces, sorted(rounds, key=lambda one: one.latency.p50_ms), cold.get(name), many.get(name)
        )
        for name, rounds in warm.items()
    }


def _searching(faces: Faces, rounds: list[Opened], cold_s: float | None, many: Many | None) -> Searching:
    """The round with the median latency stands for all."""
    median = rounds[len(rounds) // 2]
    names, distances = np.array([int(name) for name in median.names]), np.array(median.distances)
    calibrated = float(np.quantile(faces.people_l2[len(faces.known) :], FPIR))
    steps = np.arange(0.4, 1.3, 0.005)
    agreements = [_agreement(faces, distances, step) for step in steps]
    return Searching(
        open_and_first_match_cold_s=cold_s,
        open_and_first_match_s=sorted(one.open_s for one in rounds)[len(rounds) // 2],
        latency=median.latency,
        many=many,
        recall_at_1=float((names == faces.people).mean()),
        agreement_at_threshold=_agreement(faces, distances, ENCODER.threshold_l2),
        calibrated_l2=calibrated,
        agreement_calibrated=_agreement(faces, distances, calibrated),
        agreement_worst=min(agreements),
        agreement_worst_at_l2=float(steps[np.argmin(agreements)]),
        memory_bytes_a_face=median.memory_bytes / len(faces.enrolled),
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


def _measure_changes(address: str) -> Changing:
    newcomers = FaceMaker(100, seed=9).photos(np.repeat(np.arange(100), FACES_A_PERSON))
    first_person = 10**9
    with Gallery.open(address, ENCODER) as gallery:
        gallery.match(newcomers[:1])
        contents = _contents(newcomers, first_person)
        adding = timed(lambda: gallery.add_contents(contents))[0]
        matching = timed(lambda: gallery.match(newcomers[500:501]))[0]
        assert gallery.match(newcomers[500:501])[0].distance_l2 == 0
        removing = timed(lambda: gallery.remove(str(first_person + 50)))[0]
        (match,) = gallery.match(newcomers[500:501])
        is_removed = str(first_person + 50) not in (match.name, match.runner_up_name)
        others = [str(first_person + person) for person in range(100) if person != 50]
        gallery.remove_templates([face.id for name in others for face in gallery.templates(name)])
    return Changing(adding, adding + matching, removing, is_removed and match.distance_l2 != 0)


@contextmanager
def empty_schema(url: str) -> Iterator[None]:
    """Drop what an earlier run left in the database, and what this one leaves."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
        try:
            yield
        finally:
            connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")


def _lines(filling: Filling, changing: Changing, searching: Searching) -> Iterator[str]:
    yield f"    fill {filling.faces_a_s:,.0f} faces/s, close or prepare the server {filling.finish_s:.2f} s"
    cold_s = searching.open_and_first_match_cold_s
    cold = "" if cold_s is None else f"{cold_s:.2f} s cold, "
    yield f"    open and first match {cold}{searching.open_and_first_match_s:.2f} s warm"
    yield f"    {searching.latency}"
    if many := searching.many:
        yield (
            f"    {many.processes} processes at once {many.answers_per_s:,.0f} answers/s, one query "
            f"{many.p50_ms:.2f} ms, p99 {many.p99_ms:.2f} ms"
        )
    yield (
        f"    right person at rank 1 as by exact search {searching.recall_at_1:.2%}; "
        f"same decision {searching.agreement_at_threshold:.2%} at {ENCODER.threshold_l2}, "
        f"{searching.agreement_calibrated:.2%} at {searching.calibrated_l2:.3f} (names {FPIR:.0%} of "
        f"strangers), at worst {searching.agreement_worst:.2%} (at {searching.agreement_worst_at_l2:.3f})"
    )
    yield (
        f"    memory {searching.memory_bytes_a_face:,.0f} bytes/face; disk {filling.disk_bytes_a_face:,.0f}, "
        f"of which index {filling.index_bytes_a_face:,.0f}"
    )
    gone = "yes" if changing.is_removed_at_once else "NO"
    yield (
        f"    add 1,000 faces {changing.add_1000_s:.2f} s, and find one {changing.add_1000_and_match_s:.2f} "
        f"s; remove a person {changing.remove_s:.2f} s, gone at once: {gone}"
    )


def measure_homes(
    faces: Faces, folder: Path, postgres: str | None, processes: int
) -> dict[str, GalleryFigures]:
    """Measure a gallery in a folder and, where a database is given, there too; figures by the home's name."""
    homes = measure_folder(faces, folder / "gallery")
    if postgres:
        homes |= measure_postgres(faces, postgres)
    at_once = dict.fromkeys(homes, processes)
    if len(faces.enrolled) > MEMORY_TEMPLATES_MAX:
        at_once["PostgreSQL, local"] = 0  # Each of them would hold all vectors.
    addresses = {name: address for name, (address, *_) in homes.items()}
    searching = measure_searching(faces, addresses, folder / "queries.npy", at_once)
    return {
        name: GalleryFigures(filling, changing, searching[name])
        for name, (_, filling, changing) in homes.items()
    }


@click.command()
@click.option("--size", "sizes", multiple=True, type=int, default=(1000, 10_000, 100_000, 1_000_000))
@click.option("--engine", "engines", multiple=True, type=click.Choice(list(ENGINES)), default=list(ENGINES))
@click.option("--no-engines", is_flag=True, help="Only the gallery.")
@click.option("--queries", default=1000, show_default=True, help="Of known people, and as many strangers.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures here too.")
@click.option("--folder", type=click.Path(path_type=Path, exists=True), help="Where there is room.")
@click.option("--postgres", metavar="URL", help="A database with pgvector, to measure there too.")
@click.option("--processes", default=8, show_default=True, help="That match at the same time.")
def main(
    sizes: tuple[int, ...],
    engines: tuple[str, ...],
    no_engines: bool,
    queries: int,
    json_file: Path | None,
    folder: Path | None,
    postgres: str | None,
    processes: int,
) -> None:
    """Print a table for each size."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    click.echo(f"{os.cpu_count()} processors, load {load:.1f} at the start; {distances_made()}")
    report: dict[str, Any] = {"processors": os.cpu_count(), "load": load, "sizes": {}}
    for size in sizes:
        click.echo(f"{size:,} faces of {size // FACES_A_PERSON:,} people")
        with (
            tempfile.TemporaryDirectory(dir=folder) as temporary,
            empty_schema(postgres) if postgres else nullcontext(),
        ):
            faces = make_faces(size, queries, Path(temporary) / "faces.npy")
            figures = measure_homes(faces, Path(temporary), postgres, processes)
            for name, one in figures.items():
                click.echo(f"  gallery, {name}")
                for line in _lines(one.filling, one.changing, one.searching):
                    click.echo(line)
            report["sizes"][size] = {
                "galleries": {name: asdict(one) for name, one in figures.items()},
                "engines": {},
            }
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
