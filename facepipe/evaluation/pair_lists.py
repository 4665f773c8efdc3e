"""Lists of pairs of photos, in the forms of LFW, of CFP and of CALFW and CPLFW, and as tables.

Sources: G. Huang et al., "Labeled Faces in the Wild", 2007; S. Sengupta et al., "Frontal to Profile Face
Verification in the Wild", 2016.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from facepipe.core.csv_files import has_header, read_rows
from facepipe.core.errors import DataError, UsageError
from facepipe.evaluation.metrics.verification import PhotoPair, pair_photos

FOLDS = 10
"""Folds that the pairs of a table are divided into, where there are pairs enough."""

_COLUMNS = (("first",), ("second",), ("same",))
_COLUMNS_AND_GROUP = (*_COLUMNS, ("group",))
_CFP_SPLITS = {"FF": "frontal-frontal", "FP": "frontal-profile"}
"""Folders of CFP's protocol, and what their pairs are called."""


@dataclass(frozen=True, slots=True)
class PairList:
    """Pairs of photos to compare.

    Attributes:
        name: That of its file, of the folder of a file called "pairs", or of CFP's folder and split.
        pairs: The pairs, by keys of photos.
        photos: Files by key.
        people: Persons by key; None: the list does not name them.
    """

    name: str
    pairs: tuple[PhotoPair, ...]
    photos: Mapping[str, Path]
    people: Mapping[str, str] | None


def read_pair_lists(pairs: Sequence[Path], images: Sequence[Path]) -> list[PairList]:
    """Read several lists of pairs, to measure an encoder on each.

    Args:
        pairs: At least one list, see `read_pair_list`.
        images: The folder of the photos of all, or one for each list.

    Raises:
        UsageError: The number of folders is another, a list is named twice, or two have the same name; or a
            CSV as in `read_pair_list`.
        DataError: See `read_pair_list`.
    """
    if len(images) not in (1, len(pairs)):
        raise UsageError(
            f"--images: expected one folder for all lists of pairs, or one for each ({len(pairs)}) in their "
            f"order, got {len(images)}"
        )
    files = [file.resolve() for file in pairs]
    for file, resolved in zip(pairs, files, strict=True):
        if files.count(resolved) > 1:
            raise UsageError(f"{file} is named twice; name every list of pairs once")
    folders = images if len(images) == len(pairs) else [images[0]] * len(pairs)
    lists = [read_pair_list(file, folder) for file, folder in zip(pairs, folders, strict=True)]
    by_name: dict[str, Path] = {}
    for file, listed in zip(pairs, lists, strict=True):
        if listed.name in by_name:
            raise UsageError(
                f"{by_name[listed.name]} and {file}: both lists would be called {listed.name!r}; rename one"
            )
        by_name[listed.name] = file
    return lists


def read_pair_list(pairs: Path, images: Path) -> PairList:
    """Read pairs in any form, and find their photos.

    Args:
        pairs: LFW's pairs.txt; or CFP's folder `Protocol`, or `Split/FF` or `Split/FP` in it; or, with paths
            below `images`, a pair on two lines of "path number", the number 0 for two people, as CALFW and
            CPLFW have them, lines of "path path 0|1", or a CSV of first,second,same[,group].
        images: LFW's photos as PERSON/PERSON_0001.*, CFP's as PERSON/frontal/01.jpg.

    Raises:
        DataError: The list is malformed, or a photo is missing; names the file and the line.
        UsageError: A CSV can't be read, or a row has other columns.
    """
    if pairs.is_dir():
        return _checked(pairs, _read_cfp(pairs.absolute(), images))
    if pairs.suffix.lower() == ".bin":
        raise DataError(
            f"{pairs}: such packs of faces are pickles, which can run any program when they are read; name "
            "the data set's own list of pairs, and its photos (docs/measuring.md)"
        )
    if pairs.suffix.lower() == ".csv":
        return _checked(pairs, _read_table(pairs, images, _csv_rows(pairs)))
    lines = _lines(pairs)
    if not lines:
        raise DataError(f"{pairs}: names no pairs")
    where, first = lines[0]
    words = _words(first)
    if len(words) == 3 and words[2] in ("0", "1"):
        return _checked(pairs, _read_table(pairs, images, map(_plain_row, lines)))
    if len(words) == 2 and words[1].isdecimal() and not words[0].isdecimal():
        return _checked(pairs, _read_table(pairs, images, _rows_of_two_lines(pairs, lines)))
    if "," in first:
        return _checked(pairs, _read_table(pairs, images, _csv_rows(pairs)))
    if len(words) < 3 and all(word.isdecimal() for word in words):
        return _checked(pairs, _read_lfw(pairs, images))
    raise DataError(
        f"{where}: expected 'path path 0' (or 1 for one person), 'path 0' (and the other path on the next "
        f"line), a header of first,second,same[,group], or LFW's 'folds pairs', got {first[:60]!r}"
    )


def read_lfw_pairs(file: Path) -> tuple[PhotoPair, ...]:
    """Read a pairs.txt: a header, then per fold so many rows of one person and as many of two.

    The header is "folds pairs" or, for one fold, "pairs". Rows are "person number number" and "person number
    person number", split by tabs or, without any tab, by blanks.

    Raises:
        DataError: The file is missing, a row has another form, or the count differs from the header's.
    """
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: can't read the list of pairs ({error})") from error
    folds, per_class = _header(file, lines)
    if len(lines) - 1 != folds * per_class * 2:
        raise DataError(
            f"{file}: the header promises {folds} folds of 2 x {per_class} pairs, "
            f"{folds * per_class * 2} rows, but there are {len(lines) - 1}"
        )
    return tuple(_lfw_pair(file, line, i // (2 * per_class)) for i, line in enumerate(lines[1:]))


def find_lfw_photos(images: Path, keys: Sequence[str]) -> dict[str, Path]:
    """Return the photo file of every key at `images/<person>/<person>_<number>.<any format>`.

    Raises:
        DataError: A photo is not there.
    """
    people = {key.partition("/")[0] for key in keys}
    files = {
        f"{person}/{file.stem}": file for person in sorted(people) for file in (images / person).glob("*.*")
    }
    if missing := sorted(set(keys) - files.keys()):
        raise DataError(
            f"{images}: {len(missing)} of {len(keys)} photos of the pairs are missing, as {missing[0]}"
        )
    return {key: files[key] for key in keys}


def _checked(file: Path, listed: PairList) -> PairList:
    kinds = {pair.same_person for pair in listed.pairs}
    if len(kinds) < 2:
        raise DataError(f"{file}: expected pairs of one person and pairs of two, found one kind or none")
    return listed


def _read_lfw(file: Path, images: Path) -> PairList:
    pairs = read_lfw_pairs(file)
    photos = find_lfw_photos(images, pair_photos(pairs))
    return PairList(_name(file), pairs, photos, _people(photos))


def _name(file: Path) -> str:
    return file.absolute().parent.name if file.stem == "pairs" else file.stem


def _people(photos: Iterable[str]) -> dict[str, str]:
    """By the keys' first part."""
    return {key: key.partition("/")[0] for key in photos}


def _header(file: Path, lines: Sequence[str]) -> tuple[int, int]:
    try:
        numbers = [int(word) for word in lines[0].split()]
        folds, per_class = (1, *numbers) if len(numbers) == 1 else numbers
    except (IndexError, ValueError) as error:
        raise DataError(f"{file}: expected a header of 'folds pairs' or 'pairs'") from error
    return folds, per_class


def _lfw_pair(file: Path, line: str, fold: int) -> PhotoPair:
    words = _words(line)
    try:
        if len(words) == 3:
            return PhotoPair(_lfw_key(words[0], words[1]), _lfw_key(words[0], words[2]), True, fold)
        if len(words) == 4:
            return PhotoPair(_lfw_key(words[0], words[1]), _lfw_key(words[2], words[3]), False, fold)
    except ValueError as error:
        raise DataError(f"{file}: expected photo numbers in {line!r}") from error
    raise DataError(f"{file}: expected 3 or 4 columns, got {len(words)} in {line!r}")


def _lfw_key(person: str, number: str) -> str:
    return f"{person}/{person}_{int(number):04d}"


class _Photos:
    """Photos of a list, each found once.

    Attributes:
        files: By key, the path below `images`.
    """

    def __init__(self, images: Path) -> None:
        self._images = images
        self.files: dict[str, Path] = {}

    def key(self, name: str, where: str) -> str:
        """Return the key of a photo that stands at `where`, a file and a line.

        Raises:
            DataError: It is not there.
        """
        key = PurePosixPath(name).as_posix()
        if key not in self.files:
            path = self._images / key
            if not path.is_file():
                raise DataError(f"{where}: there is no photo {path}")
            self.files[key] = path
        return key


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of a table, and the file and line where it stands."""

    where: str
    first: str
    second: str
    same: str
    group: str | None = None


def _read_table(file: Path, images: Path, rows: Iterable[_Row]) -> PairList:
    photos = _Photos(images)
    pairs = [_table_pair(row, photos) for row in rows]
    return PairList(_name(file), _in_folds(pairs), dict(sorted(photos.files.items())), None)


def _csv_rows(file: Path) -> Iterator[_Row]:
    columns = _COLUMNS_AND_GROUP if has_header(file, _COLUMNS_AND_GROUP) else _COLUMNS
    for number, cells in read_rows(file, columns):
        yield _Row(f"{file}, line {number}", *cells)


def _plain_row(line: tuple[str, str]) -> _Row:
    where, words = line[0], _words(line[1])
    if len(words) != 3:
        raise DataError(f"{where}: expected 3 columns, path path 0|1, got {len(words)} in {line[1][:60]!r}")
    return _Row(where, *words)


def _rows_of_two_lines(file: Path, lines: Sequence[tuple[str, str]]) -> Iterator[_Row]:
    """Read a pair from every two lines of "path number": 0 for two people, else one."""
    if len(lines) % 2:
        raise DataError(f"{file}: expected two lines for each pair, got {len(lines)} lines")
    for (where, line), (_, next_line) in zip(lines[::2], lines[1::2], strict=True):
        first, second = _words(line), _words(next_line)
        if not (len(first) == len(second) == 2 and first[1] == second[1] and first[1].isdecimal()):
            raise DataError(
                f"{where}: expected 'path number' here and on the next line, with one number for both, got "
                f"{line[:60]!r} and {next_line[:60]!r}"
            )
        yield _Row(where, first[0], second[0], "1" if int(first[1]) else "0")


def _table_pair(row: _Row, photos: _Photos) -> PhotoPair:
    if row.same not in ("0", "1"):
        raise DataError(
            f"{row.where}: expected 1 (one person) or 0 (two), got {row.same[:60]!r}; "
            "columns are first,second,same[,group]"
        )
    first, second = (photos.key(name, row.where) for name in (row.first, row.second))
    return PhotoPair(first, second, row.same == "1", 0, row.group)


def _in_folds(pairs: Sequence[PhotoPair]) -> tuple[PhotoPair, ...]:
    """Divide the pairs in their order, so that every fold has the same share of each kind and group."""
    folds = max(1, min(FOLDS, *(sum(pair.same_person == same for pair in pairs) for same in (True, False))))
    totals = Counter((pair.group, pair.same_person) for pair in pairs)
    seen: Counter[tuple[str | None, bool]] = Counter()
    divided = []
    for pair in pairs:
        kind = (pair.group, pair.same_person)
        divided.append(replace(pair, fold=seen[kind] * folds // totals[kind]))
        seen[kind] += 1
    return tuple(divided)


def _read_cfp(folder: Path, images: Path) -> PairList:
    protocol, splits = _cfp_splits(folder)
    listed = {side: _cfp_list(protocol / f"Pair_list_{side}.txt") for side in sorted(set("".join(splits)))}
    photos = _Photos(images)
    pairs = []
    for split in splits:
        group = _CFP_SPLITS[split] if len(splits) > 1 else None
        sides = [listed[side] for side in split]
        for fold, place in enumerate(_cfp_folds(protocol / "Split" / split)):
            for name, same in (("same.txt", True), ("diff.txt", False)):
                for first, second in _cfp_pairs(place / name, sides):
                    keys = photos.key(*first), photos.key(*second)
                    pairs.append(PhotoPair(*keys, same, fold, group))
    files = dict(sorted(photos.files.items()))
    name = "-".join([protocol.parent.name, *(splits if len(splits) == 1 else [])])
    return PairList(name, tuple(pairs), files, _people(files))


def _cfp_splits(folder: Path) -> tuple[Path, list[str]]:
    """Return the folder `Protocol` and the names of the splits that are asked for."""
    if folder.name in _CFP_SPLITS and folder.parent.name == "Split":
        return folder.parent.parent, [folder.name]
    if splits := [name for name in _CFP_SPLITS if (folder / "Split" / name).is_dir()]:
        return folder, splits
    raise DataError(f"{folder}: expected CFP's folder Protocol, or Split/FF or Split/FP in it")


@dataclass(frozen=True, slots=True)
class _CfpList:
    """Numbered photos: per number, the key, and the file and line where it stands."""

    file: Path
    photos: Mapping[int, tuple[str, str]]


def _cfp_list(file: Path) -> _CfpList:
    """Read lines of "number path"; of the path PERSON/frontal|profile/NN.jpg counts."""
    photos = {}
    for where, line in _lines(file):
        number, _, path = line.partition(" ")
        parts = PurePosixPath(path.strip()).parts[-3:]
        if not number.isdecimal() or len(parts) < 3:
            raise DataError(f"{where}: expected a number and .../PERSON/frontal/01.jpg, got {line[:60]!r}")
        photos[int(number)] = ("/".join(parts), where)
    return _CfpList(file, photos)


def _cfp_folds(split: Path) -> list[Path]:
    if folds := sorted(path for path in split.iterdir() if path.is_dir()):
        return folds
    raise DataError(f"{split}: expected folders 01 to {FOLDS} of same.txt and diff.txt, found none")


def _cfp_pairs(file: Path, sides: Sequence[_CfpList]) -> Iterator[list[tuple[str, str]]]:
    for where, line in _lines(file):
        numbers = [number.strip() for number in line.split(",")]
        if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
            raise DataError(f"{where}: expected two numbers, as 12,34, got {line[:60]!r}")
        pair = [(int(number), side) for number, side in zip(numbers, sides, strict=True)]
        for number, side in pair:
            if number not in side.photos:
                raise DataError(f"{where}: photo {number} is not listed in {side.file.name}")
        yield [side.photos[number] for number, side in pair]


def _lines(file: Path) -> list[tuple[str, str]]:
    """Return the lines that are not empty, each behind its file and number."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: can't read the list of pairs ({error})") from error
    return [(f"{file}, line {number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def _words(line: str) -> list[str]:
    return [word.strip() for word in (line.split("\t") if "\t" in line else line.split())]
