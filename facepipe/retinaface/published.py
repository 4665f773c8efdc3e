"""Names of parameters in published PyTorch RetinaFace checkpoints, and their names here."""

from __future__ import annotations

import re
from collections.abc import Sequence

_MOBILENET = [
    # Within a depthwise block the published layout numbers depthwise conv, BN, act, pointwise conv, BN, act.
    (r"body\.stage1\.0\.(\d)\.", r"backbone.stage1.0.\1."),
    (r"body\.(stage\d\.\d+)\.([01])\.", r"backbone.\1.0.\2."),
    (r"body\.(stage\d\.\d+)\.3\.", r"backbone.\1.1.0."),
    (r"body\.(stage\d\.\d+)\.4\.", r"backbone.\1.1.1."),
]
_RESNET = [(r"body\.", "backbone.trunk.")]
_NECK = [
    (r"fpn\.output(\d)\.", lambda m: f"fpn.laterals.{int(m[1]) - 1}."),
    (r"fpn\.merge(\d)\.", lambda m: f"fpn.merges.{int(m[1]) - 1}."),
    (r"ssh(\d)\.", lambda m: f"contexts.{int(m[1]) - 1}."),
]
_FIELDS = [
    (r"\.conv3X3\.", ".field3."),
    (r"\.conv5X5_1\.", ".reduce."),
    (r"\.conv5X5_2\.", ".field5."),
    (r"\.conv7X7_2\.", ".widen."),
    (r"\.conv7x7_3\.", ".field7."),
]
_HEADS = [
    (r"BboxHead\.(\d)\.conv1x1\.", r"box_heads.\1."),
    (r"ClassHead\.(\d)\.conv1x1\.", r"class_heads.\1."),
    (r"LandmarkHead\.(\d)\.conv1x1\.", r"landmark_heads.\1."),
]


def our_name(published: str) -> str:
    """Translate the name of a parameter of a published checkpoint; other names are returned unchanged."""
    backbone = _MOBILENET if published.startswith("body.stage") else _RESNET
    for step in (backbone, _NECK, _FIELDS, _HEADS):
        published = _first_match(published, step)
    return published


def _first_match(name: str, rules: Sequence[tuple[str, object]]) -> str:
    for pattern, replacement in rules:
        renamed, count = re.subn(pattern, replacement, name, count=1)  # type: ignore[call-overload]
        if count:
            return str(renamed)
    return name
