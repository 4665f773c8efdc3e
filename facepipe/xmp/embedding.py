"""Names in photos and copies of photos, written by exiftool; what it wrote is verified before it is used.

exiftool is never given a name of the user's: it works on a copy in a folder of facepipe's, under a name that
holds neither dashes, quotes nor line breaks.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from facepipe.core.errors import OutputError, unwritable
from facepipe.core.faces import Faces
from facepipe.core.files import atomic_path, temporary_folder
from facepipe.images.reading import (
    DEFAULT_MAX_PIXELS,
    count_pictures,
    read_orientation,
    read_xmp,
)
from facepipe.xmp.exiftool import run_exiftool
from facepipe.xmp.packets import XmpError, content, is_empty, new_root, parse, to_bytes
from facepipe.xmp.regions import named_regions, stored_size
from facepipe.xmp.verifying import verify_copy
from facepipe.xmp.writing import OtherShapeError, holds_ours, put_faces

_PACKET = "packet.xmp"
_BMP = b"BM"


class NotEmbeddableError(OutputError):
    """A photo in which no names can be written, whatever is done about it: a sidecar can have them."""


def write_named_copy(
    photo: Path,
    target: Path,
    size_wh: tuple[int, int],
    faces: Faces,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> bool:
    """Write a copy of a photo with the named faces in it: as regions and as keywords.

    What others have written into the photo stays, as in sidecars. The copy has the photo's time, and appears
    when it was read again: with the same pixels, and with the XMP that was to be written.

    Args:
        photo: Is only read.
        target: Where the copy goes; a file that is there is replaced.
        size_wh: Width and height of the upright photo in pixels.
        faces: With matches, in pixels of the upright photo.
        max_pixels: See `facepipe.images.reading.read_image`.

    Returns:
        Whether there is a copy: none where nobody is named whom others have not marked.

    Raises:
        OutputError: The photo's XMP can't be read, or exiftool can't write it; `target` is as it was.
        PhotoError: The photo can't be read.
    """
    change = names_to_write(photo, size_wh, faces, max_pixels=max_pixels)
    if change is None or not change.is_named:
        return False
    try:
        with temporary_folder(target.parent) as folder:
            copy = embedded_copy(photo, change, folder, max_pixels=max_pixels)
            with atomic_path(target) as temporary:
                shutil.copyfile(copy, temporary)
                status = os.stat(photo)
                os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))
    except OSError as error:
        raise unwritable(target, error) from error
    return True


@dataclass(frozen=True, slots=True)
class PacketChange:
    """The XMP that a photo is to have.

    Attributes:
        packet: The new packet; empty: the photo is to have none.
        is_named: It holds names that facepipe wrote.
    """

    packet: bytes
    is_named: bool


def names_to_write(
    photo: Path, size_wh: tuple[int, int], faces: Faces, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> PacketChange | None:
    """Return the XMP that a photo is to have: with these names, and without those that facepipe wrote before.

    Args:
        photo: Is only read.
        size_wh: Width and height of the upright photo in pixels.
        faces: With matches, in pixels of the upright photo.
        max_pixels: See `facepipe.images.reading.read_image`.

    Returns:
        None: it has it already.

    Raises:
        NotEmbeddableError: Its XMP has two parts.
        OutputError: Its XMP can't be read, or has regions of an image of another shape.
        PhotoError: The photo can't be read.
    """
    packets = read_xmp(photo, max_pixels=max_pixels)
    regions = named_regions(faces, size_wh)
    if not packets and not regions:
        return None
    if len(packets) > 1:
        raise NotEmbeddableError(f"{photo}: names are not embedded: its XMP has two parts; use --xmp")
    orientation = read_orientation(photo, max_pixels=max_pixels)
    stored = [region.in_stored_frame(orientation) for region in regions]
    try:
        root = parse(packets[0]) if packets else new_root()
        before, was_named = content(root), holds_ours(root)
        put_faces(root, stored, stored_size(size_wh, orientation), tags=bool(stored))
    except (OtherShapeError, XmpError) as error:
        raise OutputError(f"{photo}: names are not embedded: its XMP: {error}") from error
    is_named = holds_ours(root)
    if content(root) == before or not (was_named or is_named):
        return None
    return PacketChange(b"" if is_empty(root) else to_bytes(root), is_named)


def require_embeddable(photo: Path) -> None:
    """Check that a photo is of a kind that exiftool writes and facepipe can verify.

    Raises:
        NotEmbeddableError: It is a BMP, a TIFF that Pillow doesn't read, or has several pictures: an
            animation, or pages.
        PhotoError: It can't be read.
        OSError: Likewise.
    """
    with photo.open("rb") as stream:
        if stream.read(len(_BMP)) == _BMP:
            raise NotEmbeddableError(f"{photo}: names are not embedded: a BMP file holds none")
    if count_pictures(photo) != 1:
        raise NotEmbeddableError(
            f"{photo}: names are not embedded: it has several pictures, or is no usual TIFF"
        )


def embedded_copy(
    photo: Path, change: PacketChange, folder: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Path:
    """Make a copy of a photo with other XMP, in a folder of facepipe's; it was verified when it is returned.

    Args:
        photo: Is only read.
        change: Of the photo.
        folder: Where the copy goes; nobody else writes there.
        max_pixels: See `facepipe.images.reading.read_image`.

    Raises:
        OutputError: exiftool can't write it, or the copy is not the same photo with the other XMP.
        PhotoError: The photo can't be read.
        OSError: The folder can't be written.
    """
    copy, original = folder / "photo", folder / "original"  # exiftool tells formats by their content
    shutil.copyfile(photo, copy)
    shutil.copyfile(photo, original)
    (folder / _PACKET).write_bytes(change.packet)
    source = [f"-XMP<={_PACKET}"] if change.packet else ["-XMP="]
    run_exiftool(["-overwrite_original", *source, copy.name], folder, photo)
    verify_copy(copy, original, change.packet, photo, max_pixels)
    return copy
