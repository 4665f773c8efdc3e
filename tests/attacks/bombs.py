"""Small files that become huge: read or refused in plain words, in bounded memory and time."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bomb_files import ARCHIVE_BOMBS, PHOTO_BOMBS, SIDECAR_BOMBS, write_video
from PIL import Image
from pipeline_helpers import faces_at

from attacks.cases import Attack, Case
from attacks.processes import Word, Work, as_command
from facepipe.core.errors import FacepipeError
from facepipe.core.faces import Match
from facepipe.xmp.sidecars import sidecar_path, write_sidecar

PEAK_LIMIT_BYTES = 1_500_000_000
PHOTO_LIMIT_BYTES = 1_900_000_000
"""Of one photo alone: 200 megapixels are allowed, of 7 bytes each while they are decoded."""
CPU_LIMIT_S = 120.0
_ADDRESSES_BYTES = 12 << 30
"""Beyond it a process gets no memory, so that no bomb takes the machine with it."""
_COPIES = 3


def _explode(case: Case, work: Work, limit_bytes: int = PEAK_LIMIT_BYTES) -> None:
    ended = case.run(partial(_bounded, work), measured=True)
    case.count("refused" if ended.code == 1 else "read")
    peak = f"{ended.peak_bytes / 1e6:,.0f} MB at most"
    case.require_plain(ended, (0, 1, 3))
    limit = f"{limit_bytes / 1e6:,.0f} MB"
    case.require(ended.peak_bytes <= limit_bytes, f"{peak}, more than {limit}; exit code {ended.code}")
    case.require(ended.cpu_s <= CPU_LIMIT_S, f"took {ended.cpu_s:.0f} s of processor time")


def _bounded(work: Work) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES_BYTES, _ADDRESSES_BYTES))
    work()


def _file(case: Case, name: str, make: Callable[[], bytes]) -> Path:
    """The bomb, made in a process of its own when it is first wanted."""
    file = case.workshop.folder / "bombs" / name
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        case.require_plain(case.run(lambda: file.write_bytes(make())), (0,))
    return file


def _photo(case: Case, name: str) -> None:
    """Alone by `identify`, or several at once by `batch`."""
    file = _file(case, name, PHOTO_BOMBS[name])
    gallery: list[Word] = ["--gallery", case.workshop.gallery]
    if case.dice.random() < 0.5:
        work = as_command(["identify", file, "--json", *gallery], case.folder)
        _explode(case, work, PHOTO_LIMIT_BYTES)
        return
    photos = case.folder / "photos"
    photos.mkdir()
    for number in range(_COPIES):
        (photos / f"{number} {name}").symlink_to(file)
    words: list[Word] = [
        "batch",
        photos,
        "--out",
        case.folder / "out",
        "--workers",
        _COPIES,
        "--annotate",
        "--crops",
        *gallery,
    ]
    _explode(case, as_command(words, case.folder))


def _archive(case: Case, name: str) -> None:
    file = _file(case, f"{name}.zip", ARCHIVE_BOMBS[name])
    _explode(case, as_command(["gallery", "import", file, "--gallery", case.folder / "g"], case.folder))


def _sidecar(case: Case, name: str) -> None:
    photo = case.folder / "photo.jpg"
    Image.new("RGB", (160, 160)).save(photo)
    sidecar_path(photo).write_bytes(SIDECAR_BOMBS[name]())
    _explode(case, partial(_write_sidecar, photo))


def _write_sidecar(photo: Path) -> None:
    faces = faces_at((40, 30, 90, 100)).with_matches([Match("Ada", 0.5, 1.0)])
    try:
        write_sidecar(photo, (160, 160), faces)
    except FacepipeError as error:
        print(f"facepipe: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error


def _video(case: Case) -> None:
    file = case.workshop.folder / "bomb.mkv"
    if not file.exists():
        case.require_plain(case.run(partial(write_video, file)), (0,))
    words: list[Word] = [
        "video",
        file,
        "--gallery",
        case.workshop.gallery,
        "--annotate",
        case.folder / "annotated.mp4",
    ]
    _explode(case, as_command(words, case.folder))


ATTACKS = [
    *(Attack("bombs", name, partial(_photo, name=name)) for name in PHOTO_BOMBS),
    *(Attack("bombs", f"archive of {name}", partial(_archive, name=name)) for name in ARCHIVE_BOMBS),
    *(Attack("bombs", f"sidecar of {name}", partial(_sidecar, name=name)) for name in SIDECAR_BOMBS),
    Attack("bombs", "video", _video),
]
