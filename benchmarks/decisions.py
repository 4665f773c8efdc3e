"""Whether each home of a gallery decides as exact search does, on embeddings of real faces.

    python benchmarks/decisions.py FILE --postgres URL

FILE is an npz of `embeddings` float32 (n, d), unit length, and `people` (n,): names, empty for strangers. Of
each person with three faces or more, one is not enrolled but asked for; half of the strangers are enrolled,
each as a person of their own, and the others are asked for. The gallery in the database is made and dropped.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # run as a file

from benchmarks.gallery import SCHEMA, empty_schema
from benchmarks.made_up_faces import nearest_by_brute_force
from benchmarks.measure import table
from facepipe.core.faces import FloatArray
from facepipe.gallery import EncoderIdentity, Gallery, NewTemplate
from facepipe.gallery.models import Contents, PersonContents

_AT_ONCE = 64
_FPIR = 0.01

Names = npt.NDArray[np.str_]
Distances = npt.NDArray[np.float64]


def _split(embeddings: FloatArray, people: Names) -> tuple[FloatArray, Names, FloatArray, int]:
    """Enrolled faces and their people, faces to ask for with strangers at the end, and how many of these."""
    names = people.astype(np.str_).astype(object)
    strangers = np.flatnonzero(people == "")
    names[strangers] = [f"stranger {row}" for row in strangers]
    named = np.flatnonzero(people != "")
    _, first, counts = np.unique(people[named], return_index=True, return_counts=True)
    known = named[first[counts >= 3]]
    asked_strangers = strangers[::2]
    asked = np.concatenate([known, asked_strangers])
    # A gallery holds a person's very same vector once.
    copies = {(names[row], embeddings[row].tobytes()): row for row in reversed(range(len(people)))}
    enrolled = np.setdiff1d(list(copies.values()), asked)
    enrolled = enrolled[np.argsort(names[enrolled].astype(np.str_), kind="stable")]
    return embeddings[enrolled], names[enrolled].astype(np.str_), embeddings[asked], len(asked_strangers)


def _exact(enrolled: FloatArray, people: Names, asked: FloatArray) -> tuple[Names, Distances]:
    """The nearest person of each face, by all templates and the means of all people, and how far."""
    names, starts = np.unique(people, return_index=True)
    means = np.add.reduceat(enrolled.astype(np.float64), starts, axis=0)
    means = (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)
    by_row, by_mean = nearest_by_brute_force(enrolled, asked), nearest_by_brute_force(means, asked)
    rows_l2, means_l2 = (
        np.linalg.norm(vectors.astype(np.float64) - asked, axis=1)
        for vectors in (enrolled[by_row], means[by_mean])
    )
    is_mean = means_l2 < rows_l2
    return np.where(is_mean, names[by_mean], people[by_row]), np.minimum(rows_l2, means_l2)


def _contents(enrolled: FloatArray, people: Names) -> Contents:
    names, starts = np.unique(people, return_index=True)
    groups = np.split(enrolled, starts[1:])
    return Contents(
        {
            str(name): PersonContents([NewTemplate(np.array(one)) for one in group])
            for name, group in zip(names, groups, strict=True)
        }
    )


def _found(address: str, encoder: EncoderIdentity, asked: FloatArray) -> tuple[Names, Distances]:
    with Gallery.open(address, encoder) as gallery:
        found = [
            match
            for at in range(0, len(asked), _AT_ONCE)
            for match in gallery.match(
                asked[at : at + _AT_ONCE], threshold_l2=2.0, one_person_per_photo=False
            )
        ]
    return np.array([match.name for match in found]), np.array([match.distance_l2 for match in found])


def _same_decisions(
    exact: tuple[Names, Distances], found: tuple[Names, Distances], threshold_l2: float
) -> float:
    """Share of faces that get the same name, or none, within a threshold."""
    decisions = [np.where(l2 <= threshold_l2, names, "") for names, l2 in (exact, found)]
    return float((decisions[0] == decisions[1]).mean())


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True))
@click.option("--postgres", metavar="URL", required=True, help="A database with pgvector.")
def main(file: Path, postgres: str) -> None:
    """Print the shares of equal decisions."""
    with np.load(file) as data:
        enrolled, people, asked, strangers = _split(data["embeddings"], data["people"])
    exact = _exact(enrolled, people, asked)
    strict_l2 = float(np.quantile(exact[1][-strangers:], _FPIR))
    encoder = EncoderIdentity("of the file", "0" * 16, enrolled.shape[1], 1.0)
    contents = _contents(enrolled, people)
    base = f"{postgres}{'&' if '?' in postgres else '?'}schema={SCHEMA}&search="
    click.echo(
        f"{len(enrolled):,} faces of {len(contents.people):,} people; asked for {len(asked) - strangers:,} of"
        f" them and {strangers:,} strangers; {strict_l2:.3f} names {_FPIR:.0%} of strangers"
    )
    rows, first = [], None
    with tempfile.TemporaryDirectory() as folder, empty_schema(postgres):
        addresses = {"folder": f"{folder}/g", "local": f"{base}local", "server": f"{base}server"}
        for name in ("folder", "local"):
            with Gallery.open(addresses[name], encoder, create=True) as gallery:
                gallery.add_contents(contents)
        for name, address in addresses.items():
            found = _found(address, encoder, asked)
            first = first or found
            strict = _same_decisions(exact, found, strict_l2)
            worst, as_folder = (
                min(_same_decisions(one, found, step) for step in np.arange(0.4, 1.3, 0.005))
                for one in (exact, first)
            )
            rows.append((name, f"{strict:.3%}", f"{worst:.3%}", f"{as_folder:.3%}"))
    click.echo(
        table(
            ["search", f"at {strict_l2:.3f}", "at the worst threshold", "as in a folder, at the worst"], rows
        )
    )


if __name__ == "__main__":
    main()
