"""Reading and writing of a weight's files, which are verified by the hashes on its card."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facepipe.core.errors import WeightsError, one_line
from facepipe.core.files import SHARED_FILE_MODE, atomic_write_bytes
from facepipe.weights.cards import WeightCard, WeightFile
from facepipe.weights.onnx_file import require_self_contained
from facepipe.weights.registry import Weight, read_card, shipped_folder

Parameters = dict[str, NDArray[Any]]


def read_parameters(weight: Weight) -> Parameters:
    """Read and verify the parameters, by name, in their stored type (float16 or float32, int64 counters).

    Raises:
        WeightsError: This weight has none, or it is missing, not the file that the card describes, or not
            in the safetensors format.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if weight.card.parameters is None:
        raise WeightsError(
            f"{weight.card.name} is an ONNX file without parameters for torch: run it on the CPU with "
            "--runtime onnx or openvino"
        )
    data = _read_verified(weight, weight.card.parameters)
    try:
        return dict(load(data))
    except (SafetensorError, KeyError, ValueError) as error:
        reason = one_line(error)
        raise WeightsError(f"{weight.parameters_path}: not a readable safetensors file: {reason}") from error


def read_onnx(weight: Weight) -> bytes:
    """Read and verify the serving file, as bytes for ONNX Runtime.

    Raises:
        WeightsError: This weight has none, or it is missing, or not the file that the card describes, or one
            that is not complete in itself (`require_self_contained`).
    """
    if weight.card.onnx is None:
        raise WeightsError(f"{weight.card.name} has no ONNX file: run it with --runtime torch")
    model = _read_verified(weight, weight.card.onnx)
    require_self_contained(model, weight.folder / weight.card.onnx.name)
    return model


def verify(weight: Weight) -> None:
    """Check every file of `weight` against its card.

    Raises:
        WeightsError: The first file that is missing, differs or may not be run; names it and the cure.
    """
    if weight.card.parameters is not None:
        _read_verified(weight, weight.card.parameters)
    if weight.card.onnx is not None:
        read_onnx(weight)


def write_weight(
    folder: Path,
    card: WeightCard,
    parameters: Mapping[str, NDArray[Any]] | None,
    onnx: bytes | None,
) -> Weight:
    """Write NAME.safetensors, NAME.onnx and NAME.json to `folder`, which is made if it is missing.

    The file names and hashes in `card` are filled in. The card is written last: if the process is killed,
    there is no weight of this name, or a whole one.

    Args:
        folder: Where to.
        card: `parameters` and `onnx` in it are ignored.
        parameters: At least one array, or None for an ONNX file alone.
        onnx: The serving file, or None for a weight that runs on torch only.

    Raises:
        WeightsError: The name is taken, there is nothing to write, or the folder can't be written.
    """
    card_path = folder / f"{card.name}.json"
    if card_path.exists():
        raise WeightsError(f"{card_path}: exists already; choose another name, or remove it first")
    tensors = None if parameters is None else _to_safetensors(card.name, parameters)
    card = replace(
        card,
        parameters=None if tensors is None else WeightFile(f"{card.name}.safetensors", _sha256(tensors)),
        onnx=None if onnx is None else WeightFile(f"{card.name}.onnx", _sha256(onnx)),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, data in ((card.parameters, tensors), (card.onnx, onnx)):
            if file is not None and data is not None:
                atomic_write_bytes(folder / file.name, data, SHARED_FILE_MODE)
        atomic_write_bytes(card_path, card.to_json().encode(), SHARED_FILE_MODE)
    except OSError as error:
        raise WeightsError(f"{folder}: can't write the weight {card.name}: {error}") from error
    finally:
        _remove_unused(folder, card.name)
    return Weight(card, folder)


def _remove_unused(folder: Path, name: str) -> None:
    """Remove files that were written for a weight of this name and are on no card."""
    used = {file.name for path in folder.glob("*.json") for file in _files_of(path)}
    for unused in {f"{name}.safetensors", f"{name}.onnx"} - used:
        with suppress(OSError):  # it does no harm there
            (folder / unused).unlink()


def _files_of(card_path: Path) -> tuple[WeightFile, ...]:
    """Return the files named on a card; none where it can't be read."""
    try:
        card = read_card(card_path).card
    except WeightsError:
        return ()
    return tuple(file for file in (card.parameters, card.onnx) if file is not None)


def _to_safetensors(name: str, parameters: Mapping[str, NDArray[Any]]) -> bytes:
    from safetensors import SafetensorError
    from safetensors.numpy import save

    if not parameters:
        raise WeightsError(f"{name}: no parameters to write")
    try:
        return bytes(save({key: np.asarray(value, order="C") for key, value in parameters.items()}))
    except (SafetensorError, KeyError, ValueError) as error:
        raise WeightsError(f"{name}: parameters that safetensors can't hold: {error}") from error


def _read_verified(weight: Weight, file: WeightFile) -> bytes:
    """Read a file once, verify its hash and return the same bytes: nothing can change in between."""
    path = weight.folder / file.name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"{path}: can't read this file of {weight.card.name}: {error}. {_cure(weight)}"
        ) from error
    actual = _sha256(data)
    if file.sha256 is None:
        raise WeightsError(
            f"{path}: its card has no sha256; if you trust the file, write {actual} into the card"
        )
    if actual != file.sha256:
        raise WeightsError(f"{path}: sha256 is {actual}, its card says {file.sha256}. {_cure(weight)}")
    return data


def _cure(weight: Weight) -> str:
    if weight.folder == shipped_folder():
        from facepipe.core.installation import reinstall_advice  # late: it loads half of urllib

        return reinstall_advice()
    return "Import, train or copy this weight again"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
