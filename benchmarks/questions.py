"""How many clicks name an archive: face by face, group by group, and by the queue of questions.

    python benchmarks/questions.py FOLDER ROOT... [--photos N] [--people N] [--seed N]

ROOT holds photos as ROOT/PERSON/PHOTO, as LFW does. They are made into an archive in FOLDER, once: the people
of most photos with all of them, others as strangers with one photo each, some side by side in one photo. The
archive is analyzed once, by `facepipe batch`. Then a script that knows the truth answers, until 95% of the
faces of people with two and more photos have their name, and 99% of all names are right. A click is one
action, and so is a name given. Faces are named in memory, by the product's rules
(benchmarks/simulated_library.py).
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # run as a file

from benchmarks.archives import PHOTOS, read_truth, true_names, write_archive
from benchmarks.simulated_library import NOBODY, ArchiveFaces, IntArray, SimulatedLibrary
from facepipe.gallery import EncoderIdentity
from facepipe.library.library import Library
from facepipe.library.questions import Question, QuestionKind, next_questions

WANTED_NAMED, WANTED_RIGHT = 0.95, 0.99
_REGROUP_EVERY = 10
"""Questions after which the unknown faces are grouped anew."""


class Truth:
    """Who the faces of an archive are.

    Attributes:
        names: n; None: nobody whom the user would name.
        counts: Faces of each person of two and more photos.
    """

    def __init__(self, archive: ArchiveFaces) -> None:
        counts = Counter(name for name in archive.true_names if name is not None)
        self.counts = {name: count for name, count in counts.items() if count > 1}
        self.names = [name if name in self.counts else None for name in archive.true_names]

    @property
    def wanted(self) -> int:
        """How many faces are to be named."""
        return int(np.ceil(WANTED_NAMED * sum(self.counts.values())))

    @property
    def fewest_actions(self) -> int:
        """As many names have to be given at least: one to each of the people of most faces."""
        rising = np.cumsum(sorted(self.counts.values(), reverse=True))
        return int(np.searchsorted(rising, self.wanted)) + 1

    def is_reached(self, named: Sequence[str | None]) -> bool:
        """Whether enough faces have a name, and enough names are right."""
        given = [(name, true) for name, true in zip(named, self.names, strict=True) if name is not None]
        right = sum(name == true for name, true in given)
        return right >= self.wanted and right >= WANTED_RIGHT * len(given)

    def commonest(self, rows: Sequence[int]) -> str | None:
        """Who most of some faces are."""
        counts = Counter(self.names[row] for row in rows if self.names[row] is not None)
        return counts.most_common(1)[0][0] if counts else None


@dataclass(frozen=True, slots=True)
class Figures:
    """What a way of naming took.

    Attributes:
        actions: Clicks and names.
        details: What they were.
    """

    actions: int
    details: dict[str, int]


def by_groups(library: SimulatedLibrary, truth: Truth, gallery_names: bool) -> Figures:
    """Name the groups, the largest first, then single faces; wrong names are put right one by one.

    Groups and faces of strangers cost nothing here: the user knows before that they are not worth a look.

    Args:
        library: Without names.
        truth: Who the faces are.
        gallery_names: The gallery names other faces after each group, as the product does.
    """
    named: list[str | None] = [None] * len(truth.names)
    done: Counter[str] = Counter()

    def name(rows: Sequence[int], person: str, kind: str) -> None:
        done[kind] += 1
        if gallery_names:
            library.confirm(rows, person)
            library.name_again()
            named[:] = current_names(library)
        for row in rows:
            named[row] = person

    for rows in _groups(library):
        person = truth.commonest(rows)
        unnamed = [row for row in rows if named[row] is None]
        if person is not None and unnamed and not truth.is_reached(named):
            name(unnamed, person, "groups")
    while not truth.is_reached(named):
        row = _next_to_mend(named, truth)
        true = truth.names[row]
        if true is not None:
            name([row], true, "single faces")
        else:
            done["wrong names"] += 1
            library.ignore([row])
            named[row] = None
    return Figures(done.total(), dict(done))


def _next_to_mend(named: Sequence[str | None], truth: Truth) -> int:
    """A face without its name, or, where enough have theirs, one of a wrong name."""
    right = sum(name is not None and name == true for name, true in zip(named, truth.names, strict=True))
    rows = range(len(named))
    if right < truth.wanted:
        return next(row for row in rows if truth.names[row] is not None and named[row] != truth.names[row])
    return next(row for row in rows if named[row] is not None and named[row] != truth.names[row])


def _groups(library: SimulatedLibrary) -> list[list[int]]:
    members: dict[int, list[int]] = {}
    for id, face in library.faces.items():
        if face.group is not None:
            members.setdefault(face.group, []).append(int(id))
    return sorted(members.values(), key=lambda rows: -len(rows))


def by_questions(library: SimulatedLibrary, truth: Truth) -> Figures:
    """Answer the queue of questions, one after the other."""
    done: Counter[str] = Counter()
    for asked in _until_reached(library, truth):
        questions = next_questions(library.as_library(), 1)
        if not questions:
            break
        _answer(questions[0], library, truth, done)
        library.name_again()
        if asked % _REGROUP_EVERY == 0:
            library.regroup()
    return Figures(done.total(), dict(done))


def _until_reached(library: SimulatedLibrary, truth: Truth) -> Iterator[int]:
    asked = 0
    while not truth.is_reached(current_names(library)):
        asked += 1
        yield asked


def current_names(library: SimulatedLibrary) -> list[str | None]:
    """Return the name of each face."""
    return [None if person == NOBODY else library.names[person] for person in library.person.tolist()]


def _answer(question: Question, library: SimulatedLibrary, truth: Truth, done: Counter[str]) -> None:
    """Answer truthfully, and count the actions: one click for each face taken out, one for the answer."""
    rows = [int(id) for id in question.face_ids]
    if question.kind is QuestionKind.SAME_PERSON:
        assert question.other_name is not None
        done["two people told apart"] += 1
        library.reject(rows, question.other_name)
        return
    is_group = question.kind is QuestionKind.NAME_GROUP
    name = truth.commonest(rows) if is_group else question.name
    right = [row for row in rows if name is not None and truth.names[row] == name]
    wrong = [row for row in rows if row not in right]
    if not right and is_group:
        done["strangers ignored"] += 1
        library.ignore(rows)
        return
    assert name is not None
    done["groups named" if is_group else "faces confirmed" if right else "faces rejected"] += 1
    if right:
        done["faces taken out"] += len(wrong)
        library.confirm(right, name)
    library.reject(wrong, name)


def load_faces(folder: Path) -> tuple[ArchiveFaces, EncoderIdentity]:
    """Read the analyzed archive."""
    truth = read_truth(folder)
    with Library.open(folder / "job", folder / "gallery") as library:
        names: list[str | None] = []
        faces = []
        for photo in library.photos.values():
            own = [library.faces[id] for id in photo.face_ids]
            boxes = np.array([face.box_xyxy for face in own], np.float32).reshape(-1, 4)
            names += true_names(boxes, truth[photo.path.name])
            faces += own
        rows = np.array([-1 if face.embedding_row is None else face.embedding_row for face in faces])
        embeddings = np.where((rows >= 0)[:, None], library.embeddings[rows], np.float32(np.nan))
        photos: IntArray = np.array([face.photo_id for face in faces], np.int64)
        is_enrollable = np.array([face.is_enrollable for face in faces], np.bool_)
        return ArchiveFaces(embeddings, photos, is_enrollable, names), library.gallery.encoder


def measure(archive: ArchiveFaces, encoder: EncoderIdentity) -> dict[str, Callable[[], Figures]]:
    """Return the ways of naming an archive, by name."""
    truth = Truth(archive)
    return {
        "fewest possible": lambda: Figures(truth.fewest_actions, {}),
        "each face": lambda: Figures(truth.wanted, {}),
        "each group": lambda: by_groups(SimulatedLibrary(archive, encoder), truth, gallery_names=False),
        "each group, gallery names others": lambda: by_groups(
            SimulatedLibrary(archive, encoder), truth, gallery_names=True
        ),
        "questions": lambda: by_questions(SimulatedLibrary(archive, encoder), truth),
    }


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.argument("roots", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--photos", "photo_count", default=2000, show_default=True)
@click.option("--people", "person_count", default=300, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(folder: Path, roots: tuple[Path, ...], photo_count: int, person_count: int, seed: int) -> None:
    """Print how many actions each way of naming takes."""
    if not (folder / PHOTOS).exists():
        write_archive(roots, folder, photo_count, person_count, seed)
    if not (folder / "job" / "results.jsonl").exists():
        batch = ["facepipe", "batch", PHOTOS, "--out", "job", "--gallery", "gallery"]
        subprocess.run(batch, cwd=folder, check=True)
    archive, encoder = load_faces(folder)
    counts = Truth(archive).counts
    click.echo(
        f"{len(archive.photos)} faces, {sum(counts.values())} of {len(counts)} people of two and more photos"
    )
    click.echo("| way | actions | of which |\n|---|---|---|")
    for name, way in measure(archive, encoder).items():
        figures = way()
        details = ", ".join(f"{count} {kind}" for kind, count in figures.details.items() if count)
        click.echo(f"| {name} | {figures.actions} | {details} |")


if __name__ == "__main__":
    main()
