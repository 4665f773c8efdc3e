"""Parameter names of published FaceNet checkpoints, and their names here."""

from __future__ import annotations

from facepipe.retinaface import published as retinaface


def our_name(published: str) -> str:
    """Return the name here of a parameter of a published 128-d FaceNet, with either backbone.

    A name that is not theirs comes back as it is.
    """
    backbone = "backbone.model."
    if published.startswith(f"{backbone}stage"):  # the same MobileNetV1 as in the published detectors
        mobilenet = retinaface.our_name(f"body.{published.removeprefix(backbone)}")
        return _renamed(mobilenet, {"backbone.": "trunk.stages."})
    return _renamed(
        published, {backbone: "trunk.model.", "Bottleneck.": "head.linear.", "last_bn.": "head.bn."}
    )


def our_facenet_pytorch_name(published: str) -> str:
    """Return the name here of a parameter of the facenet-pytorch package's Inception-ResNet-v1."""
    layers = ("conv2d_", "repeat_", "mixed_", "block8.")
    if published.startswith(layers):
        return f"trunk.model.{published}"
    return _renamed(published, {"last_linear.": "head.linear.", "last_bn.": "head.bn."})


def _renamed(name: str, prefixes: dict[str, str]) -> str:
    for theirs, ours in prefixes.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name
