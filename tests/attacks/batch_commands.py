"""Commands on folders of photos, and the writing of weights, to be killed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from batch_helpers import job_of

from attacks.cases import Case
from attacks.gallery_commands import copy_gallery
from attacks.operations import Operation, State, all_or_nothing
from attacks.processes import Ended, as_command
from facepipe.core.errors import FacepipeError
from facepipe.weights.cards import EmbeddingSpec, InputSpec, WeightCard, WeightFile
from facepipe.weights.files import read_parameters, write_weight
from facepipe.weights.registry import read_card

# Batches


def _photos_and_gallery(case: Case, folder: Path) -> None:
    """Photos, some of which an earlier batch may have dealt with."""
    copy_gallery(case, folder)
    photos = sorted(file for file in case.workshop.photos.rglob("*") if file.is_file())
    photos = case.dice.sample(photos, case.dice.choice((12, 24, 60)))
    earlier = photos[: len(photos) // 2] if case.dice.random() < 0.3 else []
    for part in (earlier, photos[len(earlier) :]):
        for photo in part:
            copy = folder / "photos" / photo.relative_to(case.workshop.photos)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(photo, copy)
        if part is earlier and part:
            case.run_plainly(as_command(_BATCH, folder), (0, 3))


_BATCH = (
    *("batch", "photos", "--gallery", "gallery", "--out", "out", "--annotate", "--crops", "--xmp"),
    *("--workers", "2", "--batch-size", "2", "--quiet"),
)


_IN_PLACE = (*_BATCH, "--xmp-in-place")


def _files(folder: Path) -> Iterator[Path]:
    """What others are to read."""
    for file in sorted(folder.rglob("*")):
        is_hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.is_file() and not is_hidden and not file.name.startswith("job.sqlite3"):
            yield file


def _results(case: Case, folder: Path) -> State:
    """Every file of the results and beside the photos, with its content."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for part in ("photos", "out")
        for file in _files(folder / part)
    }


def _whole_files(before: State, after: State, found: State, ended: Ended) -> bool:
    """Each file as before or as after."""
    return all(found.get(name) in (before.get(name), after.get(name)) for name in found | before)


# Sorting


def _sorted_job(case: Case, folder: Path) -> None:
    """A job with small files for photos, some with sidecars, some of one name."""
    people = {}
    for number in range(8):
        photo = folder / "photos" / f"folder {number % 3}" / f"{number // 2}.jpg"
        photo.parent.mkdir(parents=True, exist_ok=True)
        photo.write_bytes(case.dice.randbytes(case.dice.randrange(1, 200_000)))
        if number % 2:
            photo.with_name(f"{photo.name}.xmp").write_bytes(case.dice.randbytes(500))
        people[photo] = case.dice.sample(["Ada", "Bob", "Eve"], case.dice.randint(1, 2))
    job_of(folder / "job", people)


def _move(folder: Path, *, over_to_another_disk: bool) -> None:
    """`facepipe sort --move`; a file system without hard links stands for another disk."""
    if over_to_another_disk:

        def refuse(*_: object) -> None:
            raise OSError(18, "Invalid cross-device link")

        os.link = refuse  # type: ignore[assignment]
    as_command(["sort", "job", "--to", "sorted", "--move"], folder)()


def _moved(case: Case, folder: Path) -> State:
    """Where every content is; hidden files are not looked at."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for part in ("photos", "sorted")
        for file in _files(folder / part)
    }


def _nothing_lost(before: State, after: State, found: State, ended: Ended) -> bool:
    """Every photo and sidecar is whole, where it was or where it goes, and there where that was told."""
    lines = [line for line in ended.out.splitlines(keepends=True) if line.endswith("\n")]
    told = [line.rstrip("\n").split(" -> ")[1] for line in lines]
    is_known = all(found[name] in (before.get(name), after.get(name)) for name in found)
    return is_known and set(before.values()) <= set(found.values()) and all(name in found for name in told)


# Weights


def _card(name: str) -> WeightCard:
    return WeightCard(
        name=name,
        kind="encoder",
        architecture="facenet_mobilenetv1_128",
        input=InputSpec(channels="rgb", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), size_px=112),
        parameters=WeightFile(f"{name}.safetensors", None),
        embedding=EmbeddingSpec(dimensions=128, alignment="arcface"),
    )


def _write_weight(folder: Path) -> None:
    """As whoever begins again, and finds that it was done."""
    parameters = {"kernel": np.ones(100_000, np.float32)}
    if not (folder / "weights" / "new.json").exists():
        write_weight(folder / "weights", _card("new"), parameters, np.ones(50_000, np.float32).tobytes())


def _weight(case: Case, folder: Path) -> State:
    """Its values; None where there is no card; "unusable" where the files are not those of the card."""
    card = folder / "weights" / "new.json"
    if not card.exists():
        return None
    try:
        return float(read_parameters(read_card(card))["kernel"][0])
    except FacepipeError as error:
        return f"unusable: {error}"


def _moving(*, over_to_another_disk: bool) -> Operation:
    words = partial(_move, over_to_another_disk=over_to_another_disk)
    return Operation(_sorted_job, words, _moved, _nothing_lost)


OPERATIONS = {
    "batch": Operation(_photos_and_gallery, _BATCH, _results, _whole_files, codes=(0, 3)),
    "batch --xmp-in-place": Operation(_photos_and_gallery, _IN_PLACE, _results, _whole_files, codes=(0, 3)),
    "sort --move": _moving(over_to_another_disk=False),
    "sort --move to another disk": _moving(over_to_another_disk=True),
    "new weight": Operation(lambda *_: None, _write_weight, _weight, all_or_nothing),
}
