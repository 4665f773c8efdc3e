"""Published checkpoints are read without running what is in them."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facepipe.core.errors import MissingExtraError, WeightsError
from facepipe.weights.legacy import read_legacy_checkpoint

torch = pytest.importorskip("torch", reason="reading .pth files needs the [train] extra")


class Bomb:
    """A pickle of this runs a command when it is loaded without care."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch exploded",)


def _saved(value: Any, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


STATE = {"a.weight": torch.arange(2000.0), "a.count": torch.tensor(3)}
PREFIXED = {f"module.{name}": tensor for name, tensor in STATE.items()}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older form"])
@pytest.mark.parametrize(
    "content",
    [
        STATE,
        PREFIXED,
        {"epoch": 3, "state_dict": PREFIXED},
        {"epoch": 3, "arch": "x", "state_dict": STATE},
        {"epoch": 3, "model": STATE, "optimizer": {"state": {0: {"step": 1}}, "param_groups": [{"lr": 0.1}]}},
    ],
    ids=["plain", "data-parallel", "training checkpoint of both", "training checkpoint", "by another name"],
)
def test_every_wrapping_gives_the_same_tensors(content: Any, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(_saved(content, zipped))
    read = read_legacy_checkpoint(path)
    assert read.keys() == STATE.keys()
    assert all(torch.equal(read[name], STATE[name]) for name in STATE)


def test_a_prefix_that_not_all_share_is_part_of_the_names(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(_saved({"module.a": torch.ones(1), "b": torch.ones(1)}))
    assert set(read_legacy_checkpoint(path)) == {"module.a", "b"}


def _scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


ZIP, OLDER = _saved(STATE), _saved(STATE, zipped=False)
BAD = {
    "empty": (b"", "is empty"),
    "text": (b"hello, this is a text\n", "not a whole PyTorch checkpoint"),
    "web page": (b"<!DOCTYPE html><html></html>", "not a whole PyTorch checkpoint"),
    "zeros": (bytes(3000), "not a whole PyTorch checkpoint"),
    "only the beginning of a zip": (b"PK\x03\x04" + bytes(range(100)), "not a whole PyTorch checkpoint"),
    "half a zip": (ZIP[: len(ZIP) // 2], "not a whole PyTorch checkpoint"),
    **{f"older form cut at {n}": (OLDER[:n], "not a whole PyTorch") for n in (30, 150, len(OLDER) // 2)},
    "command": (_saved(Bomb()), "never runs code"),
    "command among tensors": (_saved({"a": torch.ones(1), "b": Bomb()}), "posix.system|nt.system"),
    "command, older form": (_saved(Bomb(), zipped=False), "never runs code"),
    "command, bare pickle": (pickle.dumps(Bomb()), "not a whole PyTorch checkpoint"),
    "whole network": (_saved(torch.nn.Linear(2, 2)), r"torch\.nn.*state_dict\(\)"),
    "one tensor": (_saved(torch.ones(3)), "expected named tensors, got Tensor"),
    "no tensors": (_saved({}), "expected named tensors"),
    "numbers": (_saved({"epoch": 3, "loss": 0.5}), "epoch, loss are none"),
    "two networks": (_saved({"model": STATE, "ema": STATE}), "several networks .model, ema."),
    "tensors and numbers": (_saved({"state_dict": {"a": torch.ones(1), "lr": 0.1}}), "lr are none"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "error::UserWarning")
@pytest.mark.parametrize(("content", "told"), BAD.values(), ids=BAD)
def test_bad_files_are_refused_and_named(
    content: bytes, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"bad\.pth: .*(?:{told})") as caught:
        read_legacy_checkpoint(path)
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.pt"
    path.write_bytes(_scripted())
    with pytest.raises(WeightsError, match="TorchScript program"):
        read_legacy_checkpoint(path)


def test_the_bomb_is_a_real_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Bomb()))
    assert (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["missing.pth", "."])
def test_what_can_not_be_read_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"{tmp_path / name}: can't read"):
        read_legacy_checkpoint(tmp_path / name)


def test_without_torch_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def no_torch(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "torch":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_torch)
    with pytest.raises(MissingExtraError, match=r'pip install .*"torch>='):
        read_legacy_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("file", "count", "one_name"),
    [
        ("retinaface_mnet025_rgb.pth", 300, "body.stage1.0.0.weight"),
        ("retinaface_mnet025_bgr.pth", 300, "body.stage1.0.0.weight"),
        ("retinaface_mnet025_bgr_anchors10.pth", 300, "body.stage1.0.0.weight"),
        ("mobilenetv1_025_imagenet.pth", None, "stage1.0.0.weight"),
    ],
)
def test_published_checkpoints_are_read(
    shared_data: Path, file: str, count: int | None, one_name: str
) -> None:
    read = read_legacy_checkpoint(shared_data / "weights" / file)
    assert read[one_name].shape == (8, 3, 3, 3)
    assert count is None or len(read) == count
    assert all(tensor.device.type == "cpu" for tensor in read.values())


FORMS: dict[str, Callable[[], Any]] = {
    "one value for a million millions": lambda: torch.zeros(1).expand(1 << 40),
    "one value for a few": lambda: torch.zeros(1).expand(3),
    "values that overlap": lambda: torch.as_strided(torch.zeros(10), (5, 5), (1, 1)),
    "no values": lambda: torch.zeros(3, 3, device="meta"),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse by rows": lambda: torch.eye(3).to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "complex": lambda: torch.zeros(3, dtype=torch.complex64),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
def test_only_plain_values_are_taken(make: Callable[[], Any], tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(_saved({"fine": torch.ones(3), "odd\nname": make()}))
    with pytest.raises(WeightsError, match=r"x\.pth: 'odd\\nname' is no plain tensor|not a whole"):
        read_legacy_checkpoint(path)


def test_values_by_any_stride_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    views = {
        "part": torch.arange(100.0)[:7],
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "none": torch.ones(0, 3),
    }
    path.write_bytes(_saved(views | {"parameter": torch.nn.Parameter(torch.ones(2))}))
    assert torch.equal(read_legacy_checkpoint(path)["turned"], views["turned"])


def test_a_packed_zip_is_not_unpacked(tmp_path: Path) -> None:
    zeros = zipfile.ZipFile(io.BytesIO(_saved({"a": torch.zeros(1_000_000)})))
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in zeros.namelist():
            packed.writestr(name, zeros.read(name))
    with pytest.raises(WeightsError, match="is packed"):
        read_legacy_checkpoint(tmp_path / "x.pth")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([ZIP[:1500], ZIP, OLDER[:900], OLDER]), st.integers(0, 9000), st.binary(max_size=8))
def test_any_change_is_read_or_one_line(content: bytes, place: int, new: bytes) -> None:
    at = place % len(content)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.pth"
        path.write_bytes(content[:at] + new + content[at + len(new) :])
        try:
            read = read_legacy_checkpoint(path)
        except WeightsError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert sum(tensor.numel() for tensor in read.values()) < 10_000
