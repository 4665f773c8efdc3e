"""Mutated photos, sidecars and videos: read, or refused in plain words; no crash, and in time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from image_helpers import encode
from PIL import Image
from pipeline_helpers import faces_at
from video_helpers import numbered, write_video

from attacks.cases import Attack, Case
from attacks.damage import mutated
from attacks.processes import Word, as_command
from facepipe.core.errors import FacepipeError
from facepipe.core.faces import Match
from facepipe.images.reading import read_image, read_orientation, read_reduced
from facepipe.video import is_cut_off, read_frames, stated_duration_s
from facepipe.xmp.marks import read_marks
from facepipe.xmp.sidecars import sidecar_path, write_sidecar

_TRIES = 20
"""Files that one process reads, each after the other."""
_COMMAND_SHARE, _COMMAND_TRIES = 0.2, 4
CPU_LIMIT_S = 20.0
"""For a single file; those here are small, but may claim to be large."""
_SIDE_PX = 160
_TURNED_ON_ITS_SIDE, _EXIF_ORIENTATION = 6, 0x0112

Options = dict[str, Any]
VARIANTS: dict[str, tuple[tuple[str, Options], ...]] = {
    "JPEG": (
        ("RGB", {}),
        ("RGB", {"progressive": True}),
        ("CMYK", {}),
        ("L", {"quality": 30}),
        ("turned", {}),
    ),
    "PNG": (("RGB", {}), ("RGBA", {}), ("P", {}), ("1", {}), ("I;16", {}), ("turned", {})),
    "WEBP": (("RGB", {}), ("RGBA", {"lossless": True}), ("turned", {})),
    "TIFF": (
        ("RGB", {}),
        ("RGB", {"compression": "tiff_lzw"}),
        ("RGB", {"compression": "tiff_adobe_deflate"}),
        ("RGB", {"compression": "jpeg"}),
        ("I;16", {"compression": "packbits"}),
        ("F", {}),
        ("1", {"compression": "group4"}),
        ("turned", {}),
    ),
    "GIF": (("P", {}), ("P", {"save_all": True}), ("L", {"interlace": 1})),
    "BMP": (("RGB", {}), ("P", {}), ("1", {})),
    "AVIF": (("RGB", {}),),
    "HEIC": (("RGB", {}),),
}
"""By format: modes of pixels ("turned": with an EXIF orientation) and options to write them with."""


@cache
def _photo(image_format: str, variant: int) -> bytes:
    from skimage import data

    mode, options = VARIANTS[image_format][variant]
    load: Any = data.astronaut
    picture = Image.fromarray(load()).resize((_SIDE_PX, _SIDE_PX))
    if mode == "turned":
        exif = Image.Exif()
        exif[_EXIF_ORIENTATION] = _TURNED_ON_ITS_SIDE
        options = options | {"exif": exif}
    elif mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    else:
        picture = picture.convert(mode)
    if options.get("save_all"):
        options = options | {"append_images": [picture.rotate(90), picture.rotate(180)]}
    return encode(picture, image_format, **options)


def _some_photo(case: Case, image_format: str) -> bytes:
    return _photo(image_format, case.dice.randrange(len(VARIANTS[image_format])))


def _in_one_process(case: Case, files: list[Path], read: Callable[[Path], str]) -> None:
    """Read files one after the other in a process; `read` answers a word for what came of it."""
    ended = case.run(partial(_read_each, files, read), measured=True)
    words = ended.out.split()
    case.tries += len(words)
    case.found.update(words)
    at = files[min(len(words), len(files) - 1)].name
    told = f"{at}: exit code {ended.code}: ...{ended.err[-400:]}"
    case.require(ended.code == 0 and len(words) == len(files), told)


def _read_each(files: Iterable[Path], read: Callable[[Path], str]) -> None:
    for file in files:
        began = time.process_time()
        word = read(file)
        seconds = time.process_time() - began
        assert seconds < CPU_LIMIT_S, f"{file.name} took {seconds:.1f} s of processor time"
        print(word, flush=True)


def _require_named(error: FacepipeError, file: Path) -> None:
    assert str(error).startswith(str(file)), f"the error does not begin with the file's name: {error}"
    assert "\n" not in str(error), f"the error has several lines: {error}"


# Photos


def _photos(case: Case, image_format: str) -> None:
    if case.dice.random() < _COMMAND_SHARE:
        _by_command(case, image_format)
        return
    files = []
    for number in range(_TRIES):
        files.append(case.folder / f"{number}.{image_format.lower()}")
        files[-1].write_bytes(mutated(_some_photo(case, image_format), case.dice))
    _in_one_process(case, files, _read_photo)


def _read_photo(file: Path) -> str:
    words = set()
    for read in (read_image, read_orientation, lambda path: read_reduced(path, lambda _: 0.2).rgb):
        try:
            result = read(file)
            if isinstance(result, np.ndarray):
                assert result.dtype == np.uint8, result.dtype
                assert result.ndim == 3, result.shape
                assert result.shape[2] == 3, result.shape
            words.add("read")
        except FacepipeError as error:
            _require_named(error, file)
            words.add("refused")
    return "refused" if "refused" in words else "read"


def _by_command(case: Case, image_format: str) -> None:
    """`identify` of a folder: one record a photo, and the exit code that belongs to them."""
    photos = case.folder / "photos"
    photos.mkdir()
    for number in range(_COMMAND_TRIES):
        data = mutated(_some_photo(case, image_format), case.dice)
        (photos / f"{number}.{image_format.lower()}").write_bytes(data)
    words: list[Word] = ["identify", photos, "--json", "--gallery", case.workshop.gallery]
    words += ["--annotate", case.folder / "annotated", "--crops", case.folder / "crops"]
    ended = case.run_plainly(as_command(words, case.folder), (0, 1, 3), measured=True)
    records = [json.loads(line) for line in ended.out.splitlines()]
    case.require(
        len(records) == _COMMAND_TRIES, f"{len(records)} records: {ended.out[-300:]}{ended.err[-300:]}"
    )
    failed = sum(record["error"] is not None for record in records)
    expected = 0 if not failed else 1 if failed == _COMMAND_TRIES else 3
    case.require(ended.code == expected, f"exit code {ended.code} where {failed} failed: {ended.err[-600:]}")
    for record in records:
        case.count("read" if record["error"] is None else "refused")


# Sidecars


def _sidecars(case: Case) -> None:
    """A sidecar that is there is added to, or left as it is with a reason."""
    files = []
    for number in range(_TRIES):
        photo = case.folder / f"{number}.jpg"
        photo.write_bytes(_photo("JPEG", 0))
        _write(photo)
        sidecar = sidecar_path(photo)
        text = case.dice.choice((sidecar.read_bytes(), _OF_OTHERS, _OF_OTHERS.decode().encode("utf-16")))
        sidecar.write_bytes(mutated(text, case.dice))
        files.append(photo)
    _in_one_process(case, files, _read_sidecar)


_OF_OTHERS = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:mwg-rs="http://www.metadataworkinggroup.com/schemas/regions/"
 xmlns:stDim="http://ns.adobe.com/xap/1.0/sType/Dimensions#" xmlns:stArea="http://ns.adobe.com/xmp/sType/Area#">
<dc:subject><rdf:Bag><rdf:li>Urlaub</rdf:li></rdf:Bag></dc:subject>
<mwg-rs:Regions rdf:parseType="Resource">
<mwg-rs:AppliedToDimensions stDim:w="160" stDim:h="160" stDim:unit="pixel"/>
<mwg-rs:RegionList><rdf:Bag><rdf:li><rdf:Description mwg-rs:Name="Zo\u00eb" mwg-rs:Type="Face">
<mwg-rs:Area stArea:x="0.8" stArea:y="0.8" stArea:w="0.1" stArea:h="0.1" stArea:unit="normalized"/>
</rdf:Description></rdf:li></rdf:Bag></mwg-rs:RegionList></mwg-rs:Regions>
</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>
""".encode()


def _write(photo: Path) -> None:
    faces = faces_at((40, 30, 90, 100)).with_matches([Match("Ada", 0.5, 1.0)])
    write_sidecar(photo, (_SIDE_PX, _SIDE_PX), faces)


def _read_sidecar(photo: Path) -> str:
    from lxml import etree

    sidecar = sidecar_path(photo)
    before = sidecar.read_bytes()
    marked = read_marks(photo)
    assert all(error.startswith(str(sidecar)) for error in marked.errors), marked.errors
    assert all(mark.region.is_valid() for mark in marked.marks if mark.doubt is None), marked
    try:
        _write(photo)
    except FacepipeError as error:
        _require_named(error, sidecar)
        assert sidecar.read_bytes() == before, "a refused sidecar was changed"
        return "refused"
    after = sidecar.read_bytes()
    etree.fromstring(after)
    assert b"Ada" in after or "Ada".encode("utf-16-le") in after, "the name is not in the sidecar"
    return "written"


# Videos

_CODECS = {"mp4": "mp4v", "avi": "MJPG", "webm": "VP80"}
_FRAMES_MAX, _VIDEO_TRIES = 100, 6


def _videos(case: Case, ending: str) -> None:
    whole = case.workshop.folder / f"video.{ending}"
    if not whole.exists():
        case.run_plainly(partial(_write_video, whole, ending), (0,))
    if case.dice.random() < _COMMAND_SHARE:
        _video_by_command(case, whole)
        return
    files = []
    for number in range(_VIDEO_TRIES):
        files.append(case.folder / f"{number}.{ending}")
        files[-1].write_bytes(mutated(whole.read_bytes(), case.dice))
    _in_one_process(case, files, _read_video)


def _write_video(file: Path, ending: str) -> None:
    write_video(file, [numbered(number) for number in range(30)], codec=_CODECS[ending])


def _read_video(file: Path) -> str:
    try:
        stated_duration_s(str(file))
        is_cut_off(str(file))
        for frame in islice(read_frames(str(file), 0.1), _FRAMES_MAX):
            assert frame.rgb.ndim == 3, frame.rgb.shape
            assert frame.time_s >= 0, frame.time_s
    except FacepipeError as error:
        _require_named(error, file)
        return "refused"
    return "read"


def _video_by_command(case: Case, whole: Path) -> None:
    file = case.folder / f"0{whole.suffix}"
    file.write_bytes(mutated(whole.read_bytes(), case.dice))
    words: list[Word] = [
        "video",
        file,
        "--gallery",
        case.workshop.gallery,
        "--annotate",
        case.folder / "annotated.mp4",
    ]
    ended = case.run_plainly(as_command([*words, "--seconds", "60"], case.folder), (0, 1, 3))
    for line in ended.out.splitlines():
        json.loads(line)
    case.count("refused" if ended.code == 1 else "read")


ATTACKS = [
    *(Attack("inputs", name, partial(_photos, image_format=name)) for name in VARIANTS),
    Attack("inputs", "XMP", _sidecars),
    *(Attack("inputs", f"{name} video", partial(_videos, ending=name)) for name in _CODECS),
]
