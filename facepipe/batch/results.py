"""What a batch leaves for others: records, and files made of each photo's result."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

from facepipe.batch.job import Job
from facepipe.batch.models import Product, Record
from facepipe.batch.page import REPORT_FILE
from facepipe.batch.products import PICTURE_KINDS, product_folder, remove_pictures
from facepipe.core.errors import FacepipeError, OutputError
from facepipe.core.files import atomic_file
from facepipe.core.overwriting import PAGE, RECORDS, TABLE, require_replaceable
from facepipe.core.processors import compute_threads
from facepipe.images.decoding_memory import PhotoMemory, allowed_bytes
from facepipe.images.reading import DEFAULT_MAX_PIXELS, printable, read_reduced
from facepipe.pipeline import PhotoResult
from facepipe.reports.pictures import PictureFolder
from facepipe.reports.records import Printer, printer, to_json
from facepipe.reports.xmp import write_sidecar

_CHUNK = 64
_FORMS = {"results.jsonl": RECORDS, "faces.csv": TABLE}
_COPIES = 3
_log = logging.getLogger("facepipe")

Maker = Callable[[Record], list[Path]]
"""Writes the files of one photo; answers which they are."""


def require_places(folder: Path) -> None:
    """Check that the records and the report replace nothing else in a job's folder, before the work.

    Raises:
        OutputError: There is a file of such a name that facepipe did not write.
    """
    for name, form in {**_FORMS, REPORT_FILE: PAGE}.items():
        if not (folder / name).is_dir():  # told when it is its turn: the other files can be written
            require_replaceable(folder / name, form)


def write_records(job: Job, name: Literal["results.jsonl", "faces.csv"]) -> None:
    """Write one of the files of records into the job's folder, in the order of the command.

    The lines are those of `facepipe identify --json` and `--csv --bom`. The file is replaced as a whole.

    Raises:
        OutputError: The file can't be written, or would take the place of another file than such records.
    """
    file, form = job.folder / name, _FORMS[name]
    require_replaceable(file, form)
    lines = printer("json") if name == "results.jsonl" else printer("csv", bom=True)
    try:
        with atomic_file(file) as stream:
            for line in _lines(lines, job.records()):
                stream.write(f"{line}\n".encode())
    except OSError as error:
        raise OutputError(f"{file}: can't be written ({error.strerror}); make room there") from error


def _lines(form: Printer, records: Iterable[Record]) -> Iterator[str]:
    yield from form.header
    for record in records:
        yield from form.of(record.result)


def make_annotated(folder: Path, photos: list[Path], max_pixels: int = DEFAULT_MAX_PIXELS) -> Maker:
    """Photos with their faces drawn, in `folder`; see `PictureFolder`."""
    pictures = PictureFolder(folder, photos)
    return lambda record: _made_of_pixels(
        record, max_pixels, lambda result: [pictures.write_annotated(result)]
    )


def make_crops(folder: Path, photos: list[Path], max_pixels: int = DEFAULT_MAX_PIXELS) -> Maker:
    """Every face as a picture, in `folder`."""
    pictures = PictureFolder(folder, photos)
    return lambda record: _made_of_pixels(record, max_pixels, pictures.write_crops)


def make_sidecar(record: Record) -> list[Path]:
    """The named faces as an XMP sidecar beside the photo."""
    assert record.result.faces is not None
    assert record.size_wh is not None
    sidecar = write_sidecar(record.result.path, record.size_wh, record.result.faces)
    return [] if sidecar is None else [sidecar]


def make_products(job: Job, kind: str, make: Maker) -> int:
    """Make the files of one kind for the photos with faces whose result has changed since; in threads.

    Args:
        job: The results.
        kind: Stable name, remembered with what each file was made of.
        make: Writes the files of a photo, below the folder of their kind.

    Returns:
        For how many photos that failed. Why is told to the log; the next run tries again.
    """
    before = job.products(kind)
    claims = Counter(name for product in before.values() for name in product.names)
    due = [record for record in job.records() if _is_due(job, kind, record, before.get(record.id))]
    failed = 0
    with ThreadPoolExecutor(compute_threads()) as pool:
        for at in range(0, len(due), _CHUNK):
            chunk = due[at : at + _CHUNK]
            made = dict(pool.map(lambda record: _made(job.folder, kind, make, record), chunk))
            products = {id: product for id, product in made.items() if product is not None}
            claims.update(name for product in products.values() for name in product.names)
            kept = {id for id in products if _has_replaced(job, kind, before.get(id), claims)}
            job.note_products(kind, {id: products[id] for id in kept})
            failed += len(made) - len(kept)
    return failed


def _has_replaced(job: Job, kind: str, old: Product | None, claims: Counter[str]) -> bool:
    """Remove a photo's outdated pictures; False: one can't be removed, which is told.

    Args:
        job: The results.
        kind: Of the files.
        old: What was made of the photo before.
        claims: How many photos have a file of this name, before and now: one may have the file of another.
    """
    if old is None or kind not in PICTURE_KINDS:
        return True
    claims.subtract(old.names)
    try:
        remove_pictures(job.folder, kind, [name for name in old.names if not claims[name]])
    except FacepipeError as error:
        _log.warning("%s", error)
        return False
    return True


def _is_due(job: Job, kind: str, record: Record, made: Product | None) -> bool:
    if record.result.faces is None:
        return False
    if made is None:
        return len(record.result.faces) > 0
    folder = product_folder(job.folder, kind, record.result.path)
    return made.made_of != made_of(record) or not all((folder / name).exists() for name in made.names)


def made_of(record: Record) -> str:
    """Names the result of a photo: another after every change of it."""
    return hashlib.sha256(to_json(record.result).encode()).hexdigest()


def _made(job_folder: Path, kind: str, make: Maker, record: Record) -> tuple[int, Product | None]:
    """The photo's files; None where one photo's trouble was told."""
    try:
        folder = product_folder(job_folder, kind, record.result.path)
        names = tuple(file.relative_to(folder).as_posix() for file in make(record))
        return record.id, Product(made_of(record), names)
    except FacepipeError as error:
        _log.warning("%s", error)
        return record.id, None


def _made_of_pixels(record: Record, max_pixels: int, make: Callable[[PhotoResult], list[Path]]) -> list[Path]:
    """Make files of a photo, its pixels and the copies that are made of them counted until they are gone."""
    path = record.result.path
    with PhotoMemory(printable(path), allowed_bytes(max_pixels)) as memory:
        rgb = read_reduced(path, None, max_pixels=max_pixels, memory=memory).rgb
        memory.take(min(_COPIES * rgb.nbytes, memory.limit_bytes))
        return make(replace(record.result, photo=rgb))
