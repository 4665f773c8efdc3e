"""Report of a detector's accuracy: a page of HTML and lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from facepipe.core.counting import counted
from facepipe.evaluation.detector import DetectorEvaluation
from facepipe.evaluation.metrics.detection import HEIGHT_BINS_PX, HeightBin, PrecisionRecall
from facepipe.evaluation.metrics.landmarks import LandmarkSummary
from facepipe.evaluation.mistakes import Mistake, Mistakes, pictures_of
from facepipe.evaluation.pages import Curve, plot, write_report
from facepipe.reports.html import Figure, page, paragraph, sheet, table

Row = tuple[str, ...]


def write_detector_report(folder: Path, evaluations: Sequence[DetectorEvaluation], pictures: int = 0) -> Path:
    """Write `detector.html` and `detector.json`, which has the points of the curves; return the page.

    Args:
        folder: Where to.
        evaluations: Of one detector, or of several on the same photos.
        pictures: How many missed faces, and how many false alarms, are shown of each.

    Raises:
        OutputError: They can't be written.
        PhotoError: A photo that is to be shown is gone.
    """
    records = [_record(evaluation) for evaluation in evaluations]
    record = records[0] if len(records) == 1 else {"detectors": records}
    return write_report(folder, "detector", html(evaluations, pictures), record)[0]


def _record(evaluation: DetectorEvaluation) -> dict[str, Any]:
    curves = {
        name: {"recall": curve.recall.round(4).tolist(), "precision": curve.precision.round(4).tolist()}
        for name, curve in evaluation.result.curves.items()
    }
    return {**evaluation.to_dict(), "curves": curves}


def html(evaluations: Sequence[DetectorEvaluation], pictures: int = 0) -> str:
    """Return the page; arguments and errors are those of `write_detector_report`."""
    first, several = evaluations[0], len(evaluations) > 1
    names = [evaluation.weights for evaluation in evaluations]
    sections: dict[str, list[str]] = {
        "WIDER FACE" if first.min_face_px is None else "Labelled faces": [
            *(paragraph(protocol_in_words(evaluation, several)) for evaluation in evaluations),
            table(("subset", "faces", *_ap_columns(names)), subset_rows(evaluations)),
            *_plots(evaluations),
        ],
        "By height of the face": [
            table(("height in px", "faces", *_ap_columns(names)), height_rows(evaluations))
        ],
    }
    for evaluation in evaluations:
        of_whom = f" of {evaluation.weights}" if several else ""
        if evaluation.landmarks:
            sections[f"Landmarks{of_whom}"] = [table(("", "mean error"), landmark_rows(evaluation.landmarks))]
        if pictures:
            sections |= _mistakes(evaluation.mistakes, pictures, of_whom)
    return page(f"Detector{'s' if several else ''} {', '.join(names)}", sections)


def _ap_columns(names: Sequence[str]) -> Sequence[str]:
    return ["average precision"] if len(names) == 1 else [f"AP of {name}" for name in names]


def _plots(evaluations: Sequence[DetectorEvaluation]) -> list[str]:
    """One plot with all curves of a detector; of several detectors one for each subset of faces."""
    if len(evaluations) == 1:
        return [plot(_drawn(evaluations[0].result.curves), "recall", "precision")]
    subsets = evaluations[0].result.curves
    return [
        plot(
            _drawn({f"{subset}: {e.weights}": e.result.curves[subset] for e in evaluations}),
            "recall",
            "precision",
        )
        for subset in subsets
    ]


def _mistakes(mistakes: Mistakes, pictures: int, of_whom: str) -> dict[str, list[str]]:
    missed, alarms = mistakes.missed[:pictures], mistakes.alarms[:pictures]
    shown = f"detections of a score from {mistakes.score:g}"
    heads = (
        f"{len(mistakes.missed)} of {counted(mistakes.faces, 'face')} missed by {shown}, the largest first",
        f"{counted(len(mistakes.alarms), 'false alarm')} among {shown}, the most confident first",
    )
    return {
        f"Missed faces{of_whom}": [paragraph(heads[0]), sheet(_figures(missed, missed=True))],
        f"False alarms{of_whom}": [paragraph(heads[1]), sheet(_figures(alarms, missed=False))],
    }


def _figures(mistakes: Sequence[Mistake], *, missed: bool) -> list[Figure]:
    return [
        Figure(
            picture,
            f"{mistake.height_px:.0f} px",
            (
                f"score {mistake.score:.2f}" if mistake.score else "not detected",
                *(("second box of a face",) if mistake.is_second else ()),
                mistake.path.name,
            ),
        )
        for mistake, picture in zip(mistakes, pictures_of(mistakes, missed=missed), strict=True)
    ]


def text(evaluations: Sequence[DetectorEvaluation]) -> list[str]:
    """Return the same for a terminal, without the curves."""
    several = len(evaluations) > 1
    rows = [
        *subset_rows(evaluations),
        *((f"{name} px", *values) for name, *values in height_rows(evaluations)),
    ]
    lines = [protocol_in_words(evaluation, several) for evaluation in evaluations]
    if several:
        widths = [len(evaluation.weights) for evaluation in evaluations]
        names = "  ".join(evaluation.weights for evaluation in evaluations)
        lines.append(f"{'AP':<26}  {names}")
        for name, faces, *values in rows:
            aps = "  ".join(f"{ap:>{width}}" for ap, width in zip(values, widths, strict=True))
            lines.append(f"{name:<13}{faces:>7} faces  {aps}")
    else:
        lines += [f"{name:<13}{faces:>7} faces  AP {ap}" for name, faces, ap in rows]
    for evaluation in evaluations:
        of_whom = f"{evaluation.weights}, " if several else ""
        points = landmark_rows(evaluation.landmarks) if evaluation.landmarks else []
        lines += [f"{of_whom}{name}: {value}" for name, value in points]
    return lines


def protocol_in_words(evaluation: DetectorEvaluation, with_name: bool = False) -> str:
    """Describe the setting of the figures, after the detector's name where there are several."""
    protocol = evaluation.protocol
    sizes = {
        "original": "photos at their original size",
        "letterbox640": "photos with a longer side of 640 px",
        "letterbox640_gray": "photos with a longer side of 640 px in the centre of a gray square",
        "short1600": "photos with a shorter side of 1600 px, the longer one at most 2150 px",
    }
    least = evaluation.min_face_px
    height = "" if least is None else f", labelled faces of at least {least:g} px"
    start = f"{evaluation.weights}: " if with_name else ""
    return (
        f"{start}{evaluation.result.photos} {sizes[protocol.setting]}, "
        f"{'with' if protocol.flip else 'without'} mirrored copies, "
        f"{'several scales' if protocol.multi_scale else 'one scale'}, "
        f"score above {protocol.score_threshold:g}, NMS at {protocol.overlap:g}, "
        f"{evaluation.ms_per_photo:.0f} ms a photo{height}"
    )


def subset_rows(evaluations: Sequence[DetectorEvaluation]) -> list[Row]:
    """Name and faces of each curve, and its AP by every detector."""
    return [
        (name, str(curve.faces), *(_percent(e.result.curves[name].ap) for e in evaluations))
        for name, curve in evaluations[0].result.curves.items()
    ]


def height_rows(evaluations: Sequence[DetectorEvaluation]) -> list[Row]:
    """Heights in pixels, faces, and AP by every detector."""
    return [
        (_range(bins[0]), str(bins[0].faces), *(_percent(each.ap) for each in bins))
        for bins in zip(*(evaluation.result.by_height for evaluation in evaluations), strict=True)
    ]


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
