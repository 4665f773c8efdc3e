"""A weight's card: everything that must be known to use a weight file, read from one JSON file.

The card `NAME.json` stands beside `NAME.safetensors` (parameters) and `NAME.onnx` (for serving).
Preprocessing, anchors, thresholds and templates are read from here and never retyped.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from facepipe.core.errors import WeightsError, one_line

Kind = Literal["detector", "encoder"]
Channels = Literal["rgb", "bgr"]

_SHIPPED_BEFORE = {
    "c341885ea49a1d1f": "2ff477ac244145676a24f1f7191e928fa121ae451ebd1ff3ddccf375c096eb0e",
    "a2b2cf5739b556c2": "0161052a7ffed703ea68384be014979b2777220c6502fb31a50e636a0dc96a72",
    "c77a75e9f4c19342": "5dfe3e925ab5e2f9f222e204bb47ca768e5dee660dc4d9624105f1b8c24d2228",
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
    """`name` itself, if it may name a weight: it becomes part of a path and must stay in it.

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
    """How pixels become the network's input: `(pixel - mean) / std` a channel, pixels 0..255.

    Attributes:
        channels: Order of the channels that the network was trained on.
        mean: One value a channel, *in the order of `channels`*, in pixel units (0..255).
        std: Likewise.
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
class EmbeddingSpec:
    """An encoder's output.

    Attributes:
        dimensions: Length of a vector; vectors have unit length.
        alignment: Name of the landmark template in `facepipe.align.TEMPLATES` that crops are warped to.
        flip_average: Whether a face's vector is the normalised sum of those of the crop and its mirror image.
        threshold_l2: Default largest Euclidean distance at which a face is named; None: not measured.
        threshold_source: How that threshold was measured, in a sentence.
        impostors: How near strangers come, as `ImpostorModel` writes and reads it: it
            makes a threshold of a gallery's size. None: not measured, `threshold_l2` serves all galleries.
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
    """One file of a weight, beside its card. `sha256` (64 hex digits) None: not written yet."""

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
    """A weight as an object.

    Attributes:
        name: Unique name in the registry; also the stem of the files.
        kind: "detector" or "encoder".
        architecture: Name that `build_network` knows, such as "retinaface_mobilenet025".
        input: Preprocessing.
        parameters: The safetensors file; None for an imported ONNX file, which torch can't run.
        onnx: The serving file; None for a weight that runs on torch only. There is one of both at least.
        anchors: Detectors only.
        embedding: Encoders only.
        licence: Terms of use of the weight.
        training: Free-form record: data, teacher, recipe, hours.
        measured: Free-form record: accuracy, each figure with its test setting.
        limits: What it is known to be bad at.
    """

    name: str
    kind: Kind
    architecture: str
    input: InputSpec
    parameters: WeightFile | None
    onnx: WeightFile | None = None
    anchors: AnchorSpec | None = None
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

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change whenever the numbers coming out would: with files or preprocessing."""
        parameters = self.parameters and self.parameters.sha256
        without_onnx = self._fingerprint_of(parameters)
        if self.onnx is None or _SHIPPED_BEFORE.get(without_onnx) == self.onnx.sha256:
            return without_onnx
        return self._fingerprint_of([parameters, self.onnx.sha256])

    @property
    def earlier_fingerprint(self) -> str | None:
        """The fingerprint of versions that left out the ONNX file; None: the same, or a shipped weight's."""
        if self.parameters is None:
            return None
        without_onnx = self._fingerprint_of(self.parameters.sha256)
        known = without_onnx == self.fingerprint or without_onnx in _SHIPPED_BEFORE
        return None if known else without_onnx

    def _fingerprint_of(self, files: Any) -> str:
        embedding = self.embedding and [self.embedding.alignment, self.embedding.flip_average]
        meaning = [files, asdict(self.input), asdict(self.anchors) if self.anchors else embedding]
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """The card as written to disk; `from_json` reads it back equal."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str | Path = "card") -> Self:
        """Read a card.

        Raises:
            WeightsError: Not JSON, or a field is missing, unknown or of the wrong form; names `source`.
        """
        try:
            raw = json.loads(text)
            _require_plain(raw)
            return cls(**_card_fields(raw))
        except (ValueError, TypeError, OverflowError, RecursionError, WeightsError) as error:
            raise WeightsError(f"{source}: not a facepipe weight card: {one_line(error)}") from error


def _require_plain(raw: Any) -> None:
    """Refuse what can't be written again: text that is no Unicode, and nesting beyond Python's own depth."""
    level, depth = [raw], 0
    while level:
        if depth > _DEPTH_MAX:
            raise ValueError(f"it is nested more than {_DEPTH_MAX} deep")
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += [*value, *value.values()]
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str):
                value.encode()
        level, depth = below, depth + 1


def _card_fields(raw: Any) -> dict[str, Any]:
    optional = ("onnx", "anchors", "embedding", "licence", "training", "measured", "limits")
    _check_fields(raw, "the card", ("name", "kind", "architecture", "input", "parameters"), optional)
    return {
        "name": _text(raw["name"], "name"),
        "kind": _one_of(raw["kind"], "kind", ("detector", "encoder")),
        "architecture": _text(raw["architecture"], "architecture"),
        "input": _input_spec(raw["input"]),
        "parameters": None if raw["parameters"] is None else _weight_file(raw["parameters"], "parameters"),
        "onnx": None if raw.get("onnx") is None else _weight_file(raw["onnx"], "onnx"),
        "anchors": None if raw.get("anchors") is None else _anchor_spec(raw["anchors"]),
        "embedding": None if raw.get("embedding") is None else _embedding_spec(raw["embedding"]),
        "licence": _text(raw.get("licence", ""), "licence"),
        "training": _object(raw.get("training", {}), "training"),
        "measured": _object(raw.get("measured", {}), "measured"),
        "limits": _text(raw.get("limits", ""), "limits"),
    }


def _input_spec(raw: Any) -> InputSpec:
    _check_fields(raw, "input", ("channels", "mean", "std"), ("size_px",))
    mean, std = _numbers(raw["mean"], "input.mean", 3), _numbers(raw["std"], "input.std", 3)
    return InputSpec(
        channels=_one_of(raw["channels"], "input.channels", ("rgb", "bgr")),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        size_px=None if raw.get("size_px") is None else _integer(raw["size_px"], "input.size_px"),
    )


def _weight_file(raw: Any, where: str) -> WeightFile:
    _check_fields(raw, where, ("name", "sha256"))
    sha256 = None if raw["sha256"] is None else _text(raw["sha256"], f"{where}.sha256")
    return WeightFile(_text(raw["name"], f"{where}.name"), sha256)


def _anchor_spec(raw: Any) -> AnchorSpec:
    _check_fields(raw, "anchors", ("sizes_px", "strides_px", "variances"))
    low, high = _numbers(raw["variances"], "anchors.variances", 2)
    levels = _list(raw["sizes_px"], "anchors.sizes_px")
    return AnchorSpec(
        sizes_px=tuple(
            tuple(_integer(side, "anchors.sizes_px") for side in _list(level, "anchors.sizes_px"))
            for level in levels
        ),
        strides_px=tuple(
            _integer(stride, "anchors.strides_px")
            for stride in _list(raw["strides_px"], "anchors.strides_px")
        ),
        variances=(low, high),
    )


def _embedding_spec(raw: Any) -> EmbeddingSpec:
    optional = ("flip_average", "threshold_l2", "threshold_source", "impostors")
    _check_fields(raw, "embedding", ("dimensions", "alignment"), optional)
    threshold, source, impostors = (raw.get(name) for name in optional[1:])
    return EmbeddingSpec(
        dimensions=_integer(raw["dimensions"], "embedding.dimensions"),
        alignment=_text(raw["alignment"], "embedding.alignment"),
        flip_average=_boolean(raw.get("flip_average", False), "embedding.flip_average"),
        threshold_l2=None if threshold is None else _number(threshold, "embedding.threshold_l2"),
        threshold_source=None if source is None else _text(source, "embedding.threshold_source"),
        impostors=None if impostors is None else _object(impostors, "embedding.impostors"),
    )


def _check_fields(raw: Any, where: str, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    """A field that is missing or misspelt must not fall back to a default unnoticed."""
    _object(raw, where)
    if missing := [name for name in required if name not in raw]:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    if unknown := [name for name in raw if name not in required + optional]:
        raise ValueError(f"{where} has unknown {', '.join(map(repr, unknown))}")


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, got {value!r:.80}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{where}: expected a list, got {value!r:.80}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: expected text, got {value!r:.80}")
    return value


def _integer(value: Any, where: str) -> int:
    if type(value) is not int:
        raise ValueError(f"{where}: expected a whole number, got {value!r:.80}")
    return value


def _number(value: Any, where: str) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{where}: expected a number, got {value!r:.80}")
    return float(value)


def _numbers(values: Any, where: str, count: int) -> tuple[float, ...]:
    numbers = tuple(_number(value, where) for value in _list(values, where))
    if len(numbers) != count:
        raise ValueError(f"{where}: expected {count} numbers, got {len(numbers)}")
    return numbers


def _boolean(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{where}: expected true or false, got {value!r:.80}")
    return value


def _one_of(value: Any, where: str, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise ValueError(f"{where}: expected one of {', '.join(allowed)}, got {value!r:.80}")
    return value
