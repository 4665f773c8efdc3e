"""Checkpoints whose parameters have other names than those of the first published RetinaFace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from facepipe.core.errors import WeightsError

torch = pytest.importorskip("torch", reason="matching layers needs the [train] extra")
from facepipe.retinaface.layer_matching import backbone_parameters, renamed_by_layers  # noqa: E402
from facepipe.retinaface.network import retinaface_mobilenet025  # noqa: E402
from facepipe.runtime.architectures import build_network, load_network  # noqa: E402
from facepipe.runtime.onnx_export import import_checkpoint  # noqa: E402
from facepipe.training.detection.config import Architecture, NetworkConfig  # noqa: E402
from facepipe.training.detection.initialize import initial_detector  # noqa: E402

ARCHITECTURES: tuple[Architecture, ...] = (
    "retinaface_mobilenet025",
    "retinaface_mobilenet050",
    "retinaface_mobilenet100",
    "retinaface_resnet18",
    "retinaface_resnet34",
    "retinaface_resnet50",
)
OTHER_NAMES = (
    (r"^backbone\.trunk\.", "fx."),
    (r"^backbone\.(stage\d\.\d+)\.0\.([01]\.)", r"fx.\1.depthwise.\2"),
    (r"^backbone\.(stage\d\.\d+)\.1\.([01]\.)", r"fx.\1.pointwise.\2"),
    (r"^backbone\.", "fx."),
    (r"^fpn\.laterals\.0\.", "fpn.output1."),
    (r"^fpn\.laterals\.1\.", "fpn.output2."),
    (r"^fpn\.laterals\.2\.", "fpn.output3."),
    (r"^fpn\.merges\.0\.", "fpn.merge1."),
    (r"^fpn\.merges\.1\.", "fpn.merge2."),
    (r"^contexts\.0\.", "ssh1."),
    (r"^contexts\.1\.", "ssh2."),
    (r"^contexts\.2\.", "ssh3."),
    (r"\.field3\.", ".conv3x3."),
    (r"\.reduce\.", ".conv5x5_1."),
    (r"\.field5\.", ".conv5x5_2."),
    (r"\.widen\.", ".conv7x7_2."),
    (r"\.field7\.", ".conv7x7_3."),
    (r"^box_heads\.", "bbox_head.bbox_head."),
    (r"^class_heads\.", "class_head.class_head."),
    (r"^landmark_heads\.", "landmark_head.landmark_head."),
)


def other_name(ours: str) -> str:
    for pattern, name in OTHER_NAMES:
        ours = re.sub(pattern, name, ours, count=1)
    return ours


def state_of(architecture: str) -> dict[str, Any]:
    """Of a network, its values not set."""
    with torch.device("meta"):
        shapes = build_network(architecture).state_dict()
    return {name: torch.empty(value.shape) for name, value in shapes.items()}


def in_published_order(state: dict[str, Any]) -> dict[str, Any]:
    """Heads of classes before those of boxes, as the published network defines them."""
    kinds = ("class_heads", "box_heads", "landmark_heads")
    heads = [name for kind in kinds for name in state if name.startswith(kind)]
    return {name: state[name] for name in [*(name for name in state if name not in heads), *heads]}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layers_are_known_by_their_order(architecture: str) -> None:
    ours = state_of(architecture)
    published = {other_name(name): value for name, value in in_published_order(ours).items()}
    assert not published.keys() & ours.keys()
    found = renamed_by_layers(published, ours, "x.pth")
    assert found is not None
    assert found.keys() == {name for name in ours if "num_batches" not in name}
    assert all(value is ours[name] for name, value in found.items())
    prefixed = {f"model.net.{name}": value for name, value in published.items()}
    assert renamed_by_layers(prefixed, ours, "x.pth") == found
    for other in ARCHITECTURES:
        if other != architecture:
            assert renamed_by_layers(published, state_of(other), "x.pth") is None


def test_a_backbone_comes_without_its_classifier() -> None:
    with torch.device("meta"):
        backbone = retinaface_mobilenet025().backbone
    ours = {name: torch.empty(value.shape) for name, value in backbone.state_dict().items()}
    classifier = {"fc.weight": torch.empty(1000, 256), "fc.bias": torch.empty(1000)}
    found = backbone_parameters(backbone, {f"features.{k}": v for k, v in ours.items()} | classifier, "x.tar")
    assert found is not None
    assert all(value is ours[name] for name, value in found.items())
    assert backbone_parameters(backbone, classifier, "x.tar") is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (r"^fpn\.merge1\.", "fpn.merge3."),  # after the second
        (r"\.conv7x7_3\.", ".another."),
        (r"^ssh1\.", "ssh9."),
        (r"^class_head\.class_head\.0\.", "class_head.class_head.5."),
    ],
)
def test_names_that_contradict_the_order_are_refused(before: str, after: str) -> None:
    ours = state_of("retinaface_mobilenet025")
    published = {re.sub(before, after, other_name(name)): v for name, v in in_published_order(ours).items()}
    with pytest.raises(WeightsError, match=r"^x\.pth: its layers .* and .* have one shape, and their names"):
        renamed_by_layers(published, ours, "x.pth")


def test_a_sorted_checkpoint_is_not_guessed_at() -> None:
    ours = state_of("retinaface_mobilenet025")
    published = {other_name(name): ours[name] for name in sorted(ours, key=other_name)}
    assert renamed_by_layers(published, ours, "x.safetensors") is None


@pytest.mark.parametrize("architecture", ["retinaface_mobilenet050", "retinaface_resnet18"])
def test_other_names_import_and_train_as_the_same_network(tmp_path: Path, architecture: Architecture) -> None:
    network = build_network(architecture).eval()
    state = in_published_order(network.state_dict())
    file = tmp_path / "theirs.pth"
    torch.save({"state_dict": {f"module.{other_name(name)}": v for name, v in state.items()}}, file)
    weight = import_checkpoint(file, name="theirs", folder=tmp_path / "weights")
    assert weight.card.architecture == architecture
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = network(images)
        for same in (load_network(weight), initial_detector(NetworkConfig(architecture, str(file))).network):
            for one, other in zip(same.eval()(images), expected, strict=True):
                torch.testing.assert_close(one, other)


def test_the_backbones_own_file_begins_a_network(tmp_path: Path) -> None:
    """As `mobilenetV1X0.25_pretrain.tar` is: a training checkpoint of a classifier."""
    backbone = retinaface_mobilenet025().backbone
    published = {f"module.{name}": value for name, value in backbone.state_dict().items()}
    published |= {"module.fc.weight": torch.ones(1000, 256), "module.fc.bias": torch.ones(1000)}
    file = tmp_path / "mobilenetV1X0.25_pretrain.tar"
    torch.save({"epoch": 90, "arch": "mobilenet", "state_dict": published}, file)
    start = initial_detector(NetworkConfig(initial=str(file)))
    for name, value in backbone.state_dict().items():
        assert torch.equal(start.network.backbone.state_dict()[name], value)
    with pytest.raises(
        WeightsError, match=r"backbone without a detector; .*network\.initial=.*pretrain\.tar"
    ):
        import_checkpoint(file, name="x", folder=tmp_path / "weights")
    with pytest.raises(WeightsError, match=r"pretrain\.tar: other parameters than the architecture has"):
        initial_detector(NetworkConfig("retinaface_resnet18", initial=str(file)))
