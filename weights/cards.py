"""Cards of weights: JSON files with all that is needed to use a weight file.

The card `NAME.json` stands beside `NAME.safetensors` (parameters) and `NAME.onnx` (for serving).
Preprocessing, anchors, thresholds and templates are read from here and never retyped.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

from facepipe.core.errors import WeightsError, one_line
from facepipe.core.validation import convert

Kind = Literal["detector", "encoder"]
Channels = Literal["rgb", "bgr"]

_SHIPPED_BEFORE = {
    "c341885ea49a1d1f": "2ff477ac244145676a24f1f7191e928fa121ae451ebd1ff3ddccf375c096eb0e",
    "a2b2cf5739b556c2": "0161052a7ffed703ea68384be014979b2777220c6502fb31a50e636a0dc96a72",
}
"""Fingerprints of the weights that shipped while the ONNX file did not count, and the sha256 of that file.

Galleries and jobs hold these fingerprints, so they stay, for these very files."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,149}")
"""Longer than a weight's name, of which it is made."""
_SHA256 = re.compile(r"[0-9a-f]{64}")

CARD_BYTES_MAX = 1 << 20
_DEPTH_MAX = 20
_SIDE_MAX_PX = 1024
"""Of an encoder's input: a batch of 32 then takes 400 MB."""
_PIXEL_MAX = 1e5
_STD_MIN = 1e-3
_DIMENSIONS_MAX = 1 << 16
_LEVELS_MAX, _SIZES_MAX, _ANCHOR_MAX_PX = 8, 16, 1 << 16


def check_name(name: str) -> str:
    """Return `name` if it can name a weight: it becomes part of a path and must not lead out of it.

    Raises:
        WeightsError: Not 1 to 100 letters, digits, '.', '-' and '_', beginning with a letter or digit.
    """
    if not _NAME.fullmatch(name):
        raise WeightsError(
            f"{name!r:.120} can't name a weight: use letters, digits, '.', '-' and '_', "
            "beginning with a letter or digit"
        )
    return name


@dataclass(frozen=True, slots=True)
class InputSpec:
    """Preprocessing of pixels: `(pixel - mean) / std` per channel, pixels 0..255.

    Attributes:
        channels: Order of the channels that the network was trained on.
        mean: One value per channel, *in the order of `channels`*, in pixel units (0..255).
        std: One value per channel, in the same order and units.
        size_px: Side of the square input, or None where any multiple of 32 is taken.
    """

    channels: Channels
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size_px: int | None = None

    def __post_init__(self) -> None:
        if not all(abs(value) <= _PIXEL_MAX for value in self.mean):
            raise WeightsError(f"expected mean from {-_PIXEL_MAX:g} to {_PIXEL_MAX:g}, got {self.mean}")
        if not all(_STD_MIN <= value <= _PIXEL_MAX for value in self.std):
            raise WeightsError(f"expected positive std, from {_STD_MIN:g} to {_PIXEL_MAX:g}, got {self.std}")
        if self.size_px is not None and not 0 < self.size_px <= _SIDE_MAX_PX:
            raise WeightsError(f"expected size_px from 1 to {_SIDE_MAX_PX}, got {self.size_px}")


@dataclass(frozen=True, slots=True)
class AnchorSpec:
    """RetinaFace's anchors: square sides in pixels per stride, and the variances of the box coding.

    Source: the defaults are those of the published PyTorch RetinaFace weights.

    Attributes:
        sizes_px: Sides of the anchors of a cell, for each stride.
        strides_px: Of the maps, finest first.
        variances: By which offsets of the centre and logarithms of the size are divided.
    """

    sizes_px: tuple[tuple[int, ...], ...] = ((16, 32), (64, 128), (256, 512))
    strides_px: tuple[int, ...] = (8, 16, 32)
    variances: tuple[float, float] = (0.1, 0.2)

    def __post_init__(self) -> None:
        if len(self.strides_px) > _LEVELS_MAX or any(len(level) > _SIZES_MAX for level in self.sizes_px):
            raise WeightsError(
                f"expected up to {_SIZES_MAX} anchor sizes at each of up to {_LEVELS_MAX} strides"
            )
        if len(self.sizes_px) != len(self.strides_px) or not all(self.sizes_px):
            raise WeightsError(
                f"expected anchor sizes for each of {len(self.strides_px)} strides, got {self.sizes_px}"
            )
        values = (*self.strides_px, *self.variances, *(side for level in self.sizes_px for side in level))
        if not all(0 < value <= _ANCHOR_MAX_PX for value in values):
            raise WeightsError(
                f"expected anchor sizes, strides and variances from 0 to {_ANCHOR_MAX_PX}, got {values}"
            )


@dataclass(frozen=True, slots=True)
class FocusSpec:
    """A detector's focus map: see `facepipe.retinaface.focus`.

    Attributes:
        threshold: Probability from which on a cell is looked at in four times the size.
    """

    threshold: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise WeightsError(f"expected a threshold of the focus map between 0 and 1, got {self.threshold}")


@dataclass(frozen=True, slots=True)
class EmbeddingSpec:
    """An encoder's output.

    Attributes:
        dimensions: Numbers of an embedding, which has unit length.
        alignment: Name of the landmark template in `facepipe.align.TEMPLATES` that crops are warped to.
        flip_average: Whether an embedding is the normalised sum of those of the crop and its mirror image.
        threshold_l2: Default largest Euclidean distance at which a face is named; None: not measured.
        threshold_source: How that threshold was measured, in a sentence.
        impostors: Distances between strangers, as `ImpostorModel` writes and reads them, which give a
            threshold for each size of gallery. None: not measured; `threshold_l2` is used for all galleries.
    """

    dimensions: int
    alignment: str
    flip_average: bool = False
    threshold_l2: float | None = None
    threshold_source: str | None = None
    impostors: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.dimensions <= _DIMENSIONS_MAX:
            raise WeightsError(f"expected dimensions from 1 to {_DIMENSIONS_MAX}, got {self.dimensions}")
        if self.threshold_l2 is not None and not 0 < self.threshold_l2 <= 2:
            raise WeightsError(
                f"expected threshold_l2 in (0, 2], the range of unit vectors, got {self.threshold_l2}"
            )


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A file of a weight, beside its card. `sha256`: 64 hex digits; None: not written yet."""

    name: str
    sha256: str | None

    def __post_init__(self) -> None:
        if not _FILE_NAME.fullmatch(self.name):
            raise WeightsError(
                f"{self.name!r:.120} can't name a file of a weight: use letters, digits, '.', '-' and '_'"
            )
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256):
            raise WeightsError(
                f"expected a sha256 of 64 lower-case hex digits for {self.name}, got {self.sha256!r}"
            )


@dataclass(frozen=True, slots=True)
class WeightCard:
    """All that is known of a weight.

    Attributes:
        name: Unique name in the registry; also the stem of the files.
        kind: "detector" or "encoder".
        architecture: Name that `build_network` knows, such as "retinaface_mobilenet025".
        input: Preprocessing.
        parameters: The safetensors file; None for an imported ONNX file, which torch can't run.
        onnx: The serving file; None for a weight that runs on torch only. At least one of both is there.
        anchors: Detectors only.
        focus: Of detectors with a focus map.
        embedding: Encoders only.
        licence: Terms of use of the weight.
        training: Free-form record: data, teacher, recipe, hours.
        measured: Free-form record: accuracy, each figure with its test setting.
        limits: Known weaknesses.
    """

    name: str
    kind: Kind
    architecture: str
    input: InputSpec
    parameters: WeightFile | None
    onnx: WeightFile | None = None
    anchors: AnchorSpec | None = None
    focus: FocusSpec | None = None
    embedding: EmbeddingSpec | None = None
    licence: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)
    limits: str = ""

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.parameters is None and self.onnx is None:
            raise WeightsError(f"card of {self.name}: a weight needs 'parameters' or 'onnx'")
        if self.kind == "detector" and self.anchors is None:
            raise WeightsError(f"card of {self.name}: a detector needs 'anchors'")
        if self.kind == "encoder" and self.embedding is None:
            raise WeightsError(f"card of {self.name}: an encoder needs 'embedding'")
        if self.kind == "encoder" and self.focus is not None:
            raise WeightsError(f"card of {self.name}: an encoder has no 'focus'")

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the hash of the files and the preprocessing, all that outputs depend on."""
        parameters = self.parameters and self.parameters.sha256
        without_onnx = self._fingerprint_of(parameters)
        if self.onnx is None or _SHIPPED_BEFORE.get(without_onnx) == self.onnx.sha256:
            return without_onnx
        return self._fingerprint_of([parameters, self.onnx.sha256])

    @property
    def earlier_fingerprint(self) -> str | None:
        """The fingerprint of versions that left out the ONNX file; None: the same, or of a shipped weight."""
        if self.parameters is None:
            return None
        without_onnx = self._fingerprint_of(self.parameters.sha256)
        known = without_onnx == self.fingerprint or without_onnx in _SHIPPED_BEFORE
        return None if known else without_onnx

    def _fingerprint_of(self, files: Any) -> str:
        embedding = self.embedding and [self.embedding.alignment, self.embedding.flip_average]
        meaning = [files, asdict(self.input), asdict(self.anchors) if self.anchors else embedding]
        if self.focus is not None:
            meaning.append(asdict(self.focus))
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Return the card as it is written to disk; `from_json` reads it back equal."""
        raw = asdict(self)
        return json.dumps(raw | {"sha256": _sha256_of(raw)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str | Path = "card") -> Self:
        """Read a card. Its own `sha256` may be missing, as on cards of earlier versions.

        Raises:
            WeightsError: Not JSON, a field is missing, unknown or of the wrong form, or the contents are not
                those of its `sha256`; names `source`.
        """
        try:
            raw = json.loads(text)
            _require_shallow(raw)
            sha256 = raw.pop("sha256", None) if isinstance(raw, dict) else None
            card = convert(raw, cls)
            if card.anchors is not None:
                _require_all_anchors(raw["anchors"])
            actual = _sha256_of(raw)
        except (ValueError, TypeError, OverflowError, RecursionError, WeightsError) as error:
            raise WeightsError(f"{source}: not a facepipe weight card: {one_line(error)}") from error
        if sha256 not in (None, actual):
            raise WeightsError(
                f"{source}: its contents are not those of its sha256: it is damaged, so copy or import the "
                "weight again; or if you changed it yourself, take 'sha256' out"
            )
        return card


def _require_shallow(value: Any, levels: int = _DEPTH_MAX) -> None:
    """Refuse nesting that Python could not write again."""
    if levels < 0:
        raise ValueError(f"it is nested more than {_DEPTH_MAX} deep")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _require_shallow(inner, levels - 1)


def _require_all_anchors(raw: Mapping[str, Any]) -> None:
    """Refuse defaults: recipes may leave out what a card has to hold."""
    if missing := [item.name for item in fields(AnchorSpec) if item.name not in raw]:
        raise ValueError(f"anchors lacks {', '.join(missing)}")


def _sha256_of(raw: Mapping[str, Any]) -> str:
    """Hash of a card's contents, whatever the order of its keys and its white space."""
    return hashlib.sha256(json.dumps(raw, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
