"""Outputs of the published RetinaFace weights, with sums in an order that does not depend on the processor.

Run by itself: ``python published_outputs.py SHARED_DATA OUT.npz``. In 32-bit floats the order of a sum
decides its last bits, and oneDNN's kernels choose it by the processor's instruction set. Here MKL's
reproducible code paths and ATen's kernels for AVX2 compute every layer in one thread: the bits are the same
on every x86 processor with AVX2.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from network_helpers import preprocessed

from facepipe.core.faces import FloatArray

PHOTOS = ("astronaut", "group", "portrait")
WEIGHTS = ("rgb", "bgr")
NAMES = ("box_regression", "class_probability", "landmark_regression")
_FIXED_ORDER = {"MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "avx2"}
"""Read by the libraries when they are loaded, hence the process of its own."""


def published_outputs(
    shared_data: Path, weights: str, photo: str, channels: str, *, fixed_order: bool = False
) -> list[FloatArray]:
    """Boxes, probabilities and landmarks of all anchors, by oneDNN's kernels or in the fixed order."""
    import torch

    from facepipe.retinaface.published import our_name
    from facepipe.runtime.architectures import build_network, load_parameters, serving_module
    from facepipe.weights.legacy import read_legacy_checkpoint

    checkpoint = read_legacy_checkpoint(shared_data / "weights" / f"retinaface_mnet025_{weights}.pth")
    network = build_network("retinaface_mobilenet025")
    load_parameters(network, {our_name(name): value for name, value in checkpoint.items()}, weights)
    module = serving_module(network)
    images = torch.from_numpy(preprocessed(shared_data / "reference" / f"{photo}.png", channels))
    if fixed_order:
        torch.set_num_threads(1)
        torch.backends.mkldnn.set_flags(False)
        module = module.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        return [output[0].numpy() for output in module(images)]


def fixed_order_outputs(shared_data: Path, folder: Path) -> dict[str, FloatArray]:
    """The same of all photos and weights in the fixed order, by ``photo_weights_name``."""
    out = folder / "fixed_order.npz"
    command = [sys.executable, __file__, str(shared_data), str(out)]
    subprocess.run(command, env=os.environ | _FIXED_ORDER, check=True)
    with np.load(out) as arrays:
        return dict(arrays)


def main(shared_data: Path, out: Path) -> None:
    arrays: dict[str, FloatArray] = {}
    for photo in PHOTOS:
        for weights in WEIGHTS:
            outputs = published_outputs(shared_data, weights, photo, weights, fixed_order=True)
            for name, output in zip(NAMES, outputs, strict=True):
                arrays[f"{photo}_{weights}_{name}"] = output
    np.savez(out, allow_pickle=False, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
