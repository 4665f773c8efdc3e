"""How many photos a second go the whole way, from the file to the names?

    python -m benchmarks.pipeline [--source DIR] [--photos N] [--contestant NAME]... [--json]

A folder of JPEGs of 0.3 to 12 megapixels is made from the photos below DIR (or from the portrait that comes
with scikit-image), some of them without a face, some of dozens side by side. One person is enrolled. Then
each contestant names the faces in all of them, in a process of its own:

    batch            `facepipe batch`: all cores, what is waiting goes together
    batch-640        the same with `--max-side 640`, the size of the reference system
    loop             our API in a plain loop: FacePipeline.identify, photo after photo
    torch-loop       the same loop on torch, eager
    reference        the published system of these networks, see benchmarks/reference_system.py
    facenet-pytorch  as its documentation has it: MTCNN on batches of photos of one size, their faces through
                     InceptionResnetV1 together, all distances to the gallery. Photos are first scaled to the
                     longest side that ours looks at. (The values of its second network are random: they can't
                     be had offline, and don't change its speed.)

Peak memory is that of the process, its libraries included. `--memory` also says how memory grew after the
first 500 photos of `batch` (Linux): the median of the last 400 photos, and the largest of all.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from PIL import Image
from skimage import data

from benchmarks.measure import table
from facepipe.core.faces import UInt8Array
from facepipe.images.finding import find_photos
from facepipe.images.reading import read_image

SIZES_WH = ((640, 480), (1280, 960), (2048, 1536), (4000, 3000))
SHARES = (0.35, 0.35, 0.15, 0.15)
_WITHOUT_FACES, _CROWDS = 0.1, 0.1
_CROWD_TILES = (7, 6)
DISTINCT = 200
"""Photos that are made; more are links to them."""
_MTCNN_BATCH = 8
_REFERENCE_MAX_SIDE = 640
_WARM_AFTER, _SETTLED_AFTER = 100, 500
CONTESTANTS = ("batch", "batch-640", "loop", "torch-loop", "reference", "facenet-pytorch")


@click.command()
@click.option(
    "--source", type=click.Path(path_type=Path, exists=True), help="Photos to make the folder from."
)
@click.option("--photos", default=60, show_default=True)
@click.option("--contestant", "contestants", multiple=True, type=click.Choice(CONTESTANTS))
@click.option("--memory", is_flag=True, help="Say how the memory of `batch` grew.")
@click.option("--json", "as_json", is_flag=True)
@click.option("--work", type=click.Path(path_type=Path), hidden=True, help="A contestant's own process.")
def main(
    source: Path | None,
    photos: int,
    contestants: tuple[str, ...],
    memory: bool,
    as_json: bool,
    work: Path | None,
) -> None:
    """Print a table, or JSON."""
    if work is not None:
        click.echo(json.dumps(_AT_WORK[contestants[0]](work)))
        return
    figures = measure(source, photos, contestants or CONTESTANTS)
    click.echo(json.dumps(figures) if as_json else as_table(figures, memory))


def measure(source: Path | None, photos: int, contestants: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Of each contestant: seconds, photos, faces, peak bytes, and what else it says."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_folder(folder / "photos", source, photos)
        _enroll(folder / "gallery")
        here = filter(_is_here, contestants)
        return {contestant: _in_own_process(contestant, folder) for contestant in here}


def _is_here(contestant: str) -> bool:
    if contestant != "facenet-pytorch" or find_spec("facenet_pytorch") is not None:
        return True
    click.echo("left out: facenet-pytorch: not installed", err=True)
    return False


def _in_own_process(contestant: str, folder: Path) -> dict[str, Any]:
    click.echo(f"{contestant} ...", err=True)
    words = [sys.executable, "-m", "benchmarks.pipeline", "--contestant", contestant, "--work", str(folder)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


# The folder


def make_folder(folder: Path, source: Path | None, count: int, seed: int = 0) -> None:
    """JPEGs of mixed sizes: photos as they are, crowds, and some without a face."""
    dice = random.Random(seed)
    originals = find_photos([source]) if source else []
    folder.mkdir(parents=True)
    for number in range(count):
        place = folder / f"{number:05}.jpg"
        if number >= DISTINCT:
            os.link(folder / f"{number % DISTINCT:05}.jpg", place)
            continue
        size_wh = dice.choices(SIZES_WH, SHARES)[0]
        Image.fromarray(_picture(originals, size_wh, dice)).save(place, quality=90)


def _picture(originals: list[Path], size_wh: tuple[int, int], dice: random.Random) -> UInt8Array:
    kind = dice.random()
    if kind < _WITHOUT_FACES:
        return fitted(np.asarray(data.coffee(), np.uint8), size_wh)
    if kind > 1 - _CROWDS:
        columns, rows = _CROWD_TILES
        tile_wh = size_wh[0] // columns, size_wh[1] // rows
        lines = [
            np.hstack([fitted(_original(originals, dice), tile_wh) for _ in range(columns)])
            for _ in range(rows)
        ]
        return fitted(np.vstack(lines), size_wh)
    return fitted(_original(originals, dice), size_wh)


def _original(originals: list[Path], dice: random.Random) -> UInt8Array:
    return read_image(dice.choice(originals)) if originals else np.asarray(data.astronaut(), np.uint8)


def fitted(photo: UInt8Array, size_wh: tuple[int, int]) -> UInt8Array:
    """The photo's middle, scaled to fill the size."""
    width, height = size_wh
    scale = max(width / photo.shape[1], height / photo.shape[0])
    scaled = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    top, left = (scaled.shape[0] - height) // 2, (scaled.shape[1] - width) // 2
    fitted = scaled[max(top, 0) :, max(left, 0) :][:height, :width]
    return np.asarray(cv2.resize(fitted, size_wh), np.uint8)


def _enroll(gallery: Path) -> None:
    from facepipe.gallery import NewTemplate
    from facepipe.pipeline import FacePipeline

    with FacePipeline.load(gallery, create_gallery=True) as pipeline:
        faces = pipeline.embed(np.asarray(data.astronaut(), np.uint8))
        assert faces.embeddings is not None
        assert pipeline.gallery is not None
        pipeline.gallery.add("Eileen Collins", [NewTemplate(embedding=faces.embeddings[0])])


# The contestants, each in its own process


def _batch(folder: Path, max_side: int | None = None) -> dict[str, Any]:
    from facepipe.batch.engine import EngineOptions
    from facepipe.batch.job import Job
    from facepipe.batch.run import Batch, BatchOptions
    from facepipe.core.processors import granted_processors
    from facepipe.detector import DetectorOptions
    from facepipe.pipeline import FacePipeline
    from facepipe.runtime.engines import choose_runtime

    options = DetectorOptions() if max_side is None else DetectorOptions(max_side=max_side)
    engine = EngineOptions()
    runtime = choose_runtime(calls=engine.threads)
    grown: list[tuple[int, int]] = []
    shutil.rmtree(folder / "job", ignore_errors=True)
    with (
        FacePipeline.load(folder / "gallery", options=options, runtime=runtime) as pipeline,
        Job(folder / "job", create=True) as job,
    ):
        started, worked = time.perf_counter(), time.process_time()
        batch = Batch(pipeline, job, BatchOptions(engine=engine))
        batch.find([folder / "photos"])
        summary = batch.run(lambda progress: grown.append((progress.here, _resident_bytes())))
        taken, worked = time.perf_counter() - started, time.process_time() - worked
    busy = worked / (taken * granted_processors())
    stages = {stage: seconds / (taken * engine.threads) for stage, seconds in summary.stage_s.items()}
    faces = summary.counts.faces
    return _figures(taken, summary.counts.total, faces) | {
        "busy": busy,
        "stages": stages,
        "growth": _growth(grown),
    }


def _growth(sizes: list[tuple[int, int]]) -> dict[str, float] | None:
    """How much larger the process was after the first 500 photos (warm-up aside): usually, and at most."""
    before = [size for photos, size in sizes if _WARM_AFTER < photos <= _SETTLED_AFTER]
    after = [size for photos, size in sizes if photos > _SETTLED_AFTER]
    if not before or not after:
        return None
    return {
        "median": statistics.median(after[-len(before) :]) / statistics.median(before) - 1,
        "largest": max(after) / max(before) - 1,
    }


def _resident_bytes() -> int:
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:  # not Linux
        return 0
    return int(pages) * resource.getpagesize()


def _plain_loop(folder: Path, runtime_name: str) -> dict[str, Any]:
    from facepipe.pipeline import FacePipeline
    from facepipe.runtime.engines import choose_runtime

    runtime = choose_runtime("torch" if runtime_name == "torch" else "onnx")
    with FacePipeline.load(folder / "gallery", runtime=runtime) as pipeline:
        pipeline.identify(np.asarray(data.astronaut(), np.uint8))
        started = time.perf_counter()
        photos = find_photos([folder / "photos"])
        faces = sum(len(pipeline.identify(read_image(photo))) for photo in photos)
        return _figures(time.perf_counter() - started, len(photos), faces)


def _reference_system(folder: Path) -> dict[str, Any]:
    from benchmarks.reference_system import ReferenceSystem

    system = ReferenceSystem(people=1)
    system.identify(np.asarray(data.astronaut(), np.uint8))
    started = time.perf_counter()
    photos = find_photos([folder / "photos"])
    faces = sum(len(system.identify(np.asarray(Image.open(photo).convert("RGB")))) for photo in photos)
    return _figures(time.perf_counter() - started, len(photos), faces)


def _facenet_pytorch(folder: Path) -> dict[str, Any]:
    import torch
    from facenet_pytorch import MTCNN, InceptionResnetV1

    finder, encoder = MTCNN(image_size=160, margin=0, keep_all=True), InceptionResnetV1().eval()
    known = torch.nn.functional.normalize(torch.rand(1, 512))
    started = time.perf_counter()
    count, faces = 0, 0
    for pictures in _of_one_size(sorted(find_photos([folder / "photos"]), key=_size_wh)):
        crops = [found for found in finder(pictures) if found is not None]
        count += len(pictures)
        if crops:
            with torch.inference_mode():
                distances = torch.cdist(encoder(torch.cat(crops)), known)
            faces += len(distances)
    return _figures(time.perf_counter() - started, count, faces)


def _of_one_size(photos: list[Path]) -> Iterator[list[Image.Image]]:
    from facepipe.detector import DetectorOptions

    side = DetectorOptions().max_side
    assert side is not None
    for _, group in itertools.groupby(photos, key=_size_wh):
        while chunk := list(itertools.islice(group, _MTCNN_BATCH)):
            pictures = [Image.open(path).convert("RGB") for path in chunk]
            for picture in pictures:
                picture.thumbnail((side, side))
            yield pictures


def _size_wh(photo: Path) -> tuple[int, int]:
    with Image.open(photo) as picture:
        return picture.size


def _figures(seconds: float, photos: int, faces: int) -> dict[str, Any]:
    # Linux tells kilobytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"seconds": seconds, "photos": photos, "faces": faces, "peak_bytes": peak_bytes}


_AT_WORK: dict[str, Callable[[Path], dict[str, Any]]] = {
    "batch": _batch,
    "batch-640": partial(_batch, max_side=_REFERENCE_MAX_SIDE),
    "loop": partial(_plain_loop, runtime_name="onnx"),
    "torch-loop": partial(_plain_loop, runtime_name="torch"),
    "reference": _reference_system,
    "facenet-pytorch": _facenet_pytorch,
}


def as_table(figures: dict[str, dict[str, Any]], memory: bool) -> str:
    """Photos a second; times the slowest."""
    speeds = {name: row["photos"] / row["seconds"] for name, row in figures.items()}
    slowest = min(speeds.values())
    rows = [
        [
            name,
            f"{speeds[name]:.2f}",
            f"{speeds[name] / slowest:.1f}",
            str(row["faces"]),
            f"{row['peak_bytes'] / 1e6:.0f} MB",
        ]
        for name, row in figures.items()
    ]
    lines = [table(["contestant", "photos/s", "times the slowest", "faces", "peak memory"], rows)]
    if batch := figures.get("batch"):
        shares = ", ".join(f"{stage} {100 * share:.0f}%" for stage, share in batch["stages"].items())
        lines.append(f"batch: processors busy {100 * batch['busy']:.0f}%; threads' time: {shares}")
        if memory and batch["growth"]:
            usual, most = (100 * batch["growth"][kind] for kind in ("median", "largest"))
            lines.append(f"memory: the last photos took {usual:+.1f}% in the median, the worst {most:+.1f}%")
    return "\n\n".join(lines)


if __name__ == "__main__":
    main()
