"""Reading published `.pth` and `.pt` checkpoints without running anything that is in them."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facepipe.errors import MissingExtraError, WeightsError

if TYPE_CHECKING:
    import torch


def read_legacy_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a PyTorch checkpoint, on the CPU, under the names they were published with.

    A "state_dict" inside a training checkpoint is unwrapped, and the "module." that data-parallel
    training puts before every name is taken off.

    Raises:
        WeightsError: Missing, empty, truncated, not a checkpoint, without tensors, or holding code.
        MissingExtraError: torch is not installed.
    """
    state = _load_without_code(path)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    return _strip_module_prefix(_only_tensors(path, state))


def _load_without_code(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("importing .pth files", "train") from error
    data = _read_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on odd files is to load them unsafely
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes surface as whatever the reader stumbled on
        raise WeightsError(f"{path}: {_reason(str(error))}") from error


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: can't read this file: {error}") from error
    if not data:
        raise WeightsError(f"{path}: is empty; download it again")
    return data


def _reason(message: str) -> str:
    state_dict = "ask its maker for a state dict: torch.save(model.state_dict(), path)"
    if name := re.search(r"GLOBAL ([\w.]+)", message):
        return f"holds Python objects ({name[1]}); facepipe never runs code from a weight file: {state_dict}"
    if "TorchScript" in message:
        return f"is a TorchScript program; facepipe never runs code from a weight file: {state_dict}"
    return "is not a whole PyTorch checkpoint of tensors; check where it came from, or download it again"


def _only_tensors(path: Path, state: Any) -> dict[str, torch.Tensor]:
    import torch

    if not isinstance(state, dict) or not state:
        raise WeightsError(
            f"{path}: expected named tensors, got {type(state).__name__}; it needs a state dict"
        )
    strangers = [str(key) for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if strangers:
        names = ", ".join(strangers[:5])
        raise WeightsError(
            f"{path}: expected named tensors only, but {names} are none; it needs a state dict"
        )
    return {str(key): value for key, value in state.items()}


def _strip_module_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    prefix = "module."
    if not all(name.startswith(prefix) for name in state):
        return state
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
