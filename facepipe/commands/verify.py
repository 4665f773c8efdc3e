"""`facepipe verify`: do two photos show one person?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from facepipe.commands.options import ANY_PATH, Setup, with_setup
from facepipe.commands.output import echo, echo_record

if TYPE_CHECKING:
    from facepipe.shortcuts import Verification


@click.command()
@click.argument("first", type=ANY_PATH)
@click.argument("second", type=ANY_PATH)
@click.option("--threshold", type=float, metavar="L2", help="Largest distance that is one person's.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@with_setup
def verify(setup: Setup, first: Path, second: Path, threshold: float | None, as_json: bool) -> None:
    """Tell whether the photos FIRST and SECOND show one person.

    Of several faces in a photo, the two nearest count.
    """
    from facepipe.core.json_lines import record_to_json
    from facepipe.images.reading import read_image
    from facepipe.shortcuts import comparable_faces, compare

    photos = [(read_image(file, max_pixels=setup.max_pixels()), str(file)) for file in (first, second)]
    with setup.pipeline() as pipeline:
        faces, others = (comparable_faces(pipeline, photo, name) for photo, name in photos)
        found = compare(pipeline, faces, others, threshold)
    if as_json:
        echo_record(record_to_json(_record(first, second, found)))
        return
    answer = "the same person" if found.same_person else "different people"
    echo(f"{answer}: distance {found.distance_l2:.2f}, at most {found.threshold_l2:.2f} for one person")
    if found.strangers_share is not None:
        echo(f"{_in_words(found.strangers_share)} such pairs of strangers are as near as that")


def _record(first: Path, second: Path, found: Verification) -> dict[str, object]:
    return {
        "photos": [first, second],
        "same_person": found.same_person,
        "distance_l2": round(found.distance_l2, 4),
        "threshold_l2": round(found.threshold_l2, 4),
        "strangers_share": found.strangers_share and float(f"{found.strangers_share:.2g}"),
        "boxes_xyxy": [
            [round(float(side), 2) for side in face.box_xyxy] for face in (found.first, found.second)
        ],
        "comparisons": found.comparisons,
    }


def _in_words(share: float) -> str:
    return f"{100 * share:.0f}% of" if share >= 0.1 else f"1 in {float(f'{1 / share:.2g}'):,.0f}"
