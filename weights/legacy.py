"""Reading of published `.pth` and `.pt` checkpoints without running code in them."""

from __future__ import annotations

import io
import os
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from facepipe.core.errors import MissingExtraError, WeightsError, one_line

if TYPE_CHECKING:
    import torch

_OLDER_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""A pickle of torch's magic number."""
_OLDER_PICKLES = 5
"""Magic number, version, system, the object, and the keys of its values."""
_OLDER_OPERATIONS_MAX = 1_000_000
_PACKED_MAX = 1 << 20
"""Of what unpacking adds: TorchScript packs its source code."""


def read_legacy_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a PyTorch checkpoint to the CPU, by their published names.

    A network inside a training checkpoint, "state_dict", "model" or what else is named tensors, is
    unwrapped, and the "module." that data-parallel training puts before every name is taken off.

    Raises:
        WeightsError: Missing, empty, truncated, not a checkpoint, without tensors, of several networks,
            holding code, or tensors of another form than values in memory (`require_plain`).
        MissingExtraError: torch is not installed.
    """
    return _strip_module_prefix(_only_tensors(path, _unwrapped(path, load_without_code(path))))


def _unwrapped(path: Path, state: Any) -> Any:
    """Return the network of a training checkpoint, and anything else as it is."""
    if not isinstance(state, dict):
        return state
    if isinstance(state.get("state_dict"), dict):
        return state["state_dict"]
    inner = {name: value for name, value in state.items() if _is_state_dict(value)}
    if len(inner) > 1:
        names = one_line(", ".join(map(str, inner)))
        raise WeightsError(f"{path}: holds several networks ({names}); save one of them as a state dict")
    return next(iter(inner.values()), state)


def _is_state_dict(value: Any) -> bool:
    import torch

    return (
        isinstance(value, dict) and bool(value) and all(isinstance(v, torch.Tensor) for v in value.values())
    )


def require_checkpoint(path: Path, source: str) -> None:
    """Check, without torch, that a file is a PyTorch checkpoint and its container complete.

    Args:
        path: The file.
        source: Where it is from, for errors.

    Raises:
        WeightsError: It is none, or can't be read.
    """
    try:
        with path.open("rb") as stream:
            whole = _is_checkpoint(stream)
    except OSError as error:
        raise WeightsError(f"{source}: can't read this file: {error}") from error
    if not whole:
        raise WeightsError(f"{source}: {_reason('')}")


def _is_checkpoint(stream: BinaryIO) -> bool:
    older = stream.read(len(_OLDER_MAGIC)) == _OLDER_MAGIC
    stream.seek(0)
    try:
        return _is_older_form(stream) if older else _is_whole_zip(stream)
    except OSError:
        raise
    except Exception:  # damaged bytes surface as whatever the reader stumbled on
        return False


def _is_whole_zip(stream: BinaryIO) -> bool:
    """Return whether a zip holds torch's `data.pkl`, and all members have the right CRC."""
    with zipfile.ZipFile(stream) as archive:
        has_tensors = any(name.endswith("/data.pkl") for name in archive.namelist())
        return has_tensors and not _unpacks_to_more(stream) and archive.testzip() is None


def _unpacks_to_more(stream: BinaryIO) -> bool:
    """Return whether a zip holds more than its own size, but for some packed text: torch packs no values."""
    try:
        with zipfile.ZipFile(stream) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except Exception:  # no zip, or a damaged one: torch refuses it
        return False
    return unpacked > stream.seek(0, os.SEEK_END) + _PACKED_MAX


def _is_older_form(stream: BinaryIO) -> bool:
    """Whether a file is of torch's format before zip, five pickles and values; the pickles are not run."""
    operations = 0
    for _ in range(_OLDER_PICKLES):
        for _ in pickletools.genops(stream):
            operations += 1
            if operations > _OLDER_OPERATIONS_MAX:
                return False
    return bool(stream.read(1))


def load_without_code(path: Path) -> Any:
    """Load a file of `torch.save` to the CPU with `weights_only=True`.

    Raises:
        WeightsError: Missing, empty, truncated, not a checkpoint, or holding code.
        MissingExtraError: torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("importing .pth files", "train") from error
    data = _read_bytes(path)
    if _unpacks_to_more(io.BytesIO(data)):
        raise WeightsError(f"{path}: is packed; facepipe takes what torch.save writes, which is not")
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
        names = one_line(", ".join(strangers[:5]))
        raise WeightsError(
            f"{path}: expected named tensors only, but {names} are none; it needs a state dict"
        )
    tensors = {str(key): value for key, value in state.items()}
    require_plain(path, tensors)
    return tensors


def require_plain(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Check that all tensors are dense, real and hold each of their values in memory.

    Sparse, nested and meta tensors, and expanded ones whose one value stands for any number of them, would
    make later computations fail or fill the memory.

    Raises:
        WeightsError: One is not so; names it.
    """
    for name, tensor in tensors.items():
        if not _is_plain(tensor):
            raise WeightsError(f"{path}: {one_line(repr(name), 100)} is no plain tensor of real numbers")


def _is_plain(tensor: torch.Tensor) -> bool:
    import torch

    if tensor.is_nested or tensor.layout != torch.strided or tensor.device.type != "cpu":
        return False
    if tensor.is_quantized or tensor.is_complex():
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _strip_module_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    prefix = "module."
    if not all(name.startswith(prefix) for name in state):
        return state
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
