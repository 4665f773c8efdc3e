"""Checks of an ONNX file's bytes, before a runtime opens them.

The file is read as protobuf messages by their field numbers in onnx.proto, so that no ONNX package is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from facepipe.core.errors import WeightsError

_VARINT, _BYTES = 0, 2
_WIDTHS = {1: 8, 5: 4}
"""Of the wire types of fixed width, in bytes."""

_GRAPH, _NODE, _NODE_INPUT, _NODE_OPERATOR = 7, 1, 1, 4
_PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 10: "tensor", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""Of each message, the fields that hold others which matter here."""

_OUTSIDE = "values in another file (save it as one file: onnx.save without save_as_external_data)"
_NESTED = "a graph within the graph: a branch, or a loop, which may never end"
_REFUSED = {
    ("model", 20): "a part for training",
    ("model", 25): "functions of its own, which may unfold without bound",
    ("attribute", 6): _NESTED,
    ("attribute", 11): _NESTED,
    ("tensor", 13): _OUTSIDE,
    ("tensor", 14): _OUTSIDE,
}
"""Parts that are refused since no network for faces needs them, by message and field."""


def require_self_contained(model: bytes, source: str | Path) -> None:
    """Check that the whole network is in these bytes: no values in other files, no loop, no function.

    A runtime reads the files that a tensor names from the working folder (or, of some names, from its own
    memory), and nobody has hashed those.

    Args:
        model: An ONNX file's content.
        source: Named in errors.

    Raises:
        WeightsError: It is not so, or the bytes are no ONNX file.
    """
    try:
        refused = _refused_part(memoryview(model))
    except ValueError as error:
        raise WeightsError(f"{source}: not a readable ONNX file: {error}") from error
    if refused is not None:
        raise WeightsError(f"{source}: can't be used: this ONNX file has {refused}")


def operators_on(model: bytes, value: str) -> set[str]:
    """Return the types of the operators that take `value`, such as the network's input, of a checked file."""
    kinds = set()
    for field, graph in _fields(memoryview(model)):
        if field == _GRAPH and isinstance(graph, memoryview):
            for part, node in _fields(graph):
                if part == _NODE and isinstance(node, memoryview):
                    texts = [
                        (field, bytes(text)) for field, text in _fields(node) if not isinstance(text, int)
                    ]
                    if (_NODE_INPUT, value.encode()) in texts:
                        kinds |= {text.decode() for field, text in texts if field == _NODE_OPERATOR}
    return kinds


def _refused_part(model: memoryview) -> str | None:
    """Return the first part in `_REFUSED` that the file has.

    Raises:
        ValueError: The bytes are no ONNX file.
    """
    has_graph = False
    waiting = [("model", model)]
    while waiting:
        kind, message = waiting.pop()
        has_graph = has_graph or kind == "graph"
        for field, value in _fields(message):
            # A place of 0 is in the file.
            if (kind, field) in _REFUSED and value != 0:
                return _REFUSED[kind, field]
            part = _PARTS[kind].get(field)
            if part is not None and isinstance(value, memoryview):
                waiting.append((part, value))
    if not has_graph:
        raise ValueError("it holds no graph")
    return None


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field: an integer or bytes; 0 for one of fixed width."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        field, wire = key >> 3, key & 7
        if not 0 < field < 1 << 29:
            raise ValueError(f"field number {field} at byte {at}")
        value: int | memoryview = 0
        if wire == _VARINT:
            value, at = _varint(message, at)
        elif wire == _BYTES:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        elif wire in _WIDTHS:  # no message, whatever the field's number
            at += _WIDTHS[wire]
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at > len(message):
            raise ValueError("it is cut off")
        yield field, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return an integer of up to ten groups of seven bits, and where the next field begins."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("it is cut off")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise ValueError(f"a number without an end at byte {at}")
