"""Report of a detector's accuracy: a page of HTML and lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from facepipe.evaluation.detector import DetectorEvaluation
from facepipe.evaluation.metrics.detection import HEIGHT_BINS_PX, HeightBin, PrecisionRecall
from facepipe.evaluation.metrics.landmarks import LandmarkSummary
from facepipe.evaluation.pages import Curve, plot, write_report
from facepipe.reports.html import page, paragraph, table

Row = tuple[str, str, str]


def write_detector_report(folder: Path, evaluation: DetectorEvaluation) -> Path:
    """Write `detector.html` and `detector.json`, which has the points of the curves; return the page.

    Raises:
        OutputError: They can't be written.
    """
    curves = {
        name: {"recall": curve.recall.round(4).tolist(), "precision": curve.precision.round(4).tolist()}
        for name, curve in evaluation.result.curves.items()
    }
    record = {**evaluation.to_dict(), "curves": curves}
    return write_report(folder, "detector", html(evaluation), record)[0]


def html(evaluation: DetectorEvaluation) -> str:
    """Return the page."""
    sections = {
        "WIDER FACE" if evaluation.min_face_px is None else "Labelled faces": [
            paragraph(protocol_in_words(evaluation)),
            table(("subset", "faces", "average precision"), subset_rows(evaluation)),
            plot(_drawn(evaluation.result.curves), "recall", "precision"),
        ],
        "By height of the face": [
            table(("height in px", "faces", "average precision"), height_rows(evaluation))
        ],
    }
    if evaluation.landmarks:
        sections["Landmarks"] = [table(("", "mean error"), landmark_rows(evaluation.landmarks))]
    return page(f"Detector {evaluation.weights}", sections)


def text(evaluation: DetectorEvaluation) -> list[str]:
    """Return the same for a terminal, without the curves."""
    rows = [*subset_rows(evaluation), *((f"{name} px", n, ap) for name, n, ap in height_rows(evaluation))]
    lines = [f"{name:<12}{faces:>7} faces  AP {ap}" for name, faces, ap in rows]
    points = landmark_rows(evaluation.landmarks) if evaluation.landmarks else []
    return [protocol_in_words(evaluation), *lines, *(f"{name}: {value}" for name, value in points)]


def protocol_in_words(evaluation: DetectorEvaluation) -> str:
    """Describe the setting of the figures."""
    protocol = evaluation.protocol
    sizes = {
        "original": "photos at their original size",
        "letterbox640": "photos with a longer side of 640 px",
        "short1600": "photos with a shorter side of 1600 px, the longer one at most 2150 px",
    }
    least = evaluation.min_face_px
    height = "" if least is None else f", labelled faces of at least {least:g} px"
    return (
        f"{evaluation.result.photos} {sizes[protocol.setting]}, "
        f"{'with' if protocol.flip else 'without'} mirrored copies, "
        f"{'several scales' if protocol.multi_scale else 'one scale'}, "
        f"score above {protocol.score_threshold:g}, NMS at {protocol.overlap:g}, "
        f"{evaluation.ms_per_photo:.0f} ms a photo{height}"
    )


def subset_rows(evaluation: DetectorEvaluation) -> list[Row]:
    """Name, faces and AP of each curve."""
    return [(name, str(c.faces), _percent(c.ap)) for name, c in evaluation.result.curves.items()]


def height_rows(evaluation: DetectorEvaluation) -> list[Row]:
    """Heights in pixels, faces and AP."""
    return [(_range(b), str(b.faces), _percent(b.ap)) for b in evaluation.result.by_height]


def landmark_rows(summary: LandmarkSummary) -> list[tuple[str, str]]:
    """Names of the measures, and their values."""
    rows = [
        ("faces found of those labelled", f"{summary.found} of {summary.faces}"),
        ("share of the box's side, mean", _share(summary.nme_box)),
        ("share of the box's side, median", _share(summary.median_box)),
        ("share of the distance of the eyes, mean", _share(summary.nme_interocular)),
    ]
    points = summary.by_landmark.items()
    return rows + [(f"{name.replace('_', ' ')}, by the box", _share(error)) for name, error in points]


def _drawn(curves: Mapping[str, PrecisionRecall]) -> dict[str, Curve]:
    """Leave out the thresholds that no detection reaches, where precision is not defined."""
    reached = {name: curve.precision > 0 for name, curve in curves.items()}
    return {name: (c.recall[reached[name]], c.precision[reached[name]]) for name, c in curves.items()}


def _range(height: HeightBin) -> str:
    last = height.high_px == HEIGHT_BINS_PX[-1]
    return f"from {height.low_px}" if last else f"{height.low_px} to {height.high_px}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
