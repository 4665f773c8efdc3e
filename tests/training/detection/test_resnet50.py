"""ResNet-50 trains through the command, and what is exported runs like what was trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import facepipe
from training_helpers import write_dataset

from facepipe.core.faces import UInt8Array
from facepipe.detector import DetectorOptions, FaceDetector
from facepipe.runtime.engines import choose_runtime
from facepipe.training.detection.config import NetworkConfig
from facepipe.training.detection.initialize import initial_detector
from facepipe.training.engine.logs import read_log

STEPS = 10
SETTINGS = (
    "augment.size_px=160",
    "augment.whole_photo_share=1",
    "augment.colour_share=0",
    f"loop.epochs={STEPS}",  # of two photos
    "loop.batch_size=2",
    "loop.workers=0",
    "loop.warmup_steps=1",
    "loop.freeze_steps=1",
    "loop.schedule=constant",
    "loop.ema_decay=0.5",
    "loop.precision=float32",
    "loop.log_every=1",
    "optimiser.name=adamw",
    "optimiser.learning_rate=1e-3",
    "optimiser.reference_batch=2",
)


def test_resnet50_trains_from_a_torchvision_file_and_is_exported(
    tmp_path: Path, astronaut: UInt8Array
) -> None:
    from torchvision.models import resnet50

    trunk, backbone = resnet50(weights=None), tmp_path / "resnet50.pth"
    torch.save(trunk.state_dict(), backbone)
    start = initial_detector(NetworkConfig("retinaface_resnet50", initial=str(backbone)))
    assert torch.equal(start.network.state_dict()["backbone.trunk.conv1.weight"], trunk.conv1.weight)

    run, data = tmp_path / "run", write_dataset(tmp_path / "data", astronaut)
    settings = [word for setting in (*SETTINGS, f"network.initial={backbone}") for word in ("--set", setting)]
    recipe = ("--recipe", "retinaface_resnet50_paper", "--phase", "whole")
    said = facepipe("train", "detector", run, *recipe, "--data", data, *settings)
    assert said.code == 0, said.err
    losses = read_log(run / "log.csv")
    for part in ("class", "box", "landmark"):
        values = [value for _, value in losses[part]]
        assert len(values) == STEPS
        assert np.mean(values[-3:]) < 0.8 * np.mean(values[:2]), part

    exported = facepipe("export", run / "last.pt", "--name", "deep", "--out", tmp_path / "weights")
    assert exported.code == 0, exported.err
    options = DetectorOptions(score_threshold=0.0, top_k=20, max_side=160)
    card = str(tmp_path / "weights" / "deep.json")
    onnx, eager = (
        FaceDetector.load(card, options, choose_runtime(runtime)).detect(astronaut)
        for runtime in ("onnx", "torch")
    )
    assert onnx.scores == pytest.approx(eager.scores, abs=1e-3)
    np.testing.assert_allclose(onnx.boxes_xyxy[0], eager.boxes_xyxy[0], atol=0.5)
