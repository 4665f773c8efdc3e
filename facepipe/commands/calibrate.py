"""The threshold that a gallery's own faces recommend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from facepipe.commands.options import gallery_option
from facepipe.commands.output import echo, echo_record
from facepipe.core.counting import counted
from facepipe.core.errors import UsageError

if TYPE_CHECKING:
    from facepipe.gallery.address import GalleryAddress
    from facepipe.gallery.calibration import Calibration


@click.command()
@click.option("--fpir", type=float, metavar="0..1", help="Share of strangers that may get a name.")
@click.option("--far", type=float, metavar="0..1", help="Instead: rate of a comparison with one photo.")
@click.option("--apply", "apply_it", is_flag=True, help="Make it the gallery's own threshold.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@gallery_option
def calibrate(
    gallery_address: GalleryAddress, fpir: float | None, far: float | None, apply_it: bool, as_json: bool
) -> None:
    """Recommend a threshold from the gallery's own people, and say how sure it is (default: --fpir 0.01)."""
    from facepipe.core.json_lines import record_to_json
    from facepipe.gallery import Gallery
    from facepipe.gallery.calibration import calibrate as calibrated
    from facepipe.gallery.impostors import DEFAULT_FPIR

    if fpir is not None and far is not None:
        raise UsageError("--fpir and --far exclude each other")
    with Gallery.open(gallery_address) as gallery:
        if far is not None:
            result = calibrated(gallery, far, chances=1)
        else:
            result = calibrated(gallery, DEFAULT_FPIR if fpir is None else fpir)
        if apply_it:
            gallery.set_threshold(result.threshold_l2)
    if as_json:
        echo_record(record_to_json(result))
    else:
        for sentence in _sentences(result):
            echo(sentence)
    if apply_it:
        echo(f"facepipe: {gallery_address}: its own threshold is now {result.threshold_l2:.3f}", err=True)


def _sentences(result: Calibration) -> tuple[str, ...]:
    what = (
        "of comparisons"
        if result.chances == 1
        else f"of strangers, with {counted(result.chances, 'photo')} enrolled"
    )
    known = "nobody has two photos: how many of the known are found is not known"
    if result.true_accept_rate is not None:
        known = f"{result.true_accept_rate:.1%} of {result.genuines} pairs of photos of one person lie within"
    sure = "these people suffice to show that rate by counting"
    if not result.shown:
        sure = (
            f"{result.people} people are too few to show that rate by counting: the threshold is continued "
            "from larger rates; more people make it surer"
        )
    return (
        f"measured: {result.templates} photos of {result.people} people",
        f"threshold {result.threshold_l2:.3f} (95%: {result.low_l2:.3f} to {result.high_l2:.3f}) "
        f"lets in {result.wanted:.3g} {what}",
        f"within it: {result.false_accepts} of {result.impostors} pairs of photos of two people; "
        f"wanted is a rate of {result.wanted_far:.2g}, and {result.far_high:.2g} can't be ruled out",
        sure,
        known,
        f"nearest two people: {' and '.join(map(repr, result.nearest_people))}, "
        f"{result.nearest_l2:.3f} apart (one person under two names would spoil the figures)",
    )
