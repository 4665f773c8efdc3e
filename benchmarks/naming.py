"""Which rule gives the right names: distance to a person, one face a person, sharpness, groups of faces.

    python -m benchmarks.naming people FOLDER [--layout photos|lfw]
    python -m benchmarks.naming damage FOLDER
    python -m benchmarks.naming groups [--people FOLDER] [--crops FOLDER [--same CSV] --sample N]

`photos` is the layout of `facepipe evaluate people`: enroll/PERSON, probe/known/PERSON and
probe/strangers/PERSON. `lfw` is one folder a person: of people with four photos and more, half (at most four)
are enrolled and as many are probes; people with one photo are strangers. Crops: one folder a person, as for
training; `--same` lists couples of folders that are one person, in columns person_a and person_b. Tables are
Markdown. No figure of time, so a busy machine does no harm.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import pdist, squareform

from facepipe.commands.options import Setup, with_setup
from facepipe.commands.output import with_progress
from facepipe.faces import FloatArray, UInt8Array
from facepipe.finding import find_photos
from facepipe.images import read_image
from facepipe.pipeline import FacePipeline, card_identity
from facepipe.quality import EnrolRules, NamingRules, judge, recognisable, sharpness
from gallery.clusters import LINK_SHARE, group_faces
from gallery.matching import (
    NearestPeople,
    PersonDistance,
    distances_to_people,
    doubts,
)
from training.evaluation.clustering import bcubed
from training.evaluation.main_faces import read_crops
from training.evaluation.robustness import damages

_STRANGERS_NAMED = (0.0, 0.01, 0.02, 0.05)
_SHARPNESS = (0.20, 0.15, 0.10, 0.05, 0.0)
_DEFAULT_DISTANCE = PersonDistance.NEAREST_OR_MEAN
_SHARES = (0.8, 0.85, 0.9, 0.95, 1.0)
_GROUP_PHOTOS = 3000
_FOLDER = click.Path(path_type=Path, file_okay=False, exists=True)
_LAX = EnrolRules(0, 0, 0, 9, 360, 360, 360, 0, 255, 0, 9)

Named = tuple[str, FloatArray]
Rule = Callable[[npt.NDArray[np.float64], float, float], list[int]]


@click.group()
def main() -> None:
    """Print tables."""


@main.command()
@click.argument("folder", type=_FOLDER)
@click.option("--layout", type=click.Choice(["photos", "lfw"]), default="photos", show_default=True)
@with_setup
def people(setup: Setup, folder: Path, layout: str) -> None:
    """Distance to a person, and one face a person."""
    pipeline = setup.pipeline()
    split = _photos_layout(folder) if layout == "photos" else _lfw_layout(folder)
    known = _with_vectors(pipeline, split.enrolled)
    probes = _with_vectors(pipeline, split.probes)
    trial = _Trial(known, probes)
    click.echo(f"{len(trial.names)} people, {len(known)} faces enrolled, {len(probes)} probes")
    click.echo("\n| distance to a person | margin | rank 1 |" + _columns("at most {} of strangers named"))
    click.echo("|---" * (3 + len(_STRANGERS_NAMED)) + "|")
    for measure in PersonDistance:
        for margin in (0.0, NamingRules().min_margin_l2):
            click.echo(_distance_row(trial, measure, margin))
    threshold = pipeline.encoder.embedding.threshold_l2 or 1.0
    thresholds = (0.95 * threshold, threshold, 1.05 * threshold)
    click.echo("\n| photo | rule |" + "".join(f" at {value:.2f} |" for value in thresholds))
    click.echo("|---" * (2 + len(thresholds)) + "|")
    for faces in (4, 10):
        photos = list(islice(trial.composed_photos(faces), _GROUP_PHOTOS))
        for name, rule in _RULES.items():
            cells = [trial.count(photos, rule, value, NamingRules().min_margin_l2) for value in thresholds]
            click.echo(f"| {faces} people | {name} | " + " | ".join(cells) + " |")


@main.command()
@click.argument("folder", type=_FOLDER)
@with_setup
def damage(setup: Setup, folder: Path) -> None:
    """Right / wrong / strangers named among damaged faces, by the least sharpness asked for."""
    pipeline = setup.pipeline()
    split = _photos_layout(folder)
    known = _with_vectors(pipeline, split.enrolled)
    probes = _aligned(pipeline, split.probes)
    enrolled = len({name for name, _ in known})
    threshold = card_identity(pipeline.encoder.card).default_threshold_l2(len(known), enrolled)
    click.echo(f"{len(known)} faces enrolled, {len(probes)} probes, threshold {threshold:.3f}\n")
    click.echo("| probes |" + "".join(f" {least:.2f} |" for least in _SHARPNESS))
    click.echo("|---" * (1 + len(_SHARPNESS)) + "|")
    for title, damaged in {"as they are": lambda crop: crop, **damages()}.items():
        crops = np.stack([damaged(crop) for _, crop in probes])
        vectors = pipeline.encoder.encode(crops)
        trial = _Trial(known, [(name, vector) for (name, _), vector in zip(probes, vectors, strict=True)])
        sharp = sharpness(crops)
        cells = trial.named(threshold, [sharp >= least for least in _SHARPNESS])
        click.echo(f"| {title} | " + " | ".join(cells) + " |")


@main.command()
@click.option("--people", "photos", type=_FOLDER, help="As for `people`.")
@click.option("--crops", type=_FOLDER, help="One folder of aligned crops a person.")
@click.option("--same", type=click.Path(path_type=Path, exists=True), help="Folders that are one person.")
@click.option("--sample", default=300, show_default=True, help="People of the crops.")
@with_setup
def groups(setup: Setup, photos: Path | None, crops: Path | None, same: Path | None, sample: int) -> None:
    """Groups of unknown faces by BCubed precision / recall / F, at shares of the encoder's threshold.

    Of whole photos the faces that enrolment would take, as they are remembered; all crops.
    """
    pipeline = setup.pipeline()
    threshold = pipeline.encoder.embedding.threshold_l2 or 1.0
    click.echo("| faces | how |" + "".join(f" {share:.2f} |" for share in _SHARES))
    click.echo("|---" * (2 + len(_SHARES)) + "|")
    sets: dict[str, list[Named]] = {}
    if photos is not None:
        split = _photos_layout(photos)
        sets["whole photos"] = _with_vectors(pipeline, [*split.enrolled, *split.probes], enrollable=True)
    if crops is not None:
        sets["crops"] = _crops(pipeline, crops, same, sample)
    if len(sets) == 2:
        sets["both"] = [named for named_faces in sets.values() for named in named_faces]
    for title, faces in sets.items():
        names, vectors = [name for name, _ in faces], np.stack([vector for _, vector in faces])
        title = f"{title}: {len(faces)} of {len(set(names))} people"
        for how, grouped in _GROUPINGS.items():
            found = [bcubed(grouped(vectors, share * threshold).tolist(), names) for share in _SHARES]
            cells = [f"{one.precision:.3f} / {one.recall:.3f} / {one.f:.3f}" for one in found]
            click.echo(f"| {title} | {how} | " + " | ".join(cells) + " |")
    click.echo(f"\nShipped: average linkage at {LINK_SHARE:.2f} of {threshold:.3f}")


# Faces


@dataclass(frozen=True, slots=True)
class _Split:
    enrolled: list[tuple[str, Path]]
    probes: list[tuple[str, Path]]


def _photos_layout(folder: Path) -> _Split:
    def photos(part: str) -> list[tuple[str, Path]]:
        people = sorted(path for path in (folder / part).iterdir() if path.is_dir())
        return [(person.name, photo) for person in people for photo in find_photos([person])]

    return _Split(photos("enroll"), [*photos("probe/known"), *photos("probe/strangers")])


def _lfw_layout(folder: Path) -> _Split:
    enrolled, probes = [], []
    for person in sorted(path for path in folder.iterdir() if path.is_dir()):
        photos = [(person.name, photo) for photo in find_photos([person])]
        half = min(4, len(photos) // 2)
        if len(photos) >= 4:
            enrolled += photos[:half]
            probes += photos[half : 2 * half]
        elif len(photos) == 1:
            probes += photos
    return _Split(enrolled, probes)


def _with_vectors(
    pipeline: FacePipeline, photos: Sequence[tuple[str, Path]], *, enrollable: bool = False
) -> list[Named]:
    """The face that each photo is of, where it is good enough to be compared, or else to be enrolled."""
    found = _aligned(pipeline, photos, enrollable=enrollable)
    vectors = pipeline.encoder.encode(np.stack([crop for _, crop in found]))
    return [(name, vector) for (name, _), vector in zip(found, vectors, strict=True)]


def _aligned(
    pipeline: FacePipeline, photos: Sequence[tuple[str, Path]], *, enrollable: bool = False
) -> list[tuple[str, UInt8Array]]:
    """The crop of the face that each photo is of, where it is good enough; see `_with_vectors`."""
    found = []
    for name, path in with_progress(photos, len(photos), "aligning"):
        image = read_image(path)
        faces = pipeline.detect(image)
        judgement = judge(image, faces, _LAX)
        if judgement.face is None or judgement.measures is None:
            continue
        main = faces.select([judgement.face])
        if judgement.measures.good_to_enroll() if enrollable else recognisable(image, main)[0]:
            found.append((name, pipeline.encoder.align(image, main)[0]))
    return found


def _crops(pipeline: FacePipeline, folder: Path, same: Path | None, sample: int) -> list[Named]:
    people = sorted(path for path in folder.iterdir() if path.is_dir())
    chosen = np.random.default_rng(0).choice(len(people), min(sample, len(people)), replace=False)
    photos = {str(photo): photo for row in sorted(chosen) for photo in find_photos([people[row]])}
    names = _one_name(same)
    vectors = read_crops(pipeline.encoder, photos).vectors(pipeline.encoder)
    return [(names(photos[key].parent.name), vector) for key, vector in vectors.items()]


def _one_name(same: Path | None) -> Callable[[str], str]:
    """A name for each folder, the same for those that are one person."""
    merged: dict[str, str] = {}

    def name(folder: str) -> str:
        while folder in merged:
            folder = merged[folder]
        return folder

    if same is not None:
        with same.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                first, second = name(row["person_a"]), name(row["person_b"])
                if first != second:
                    merged[first] = second
    return name


# Naming


class _Trial:
    """Known people, and probes of known people and strangers."""

    def __init__(self, known: Sequence[Named], probes: Sequence[Named]) -> None:
        self.names = sorted({name for name, _ in known})
        self._templates = [np.stack([v for n, v in known if n == name]) for name in self.names]
        self._probes = probes
        self._truth = np.array([self.names.index(n) if n in self.names else -1 for n, _ in probes])
        self._nearest = self.distances(PersonDistance.NEAREST)

    def distances(self, measure: PersonDistance) -> npt.NDArray[np.float64]:
        """float64 (probes, people)."""
        templates = np.concatenate(self._templates)
        starts = np.cumsum([0, *map(len, self._templates)])[:-1]
        return np.array([distances_to_people(v, templates, starts, measure) for _, v in self._probes])

    def at_strangers(
        self, measure: PersonDistance, margin: float, share: float
    ) -> tuple[float, int, int, int]:
        """Threshold, right, wrong and strangers named, where at most this share of strangers is named."""
        distances = self.distances(measure)
        first, first_l2, second_l2 = _two_nearest(distances)
        clear, strangers = second_l2 - first_l2 >= margin, self._truth < 0
        rising = np.sort(np.where(clear, first_l2, np.inf)[strangers])
        threshold = min(2.0, float(np.nextafter(rising[int(share * len(rising))], 0)))
        named, right = clear & (first_l2 <= threshold), first == self._truth
        counts = (named & right, named & ~right & ~strangers, named & strangers)
        return threshold, *(int(np.count_nonzero(count)) for count in counts)  # type: ignore[return-value]

    def rank1(self, measure: PersonDistance) -> float:
        """Share of known probes whose nearest person is their own."""
        known = self._truth >= 0
        return float((self.distances(measure).argmin(axis=1) == self._truth)[known].mean())

    def composed_photos(self, faces: int) -> Iterable[list[int]]:
        """Probes of so many different people each, as if they stood together."""
        rng = np.random.default_rng(0)
        rows_of: dict[str, list[int]] = {}
        for row, (name, _) in enumerate(self._probes):
            rows_of.setdefault(name, []).append(row)
        everybody = list(rows_of.values())
        while True:
            chosen = rng.choice(len(everybody), faces, replace=False)
            yield [everybody[i][rng.integers(len(everybody[i]))] for i in chosen]

    def named(self, threshold: float, choices: Iterable[npt.NDArray[np.bool_]]) -> list[str]:
        """Right / wrong / strangers named, where only the chosen probes (probes,) are compared."""
        margin = NamingRules().min_margin_l2
        given = np.array(_by_doubts(once=False)(self.distances(_DEFAULT_DISTANCE), threshold, margin))
        named, right, known = given >= 0, given == self._truth, self._truth >= 0
        kinds = (named & right, named & ~right & known, named & ~known)
        return [" / ".join(str(int((kind & chosen).sum())) for kind in kinds) for chosen in choices]

    def count(self, photos: Iterable[Sequence[int]], rule: Rule, threshold: float, margin: float) -> str:
        """Right / wrong / strangers named, in percent of all faces."""
        right = wrong = strangers = total = 0
        for rows in photos:
            given, truth = np.array(rule(self._nearest[rows], threshold, margin)), self._truth[rows]
            right += int(((given == truth) & (truth >= 0)).sum())
            wrong += int(((given >= 0) & (given != truth) & (truth >= 0)).sum())
            strangers += int(((given >= 0) & (truth < 0)).sum())
            total += len(rows)
        return " / ".join(f"{100 * count / total:.2f}" for count in (right, wrong, strangers))


def _two_nearest(
    distances: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    order = np.argsort(distances, axis=1, kind="stable")
    nearest = np.take_along_axis(distances, order[:, :2], axis=1)
    return order[:, 0], nearest[:, 0], nearest[:, 1]


def _by_doubts(once: bool) -> Rule:
    def rule(distances: npt.NDArray[np.float64], threshold: float, margin: float) -> list[int]:
        first, first_l2, second_l2 = _two_nearest(distances)
        nearest = NearestPeople(first, first_l2, np.zeros_like(first), second_l2)
        reasons = doubts(nearest, np.full(len(first), threshold), margin, once)
        return [int(person) if reason is None else -1 for person, reason in zip(first, reasons, strict=True)]

    return rule


def _nearest_face_first(distances: npt.NDArray[np.float64], threshold: float, margin: float) -> list[int]:
    """The nearest face of a person takes the place, also where it is unsure."""
    first, first_l2, _ = _two_nearest(distances)
    given = _by_doubts(once=False)(distances, threshold, margin)
    best = {int(np.where(first == person, first_l2, np.inf).argmin()) for person in first}
    return [person if row in best else -1 for row, person in enumerate(given)]


def _assignment(distances: npt.NDArray[np.float64], threshold: float, margin: float) -> list[int]:
    """SciPy's solver over all faces and people; the margin counts people who are given to nobody else."""
    rows, people = linear_sum_assignment(np.minimum(distances - threshold, 0))
    taken = {int(p): int(r) for r, p in zip(rows, people, strict=True) if distances[r, p] <= threshold}
    given = [-1] * len(distances)
    for person, row in taken.items():
        others = [p for p in range(distances.shape[1]) if p not in taken]
        rest = distances[row, others].min(initial=np.inf)
        given[row] = person if rest - distances[row, person] >= margin else -1
    return given


_RULES: dict[str, Rule] = {
    "a person several times": _by_doubts(once=False),
    "the nearest face, sure or not": _nearest_face_first,
    "**the nearest sure face**": _by_doubts(once=True),
    "assignment, second choices too": _assignment,
}


def _columns(text: str) -> str:
    return "".join(f" {text.format(f'{share:.0%}')} |" for share in _STRANGERS_NAMED)


def _distance_row(trial: _Trial, measure: PersonDistance, margin: float) -> str:
    cells = []
    for share in _STRANGERS_NAMED:
        threshold, right, wrong, strangers = trial.at_strangers(measure, margin, share)
        cells.append(f"{right}/{wrong}/{strangers} at {threshold:.2f}")
    return f"| {measure.value} | {margin:.2f} | {trial.rank1(measure):.3f} | " + " | ".join(cells) + " |"


# Groups


def _linkage(how: str) -> Callable[[FloatArray, float], npt.NDArray[np.int64]]:
    def grouped(vectors: FloatArray, limit: float) -> npt.NDArray[np.int64]:
        return np.asarray(fcluster(linkage(pdist(vectors), how), limit, "distance"), np.int64)

    return grouped


def _dbscan(vectors: FloatArray, limit: float) -> npt.NDArray[np.int64]:
    """Of at least three neighbours; a border face goes to its nearest core face, and noise is alone."""
    distances = squareform(pdist(vectors))
    core = (distances <= limit).sum(axis=1) > 3
    near = (distances <= limit) & core & core[:, None]
    labels = np.asarray(connected_components(near)[1], np.int64)
    to_core = np.where(core, distances, np.inf)
    nearest = to_core.argmin(axis=1)
    border = ~core & (to_core.min(axis=1) <= limit)
    labels[border] = labels[nearest[border]]
    return labels


_GROUPINGS: dict[str, Callable[[FloatArray, float], npt.NDArray[np.int64]]] = {
    "single linkage": _linkage("single"),
    "DBSCAN, 3 neighbours": _dbscan,
    "complete linkage": _linkage("complete"),
    "**average linkage**": lambda vectors, limit: group_faces(vectors, [None] * len(vectors), limit),
}


if __name__ == "__main__":
    main()
