"""What the rows mean that hold decisions about faces, and photos that were written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from facepipe.batch.check_values import SHA256, are_texts, is_bytes, is_int, is_number, is_time, require
from facepipe.batch.decisions import Verdict
from facepipe.batch.rows import FACE_BYTES
from facepipe.core.errors import UsageError
from facepipe.core.face_ids import is_face_id
from facepipe.gallery.address import PostgresAddress, parse_address

_COORDINATE_MAX = 1e7


def check_decision(row: Mapping[str, Any]) -> None:
    """Check a row of decisions, deciphered; raises as `facepipe.batch.checks.require_meaning`."""
    require(is_face_id(row["face_id"]) and bool(SHA256.fullmatch(row["sha256"])), "the face of a decision")
    require(is_bytes(row["numbers"], FACE_BYTES) and len(row["numbers"]) == FACE_BYTES, "a decision's box")
    numbers = np.frombuffer(row["numbers"], "<f4")
    require(bool((np.abs(numbers) < _COORDINATE_MAX).all()), "a decision's box")  # NaN is not
    names = json.loads(row["not_names"])
    require(isinstance(names, list) and are_texts(*names), "who a face is not")
    require((row["verdict"] == Verdict.IS.value) == (row["name"] is not None), "a decision")
    require(all(row[key] is None or are_texts(row[key]) for key in ("name", "found_name")), "who a face is")
    require(row["is_drawn"] in (0, 1) and is_time(row["decided_at"]), "a decision")
    if row["vectors"] is not None:
        require(bool(row["vectors"]) and is_bytes(row["vectors"], 4), "the length of a vector")
        require(bool(np.isfinite(np.frombuffer(row["vectors"], "<f4")).all()), "a vector")


def _check_step(row: Mapping[str, Any]) -> None:
    require(are_texts(row["label"]) and is_time(row["made_at"]), "a step")
    require(isinstance(json.loads(row["changes"]), dict), "a step")


def _check_person(row: Mapping[str, Any]) -> None:
    require(are_texts(row["name"]) and row["is_hidden"] in (0, 1), "a person")
    require(row["cover"] is None or is_face_id(row["cover"]), "a person's cover")


def _check_group(row: Mapping[str, Any]) -> None:
    require(is_face_id(row["face_id"]) and is_int(row["number"]) and row["number"] > 0, "a group of faces")


def _check_template(row: Mapping[str, Any]) -> None:
    require(is_face_id(row["face_id"]) and is_int(row["template_id"]), "a template")


def _is_gallery(text: str) -> bool:
    try:
        return os.path.isabs(text) or isinstance(parse_address(text), PostgresAddress)
    except UsageError:
        return False


def _check_library(row: Mapping[str, Any]) -> None:
    require(isinstance(row["gallery"], bytes) and _is_gallery(os.fsdecode(row["gallery"])), "the gallery")
    naming = json.loads(row["naming"])
    require(naming["threshold_l2"] is None or is_number(naming["threshold_l2"]), "how faces are named")
    require(
        is_number(naming["min_margin_l2"]) and are_texts(naming["person_distance"]), "how faces are named"
    )
    require(isinstance(naming["one_person_per_photo"], bool), "how faces are named")


def _check_photo_write(row: Mapping[str, Any]) -> None:
    require(all(is_int(row[key]) for key in ("photo_id", "size_bytes", "mtime_ns")), "a written photo")
    require(all(SHA256.fullmatch(row[key]) for key in ("sha256_before", "sha256")), "a written photo")
    require(row["is_written"] in (0, 1), "a written photo")


LIBRARY_CHECKS: dict[str, Callable[[Mapping[str, Any]], None]] = {
    "decisions": check_decision,
    "steps": _check_step,
    "people": _check_person,
    "face_groups": _check_group,
    "templates": _check_template,
    "library": _check_library,
    "photo_writes": _check_photo_write,
}
"""By table, the check of a row; raises as `facepipe.batch.checks.require_meaning`."""
