"""The `facepipe` command: parse, call one library function, render."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from facepipe import __version__
from facepipe.cli_options import (
    ANY_PATH,
    Setup,
    anchor_sizes,
    gallery_option,
    photos_argument,
    three_numbers,
    with_setup,
)
from facepipe.errors import FacepipeError
from training import commands as training_commands

if TYPE_CHECKING:
    from facepipe.enrolment import PersonPhoto
    from facepipe.pipeline import PhotoResult
    from facepipe.runtime import RuntimeName
    from gallery import Gallery
    from weights.card import AnchorSpec

PARTIAL = 3
INTERRUPTED = 130
Item = TypeVar("Item")


class FacepipeGroup(click.Group):
    """Commands whose failures are one line on stderr and the documented exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run, and turn a failure into its exit code."""
        try:
            return super().invoke(ctx)
        except FacepipeError as error:
            click.echo(f"facepipe: {error}", err=True)
            ctx.exit(error.exit_code)
        except BrokenPipeError:
            raise  # click leaves quietly: whoever read stdout has had enough
        except OSError as error:
            click.echo(f"facepipe: {error}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("facepipe: interrupted; what was reported as done is kept", err=True)
            ctx.exit(INTERRUPTED)


@click.group(cls=FacepipeGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="facepipe")
def main() -> None:
    """Find the faces in photos and say who they are.

    Exit codes: 0 all went well; 1 failure, or no photo went well; 2 wrong usage; 3 some photos failed or
    were refused; 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # letters that the terminal lacks, file names that are no text
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("facepipe: %(message)s"))
    logger = logging.getLogger("facepipe")
    logger.handlers, logger.level = [handler], logging.INFO


def with_progress(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """The items, counted on a progress bar where stderr is a terminal and there is more than one."""
    if total < 2 or not sys.stderr.isatty():
        yield from items
        return
    from tqdm import tqdm

    with tqdm(desc=what, total=total, unit="photo", leave=False) as bar:
        for item in items:
            bar.clear()  # what is printed next may go to the same terminal
            yield item
            bar.update()


def finish(failed: int, total: int) -> None:
    """Leave with 3 where some photos failed, with 1 where all did."""
    if failed:
        sys.exit(1 if failed == total else PARTIAL)


# Names for faces


@main.command()
@click.argument("photos", nargs=-1, type=click.Path(readable=False))
@click.option("--name", help="Who is in all these photos.")
@click.option("--csv", "csv_file", type=ANY_PATH, help="Photos from rows of path,name.")
@click.option("--force", is_flag=True, help="Take the largest face of photos that the rules refuse.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per photo and line.")
@gallery_option
@with_setup
def enroll(
    setup: Setup,
    photos: tuple[str, ...],
    name: str | None,
    csv_file: Path | None,
    force: bool,
    as_json: bool,
    gallery_path: Path,
) -> None:
    """Learn people from photos.

    PHOTOS is a folder with one sub-folder per person, or, with --name, photos, folders and globs
    of one person.
    """
    from facepipe.enrolment import Outcome, enrol

    wanted = _photos_to_enroll(photos, name, csv_file)
    counts = dict.fromkeys(Outcome, 0)
    with setup.pipeline(gallery_path, create=True) as pipeline:
        reports = enrol(pipeline, wanted, force=force, max_pixels=setup.max_pixels())
        for report in with_progress(reports, len(wanted), "enrolling"):
            counts[report.outcome] += 1
            click.echo(report.to_json() if as_json else report)
    people = len({photo.name for photo in wanted})
    summary = ", ".join(f"{count} {outcome.value}" for outcome, count in counts.items() if count)
    click.echo(f"facepipe: {summary}; {people} people asked for; gallery {gallery_path}", err=True)
    finish(counts[Outcome.REFUSED] + counts[Outcome.FAILED], len(wanted))


def _photos_to_enroll(photos: tuple[str, ...], name: str | None, csv_file: Path | None) -> list[PersonPhoto]:
    from facepipe.enrolment import PersonPhoto, photos_in_csv, photos_in_folders
    from facepipe.images import find_photos

    if csv_file and (photos or name is not None):
        raise click.UsageError("--csv goes alone: it names photos and people itself.")
    if csv_file:
        return photos_in_csv(csv_file)
    if not photos:
        raise click.UsageError(
            "Name a folder with one sub-folder per person, --name NAME PHOTOS..., or --csv FILE."
        )
    if name is not None:
        return [PersonPhoto(name, path) for path in find_photos(photos)]
    return [photo for folder in photos for photo in photos_in_folders(Path(folder))]


@main.command()
@photos_argument
@click.option("--threshold", type=float, metavar="L2", help="Largest distance at which a face is named.")
@click.option("--allow-repeats", is_flag=True, help="One person may be in a photo several times.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per photo and line.")
@click.option("--csv", "as_csv", is_flag=True, help="One CSV row per face.")
@click.option("--annotate", type=ANY_PATH, metavar="DIR", help="Write photos with names drawn.")
@click.option("--crops", type=ANY_PATH, metavar="DIR", help="Write each face as a picture.")
@gallery_option
@with_setup
def identify(
    setup: Setup,
    photos: tuple[str, ...],
    threshold: float | None,
    allow_repeats: bool,
    as_json: bool,
    as_csv: bool,
    annotate: Path | None,
    crops: Path | None,
    gallery_path: Path,
) -> None:
    """Say who is in PHOTOS: files, folders or globs."""
    from facepipe.images import find_photos

    paths = find_photos(photos)
    output = _Output(paths, as_json, as_csv, annotate, crops)
    with setup.pipeline(gallery_path) as pipeline:
        output.show(
            pipeline.identify_files(
                paths,
                threshold_l2=threshold,
                one_person_per_photo=not allow_repeats,
                max_pixels=setup.max_pixels(),
            )
        )


@main.command()
@photos_argument
@click.option("--json", "as_json", is_flag=True, help="One JSON object per photo and line.")
@click.option("--csv", "as_csv", is_flag=True, help="One CSV row per face.")
@click.option("--annotate", type=ANY_PATH, metavar="DIR", help="Write photos with boxes drawn.")
@click.option("--crops", type=ANY_PATH, metavar="DIR", help="Write each face as a picture.")
@with_setup
def detect(
    setup: Setup,
    photos: tuple[str, ...],
    as_json: bool,
    as_csv: bool,
    annotate: Path | None,
    crops: Path | None,
) -> None:
    """Find the faces in PHOTOS without naming them."""
    from facepipe.detector import FaceDetector
    from facepipe.images import find_photos
    from facepipe.pipeline import process_files
    from weights.registry import DEFAULT_DETECTOR

    paths = find_photos(photos)
    output = _Output(paths, as_json, as_csv, annotate, crops)
    detector = FaceDetector.load(
        setup.detector_weights or DEFAULT_DETECTOR, setup.detector_options(), setup.choose_runtime()
    )
    output.show(process_files(paths, detector.detect, setup.max_pixels()))


@main.command()
@photos_argument
@click.option("--out", type=ANY_PATH, required=True, metavar="FILE.npz", help="Where to.")
@with_setup
def embed(setup: Setup, photos: tuple[str, ...], out: Path) -> None:
    """Write the vectors of the faces in PHOTOS to an .npz: paths, boxes, embeddings."""
    from facepipe.images import find_photos
    from facepipe.outputs import require_place
    from facepipe.pipeline import process_files
    from facepipe.report import save_embeddings

    paths = find_photos(photos)
    require_place(out)
    with setup.pipeline() as pipeline:
        stream = process_files(paths, pipeline.embed, setup.max_pixels())
        results = [r.without_photo() for r in with_progress(stream, len(paths), "encoding")]
    for result in results:
        if result.error:
            click.echo(f"facepipe: {result.error}", err=True)
    failed = sum(result.error is not None for result in results)
    if failed < len(paths):
        count = save_embeddings(out, results)
        click.echo(f"facepipe: {count} faces of {len(paths) - failed} photos in {out}", err=True)
    finish(failed, len(paths))


class _Output:
    """Where results go: stdout in the asked-for form, and the asked-for pictures. Refuses before any work."""

    def __init__(
        self, photos: Sequence[Path], as_json: bool, as_csv: bool, annotate: Path | None, crops: Path | None
    ) -> None:
        from facepipe.outputs import PictureFolder
        from facepipe.report import printer

        if as_json and as_csv:
            raise click.UsageError("--json and --csv exclude each other.")
        self._total = len(photos)
        self._lines = printer("json" if as_json else "csv" if as_csv else "table")
        self._annotated = PictureFolder(annotate, photos) if annotate else None
        self._cropped = PictureFolder(crops, photos) if crops else None

    def show(self, results: Iterable[PhotoResult]) -> None:
        """Print and write results as they come; leaves with 3 or 1 where photos failed."""
        failed = 0
        for header in self._lines.header:
            click.echo(header)
        for result in with_progress(results, self._total, "looking"):
            if result.error is not None:
                failed += 1
                click.echo(f"facepipe: {result.error}", err=True)
            else:
                self._write_pictures(result)
            for line in self._lines.of(result):
                click.echo(line)
        finish(failed, self._total)

    def _write_pictures(self, result: PhotoResult) -> None:
        if self._annotated:
            self._annotated.write_annotated(result)
        if self._cropped:
            self._cropped.write_crops(result)


@main.command()
@click.option("--out", type=ANY_PATH, default=Path("facepipe-demo"), show_default=True, metavar="DIR")
@with_setup
def demo(setup: Setup, out: Path) -> None:
    """Enroll a portrait that ships with scikit-image and find her in altered photos; writes a picture."""
    from facepipe.demo import run_demo

    result = run_demo(out, setup.pipeline)
    for line in result.lines:
        click.echo(line)
    if not result.passed:
        sys.exit(1)


@main.command()
@gallery_option
@click.option("--device", default="auto", metavar="cpu|cuda[:N]")
@click.option("--runtime", default="auto", metavar="onnx|torch")
def doctor(gallery_path: Path, device: str, runtime: RuntimeName) -> None:
    """Check the installation: versions, devices, weights, gallery."""
    from facepipe.doctor import examine

    checks = examine(gallery_path, runtime, device)
    for check in checks:
        click.echo(f"{'ok' if check.ok else 'PROBLEM':<8} {check.what}: {check.finding}")
    if not all(check.ok for check in checks):
        sys.exit(1)


# The gallery


@main.group()
def gallery() -> None:
    """Manage the people in a gallery."""


@contextlib.contextmanager
def _opened(gallery_path: Path) -> Iterator[Gallery]:
    from gallery import Gallery

    with Gallery.open(gallery_path) as opened:
        yield opened


@gallery.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per person and line.")
@gallery_option
def gallery_list(gallery_path: Path, as_json: bool) -> None:
    """Everybody, with the number of their photos."""
    from facepipe.report import record_to_json

    with _opened(gallery_path) as opened:
        for person in opened.people():
            click.echo(record_to_json(person) if as_json else f"{person.template_count:6d}  {person.name}")


@gallery.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per photo and line.")
@gallery_option
def gallery_show(gallery_path: Path, name: str, as_json: bool) -> None:
    """The photos that a person was learned from."""
    from facepipe.report import record_to_json

    with _opened(gallery_path) as opened:
        for template in opened.templates(name):
            quality = "" if template.quality is None else f"sharpness {template.quality:.2f}"
            line = f"{template.id:6d}  {template.added_at}  {quality}  {template.source or ''}"
            click.echo(record_to_json(template) if as_json else line)


@gallery.command("rename")
@click.argument("old")
@click.argument("new")
@gallery_option
def gallery_rename(gallery_path: Path, old: str, new: str) -> None:
    """Give a person another name."""
    with _opened(gallery_path) as opened:
        opened.rename(old, new)


@gallery.command("remove")
@click.argument("name")
@gallery_option
def gallery_remove(gallery_path: Path, name: str) -> None:
    """Erase a person: name, vectors and paths."""
    with _opened(gallery_path) as opened:
        count = opened.remove(name)
    click.echo(f"facepipe: erased {name!r} and {count} faces", err=True)


@gallery.command("merge")
@click.argument("source")
@click.argument("into")
@gallery_option
def gallery_merge(gallery_path: Path, source: str, into: str) -> None:
    """Make one person of two: INTO gets the photos of SOURCE."""
    with _opened(gallery_path) as opened:
        count = opened.merge(source, into)
    click.echo(f"facepipe: {count} faces of {source!r} now belong to {into!r}", err=True)


@gallery.command("export")
@click.argument("file", type=ANY_PATH)
@gallery_option
def gallery_export(gallery_path: Path, file: Path) -> None:
    """Write everybody to one open archive (JSON and safetensors in a zip)."""
    with _opened(gallery_path) as opened:
        opened.export_archive(file)


@gallery.command("import")
@click.argument("file", type=ANY_PATH)
@click.option("--encoder-weights", metavar="NAME", help="Weight of the encoder, for a new gallery.")
@gallery_option
def gallery_import(gallery_path: Path, file: Path, encoder_weights: str | None) -> None:
    """Add everybody in an archive; makes the gallery where there is none."""
    from facepipe.pipeline import card_identity
    from gallery import Gallery
    from weights.registry import DEFAULT_ENCODER, load_card

    identity = card_identity(load_card(encoder_weights or DEFAULT_ENCODER).card)
    with Gallery.open(gallery_path, identity, create=True) as opened:
        count = opened.import_archive(file)
    click.echo(f"facepipe: {count} new faces in {gallery_path}", err=True)


@gallery.command("info")
@gallery_option
def gallery_info(gallery_path: Path) -> None:
    """The gallery in figures."""
    with _opened(gallery_path) as opened:
        info = opened.info()
    for field in info.__dataclass_fields__:
        click.echo(f"{field:<18} {getattr(info, field)}")


# Weights


@main.group("weights")
def weights_group() -> None:
    """List, check, import and fetch the networks' weights."""


@weights_group.command("list")
def weights_list() -> None:
    """Every weight that is found, and the published ones that can be fetched."""
    from weights.published import PUBLISHED
    from weights.registry import list_weights

    for entry in list_weights():
        kind = entry.problem or (entry.weight.card.kind if entry.weight else "")
        click.echo(f"{entry.name:<40} {entry.origin:<10} {kind}")
    for name, published in PUBLISHED.items():
        click.echo(f"{name:<40} {'to fetch':<10} {published.kind}")


@weights_group.command("show")
@click.argument("name")
def weights_show(name: str) -> None:
    """A weight's card."""
    from weights.registry import load_card

    click.echo(load_card(name).card.to_json(), nl=False)


@weights_group.command("verify")
@click.argument("names", nargs=-1)
def weights_verify(names: tuple[str, ...]) -> None:
    """Check the files of NAMES, or of every weight, against their cards."""
    from facepipe.doctor import verify_weights

    checks = verify_weights(names)
    for check in checks:
        click.echo(f"{'ok' if check.ok else 'PROBLEM':<8} {check.what}: {check.finding}")
    if not all(check.ok for check in checks):
        sys.exit(1)


@weights_group.command("import")
@click.argument("file", type=ANY_PATH)
@click.option("--name", required=True, help="What to call the weight.")
@click.option("--architecture", metavar="NAME", help="Recognised by names, but for plain ReLUs (README).")
@click.option("--channels", type=click.Choice(["rgb", "bgr"]), help="Order that the network was trained on.")
@click.option(
    "--mean", type=three_numbers, metavar="M,M,M", help="Subtracted from each channel, in that order, 0..255."
)
@click.option("--std", type=three_numbers, metavar="M,M,M", help="Divides each channel, in that order.")
@click.option(
    "--anchors",
    type=anchor_sizes,
    metavar="S,S/S,S/S,S",
    help="A detector's anchor sides in pixels, stride by stride.",
)
def weights_import(
    file: Path,
    name: str,
    architecture: str | None,
    channels: Literal["rgb", "bgr"] | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    anchors: AnchorSpec | None,
) -> None:
    """Turn a published or own checkpoint (.pth, .pt, .safetensors) into a weight with a card."""
    from facepipe.convert import import_checkpoint

    weight = import_checkpoint(
        file, name=name, architecture=architecture, channels=channels, mean=mean, std=std, anchors=anchors
    )
    click.echo(f"facepipe: {weight.card.name} ({weight.card.architecture}) is in {weight.folder}", err=True)


@weights_group.command("fetch")
@click.argument("name")
@click.option("--url", help="Another address of the same file.")
def weights_fetch(name: str, url: str | None) -> None:
    """Download a published checkpoint, to be imported."""
    from weights.download import fetch

    result = fetch(name, url=url)
    click.echo(result.path)
    known = "as expected" if result.was_known else "not known before: remembered from now on"
    click.echo(f"facepipe: sha256 {result.sha256} ({known}); from {result.origin}", err=True)
    click.echo(f"facepipe: next: facepipe weights import {result.path} --name NAME", err=True)


for command in (
    training_commands.train,
    training_commands.data,
    training_commands.evaluate,
    training_commands.export,
):
    main.add_command(command)


if __name__ == "__main__":
    main()
