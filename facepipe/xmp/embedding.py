"""Names in copies of photos, written by exiftool; a copy is verified before it is there.

exiftool is never given a name of the user's: it works on a copy in a folder of facepipe's, under a name that
holds neither dashes, quotes nor line breaks.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from facepipe.core.errors import OutputError, PhotoError, UsageError, one_line
from facepipe.core.faces import Faces
from facepipe.core.files import atomic_path, temporary_folder
from facepipe.images.reading import DEFAULT_MAX_PIXELS, PHOTO_SUFFIXES, read_image, read_orientation, read_xmp
from facepipe.xmp.packets import XmpError, canonical, new_root, parse, to_bytes
from facepipe.xmp.regions import named_regions, stored_size
from facepipe.xmp.writing import OtherShapeError, put_faces

_EXIFTOOL = "exiftool"
_LONGEST_S = 120
_PACKET = "packet.xmp"


def require_exiftool() -> None:
    """Fail before the work where names can't be embedded.

    Raises:
        UsageError: exiftool is not installed.
    """
    if shutil.which(_EXIFTOOL) is None:
        raise UsageError(
            "to embed names, install exiftool (https://exiftool.org; Debian's libimage-exiftool-perl); "
            "--xmp writes sidecars without it"
        )


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
    packet = _named_packet(photo, size_wh, faces, max_pixels)
    if packet is None:
        return False
    try:
        with temporary_folder(target.parent) as folder:
            suffix = photo.suffix.lower()
            copy = folder / f"photo{suffix if suffix in PHOTO_SUFFIXES else ''}"
            shutil.copyfile(photo, copy)
            (folder / _PACKET).write_bytes(packet)
            _embed(folder, copy, photo)
            _verify(copy, photo, packet, max_pixels)
            with atomic_path(target) as temporary:
                shutil.copyfile(copy, temporary)
                status = os.stat(photo)
                os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))
    except OSError as error:
        raise OutputError(f"{target}: can't be written ({error.strerror}); make room there") from error
    return True


def _named_packet(photo: Path, size_wh: tuple[int, int], faces: Faces, max_pixels: int) -> bytes | None:
    """Return the photo's XMP with the names; None where there is none to be added."""
    regions = named_regions(faces, size_wh)
    if not regions:
        return None
    packets = read_xmp(photo, max_pixels=max_pixels)
    if len(packets) > 1:
        raise OutputError(f"{photo}: names are not embedded: its XMP has two parts; use --xmp")
    orientation = read_orientation(photo, max_pixels=max_pixels)
    stored = [region.in_stored_frame(orientation) for region in regions]
    try:
        root = parse(packets[0]) if packets else new_root()
        written = put_faces(root, stored, stored_size(size_wh, orientation), tags=True)
    except (OtherShapeError, XmpError) as error:
        raise OutputError(f"{photo}: names are not embedded: its XMP: {error}") from error
    return to_bytes(root) if written else None


def _embed(folder: Path, copy: Path, photo: Path) -> None:
    options = ["-config", "", "-q", "-q", "-overwrite_original", f"-XMP<={_PACKET}"]
    try:
        done = subprocess.run(
            [_EXIFTOOL, *options, copy.name],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LONGEST_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise OutputError(f"{photo}: names are not embedded: exiftool took over {_LONGEST_S} s") from error
    if done.returncode:
        reason = one_line(done.stderr.decode("utf-8", "replace"))
        raise OutputError(f"{photo}: names are not embedded: exiftool: {reason}")


def _verify(copy: Path, photo: Path, packet: bytes, max_pixels: int) -> None:
    before = _pixels_hash(photo, max_pixels)
    try:
        after, packets = _pixels_hash(copy, max_pixels), read_xmp(copy, max_pixels=max_pixels)
    except PhotoError as error:
        raise OutputError(f"{photo}: names are not embedded: exiftool's copy can't be read") from error
    if after != before:
        raise OutputError(f"{photo}: names are not embedded: exiftool's copy has other pixels")
    if [canonical(parse(stored)) for stored in packets] != [canonical(parse(packet))]:
        raise OutputError(f"{photo}: names are not embedded: they can't be read again; use --xmp")


def _pixels_hash(photo: Path, max_pixels: int) -> tuple[tuple[int, ...], bytes]:
    pixels = read_image(photo, max_pixels=max_pixels)
    return pixels.shape, hashlib.blake2b(pixels.data).digest()
