"""Face regions that Picasa keeps in a file `.picasa.ini` in each folder, where it was not told to write XMP.

A photo has a section of its name with a line `faces=rect64(3f845bcb59418507),8e62398ebda8c1a5;...`: left,
top, right and bottom in 65,535ths of the photo's sides, 16 bits each, and a contact. The section `Contacts2`
has the names of contacts.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from facepipe.core.files import open_regular
from facepipe.xmp.regions import Region

_NAMES = (".picasa.ini", "Picasa.ini")
_LARGEST_BYTES = 16_000_000
_FACE = re.compile(r"rect64\(([0-9a-f]{1,16})\),([0-9a-f]{1,16})", re.IGNORECASE)
_CONTACTS = "contacts2"
_FULL = 0xFFFF
_Sections = dict[str, dict[str, str]]


@dataclass(frozen=True, slots=True)
class PicasaFaces:
    """The named faces of a photo.

    Attributes:
        regions: In the frame of the photo, where it is not turned.
        is_turned: Whether the user has turned the photo in Picasa.
    """

    regions: tuple[Region, ...] = ()
    is_turned: bool = False


def read_picasa(photo: Path) -> PicasaFaces:
    """Read the named faces of a photo from the file in its folder; none where there is no such file.

    Raises:
        OSError: The file can't be read.
        ValueError: It is larger than such files are.
    """
    file = next((photo.parent / name for name in _NAMES if os.path.lexists(photo.parent / name)), None)
    if file is None:
        return PicasaFaces()
    status = os.stat(file)
    sections = _sections(file, status.st_mtime_ns, status.st_size)
    section, contacts = sections.get(photo.name.casefold(), {}), sections.get(_CONTACTS, {})
    regions = (
        _region(sides, contacts.get(contact.casefold(), "").split(";")[0])
        for sides, contact in _FACE.findall(section.get("faces", ""))
    )
    is_turned = section.get("rotate", "rotate(0)") != "rotate(0)"
    return PicasaFaces(tuple(region for region in regions if region.name), is_turned)


def _region(sides: str, name: str) -> Region:
    padded = sides.zfill(16)  # Picasa leaves out leading zeros
    left, top, right, bottom = (int(padded[at : at + 4], 16) / _FULL for at in range(0, 16, 4))
    return Region(name, (left + right) / 2, (top + bottom) / 2, right - left, bottom - top)


@lru_cache(maxsize=4)
def _sections(file: Path, _mtime_ns: int, size_bytes: int) -> _Sections:
    """Return the values by section and key, both folded; kept for the other photos of the folder."""
    if size_bytes > _LARGEST_BYTES:
        raise ValueError(f"more than {_LARGEST_BYTES:,} bytes")
    with open_regular(file) as stream:
        text = stream.read(_LARGEST_BYTES).decode("utf-8", "replace")
    sections: _Sections = {}
    current: dict[str, str] = {}
    for line in text.split("\n"):
        line = line.strip("\r\ufeff ")
        if line.startswith("[") and line.endswith("]"):
            current = sections.setdefault(line[1:-1].casefold(), {})
        else:
            key, _, value = line.partition("=")
            current[key.strip().casefold()] = value.strip()
    return sections
