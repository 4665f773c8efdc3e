"""FaceNet's four backbones, against their layouts and against independent forms of the published ones."""

from __future__ import annotations

import sys

import pytest

from facepipe.core.errors import MissingExtraError, WeightsError

torch = pytest.importorskip("torch", reason="the networks need the [train] extra")
from network_helpers import randomised  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from facepipe.facenet.network import (  # noqa: E402
    FaceNet,
    FaceNetServing,
    SplitPReLU,
    facenet_mobilefacenet,
)
from facepipe.facenet.published import our_facenet_pytorch_name, our_name  # noqa: E402
from facepipe.runtime.architectures import build_network, load_parameters, serving_module  # noqa: E402

MOBILENET_STRIDES = {"stage1": [2, 1, 2, 1, 2, 1], "stage2": [2, 1, 1, 1, 1, 1], "stage3": [2, 1]}


@pytest.mark.parametrize(
    ("architecture", "dimensions", "millions"),
    [
        ("facenet_mobilenet", 128, 3.338),
        ("facenet_mobilenetv1", 128, 4.396),
        ("facenet_mobilefacenet", 128, 1.000),
        ("facenet_inception_resnet_v1", 128, 22.794),
        ("facenet_inception_resnet_v1", 512, 23.483),
    ],
)
def test_parameter_counts(architecture: str, dimensions: int, millions: float) -> None:
    with torch.device("meta"):
        network = build_network(architecture, dimensions)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=6e-4)


@pytest.mark.parametrize(
    ("architecture", "side", "map_sides"),
    [
        ("facenet_mobilenet", 112, (28, 14, 7, 4)),
        ("facenet_mobilenet", 160, (40, 20, 10, 5)),
        ("facenet_mobilenetv1", 112, (56, 56, 28, 28, *[14] * 6, 7, 7)),
        ("facenet_mobilefacenet", 112, (56, *[28] * 5, *[14] * 7, *[7] * 3)),
        ("facenet_inception_resnet_v1", 160, (17, 8, 3)),
    ],
)
def test_vectors_and_taps(architecture: str, side: int, map_sides: tuple[int, ...]) -> None:
    network = build_network(architecture, 64).eval()
    assert isinstance(network, FaceNet)
    with torch.inference_mode():
        output = network(torch.randn(2, 3, side, side))
    assert output.vectors.shape == (2, 64)
    expected = [(2, width, s, s) for width, s in zip(network.trunk.widths, map_sides, strict=True)]
    assert [tuple(tap.shape) for tap in output.taps] == expected


def test_training_reaches_every_parameter_through_vectors_and_taps() -> None:
    network = facenet_mobilefacenet(128).train()
    output = network(torch.randn(4, 3, 112, 112))
    (functional.normalize(output.vectors).std() + sum(tap.mean() for tap in output.taps)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(
    "architecture", ["facenet_mobilenet", "facenet_mobilenetv1", "facenet_mobilefacenet"]
)
def test_serving_gives_unit_vectors_that_do_not_depend_on_the_rest_of_the_batch(architecture: str) -> None:
    serving = serving_module(randomised(build_network(architecture, 128)).train())
    assert isinstance(serving, FaceNetServing)
    images = torch.randn(3, 3, 112, 112)
    with torch.inference_mode():
        vectors = serving(images)
        assert torch.allclose(serving(images[1:2])[0], vectors[1], atol=1e-5)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3), atol=1e-5)


def test_serving_splits_prelu_into_two_convolutions_of_the_same_function() -> None:
    network = randomised(build_network("facenet_mobilenetv1", 32)).eval()
    for module in network.modules():
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.7, 1.2)
    serving = serving_module(network)
    assert any(isinstance(module, SplitPReLU) for module in serving.modules())
    assert not any(isinstance(module, nn.PReLU) for module in serving.modules())
    assert any(isinstance(module, nn.PReLU) for module in network.modules())
    images = torch.randn(2, 3, 112, 112)
    with torch.inference_mode():
        expected = functional.normalize(network(images).vectors)
        torch.testing.assert_close(serving(images), expected, atol=1e-4, rtol=1e-3)


def test_mobilenet_clips_at_six_as_the_published_one_does() -> None:
    activations = {type(m) for m in build_network("facenet_mobilenet", 128).modules()} & {
        nn.ReLU,
        nn.ReLU6,
        nn.LeakyReLU,
    }
    assert activations == {nn.ReLU6}


def published_mobilenet(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """The published 128-d MobileNetV1 FaceNet, layer by layer under its own parameter names."""

    def normalised(x: Tensor, bn: str, eps: float) -> Tensor:
        mean, var, weight, bias = (
            state[f"{bn}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(x, mean, var, weight, bias, eps=eps)

    def conv_bn_relu6(x: Tensor, conv: str, bn: str, stride: int, groups: int) -> Tensor:
        weight = state[f"{conv}.weight"]
        x = functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        return normalised(x, bn, eps=1e-5).clamp(0, 6)

    x = images
    for stage, strides in MOBILENET_STRIDES.items():
        for i, stride in enumerate(strides):
            block = f"backbone.model.{stage}.{i}"
            first = stage == "stage1" and i == 0
            x = conv_bn_relu6(x, f"{block}.0", f"{block}.1", stride, 1 if first else x.shape[1])
            x = x if first else conv_bn_relu6(x, f"{block}.3", f"{block}.4", 1, 1)
    pooled = functional.adaptive_avg_pool2d(x, 1).flatten(1)
    return functional.normalize(
        normalised(functional.linear(pooled, state["Bottleneck.weight"]), "last_bn", eps=1e-3)
    )


def published_names(network: nn.Module) -> dict[str, Tensor]:
    """The parameters of our MobileNetV1 FaceNet under the published names, by counting layers."""
    state = network.state_dict()
    renamed = {}
    for stage, strides in MOBILENET_STRIDES.items():
        for i in range(len(strides)):
            first = stage == "stage1" and i == 0
            pairs = (
                [("0", "0"), ("1", "1")] if first else zip("0134", ("0.0", "0.1", "1.0", "1.1"), strict=True)
            )
            for theirs, ours in pairs:
                prefix = f"trunk.stages.{stage}.{i}.{ours}."
                for name in [n for n in state if n.startswith(prefix)]:
                    renamed[f"backbone.model.{stage}.{i}.{theirs}.{name.removeprefix(prefix)}"] = state[name]
    for name, value in state.items():
        if name.startswith("head."):
            theirs = name.replace("head.linear", "Bottleneck").replace("head.bn", "last_bn")
            renamed[theirs] = value
    return renamed


def test_mobilenet_computes_what_the_published_layers_do() -> None:
    network = randomised(build_network("facenet_mobilenet", 128))
    published = published_names(network)
    images = torch.randn(2, 3, 160, 160)
    fresh = build_network("facenet_mobilenet", 128)
    load_parameters(fresh, {our_name(name): value for name, value in published.items()}, "published")
    with torch.inference_mode():
        expected = published_mobilenet(published, images)
        assert torch.allclose(serving_module(fresh)(images), expected, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "backbone.model."], ids=["facenet-pytorch, 512", "other, 128"])
def test_inception_resnet_computes_what_the_package_does(prefix: str) -> None:
    from facenet_pytorch.models.inception_resnet_v1 import InceptionResnetV1

    package = randomised(InceptionResnetV1())
    images = torch.randn(2, 3, 160, 160)
    state = package.state_dict()
    if prefix:
        heads = {"last_linear.weight": "Bottleneck.weight"}
        published = {
            heads.get(name, name if name.startswith("last_bn") else prefix + name): value
            for name, value in state.items()
        }
        parameters = {our_name(name): value for name, value in published.items()}
    else:
        parameters = {our_facenet_pytorch_name(name): value for name, value in state.items()}
    network = build_network("facenet_inception_resnet_v1", 512)
    load_parameters(network, parameters, "published")
    with torch.inference_mode():
        assert torch.allclose(serving_module(network)(images), package(images), atol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "dimensions", "message"),
    [
        ("facenet_huge", 128, "unknown architecture 'facenet_huge'; known are retinaface_mobilenet025"),
        ("facenet_dense", 128, "unknown architecture 'facenet_dense'"),
        ("facenet_mobilenet", None, "facenet_mobilenet is an encoder"),
    ],
)
def test_a_network_that_can_not_be_built(architecture: str, dimensions: int | None, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        build_network(architecture, dimensions)


def test_parameters_of_another_network_are_refused() -> None:
    network = build_network("facenet_mobilenet", 128)
    parameters = network.state_dict()
    parameters["stranger"] = parameters.pop("head.bn.bias")
    parameters["head.bn.weight"] = torch.ones(64)
    with pytest.raises(WeightsError) as caught:
        load_parameters(network, parameters, "some.safetensors")
    assert str(caught.value) == (
        "some.safetensors: other parameters than the architecture has: 1 missing (head.bn.bias); "
        "1 unexpected (stranger); 1 of other shape (head.bn.weight)"
    )


def test_without_facenet_pytorch_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "facenet_pytorch.models.inception_resnet_v1", None)
    with pytest.raises(MissingExtraError, match=r'pip install .*"torch>='):
        build_network("facenet_inception_resnet_v1", 128)


def test_without_torch_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "facepipe.facenet.network")
    monkeypatch.delattr("facepipe.facenet.network")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r'pip install .*"torch>='):
        build_network("facenet_mobilenet", 128)


def test_only_networks_can_be_served() -> None:
    with pytest.raises(TypeError, match="expected a FaceNet or a RetinaFace, got Linear"):
        serving_module(nn.Linear(1, 1))
