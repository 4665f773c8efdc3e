"""Commands on photos: enroll, identify, detect, embed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from facepipe.commands.cluster import distance_option
from facepipe.commands.options import (
    ANY_PATH,
    PHOTOS,
    Setup,
    exclude_option,
    force_option,
    gallery_option,
    photos_argument,
    with_naming,
    with_setup,
)
from facepipe.commands.output import Output, bom_option, echo, echo_record, finish, with_progress
from facepipe.core.counting import counted

if TYPE_CHECKING:
    from facepipe.enrollment import EnrollReport, Outcome, PersonPhoto
    from facepipe.gallery.address import GalleryAddress
    from facepipe.pipeline import NamingOptions
    from facepipe.xmp.marks import MarkedPhoto


keep_crops_option = click.option(
    "--keep-crops", is_flag=True, help="Store pictures of the faces in the gallery too."
)


@click.command()
@click.argument("photos", nargs=-1, type=PHOTOS)
@click.option("--name", help="Who is in all these photos.")
@exclude_option
@click.option("--csv", "csv_file", type=ANY_PATH, help="Photos from rows of path,name, or by a header.")
@click.option("--xmp", is_flag=True, help="Names of face regions in PHOTOS, their sidecars and .picasa.ini.")
@click.option("--cluster", type=int, metavar="ID", help="Instead of photos: a group of `facepipe cluster`.")
@distance_option
@click.option("--force", is_flag=True, help="Take the largest face of photos that the rules refuse.")
@keep_crops_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object per photo and line.")
@gallery_option
@with_setup
def enroll(
    setup: Setup,
    photos: tuple[str, ...],
    exclude: tuple[str, ...],
    name: str | None,
    csv_file: Path | None,
    xmp: bool,
    cluster: int | None,
    distance: float | None,
    force: bool,
    keep_crops: bool,
    as_json: bool,
    gallery_address: GalleryAddress,
) -> None:
    """Learn people from photos.

    PHOTOS is a folder with one sub-folder per person, or, with --name, photos, folders and globs
    of one person. With --xmp, photos, folders and globs in which digiKam, Lightroom, Picasa or another
    program has named faces. With --cluster, a group of unknown faces becomes the person --name.
    """
    from facepipe.enrollment import Outcome, enroll
    from facepipe.region_enrollment import enroll_marked

    if cluster is not None:
        if photos or csv_file or xmp or name is None:
            raise click.UsageError("--cluster goes with --name and without photos.")
        _enroll_cluster(gallery_address, cluster, name, distance)
        return
    start: Callable[..., Iterator[EnrollReport]]
    unread = 0
    if xmp:
        if csv_file or name is not None or not photos:
            raise click.UsageError("--xmp goes with photos, and alone: the names are in them.")
        marked, unread = _marked_photos(photos, exclude, setup.max_pixels())
        start = partial(enroll_marked, photos=marked)
        names = [mark.name for photo in marked for mark in photo.marks]
    else:
        wanted = _photos_to_enroll(photos, name, csv_file, exclude)
        start, names = partial(enroll, photos=wanted), [photo.name for photo in wanted]
    with setup.pipeline(gallery_address, create=True) as pipeline:
        reports = start(pipeline, force=force, keep_crops=keep_crops, max_pixels=setup.max_pixels())
        counts = _show_reports(with_progress(reports, len(names), "enrolling"), as_json)
    summary = ", ".join(f"{counts[outcome]} {outcome.value}" for outcome in Outcome if counts[outcome])
    people = counted(len(set(names)), "person")
    echo(f"facepipe: {summary}; {people} asked for; gallery {gallery_address}", err=True)
    finish(counts[Outcome.REFUSED] + counts[Outcome.FAILED] + unread, len(names) + unread)


def _show_reports(reports: Iterable[EnrollReport], as_json: bool) -> Counter[Outcome]:
    """Print what became of each photo; answers how often each outcome was."""
    counts: Counter[Outcome] = Counter()
    for report in reports:
        counts[report.outcome] += 1
        if as_json:
            echo_record(report.to_json())
        else:
            echo(report)
    return counts


def _marked_photos(
    photos: tuple[str, ...], exclude: tuple[str, ...], max_pixels: int
) -> tuple[list[MarkedPhoto], int]:
    """Photos with named regions, and how many errors of others were reported."""
    from facepipe.core.errors import UsageError
    from facepipe.images.finding import find_photos
    from facepipe.xmp.marks import read_marks
    from facepipe.xmp.packets import require_lxml

    require_lxml()
    paths = find_photos(photos, exclude=exclude)
    marked, unread = [], set[str]()
    reading = (read_marks(path, max_pixels=max_pixels) for path in paths)
    for photo in with_progress(reading, len(paths), "reading"):
        for error in photo.errors:
            if error not in unread:  # a file of Picasa's is that of all photos of a folder
                echo(f"facepipe: {error}", err=True)
            unread.add(error)
        if photo.marks:
            marked.append(photo)
    if not marked:
        raise UsageError(
            f"no named face regions in {counted(len(paths), 'photo')} or in sidecars; in digiKam, Lightroom "
            "or Picasa, write metadata to files first"
        )
    return marked, len(unread)


def _enroll_cluster(gallery_address: GalleryAddress, cluster: int, name: str, distance: float | None) -> None:
    from facepipe.gallery import Gallery
    from facepipe.unknown_faces import enroll_group

    with Gallery.open(gallery_address) as gallery:
        count = len(enroll_group(gallery, cluster, name, distance))
    echo(f"facepipe: {counted(count, 'face')} of group {cluster} enrolled as {name!r}", err=True)


def _photos_to_enroll(
    photos: tuple[str, ...], name: str | None, csv_file: Path | None, exclude: tuple[str, ...]
) -> list[PersonPhoto]:
    from facepipe.enrollment import PersonPhoto, photos_in_csv, photos_in_folders
    from facepipe.images.finding import find_photos

    if csv_file and (photos or exclude or name is not None):
        raise click.UsageError("--csv goes alone: it names photos and people itself.")
    if csv_file:
        return photos_in_csv(csv_file)
    if not photos:
        raise click.UsageError(
            "Name a folder with one sub-folder per person, --name NAME PHOTOS..., or --csv FILE."
        )
    if name is not None:
        return [PersonPhoto(name, path) for path in find_photos(photos, exclude=exclude)]
    return [photo for folder in photos for photo in photos_in_folders(folder, exclude=exclude)]


@click.command()
@photos_argument
@exclude_option
@with_naming
@click.option(
    "--person-distance",
    type=click.Choice(["nearest-or-mean", "nearest"]),
    default="nearest-or-mean",
    show_default=True,
    help="Distance to a person of several photos.",
)
@click.option("--remember-unknown", is_flag=True, help="Keep good faces of nobody, for `facepipe cluster`.")
@keep_crops_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object per photo and line.")
@click.option("--csv", "as_csv", is_flag=True, help="One CSV row per face.")
@bom_option
@click.option("--annotate", type=ANY_PATH, metavar="DIR", help="Write photos with names drawn.")
@click.option("--crops", type=ANY_PATH, metavar="DIR", help="Write each face as a picture.")
@gallery_option
@with_setup
def identify(
    setup: Setup,
    photos: tuple[str, ...],
    exclude: tuple[str, ...],
    naming: NamingOptions,
    person_distance: str,
    remember_unknown: bool,
    keep_crops: bool,
    as_json: bool,
    as_csv: bool,
    bom: bool,
    annotate: Path | None,
    crops: Path | None,
    gallery_address: GalleryAddress,
) -> None:
    """Say who is in PHOTOS: files, folders or globs."""
    from facepipe.gallery.ranking import PersonDistance
    from facepipe.images.finding import find_photos

    if keep_crops and not remember_unknown:
        raise click.UsageError("--keep-crops goes with --remember-unknown.")
    paths = find_photos(photos, exclude=exclude)
    output = Output(paths, as_json, as_csv, annotate, crops, bom)
    with setup.pipeline(gallery_address, create=remember_unknown) as pipeline:
        results = pipeline.identify_files(
            paths,
            options=replace(naming, person_distance=PersonDistance(person_distance)),
            max_pixels=setup.max_pixels(),
        )
        if remember_unknown:
            from facepipe.unknown_faces import remembering_unknown

            results = remembering_unknown(pipeline, results, keep_crops=keep_crops)
        output.show(results)


@click.command()
@photos_argument
@exclude_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object per photo and line.")
@click.option("--csv", "as_csv", is_flag=True, help="One CSV row per face.")
@bom_option
@click.option("--annotate", type=ANY_PATH, metavar="DIR", help="Write photos with boxes drawn.")
@click.option("--crops", type=ANY_PATH, metavar="DIR", help="Write each face as a picture.")
@with_setup
def detect(
    setup: Setup,
    photos: tuple[str, ...],
    exclude: tuple[str, ...],
    as_json: bool,
    as_csv: bool,
    bom: bool,
    annotate: Path | None,
    crops: Path | None,
) -> None:
    """Find the faces in PHOTOS without naming them."""
    from facepipe.detector import FaceDetector
    from facepipe.images.finding import find_photos
    from facepipe.pipeline import process_files
    from facepipe.weights.registry import DEFAULT_DETECTOR

    paths = find_photos(photos, exclude=exclude)
    output = Output(paths, as_json, as_csv, annotate, crops, bom)
    detector = FaceDetector.load(
        setup.detector_weights or DEFAULT_DETECTOR, setup.detector_options(), setup.choose_runtime()
    )
    scale_of = detector.options.scale_of
    output.show(process_files(paths, detector.detect, setup.max_pixels(), scale_of))


@click.command()
@photos_argument
@exclude_option
@click.option("--out", type=ANY_PATH, required=True, metavar="FILE.npz", help="Where to.")
@force_option
@with_setup
def embed(setup: Setup, photos: tuple[str, ...], exclude: tuple[str, ...], out: Path, force: bool) -> None:
    """Write the embeddings of the faces in PHOTOS to an .npz: paths, boxes, embeddings."""
    from facepipe.core.overwriting import VECTORS
    from facepipe.images.finding import find_photos
    from facepipe.pipeline import process_files
    from facepipe.reports.pictures import require_place
    from facepipe.reports.records import save_embeddings

    paths = find_photos(photos, exclude=exclude)
    require_place(out, VECTORS, force=force, inputs=paths)
    with setup.pipeline() as pipeline:
        stream = process_files(paths, pipeline.embed, setup.max_pixels())
        results = [r.without_photo() for r in with_progress(stream, len(paths), "encoding")]
    for result in results:
        if result.error:
            echo(f"facepipe: {result.error}", err=True)
    failed = sum(result.error is not None for result in results)
    if failed < len(paths):
        count = save_embeddings(out, results)
        photos_read = counted(len(paths) - failed, "photo")
        echo(f"facepipe: {counted(count, 'face')} of {photos_read} in {out}", err=True)
    finish(failed, len(paths))
