"""What tests of both trainers share: a tiny labelled data set, and runs in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from paths import ROOT, TESTS
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from facepipe.core.faces import FloatArray, UInt8Array
from facepipe.evaluation.labels import LabelledPhoto, read_labels
from facepipe.images.reading import write_image
from facepipe.retinaface.network import retinaface_mobilenet025
from facepipe.training.detection.config import DetectorConfig
from facepipe.training.detection.crops import WeightedPhotos
from facepipe.training.detection.data import PhotoFiles
from facepipe.training.detection.task import DetectorTask
from facepipe.training.engine.config import read_configuration
from facepipe.training.engine.pixels import IMAGENET_INPUT
from facepipe.training.engine.stream import naming
from facepipe.weights.cards import AnchorSpec

FACE_XYXY = np.array([178, 68, 268, 186], np.float32)
LANDMARKS = np.array([[203, 108], [244, 108], [225, 130], [206, 152], [242, 152]], np.float32)
"""Of the astronaut, as the viewer sees her."""


def write_dataset(folder: Path, astronaut: UInt8Array, scales: tuple[float, ...] = (0.25, 0.4)) -> Path:
    """`folder/images/*.png` and `folder/label.txt` in RetinaFace's form: the photo at several scales."""
    lines = []
    (folder / "images").mkdir(parents=True)
    for i, scale in enumerate(scales):
        size = round(512 * scale)
        write_image(folder / "images" / f"{i}.png", cv2.resize(astronaut, (size, size)).astype(np.uint8))
        x, y, right, bottom = FACE_XYXY * size / 512
        points = " ".join(f"{px:.2f} {py:.2f} 0" for px, py in LANDMARKS * size / 512)
        lines += [f"# {i}.png", f"{x:.2f} {y:.2f} {right - x:.2f} {bottom - y:.2f} {points} 0.9"]
    (folder / "label.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def export_maps(
    network: nn.Module, path: Path, side_px: int, names: Sequence[str], *, any_size: bool = False
) -> Path:
    """An ONNX file of a network for one square picture, or one of any size, with names for its outputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracing exporter is deprecated, and ten times as fast
        torch.onnx.export(
            network.eval(),
            (torch.zeros(1, 3, side_px, side_px),),
            str(path),
            dynamo=False,
            input_names=["pixels"],
            output_names=list(names),
            dynamic_axes={"pixels": {2: "height", 3: "width"}} if any_size else None,
        )
    return path


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def run_python(
    script: Path, *arguments: str, launcher: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a script that may import the tests' modules."""
    return subprocess.run(
        [sys.executable, *launcher, str(script), *arguments],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=600,
        check=False,
    )


def environment() -> dict[str, str]:
    """Of such a script."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}"}


def to_toml(value: object) -> str:
    """Plain data as a TOML value."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {to_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    return json.dumps(value)


def assert_same_run(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Two checkpoints of the same step, to the last bit."""
    assert one["step"] == other["step"]
    for part in ("module", "average"):
        for name, value in one[part].items():
            assert torch.equal(value, other[part][name]), name
    assert one["record"] == other["record"]


def remove_batch_norm(module: nn.Module) -> None:
    """A network that sees each picture alone: BatchNorm would see another batch in each process."""
    for name, child in module.named_children():
        if isinstance(child, (nn.BatchNorm2d, nn.BatchNorm1d)):
            setattr(module, name, nn.GroupNorm(1, child.num_features))
        else:
            remove_batch_norm(child)


class BatchNormGradients(TorchDispatchMode):
    """Records, in a `with` block, where BatchNorms' gradients have their channels in memory.

    Attributes:
        channel_strides: Of each gradient (batch, channels, h, w), in values: 1 where channels are last.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.channel_strides: list[int] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function."""
        if function is torch.ops.aten.native_batch_norm_backward.default and args[0].ndim == 4:
            self.channel_strides.append(args[0].stride(1))
        return function(*args, **(kwargs or {}))


def labelled(
    boxes: FloatArray | list[list[float]],
    landmarks: FloatArray | None = None,
    ignored: list[list[float]] | None = None,
) -> LabelledPhoto:
    """Labels of a photo that is in memory only."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    points = np.full((len(boxes), 5, 2), np.nan, np.float32) if landmarks is None else landmarks
    return LabelledPhoto(Path("memory"), boxes, points, np.array(ignored or [], np.float32).reshape(-1, 4))


def plain_task(dataset: Path, batch_size: int) -> DetectorTask:
    """A task whose network sees each photo alone."""
    torch.manual_seed(3)
    network = retinaface_mobilenet025()
    remove_batch_norm(network)
    data = [WeightedPhotos(PhotoFiles(read_labels(dataset)), 1.0)]
    config = read_configuration(
        DetectorConfig,
        None,
        ["augment.size_px=64", f"loop.batch_size={batch_size}", "loop.seed=7", "loop.workers=0"],
    )
    return DetectorTask(network, IMAGENET_INPUT, AnchorSpec(), data, config)


@dataclass
class Numbers:
    """Batch i is i; something goes wrong with one of them."""

    at: int = -1
    go_wrong: Callable[[], object] = dict

    def batch(self, number: int) -> Tensor:
        if number == self.at:
            with naming(f"photo{number}.jpg"):
                self.go_wrong()
        return torch.full((2,), number)

    def files(self, number: int) -> list[str]:
        return [f"photo{number}.jpg"]
