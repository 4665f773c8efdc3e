"""How soon the page of `facepipe review` answers, with many faces.

    python benchmarks/review.py [--faces N] [--people N] [--repeats N] [--folder DIR]

Needs no data: the embeddings are made up, as far from one another as those of real faces, two or three in a
photo; half of the people are enrolled with three faces each. Prints the median and the slowest time of each
request in milliseconds and, in brackets, the processor time of the server, that of naming behind it included:
where it is far less, the machine was busy. Making 100,000 faces takes some minutes and 1 GB of disk;
`--folder` keeps them.
"""

from __future__ import annotations

import hashlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
from PIL import Image

if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # run as a file

from benchmarks.made_up_faces import FaceMaker
from facepipe.batch.job import Job
from facepipe.batch.models import PhotoAnalysis, PhotoTask
from facepipe.batch.naming import options_to_dict
from facepipe.core.faces import Faces, FloatArray, Match
from facepipe.gallery import Gallery, NewTemplate
from facepipe.library.library import Library
from facepipe.pipeline import NamingOptions, card_identity
from facepipe.weights.registry import DEFAULT_ENCODER, load_card

_TEMPLATES = 3
_FACES_A_PHOTO = (2, 3)
_NOBODY = Match(None, None, 1.0, reason="nobody_near")
_MOST_REPEATS = 50
_TILES = 24
"""Pictures of the first screen."""


def make_library(folder: Path, face_count: int, person_count: int) -> None:
    """Make a batch and its gallery."""
    people = np.arange(face_count) % person_count
    np.random.default_rng(0).shuffle(people)
    maker = FaceMaker(person_count)
    embeddings = maker.photos(people)
    gallery = Gallery.open(folder / "gallery", card_identity(load_card(DEFAULT_ENCODER).card), create=True)
    with gallery:
        for person in range(0, person_count, 2):
            own = maker.photos(np.full(_TEMPLATES, person))
            gallery.add(f"Person {person}", [NewTemplate(embedding=vector) for vector in own])
        threshold_l2 = gallery.default_threshold_l2
    assert threshold_l2 is not None
    with Job(folder / "out", create=True) as job:
        job.require_settings({"detector options": {"max_side": 1280}}, again=False)
        job.remember_naming(folder / "gallery", options_to_dict(NamingOptions()))
        _save_photos(job, folder, embeddings)
    with Library.open(folder / "out") as library:
        library.name_everything()
        library.regroup()


def _save_photos(job: Job, folder: Path, embeddings: FloatArray) -> None:
    sizes = np.resize(_FACES_A_PHOTO, len(embeddings))
    ends = np.cumsum(sizes)
    ends = np.append(ends[ends < len(embeddings)], len(embeddings))
    (folder / "photos").mkdir()
    paths = [folder / "photos" / f"{number:06d}.jpg" for number in range(len(ends))]
    for path in paths:
        path.write_bytes(path.name.encode())
    job.plan(paths)
    portions = np.split(embeddings, ends[:-1])
    picture = _picture()
    job.save(
        (_analysis(task, own, picture) for task, own in zip(job.waiting(), portions, strict=True)), "names"
    )


def _analysis(task: PhotoTask, embeddings: FloatArray, picture: bytes) -> PhotoAnalysis:
    count = len(embeddings)
    lefts = 220.0 * np.arange(count)
    boxes = np.stack([lefts, np.full(count, 50.0), lefts + 180, np.full(count, 250.0)], axis=1)
    landmarks = np.repeat(boxes[:, None, :2], 5, axis=1) + np.array(
        [[50, 70], [130, 70], [90, 110], [60, 150], [120, 150]]
    )
    faces = Faces(boxes.astype(np.float32), np.full(count, 0.99, np.float32), landmarks.astype(np.float32))
    faces = faces.with_embeddings(embeddings).with_enrollable(np.ones(count, np.bool_))
    day = f"{2000 + task.id % 25}-{1 + task.id % 12:02d}-{1 + task.id % 28:02d}T12:00:00"
    return PhotoAnalysis(
        task,
        hashlib.sha256(task.path.name.encode()).hexdigest(),
        (800, 600),
        faces.with_matches([_NOBODY] * count),
        reasons=(None,) * count,
        pictures=dict.fromkeys(range(-1, count), picture),
        taken_at=day,
    )


def _picture() -> bytes:
    small = np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    encoded = BytesIO()
    Image.fromarray(small).resize((96, 96)).save(encoded, "WEBP", quality=50)
    return encoded.getvalue()


@contextmanager
def reviewing(out: Path) -> Iterator[tuple[httpx.Client, int]]:
    """Run the command; yields a client that is signed in, and the process. Prints how long the start took."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "facepipe.cli", "review", str(out), "--no-browser"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    found = next(found for line in process.stderr if (found := re.search(r"http://\S+", line)))
    click.echo(f"{'start of the command':40} {time.perf_counter() - start:7.1f} s")
    address = httpx.URL(found[0])
    with httpx.Client(base_url=f"http://{address.netloc.decode()}", timeout=120) as client:
        client.get(str(address)).raise_for_status()
        try:
            yield client, process.pid
        finally:
            process.kill()  # an orderly end would write the results of the batch
            process.wait()


def processor_s(process: int) -> float:
    """Processor time that a process has taken, in seconds."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Clicks:
    """What a person does on the page, as requests."""

    def __init__(self, client: httpx.Client, process: int) -> None:
        self._client, self._process = client, process
        everybody: list[str] = client.get("/review/names").json()
        faces = {name: self._faces_of(name) for name in everybody[: 2 * _MOST_REPEATS]}
        self._names = [name for name, own in faces.items() if len(own) > 1]
        self._faces = [faces[name] for name in self._names]
        groups = re.findall(r"group\?number=(\d+)", self.get("groups"))
        self._groups = [int(number) for number in groups]

    def get(self, path: str, **query: Any) -> str:
        """Open a page."""
        return self._client.get(f"/review/{path}", params=query).raise_for_status().text

    def post(self, path: str, **body: Any) -> Any:
        """Send a change or ask for questions."""
        return self._client.post(f"/review/{path}", json=body).raise_for_status().json()

    def measure(self, name: str, request: Callable[[int], object], repeats: int) -> None:
        """Print the median and the slowest time of a request, and the server's mean processor time."""
        times, taken_s = [], processor_s(self._process)
        for number in range(repeats):
            start = time.perf_counter()
            request(number)
            times.append(1000 * (time.perf_counter() - start))
        mean_ms = 1000 * (processor_s(self._process) - taken_s) / repeats
        click.echo(f"{name:40} {statistics.median(times):7.0f} ms {max(times):7.0f} ms ({mean_ms:.0f})")

    def first_screen(self, _: int) -> None:
        """The people with their pictures."""
        page = self.get("people")
        for face_id in re.findall(r"pictures/faces/(\w+)", page)[:_TILES]:
            self._client.get(f"/review/pictures/faces/{face_id}").raise_for_status()

    def measure_all(self, repeats: int) -> None:
        """Print all figures."""
        names, groups = self._names, self._groups
        first, second = names[:2]
        ask = {"count": 12, "skipped": []}
        self.measure("first screen, with its pictures", self.first_screen, repeats)
        self.measure("a person", lambda at: self.get("person", name=names[at]), repeats)
        self.measure("groups", lambda _: self.get("groups"), repeats)
        self.measure("a group", lambda at: self.get("group", number=groups[at]), repeats)
        self.measure("photos", lambda _: self.get("photos"), repeats)
        self.measure("photos of two people", lambda _: self.get("photos", person=[first, second]), repeats)
        self.measure("accuracy", lambda _: self.get("checked"), repeats)
        self.measure("the next 12 questions", lambda _: self.post("questions/next", **ask), repeats)
        self.measure("confirm a face", self._confirm, repeats)
        self.measure("confirm, then open a person", lambda at: self._confirm_and_look(at), repeats)
        self.measure("confirm, then the next 12 questions", lambda at: self._confirm_and_ask(at), repeats)
        self.measure("reject a face", lambda at: self._decide("reject", at, 1), repeats)
        self.measure("name a group", lambda at: self._name_group(groups[at]), repeats)
        self.measure("undo", lambda _: self.post("undo"), repeats)
        click.echo(f"({len(names)} people, the first of {len(self._faces[0])} faces; {len(groups)} groups)")

    def _confirm(self, at: int) -> None:
        self._decide("confirm", at, 0)

    def _faces_of(self, name: str) -> list[str]:
        return re.findall(r'data-id="(\w+)"', self.get("person", name=name))

    def _decide(self, what: str, at: int, face: int) -> None:
        self.post("changes", do=what, face_ids=[self._faces[at][face]], name=self._names[at])

    def _confirm_and_look(self, at: int) -> None:
        self._confirm(at)
        self.get("person", name=self._names[at + 1])

    def _confirm_and_ask(self, at: int) -> None:
        self._confirm(at)
        self.post("questions/next", count=12, skipped=[])

    def _name_group(self, number: int) -> None:
        self.post("changes", do="name_group", group=number, name=f"Somebody {number}")


@click.command()
@click.option("--faces", type=click.IntRange(1_000), default=100_000, show_default=True)
@click.option("--people", type=click.IntRange(20), default=1_000, show_default=True)
@click.option("--repeats", type=click.IntRange(1, _MOST_REPEATS), default=10, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Keeps what was made.")
def main(faces: int, people: int, repeats: int, folder: Path | None) -> None:
    """Measure the page."""
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        place.mkdir(exist_ok=True)
        if not (place / "out").exists():
            make_library(place, faces, people)
        with reviewing(place / "out") as (client, process):
            Clicks(client, process).measure_all(repeats)


if __name__ == "__main__":
    main()
