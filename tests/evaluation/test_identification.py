"""Open-set identification: by hand, and against brute force."""

from __future__ import annotations

import json

import numpy as np
import pytest

from facepipe.core.errors import DataError
from facepipe.evaluation.arrays import Float64Array
from facepipe.evaluation.metrics.identification import identification, nearest_templates


def _at(*degrees: float) -> Float64Array:
    """Unit vectors in the plane; NaN degrees: no face."""
    return np.stack([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], axis=1)


def _chord(degrees: float) -> float:
    return float(2 * np.sin(np.deg2rad(degrees) / 2))


GALLERY, NAMES = _at(0, 10, 90), ["ann", "ann", "bob"]


def test_counts_by_hand() -> None:
    probes = _at(15, 85, 45, 60, np.nan, 120, 300, np.nan)
    names = ["ann", "bob", "ann", "ann", "bob", None, None, None]
    result = identification(GALLERY, NAMES, probes, names, [_chord(6), _chord(31), 2.0])
    assert (result.templates, result.people, result.known, result.strangers) == (3, 2, 5, 3)
    assert result.without_face == 2
    assert result.rank1 == 3 / 5
    rows = [(at.right, at.wrong, at.unnamed, at.strangers_named) for at in result.at_thresholds]
    assert rows[0] == pytest.approx((2 / 5, 0, 3 / 5, 0))
    assert rows[1] == pytest.approx((2 / 5, 1 / 5, 2 / 5, 1 / 3))
    assert rows[2] == pytest.approx((3 / 5, 1 / 5, 1 / 5, 2 / 3))


def test_misses_where_no_stranger_is_named() -> None:
    # the nearest stranger is at 20 degrees: three of four known probes are nearer
    result = identification(GALLERY, NAMES, _at(15, 85, 19.9, 40, 110), ["ann", "bob", "ann", "ann", None])
    assert result.fnir_at_fpir == 1 / 4
    assert not result.fpir_resolved
    assert result.at_fpir is not None
    assert result.at_fpir.strangers_named == 0
    assert result.at_fpir.threshold_l2 == pytest.approx(_chord(20))


def test_one_of_a_hundred_strangers_may_be_named() -> None:
    strangers = np.linspace(120, 200, 100)
    result = identification(GALLERY, NAMES, _at(59.5, *strangers), ["bob", *[None] * 100])
    assert result.fpir_resolved
    assert result.at_fpir is not None
    assert result.at_fpir.strangers_named == 0.01
    assert result.fnir_at_fpir == 0


def test_strangers_without_a_face_name_nobody() -> None:
    result = identification(GALLERY, NAMES, _at(15, np.nan), ["ann", None])
    assert result.at_fpir is not None
    assert (result.at_fpir.threshold_l2, result.at_fpir.right) == (2.0, 1.0)


def test_without_strangers_there_is_no_fpir() -> None:
    result = identification(GALLERY, NAMES, _at(15), ["ann"], [1.0])
    assert (result.at_fpir, result.fnir_at_fpir, result.at_thresholds[0].strangers_named) == (
        None,
        None,
        None,
    )
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["rank1"] == 1.0


def test_nearest_equals_brute_force() -> None:
    rng = np.random.default_rng(0)
    gallery, probes = (rng.normal(size=(n, 16)).astype(np.float32) for n in (50, 2100))
    names = [f"p{i % 9}" for i in range(50)]
    probes[7] = np.nan
    probes[8] = gallery[3]
    nearest = nearest_templates(gallery, names, probes)
    assert (nearest.names[7], nearest.distances_l2[7]) == (None, np.inf)
    assert (nearest.names[8], nearest.distances_l2[8]) == ("p3", 0.0)
    for i in (0, 1, 1023, 1024, 2047, 2099):
        distances = np.linalg.norm(gallery.astype(np.float64) - probes[i], axis=1)
        assert nearest.names[i] == names[int(distances.argmin())]
        assert nearest.distances_l2[i] == pytest.approx(distances.min())


@pytest.mark.parametrize(
    ("gallery", "names", "truth", "message"),
    [
        (GALLERY[:0], [], ["ann"], "ann: a probe's person is not in the gallery"),
        (GALLERY[:2], ["ann"], ["ann"], "got 1 for 2"),
        (GALLERY * np.nan, NAMES, ["ann"], "not all finite"),
        (GALLERY, NAMES, ["cy"], "cy: a probe's person is not in the gallery"),
        (GALLERY, NAMES, [None], "at least one probe of a person in the gallery"),
    ],
)
def test_bad_input_is_refused(
    gallery: Float64Array, names: list[str], truth: list[str | None], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        identification(gallery, names, _at(15), truth)


def test_an_empty_gallery_names_nobody() -> None:
    with pytest.raises(DataError, match="a name for each of the templates"):
        nearest_templates(GALLERY[:0], [], _at(15))
