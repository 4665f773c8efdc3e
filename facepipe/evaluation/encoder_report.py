"""Report of an encoder's accuracy: a page of HTML and lines for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from facepipe.evaluation.encoder import EYE_BINS_PX, HISTOGRAM_STEP_L2, AllPairsFigures, EncoderEvaluation
from facepipe.evaluation.groups import GroupResult
from facepipe.evaluation.metrics.identification import IdentificationResult
from facepipe.evaluation.metrics.verification import FoldSpread, TarAtFar, VerificationResult
from facepipe.evaluation.pages import plot, write_report
from facepipe.gallery.impostors import DEFAULT_FPIR, FARTHEST_L2, ImpostorModel
from facepipe.reports.html import page, paragraph, table

_DISTANCE_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, FARTHEST_L2)
_SIZES = (1, 10, 100, 1_000, 10_000, 100_000)

Row = tuple[str, ...]


def write_encoder_report(folder: Path, evaluations: Sequence[EncoderEvaluation]) -> Path:
    """Write `encoder.html` and `encoder.json` into `folder`; return the page.

    Args:
        folder: Where to.
        evaluations: Of one encoder on one list of pairs, or on several.

    Raises:
        OutputError: They can't be written.
    """
    records = [evaluation.to_dict() for evaluation in evaluations]
    record = records[0] if len(records) == 1 else {"lists": records}
    return write_report(folder, "encoder", html(evaluations), record)[0]


def html(evaluations: Sequence[EncoderEvaluation]) -> str:
    """Return the page; sections of several lists of pairs have the list's name in their titles."""
    several = len(evaluations) > 1
    sections = {"Lists of pairs": [table(*list_table(evaluations))]} if several else {}
    for evaluation in evaluations:
        of_list = f", {evaluation.list_name}" if several else ""
        sections |= {f"{title}{of_list}": parts for title, parts in _sections(evaluation).items()}
    return page(f"Encoder {evaluations[0].encoder}", sections)


def list_table(evaluations: Sequence[EncoderEvaluation]) -> tuple[Row, list[Row]]:
    """Return headings, and a row of figures for each list of pairs."""
    columns = {each.list_name: {"pairs": str(each.pairs.pairs), **_list_cells(each)} for each in evaluations}
    header = tuple(dict.fromkeys(name for cells in columns.values() for name in cells))
    return ("list", *header), [
        (name, *(cells.get(column, "-") for column in header)) for name, cells in columns.items()
    ]


def _list_cells(evaluation: EncoderEvaluation) -> dict[str, str]:
    pairs = evaluation.pairs
    return {
        "accuracy": _accuracy(pairs),
        "EER": _percent(pairs.eer),
        "AUC": f"{pairs.auc:.4f}",
        **{f"TAR at {row.far:g}": _tar(row) for row in pairs.tar_at_far},
        "threshold": f"{pairs.best_threshold_l2:.3f}",
        "no face": str(pairs.failed_photos),
    }


def _sections(evaluation: EncoderEvaluation) -> dict[str, list[str]]:
    """Return the parts of the page on one list, by title."""
    sections = {
        "Same person or not": [
            paragraph(f"{evaluation.pairs.pairs} pairs; {evaluation.setting}"),
            table(pair_header(evaluation), pair_rows(evaluation)),
            table(("fold", "pairs", "threshold", "accuracy", "EER", "AUC"), fold_rows(evaluation)),
        ],
    }
    if evaluation.all_pairs:
        sections["All pairs of the same photos"] = _pairs(evaluation.all_pairs)
    if evaluation.by_size:
        sections["By size of the smaller face"] = [
            table(
                ("px between the eyes", "pairs", "same accepted", "different accepted"), size_rows(evaluation)
            )
        ]
    if evaluation.impostors:
        sections["Thresholds by the size of a gallery"] = _thresholds(evaluation, evaluation.impostors)
    for title, result in _open_sets(evaluation).items():
        sections[title] = [table(("", ""), identification_rows(result))]
    if evaluation.robustness:
        header = ("damage", "no face", "accuracy", "at the clean threshold", *_tar_names(evaluation))
        sections["After damage"] = [table(header, robustness_rows(evaluation))]
    return sections


def text(evaluations: Sequence[EncoderEvaluation]) -> list[str]:
    """Return the same for a terminal, without the curves."""
    if len(evaluations) == 1:
        return _lines(evaluations[0])
    header, rows = list_table(evaluations)
    lines = _aligned([header, *rows])
    for evaluation in evaluations:
        lines += ["", f"{evaluation.list_name}:", *_lines(evaluation)]
    return lines


def _lines(evaluation: EncoderEvaluation) -> list[str]:
    lines = [f"{evaluation.encoder}: {evaluation.pairs.pairs} pairs; {evaluation.setting}"]
    header = [pair_header(evaluation)] if evaluation.groups else []
    blocks = [header + pair_rows(evaluation), size_rows(evaluation), gallery_rows(evaluation)]
    blocks += [identification_rows(result) for result in _open_sets(evaluation).values()]
    blocks.append(robustness_rows(evaluation))
    return lines + [line for rows in blocks for line in _aligned(rows)]


def _aligned(rows: Sequence[Row]) -> list[str]:
    widths = [max(9, *map(len, cells)) for cells in list(zip(*rows, strict=True))[1:]]
    return [
        "  ".join((f"{row[0]:<32}", *(f"{cell:>{w}}" for cell, w in zip(row[1:], widths, strict=True))))
        for row in rows
    ]


def pair_header(evaluation: EncoderEvaluation) -> Row:
    """Headings of `pair_rows`."""
    names = [group.name for group in evaluation.groups]
    return ("", "all", *names) if names else ("", "")


def pair_rows(evaluation: EncoderEvaluation) -> list[Row]:
    """Names of the measures on the pairs, and their values for all pairs and for each group."""
    columns = [_pair_cells(evaluation.pairs), *(_group_cells(group) for group in evaluation.groups)]
    rows: list[Row] = [(name, *(column.get(name, "-") for column in columns)) for name in columns[0]]
    if evaluation.groups:
        rows += _common_threshold_rows(evaluation)
    all_rates = evaluation.all_pairs.tar_at_far if evaluation.all_pairs else ()
    empty = [""] * len(evaluation.groups)
    return [*rows, *((f"TAR at FAR {row.far:g}, all pairs", _tar(row), *empty) for row in all_rates)]


def _pair_cells(pairs: VerificationResult) -> dict[str, str]:
    spread = pairs.over_folds
    return {
        "accuracy": _accuracy(pairs),
        **(_spread_cells(pairs.accuracy, spread) if spread else {}),
        "equal error rate": _percent(pairs.eer),
        "area under the ROC curve": f"{pairs.auc:.4f}",
        "best threshold": f"{pairs.best_threshold_l2:.3f}",
        "photos without a face": str(pairs.failed_photos),
        **{f"TAR at FAR {row.far:g}, pairs": _tar(row) for row in pairs.tar_at_far},
    }


def _accuracy(pairs: VerificationResult) -> str:
    error = pairs.accuracy_error
    return _percent(pairs.accuracy) + (f" +- {100 * error:.2f}" if error is not None else "")


def _spread_cells(accuracy: float, spread: FoldSpread) -> dict[str, str]:
    """Means over the folds, and their standard deviations in brackets."""
    return {
        "of folds: accuracy (deviation)": f"{100 * accuracy:.2f} ({100 * spread.accuracy_deviation:.2f})",
        "of folds: EER (deviation)": f"{100 * spread.eer_mean:.2f} ({100 * spread.eer_deviation:.2f})",
        "of folds: AUC (deviation)": f"{100 * spread.auc_mean:.2f} ({100 * spread.auc_deviation:.2f})",
    }


def _group_cells(group: GroupResult) -> dict[str, str]:
    return _pair_cells(group.verification) if group.verification else {}


def _common_threshold_rows(evaluation: EncoderEvaluation) -> list[Row]:
    """What each group gets at the one threshold that is best on all pairs."""
    groups, at = evaluation.groups, f"at {evaluation.pairs.best_threshold_l2:.3f}"
    return [
        ("pairs of one person", "", *(str(group.genuines) for group in groups)),
        ("pairs of two people", "", *(str(group.impostors) for group in groups)),
        (f"one person accepted {at}", "", *(_percent(group.true_accept_rate) for group in groups)),
        (f"two people accepted {at}", "", *(_percent(group.false_accept_rate) for group in groups)),
    ]


def fold_rows(evaluation: EncoderEvaluation) -> list[Row]:
    """Fold, pairs, threshold, accuracy, equal error rate, area under the ROC curve."""
    return [
        (
            str(fold.fold + 1),
            str(fold.pairs),
            f"{fold.threshold_l2:.3f}",
            *map(_percent, (fold.accuracy, fold.eer, fold.auc)),
        )
        for fold in evaluation.pairs.folds
    ]


def size_rows(evaluation: EncoderEvaluation) -> list[Row]:
    """Distances of the eyes, pairs, and shares accepted; sizes that don't occur are left out."""
    return [
        (
            f"eyes {b.low_px} to {b.high_px} px"
            if b.high_px < EYE_BINS_PX[-1]
            else f"eyes from {b.low_px} px",
            str(b.genuines + b.impostors),
            _percent(b.true_accept_rate),
            _percent(b.false_accept_rate),
        )
        for b in evaluation.by_size
        if b.genuines + b.impostors
    ]


def gallery_rows(evaluation: EncoderEvaluation) -> list[Row]:
    """Templates, threshold, strangers named, and its spread."""
    return [
        (
            f"{check.templates} templates, {_percent(check.wanted)} wanted",
            f"{check.threshold_l2:.3f}",
            f"{100 * check.measured:.2f}",
            f"+- {100 * check.spread:.2f}",
        )
        for check in evaluation.galleries
    ]


def identification_rows(result: IdentificationResult) -> list[Row]:
    """Names of the measures, and their values."""
    rows: list[Row] = [
        ("templates, people", f"{result.templates}, {result.people}"),
        ("known, strangers, no face", f"{result.known}, {result.strangers}, {result.without_face}"),
        ("rank 1", _percent(result.rank1)),
    ]
    for at in result.at_thresholds:
        shares = (at.right, at.wrong, at.strangers_named)
        rows.append((f"right, wrong, strangers at {at.threshold_l2:.3f}", ", ".join(map(_percent, shares))))
    if result.fnir_at_fpir is not None:
        rows.append((f"FNIR at FPIR {DEFAULT_FPIR:.0%}", _percent(result.fnir_at_fpir)))
    return rows


def robustness_rows(evaluation: EncoderEvaluation) -> list[Row]:
    """Damage, photos without a face, accuracies, true accepts."""
    return [
        (
            row.corruption,
            str(row.failed_photos),
            _percent(row.accuracy),
            _percent(row.accuracy_at_clean),
            *(_tar(tar) for tar in row.tar_at_far),
        )
        for row in evaluation.robustness
    ]


def _open_sets(evaluation: EncoderEvaluation) -> dict[str, IdentificationResult]:
    named = {
        f"Who is it, {evaluation.enrolled_per_person} enrolled each, photos of the pairs": (
            evaluation.identification
        ),
        "Who is it, enrolled people": evaluation.people,
    }
    return {title: result for title, result in named.items() if result}


def _tar_names(evaluation: EncoderEvaluation) -> Sequence[str]:
    return [f"TAR at {row.far:g}" for row in evaluation.pairs.tar_at_far]


def _pairs(pairs: AllPairsFigures) -> list[str]:
    middles = np.asarray(pairs.histogram_l2) + HISTOGRAM_STEP_L2 / 2
    shares = {
        f"one person ({pairs.genuines})": (middles, np.asarray(pairs.genuine_share)),
        f"two people ({pairs.impostors})": (middles, np.asarray(pairs.impostor_share)),
    }
    curve = {"all pairs": (np.log10(pairs.roc_far), np.asarray(pairs.roc_tar))}
    return [
        plot(shares, "distance", "share of pairs", _DISTANCE_TICKS, (0, 0.1, 0.2, 0.3)),
        plot(curve, "false-accept rate, power of ten", "true-accept rate", range(-6, 1)),
    ]


def _thresholds(evaluation: EncoderEvaluation, model: ImpostorModel) -> list[str]:
    sizes = np.array(_SIZES)
    low, high = np.array([model.interval_l2(DEFAULT_FPIR, size) for size in _SIZES]).T
    curves = {
        "threshold": (np.log10(sizes), np.array([model.threshold_l2(DEFAULT_FPIR, n) for n in _SIZES])),
        "95%: low": (np.log10(sizes), low),
        "95%: high": (np.log10(sizes), high),
    }
    return [
        paragraph(
            f"So that {DEFAULT_FPIR:.0%} of strangers get a name; from {model.pairs} pairs of photos of "
            f"{model.people} people. Tried on galleries of people who had no part in it:"
        ),
        table(("", "threshold", "% named", ""), gallery_rows(evaluation)),
        plot(curves, "templates, power of ten", "threshold", range(6), (0.4, 0.6, 0.8, 1.0, 1.2, 1.4)),
    ]


def _tar(row: TarAtFar) -> str:
    return _percent(row.tar) if row.resolved else "-"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
