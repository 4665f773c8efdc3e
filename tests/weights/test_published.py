"""What is known of published weights is complete and fits the rest of the house."""

from __future__ import annotations

import pytest

from facepipe.align import TEMPLATES
from facepipe.core.errors import WeightsError
from facepipe.weights.cards import AnchorSpec
from facepipe.weights.downloads import fetch
from facepipe.weights.published import PUBLISHED, TRAINING_FILES, WITHOUT_ADDRESS, PublishedWeight


@pytest.mark.parametrize("weight", PUBLISHED.values(), ids=lambda weight: weight.name)
def test_what_the_registry_says_is_complete(weight: PublishedWeight) -> None:
    assert PUBLISHED[weight.name] is weight
    assert weight.url.startswith("https://github.com/")
    assert weight.file_name.endswith((".pth", ".pt"))
    assert weight.licence
    assert weight.measured
    assert (weight.anchors is None) == (weight.kind == "encoder")
    if weight.kind == "encoder":
        assert weight.embedding is not None
        assert weight.embedding.alignment in TEMPLATES
        assert weight.embedding.dimensions == int(weight.name.rpartition("_")[2])
        assert weight.framing


def test_published_files_have_different_names() -> None:
    files = [*PUBLISHED.values(), *TRAINING_FILES.values()]
    assert len({file.file_name for file in files}) == len({file.name for file in files}) == len(files) == 7
    assert all(file.url.startswith("https://github.com/") for file in files)


@pytest.mark.parametrize("name", WITHOUT_ADDRESS)
def test_what_has_no_address_says_how_to_go_on(name: str) -> None:
    with pytest.raises(WeightsError, match=rf"^{name}: no public address is known; .{{20}}"):
        fetch(name)


@pytest.mark.parametrize(
    ("name", "pixel", "value"),
    [
        ("published_facenet_mobilenet_128", 255.0, 1.0),
        ("published_facenet_vggface2_512", 255.0, 127.5 / 128),
        ("published_facenet_casia_512", 0.0, -127.5 / 128),
        ("published_retinaface_resnet50", 104.0, 0.0),
    ],
)
def test_published_preprocessing(name: str, pixel: float, value: float) -> None:
    spec = PUBLISHED[name].input
    assert spec.channels == "rgb"
    assert (pixel - spec.mean[0]) / spec.std[0] == pytest.approx(value)
    assert PUBLISHED[name].anchors in (None, AnchorSpec())
