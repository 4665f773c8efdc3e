"""Commands on a gallery: its people, archives and figures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from facepipe.commands.options import ANY_PATH, force_option, gallery_option, gallery_place, key_file_option
from facepipe.commands.output import echo, echo_record
from facepipe.core.counting import counted
from facepipe.core.errors import GalleryError

if TYPE_CHECKING:
    from facepipe.batch.job import Job
    from facepipe.gallery import EncoderIdentity, Gallery
    from facepipe.gallery.address import GalleryAddress


@click.group()
def gallery() -> None:
    """Manage the people in a gallery."""


@contextlib.contextmanager
def _opened(gallery_address: GalleryAddress) -> Iterator[Gallery]:
    from facepipe.gallery import Gallery

    with Gallery.open(gallery_address) as opened:
        yield opened


@gallery.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per person and line.")
@gallery_option
def gallery_list(gallery_address: GalleryAddress, as_json: bool) -> None:
    """Everybody, with the number of their photos."""
    from facepipe.core.json_lines import record_to_json

    with _opened(gallery_address) as opened:
        for person in opened.people():
            if as_json:
                echo_record(record_to_json(person))
            else:
                echo(f"{person.template_count:6d}  {person.name}")


@gallery.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per photo and line.")
@gallery_option
def gallery_show(gallery_address: GalleryAddress, name: str, as_json: bool) -> None:
    """The photos that a person was learned from."""
    from facepipe.core.json_lines import record_to_json

    with _opened(gallery_address) as opened:
        for template in opened.templates(name):
            if as_json:
                echo_record(record_to_json(template))
                continue
            quality = "" if template.quality is None else f"sharpness {template.quality:.2f}"
            echo(f"{template.id:6d}  {template.added_at}  {quality}  {template.source or ''}")


@gallery.command("rename")
@click.argument("old")
@click.argument("new")
@gallery_option
def gallery_rename(gallery_address: GalleryAddress, old: str, new: str) -> None:
    """Give a person another name."""
    with _opened(gallery_address) as opened:
        opened.rename(old, new)


also_option = click.option(
    "--also",
    "jobs",
    type=ANY_PATH,
    multiple=True,
    metavar="DIR",
    help="Erase it from this --out of a batch too; repeatable.",
)


@contextlib.contextmanager
def _opened_jobs(folders: tuple[Path, ...]) -> Iterator[list[Job]]:
    """Yield all of them before anything is erased."""
    from facepipe.batch.job import Job

    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Job(folder)) for folder in folders]


@gallery.command("remove")
@click.argument("name")
@also_option
@gallery_option
def gallery_remove(gallery_address: GalleryAddress, name: str, jobs: tuple[Path, ...]) -> None:
    """Erase a person: name, embeddings, crops and paths, and unknown faces that would get the name.

    With --also, from the folder of a batch: what was seen in photos in which the person is or may be, with
    pictures, records, report, and the name in sidecars that it wrote. The next run analyzes them again.
    """
    from facepipe.batch.forgetting import forget_person
    from facepipe.gallery.names import clean_name
    from facepipe.pipeline import known_identity

    with _opened(gallery_address) as opened, _opened_jobs(jobs) as opened_jobs:
        opened.encoder = known_identity(opened.encoder)  # the default threshold is that of naming
        photos = sum(forget_person(job, {name, clean_name(name)}) for job in opened_jobs)
        # Somebody who is only in a batch any more was removed from the gallery before.
        count = opened.remove(name) if opened.knows(name) or not photos else 0
    echo(f"facepipe: erased {name!r} and {counted(count, 'face')}", err=True)
    if jobs:
        echo(f"facepipe: erased what was seen in {counted(photos, 'photo')} of batches", err=True)


@gallery.command("forget")
@click.option("--photo", required=True, type=ANY_PATH, metavar="PATH", help="The photo; it may be gone.")
@also_option
@gallery_option
def gallery_forget(gallery_address: GalleryAddress, photo: Path, jobs: tuple[Path, ...]) -> None:
    """Erase every face of a photo, named or unknown: embeddings, crops and paths."""
    from facepipe.batch.forgetting import forget_photo
    from facepipe.images.reading import photo_sha256

    with _opened(gallery_address) as opened, _opened_jobs(jobs) as opened_jobs:
        content = photo_sha256(photo) if photo.is_file() else None
        photos = sum(forget_photo(job, photo, content) for job in opened_jobs)
        count = opened.forget_photo(photo, content)
    if jobs:
        echo(f"facepipe: erased {counted(photos, 'photo')} of batches", err=True)
    if not count and not photos:
        raise GalleryError(
            f"{photo}: no face of this photo is in {gallery_address}: give its path as enrolled"
        )
    echo(f"facepipe: erased {counted(count, 'face')} of {photo}", err=True)


@gallery.command("threshold")
@click.argument("threshold_l2", type=float, required=False, metavar="[L2]")
@click.option("--person", metavar="NAME", help="Of this person only.")
@click.option("--reset", is_flag=True, help="Take it away: the default applies again.")
@gallery_option
def gallery_threshold(
    gallery_address: GalleryAddress, threshold_l2: float | None, person: str | None, reset: bool
) -> None:
    """Set the largest distance at which a face is named, 0..2."""
    if reset == (threshold_l2 is not None):
        raise click.UsageError("Give a distance, or --reset.")
    with _opened(gallery_address) as opened:
        if person is None:
            opened.set_threshold(threshold_l2)
        else:
            opened.set_person_threshold(person, threshold_l2)


@gallery.command("merge")
@click.argument("source")
@click.argument("into")
@gallery_option
def gallery_merge(gallery_address: GalleryAddress, source: str, into: str) -> None:
    """Make one person of two: INTO gets the photos of SOURCE. For two galleries, see merge-from."""
    with _opened(gallery_address) as opened:
        count = opened.merge(source, into)
    echo(f"facepipe: {into!r} now has {counted(count, 'face')} of {source!r}", err=True)


@gallery.command("export")
@click.argument("file", type=ANY_PATH)
@force_option
@gallery_option
def gallery_export(gallery_address: GalleryAddress, file: Path, force: bool) -> None:
    """Write everybody to one open archive (JSON and safetensors in a zip)."""
    from facepipe.core.overwriting import ARCHIVE
    from facepipe.reports.pictures import require_place

    require_place(file, ARCHIVE, force=force)
    with _opened(gallery_address) as opened:
        opened.export_archive(file)


@gallery.command("import")
@click.argument("file", type=ANY_PATH)
@click.option("--encoder-weights", metavar="NAME", help="Weight of the encoder, for a new gallery.")
@gallery_option
def gallery_import(gallery_address: GalleryAddress, file: Path, encoder_weights: str | None) -> None:
    """Add everybody in an archive; makes the gallery where there is none."""
    from facepipe.gallery.gallery import import_archive
    from facepipe.pipeline import card_identity
    from facepipe.weights.registry import DEFAULT_ENCODER, load_card

    count = import_archive(
        gallery_address, file, card_identity(load_card(encoder_weights or DEFAULT_ENCODER).card)
    )
    echo(f"facepipe: {counted(count, 'new face')} in {gallery_address}", err=True)


@gallery.command("merge-from")
@click.argument("other", type=gallery_place)
@gallery_option
def gallery_merge_from(gallery_address: GalleryAddress, other: GalleryAddress) -> None:
    """Add everybody of another gallery, the folder or URL OTHER, which stays as it is."""
    with _opened(gallery_address) as opened:
        count = opened.merge_from(other)
    echo(f"facepipe: {counted(count, 'new face')} in {gallery_address}", err=True)


@gallery.command("backup")
@click.argument("folder", type=ANY_PATH)
@gallery_option
def gallery_backup(gallery_address: GalleryAddress, folder: Path) -> None:
    """Copy the gallery to a new FOLDER, a gallery of its own, while others read and write."""
    with _opened(gallery_address) as opened:
        opened.backup(folder)
    echo(f"facepipe: {folder} holds the gallery as it is now", err=True)


@gallery.command("restore")
@click.argument("backup", type=ANY_PATH)
@click.option("--encoder-weights", metavar="NAME", help="Weight of the encoder, for an archive.")
@gallery_option
def gallery_restore(gallery_address: GalleryAddress, backup: Path, encoder_weights: str | None) -> None:
    """Take the gallery back to BACKUP: a folder that backup made, its SQLite file, or an archive.

    The backup is checked first and stays as it is. The gallery as it was is kept in a folder beside it. Don't
    copy a backup over a gallery by hand: what the gallery has in its log does not belong to it.
    """
    from facepipe.gallery.restore import restore
    from facepipe.pipeline import card_identity
    from facepipe.weights.registry import DEFAULT_ENCODER, load_card

    done = restore(gallery_address, backup, card_identity(load_card(encoder_weights or DEFAULT_ENCODER).card))
    echo(f"facepipe: {gallery_address} holds {counted(done.templates, 'face')} as {backup} does", err=True)
    if done.aside:
        echo(
            f"facepipe: {done.aside} is the gallery as it was: it is personal data, so delete it when you "
            "need it no more",
            err=True,
        )


@gallery.command("verify")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per finding and line.")
@click.option("--encoder-weights", metavar="NAME", help="Require embeddings of this encoder.")
@gallery_option
def gallery_verify(gallery_address: GalleryAddress, as_json: bool, encoder_weights: str | None) -> None:
    """Check rows, embeddings, names, thresholds, references and the index. Exit code 1: a finding."""
    from facepipe.core.json_lines import record_to_json
    from facepipe.gallery.repair import verify

    findings = verify(gallery_address, _identity(encoder_weights))
    for finding in findings:
        if as_json:
            echo_record(record_to_json(finding))
        else:
            echo(f"{finding.code}: {finding.message}")
    if findings:
        raise GalleryError(
            f"{gallery_address}: not whole: run `facepipe gallery repair`, or restore a backup"
        )
    echo(f"facepipe: {gallery_address} is whole", err=True)


def _identity(encoder_weights: str | None) -> EncoderIdentity | None:
    from facepipe.pipeline import card_identity
    from facepipe.weights.registry import load_card

    return card_identity(load_card(encoder_weights).card) if encoder_weights else None


@gallery.command("repair")
@click.option("--encoder-weights", metavar="NAME", help="Whose embeddings it holds, if that is lost.")
@gallery_option
def gallery_repair(gallery_address: GalleryAddress, encoder_weights: str | None) -> None:
    """Make a damaged gallery whole; what can't be trusted is put aside, not thrown away.

    Faces that the gallery lost, but of which the index still has the embeddings, become unknown faces: whose
    they are can't be known. See `facepipe cluster`.
    """
    from facepipe.gallery.repair import repair

    done = repair(gallery_address, _identity(encoder_weights))
    for finding in done.findings:
        echo(f"{finding.code}: {finding.message}")
    if not done.findings:
        echo(f"facepipe: {gallery_address} is whole; nothing was done", err=True)
        return
    echo(f"facepipe: {gallery_address} is whole again, with {counted(done.templates, 'face')}", err=True)
    if done.brought_back:
        faces = counted(done.brought_back, "lost face")
        echo(f"facepipe: {faces} came back without a name: see `facepipe cluster`", err=True)
    if done.aside:
        echo(
            f"facepipe: {done.aside} holds the damaged file and {counted(done.quarantined, 'row')} in "
            "quarantine: it is personal data, so delete it when you need it no more",
            err=True,
        )


@gallery.command("encrypt")
@gallery_option
def gallery_encrypt(gallery_address: GalleryAddress) -> None:
    """Encrypt names, paths, embeddings and crops with the key of --key-file or $FACEPIPE_GALLERY_KEY."""
    from facepipe.gallery.gallery import encrypt
    from facepipe.gallery.storage.encryption import secret_of_environment

    encrypt(gallery_address, secret_of_environment())
    echo(f"facepipe: {gallery_address} is encrypted; without the key nobody can read it", err=True)


@gallery.command("decrypt")
@gallery_option
def gallery_decrypt(gallery_address: GalleryAddress) -> None:
    """Undo encrypt."""
    with _opened(gallery_address) as opened:
        opened.decrypt()
    echo(f"facepipe: {gallery_address} is not encrypted any more", err=True)


@gallery.command("info")
@gallery_option
def gallery_info(gallery_address: GalleryAddress) -> None:
    """The gallery in figures."""
    with _opened(gallery_address) as opened:
        info = opened.info()
    for field in info.__dataclass_fields__:
        echo(f"{field:<18} {getattr(info, field)}")


@gallery.command("copy")
@click.argument("source", type=gallery_place, metavar="SRC")
@click.argument("target", type=gallery_place, metavar="DST")
@key_file_option
@click.option("--to-key-file", type=ANY_PATH, metavar="FILE", help="Key of DST.  [default: that of SRC]")
def gallery_copy(source: GalleryAddress, target: GalleryAddress, to_key_file: Path | None) -> None:
    """Copy the gallery SRC to DST, exactly; both are folders or URLs.

    There is no gallery in DST yet, or an empty one. Killed, the copy is no gallery yet: run it again, and it
    goes on. With a key, DST is encrypted.
    """
    from facepipe.gallery.copying import copy_gallery
    from facepipe.gallery.storage.encryption import read_key_file

    key = read_key_file(to_key_file) if to_key_file else None
    done = copy_gallery(source, target, target_secret=key)
    held = f"{counted(done.people, 'person')}, {counted(done.templates, 'face')}"
    echo(f"facepipe: {target} is a copy of {source}: {held}", err=True)


@gallery.command("roles")
@click.option("--reader", metavar="NAME", help="May identify.")
@click.option("--writer", metavar="NAME", help="May add and erase people too.")
@gallery_option
def gallery_roles(gallery_address: GalleryAddress, reader: str | None, writer: str | None) -> None:
    """Print SQL that makes roles for a gallery on PostgreSQL, with the rights they need.

    Without options for both, named facepipe_reader and facepipe_writer.
    """
    from facepipe.gallery.roles import roles_sql

    if reader is None and writer is None:
        reader, writer = "facepipe_reader", "facepipe_writer"
    for line in roles_sql(gallery_address, reader, writer).splitlines():
        echo(line)
