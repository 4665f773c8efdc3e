"""XMP sidecars with named faces, as photo managers read them; whatever else a sidecar holds stays in it."""

from __future__ import annotations

import os
from pathlib import Path

from facepipe.core.errors import OutputError
from facepipe.core.faces import Faces
from facepipe.core.files import atomic_file, copy_rights
from facepipe.images.reading import read_orientation
from facepipe.xmp.packets import Element, XmpError, new_root, parse_file, rdf_of, to_bytes, value
from facepipe.xmp.regions import named_regions, stored_size
from facepipe.xmp.writing import OtherShapeError, put_faces

_TIFF = "http://ns.adobe.com/tiff/1.0/"


def sidecar_path(photo: Path) -> Path:
    """`photo.jpg.xmp`: the whole name, so that `photo.png` beside it has one of its own."""
    return photo.with_name(f"{photo.name}.xmp")


def write_sidecar(photo: Path, size_wh: tuple[int, int], faces: Faces, *, tags: bool = False) -> Path | None:
    """Write the named faces into the photo's sidecar, beside it.

    Regions that facepipe wrote before are replaced. A face that somebody else marked is left as it is, and
    not marked a second time. All else in the sidecar is kept.

    A new sidecar may be read and written by whoever may read and write the photo; one that is there keeps its
    permissions, and one that is a link stays it: the file that it leads to is replaced.

    The EXIF orientation is the photo's own: it is the one that was applied before faces were found. Where
    the photo is gone it is the sidecar's `tiff:Orientation`, and 1 where that has none.

    Args:
        photo: Need not exist.
        size_wh: Width and height of the upright photo in pixels.
        faces: With matches, in pixels of the upright photo.
        tags: Write the names as keywords too; see `facepipe.xmp.tags`. They are written in any case where
            facepipe has written some into the sidecar before.

    Returns:
        The sidecar; None where there was nothing to write, and none to take anything from.

    Raises:
        OutputError: The sidecar that is there is no XMP, or has regions of an image of another shape, or
            can't be written; it is left as it is.
        PhotoError: The photo can't be read, and there is somebody to write.
        MissingExtraError: lxml is not installed.
    """
    sidecar = sidecar_path(photo)
    exists = os.path.lexists(sidecar)
    regions = named_regions(faces, size_wh)
    if not regions and not exists:
        return None
    try:
        root = parse_file(sidecar) if exists else new_root()
        before = to_bytes(root)
        orientation = _orientation(photo, root, max_pixels=size_wh[0] * size_wh[1]) if regions else 1
        stored = [region.in_stored_frame(orientation) for region in regions]
        put_faces(root, stored, stored_size(size_wh, orientation), tags=tags)
    except OtherShapeError as error:
        raise OutputError(f"{sidecar}: {error}") from error
    except XmpError as error:
        raise OutputError(f"{sidecar}: {error}; move it away") from error
    after = to_bytes(root)
    if not exists or after != before:
        _write(sidecar, after, photo)
    return sidecar


def _write(sidecar: Path, packet: bytes, photo: Path) -> None:
    exists = os.path.lexists(sidecar)
    try:
        rights = os.stat(sidecar) if exists else _rights_of(photo)
        with atomic_file(Path(os.path.realpath(sidecar, strict=exists))) as stream:  # a link stays
            if rights is not None:
                copy_rights(rights, stream)
            stream.write(packet)
    except OSError as error:
        raise OutputError(
            f"{sidecar}: can't be written ({error.strerror}); make its folder writable, or its name shorter"
        ) from error


def _rights_of(photo: Path) -> os.stat_result | None:
    try:
        return os.stat(photo)
    except OSError:  # gone
        return None


def _orientation(photo: Path, root: Element, max_pixels: int) -> int:
    if os.path.lexists(photo):
        return read_orientation(photo, max_pixels=max_pixels)
    stored = value(rdf_of(root), _TIFF, "Orientation")
    return next((orientation for orientation in range(1, 9) if str(orientation) == stored), 1)
