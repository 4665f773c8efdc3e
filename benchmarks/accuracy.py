"""Accuracy of the whole way on folders of your own.

python benchmarks/accuracy.py --people DIR          DIR/enroll/<person>, DIR/probe/{known,strangers}/<person>
python benchmarks/accuracy.py --pairs pairs.txt --images DIR                      the protocol of LFW
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np

from facepipe.cli_options import Setup, with_setup
from training.evaluation.distances import threshold_for_far
from training.evaluation.photos import embed_principal_faces, people_result
from training.evaluation.verification import (
    find_photos,
    pair_distances,
    pair_photos,
    read_pairs,
    verification,
)


@click.command()
@click.option("--people", type=click.Path(path_type=Path))
@click.option("--pairs", type=click.Path(path_type=Path))
@click.option("--images", type=click.Path(path_type=Path))
@with_setup
def main(setup: Setup, people: Path | None, pairs: Path | None, images: Path | None) -> None:
    """Print figures as JSON."""
    pipeline = setup.pipeline()
    if people:
        default = pipeline.encoder.embedding.threshold_l2
        thresholds = sorted({0.9, 0.95, 1.0, 1.05, 1.1, 1.15, *([default] if default else [])})
        click.echo(json.dumps(people_result(pipeline, people, thresholds).to_dict(), indent=1))
    if pairs and images:
        listed = read_pairs(pairs)
        vectors = embed_principal_faces(pipeline, find_photos(images, pair_photos(listed)))
        result = verification(pair_distances(listed, vectors)).to_dict()
        click.echo(json.dumps({key: result[key] for key in result if key != "folds"}, indent=1))
        for far in (1e-3, 1e-4, 1e-5):
            click.echo(json.dumps(_strangers(vectors, far)))


def _strangers(vectors: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]], far: float) -> object:
    """The threshold of a false-accept rate from all couples of photos of different people."""
    names = np.unique([key.rsplit("/", 1)[0] for key in vectors], return_inverse=True)[1]
    matrix = np.stack(list(vectors.values())).astype(np.float64)
    first, second = np.triu_indices(len(matrix), 1)
    different = names[first] != names[second]
    first, second = first[different], second[different]
    distances = np.sqrt(np.clip(2 - 2 * np.einsum("nd,nd->n", matrix[first], matrix[second]), 0, None))
    measured = threshold_for_far(distances, far, np.stack([names[first], names[second]], axis=1))
    return {field: getattr(measured, field) for field in measured.__dataclass_fields__}


if __name__ == "__main__":
    main()
