"""Photos in folders: files, folders and globs become a list of photo files, in a stable order."""

from __future__ import annotations

import fnmatch
import functools
import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath

from facepipe.core.errors import UsageError
from facepipe.core.paths import AnyPath, each_path
from facepipe.images.reading import PHOTO_SUFFIXES, printable


def _suffixes(names: str) -> frozenset[str]:
    return frozenset(f".{name}" for name in names.split())


_RAW = _suffixes(
    "3fr arw cr2 cr3 crw dcr dng erf fff gpr iiq k25 kdc mef mos mrw nef nrw orf pef ptx raf raw rw2 rwl sr2 "
    "srf srw x3f"
)
_VIDEOS = _suffixes("3g2 3gp asf avi flv m2ts m4v mkv mov mp4 mpeg mpg mts ogv vob webm wmv")
_OTHER_PICTURES = _suffixes("exr hdr j2k jp2 jpf jpx jxl jxr pbm pgm pnm ppm psb psd tga xcf")
_UNREAD = (
    ("raw file", _RAW, "export raw files as JPEG"),
    ("video", _VIDEOS, "videos are for `facepipe video`"),
    ("other picture", _OTHER_PICTURES, "save other formats as JPEG or PNG"),
)
"""What is counted, not read: its name, its suffixes in lower case, and the cure."""
_UNREAD_SUFFIXES = _RAW | _VIDEOS | _OTHER_PICTURES
_SYSTEM_FOLDERS = frozenset(
    name.casefold()
    for name in (
        "#recycle",
        "#snapshot",
        "$RECYCLE.BIN",
        "@__thumb",
        "@eaDir",
        "@Recently-Snapshot",
        "@Recycle",
        "__MACOSX",
        "lost+found",
        "RECYCLER",
        "System Volume Information",
    )
)
"""Folders of systems and storage servers: deleted files, thumbnails and copies, no photos of anybody's."""
NaturalPieces = list[tuple[str, tuple[int, str]]]
_log = logging.getLogger("facepipe")


def find_photos(paths: AnyPath | Iterable[AnyPath], *, exclude: Sequence[str] = ()) -> list[Path]:
    """Expand files, folders and globs to photo files, each file once, in a stable order.

    A file is kept as given whatever its suffix, also when it does not exist (`read_image` says so later).
    Folders are walked recursively: a folder's files before its sub-folders, both in natural order (2 before
    10), files with `PHOTO_SUFFIXES` only, nothing hidden and no folders of the system such as `@eaDir` and
    `$RECYCLE.BIN`. Links are followed, each folder once. A folder that can't be read is logged and passed
    over. Raw files, videos and other pictures that are not read are counted in one line of the log.

    Args:
        paths: Files, folders and globs, or one of them. A part of a glob that exists by its very name is no
            pattern.
        exclude: Patterns of files and folders to pass over, as `Path.match` takes them: `cache` and `*.png`
            are names anywhere, `2019/raw` the end of a path, `/photos/private` a whole one.

    Raises:
        UsageError: A folder or glob holds no photo; the message names it. Or a pattern is empty.
    """
    search = PhotoSearch(exclude)
    try:
        return search.find(each_path(paths))
    finally:
        search.log_unread()


def is_wanted(file: Path, folders: Iterable[Path], exclude: Sequence[str] = ()) -> bool:
    """Return whether `find_photos` takes a file (an absolute path) from one of the folders it walks."""
    search = PhotoSearch(exclude)
    roots = {Path(root) for folder in folders for root in (os.path.abspath(folder), real_path(folder))}
    return any(search.takes(file, root) for root in roots if root in file.parents)


class PhotoSearch:
    """Finds photos as `find_photos` does, and counts what it passes over in all its calls together.

    Args:
        exclude: See `find_photos`.

    Raises:
        UsageError: A pattern is empty.
    """

    def __init__(self, exclude: Sequence[str] = ()) -> None:
        if not all(PurePath(pattern).parts for pattern in exclude):
            raise UsageError("exclude: expected the name or pattern of a file or folder, got an empty one")
        self._exclude = exclude
        self._unread: set[Path] = set()

    def find(self, paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
        """Do what `find_photos` does, without its line in the log."""
        found: dict[str, Path] = {}
        for path in paths:
            for photo in self._expanded(os.fspath(path)):
                found.setdefault(real_path(photo), photo)
        return list(found.values())

    def list_folder(self, folder: Path, *, hidden: bool = False) -> tuple[list[Path], list[Path]]:
        """Return the files, of any suffix, and the sub-folders of a folder that are not passed over.

        Both are in natural order.

        Args:
            folder: What to list.
            hidden: List what is hidden, instead of what is not.

        Raises:
            OSError: The folder can't be read.
        """
        files: list[Path] = []
        folders: list[Path] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                path = folder / entry.name
                if entry.name.startswith(".") == hidden:
                    (folders if _is_folder(entry) else files).append(path)
        kept = [path for path in files if not self._is_excluded(path)]
        kept_folders = [path for path in folders if not _is_system(path) and not self._is_excluded(path)]
        return sorted(kept, key=_by_name), sorted(kept_folders, key=_by_name)

    def takes(self, file: Path, root: Path) -> bool:
        """Return whether a photo below the folder `root` is found there, if it exists."""
        below = [path for path in (file, *file.parents) if root in path.parents]
        passed_over = (path.name.startswith(".") or self._is_excluded(path) for path in below)
        return _is_photo(file) and not any(passed_over) and not any(map(_is_system, below[1:]))

    def log_unread(self) -> None:
        """Log, in one line, how many raw files, videos and other pictures were passed over."""
        counts = Counter(path.suffix.lower() for path in self._unread)
        notes, cures = [], []
        for kind, suffixes, cure in _UNREAD:
            present = sorted(suffixes & counts.keys())
            if number := sum(counts[suffix] for suffix in present):
                notes.append(f"{number} {kind}{'s' if number > 1 else ''} ({' '.join(present)})")
                cures.append(cure)
        if notes:
            _log.info("passed over %s: %s", ", ".join(notes), "; ".join(cures))

    def _expanded(self, path: str) -> list[Path]:
        if os.path.isdir(path):
            return _some(list(self._walk(Path(path))), path, "folder")
        if os.path.lexists(path) or not glob.has_magic(path):
            return [Path(path)]
        found: list[Path] = []
        for match in self._matches(path):
            found += self._walk(match) if os.path.isdir(match) else self._photos_among([match])
        return _some(found, path, "pattern")

    def _matches(self, pattern: str) -> list[Path]:
        """The files and folders that a glob names; of a trailing `**`, the folder that is to be walked."""
        start, *parts = Path(pattern).parts if Path(pattern).anchor else ("", *Path(pattern).parts)
        found = [Path(start)]
        for part in parts:
            found = [match for base in found for match in self._children(base, part)]
        return [match for match in found if os.path.isdir(match)] if pattern.endswith("/") else found

    def _children(self, base: Path, part: str) -> Iterable[Path]:
        if os.path.lexists(base / part) or not glob.has_magic(part):
            return [base / part] if os.path.lexists(base / part) else []
        if part == "**":
            return [folder for folder, _ in self._folders(base)]
        files, folders = self._listed(base, hidden=part.startswith("."))
        return [path for path in (*files, *folders) if fnmatch.fnmatch(path.name, part)]

    def _walk(self, folder: Path) -> Iterator[Path]:
        for _, files in self._folders(folder):
            yield from self._photos_among(files)

    def _folders(self, top: Path) -> Iterator[tuple[Path, list[Path]]]:
        """Yield a folder and all below it, each once, with their files; without recursion, however deep."""
        seen: set[str] = set()
        waiting = [(top, real_path(top))]
        while waiting:
            folder, real_folder = waiting.pop()
            if real_folder in seen:
                continue
            seen.add(real_folder)
            files, folders = self._listed(folder)
            waiting += [(child, _real_child(real_folder, child)) for child in reversed(folders)]
            yield folder, files

    def _listed(self, folder: Path, *, hidden: bool = False) -> tuple[list[Path], list[Path]]:
        try:
            return self.list_folder(folder, hidden=hidden)
        except NotADirectoryError:  # a file, where a glob goes on below it
            return [], []
        except OSError as error:
            _log.warning("%s: folder passed over (%s)", printable(folder), error.strerror)
            return [], []

    def _photos_among(self, files: Iterable[Path]) -> Iterator[Path]:
        for file in files:
            if _is_photo(file):
                yield file
            elif file.suffix.lower() in _UNREAD_SUFFIXES:
                self._unread.add(file)

    def _is_excluded(self, path: Path) -> bool:
        return any(path.match(pattern) for pattern in self._exclude)


def natural_key(name: str) -> tuple[NaturalPieces, str]:
    """Sort key of a name: runs of the digits 0 to 9 count as numbers, and case is second to all else."""
    texts_and_numbers = re.split(r"([0-9]+)", name.casefold())
    numbers = [number.lstrip("0") for number in texts_and_numbers[1::2]]
    # A longer number is the larger one: `int` refuses those of thousands of digits.
    keys = [*((len(number), number) for number in numbers), (-1, "")]  # behind the last text is no number
    return list(zip(texts_and_numbers[::2], keys, strict=True)), name


def real_path(path: str | os.PathLike[str]) -> str:
    """Return what identifies a file: the path without links, where the system can follow them."""
    try:
        os.stat(path)  # `realpath` follows chains of links that are too long to be opened
        return os.path.realpath(path)
    except (OSError, ValueError):  # a name that no system takes; a file that is not there
        return os.path.abspath(path)


def real_paths(files: Iterable[Path]) -> list[str]:
    """Return `real_path` of each file, following each folder once."""
    real_folder = functools.cache(real_path)
    return [_real_child(real_folder(file.parent), file) for file in files]


def _real_child(real_folder: str, child: Path) -> str:
    """`real_path(child)`, without following every folder above it once more."""
    if os.name == "nt" or os.path.islink(child):  # junctions are no links to Python 3.11
        return real_path(child)
    return os.path.join(real_folder, child.name)


def _by_name(path: Path) -> tuple[NaturalPieces, str]:
    return natural_key(path.name)


def _is_system(folder: Path) -> bool:
    return folder.name.casefold() in _SYSTEM_FOLDERS


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one; a link that can't be followed is logged."""
    try:
        return entry.is_dir()
    except OSError as error:  # a link to itself, or to where we may not go
        if not _is_photo(Path(entry.name)):  # which fails to be read, with the reason
            _log.warning("%s: passed over (%s)", printable(entry.path), error.strerror)
        return False


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in PHOTO_SUFFIXES


def _some(photos: list[Path], path: str, kind: str) -> list[Path]:
    if not photos:
        looked_for = " ".join(sorted(PHOTO_SUFFIXES))
        raise UsageError(f"{printable(path)}: no photos match this {kind} (looked for {looked_for})")
    return photos
