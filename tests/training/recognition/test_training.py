"""Training FaceNet: crops, augmentation, sampling, losses, and a few steps of the whole."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import pickle
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from recognition_helpers import FACE
from torch.nn import functional

from facepipe.align import cut
from facepipe.core.errors import DataError, UsageError
from facepipe.core.faces import UInt8Array
from facepipe.images.corruption import CorruptionConfig, corrupt
from facepipe.images.reading import write_image
from facepipe.training.engine.stream import endless_batches
from facepipe.training.recognition.augment import JitterConfig, jitter_matrix
from facepipe.training.recognition.crops import NOBODY, FaceCrops, number_people, read_same_person
from facepipe.training.recognition.losses import (
    LinearHead,
    LossConfig,
    Margin,
    MarginHead,
    cosine_loss,
    hint_loss,
    people_head,
    relation_loss,
    triplet_loss,
)
from facepipe.training.recognition.sampling import BatchConfig, BatchPlan, FaceSampler
from facepipe.training.recognition.sources import CropSource

UNTOUCHED = CorruptionConfig(
    light_share=0,
    gray_share=0,
    blur_share=0,
    low_resolution_share=0,
    jpeg_share=0,
    mask_share=0,
    glasses_share=0,
)


@pytest.fixture
def face(astronaut: UInt8Array) -> UInt8Array:
    return np.ascontiguousarray(astronaut[FACE])


@pytest.fixture
def crops(tmp_path: Path, face: UInt8Array) -> FaceCrops:
    """Four people with three crops each, and five crops of nobody, told apart by a gray patch."""
    for i in range(12):
        path = tmp_path / "people" / f"person{i // 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, _marked(face, i))
    (tmp_path / "loose").mkdir()
    for i in range(12, 17):
        write_image(tmp_path / "loose" / f"{i}.png", _marked(face, i))
    with tarfile.open(tmp_path / "loose.tar", "w") as archive:
        archive.add(tmp_path / "loose", "loose")
    sources = [CropSource(tmp_path / "people", labelled=True), CropSource(tmp_path / "loose.tar")]
    return FaceCrops(sources, tmp_path / "cache")


def _marked(face: UInt8Array, number: int) -> UInt8Array:
    marked = face.copy()
    marked[60:80, 60:80] = 10 * number
    return marked


def test_crops_are_cached_and_keep_pixels_and_people(crops: FaceCrops, tmp_path: Path) -> None:
    assert len(crops) == 17
    assert crops.people.tolist() == [i // 3 for i in range(12)] + [NOBODY] * 5
    assert crops.pixels(7)[70, 70].tolist() == [70, 70, 70]
    assert crops.pixels(16)[70, 70].tolist() == [160, 160, 160]
    (tmp_path / "people" / "person0" / "0.png").stat()
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "cache").iterdir())
    FaceCrops([CropSource(tmp_path / "people", labelled=True)], tmp_path / "cache")
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "cache").iterdir()) == before


def test_same_people_are_one_before_they_are_numbered(tmp_path: Path) -> None:
    (tmp_path / "same.csv").write_text("person_a,person_b,cosine\nann,bea,0.8\nbea,cleo,0.7\ncleo,ann,0.7\n")
    same = read_same_person(tmp_path / "same.csv")
    numbers = number_people(["ann", "dora", "", "bea", "cleo", "dora"], same)
    assert numbers.tolist() == [0, 1, NOBODY, 0, 0, 1]


def test_a_crop_without_jitter_is_the_inner_frame(face: UInt8Array) -> None:
    np.testing.assert_array_equal(cut(face, 112, 0.1), face[14:126, 14:126])
    exact = face[14:126, 14:126].copy()
    np.testing.assert_array_equal(cut(exact, 112, 0.1), exact)
    larger = cv2.resize(face, (160, 160), interpolation=cv2.INTER_LINEAR).astype(np.uint8)
    assert np.abs(cut(larger, 112, 0.1).astype(int) - exact).mean() < 3


def test_a_mirrored_cut_is_the_mirror_image(face: UInt8Array) -> None:
    still = JitterConfig(flip_share=1, rotation_rad=0, scale=0, shift=0)
    mirrored = cut(face, 112, 0.1, jitter_matrix(112, still, np.random.default_rng(0)))
    np.testing.assert_array_equal(mirrored, face[14:126, 14:126][:, ::-1])


@pytest.mark.parametrize(
    "kind", [name for name in CorruptionConfig.__dataclass_fields__ if name.endswith("_share")]
)
def test_each_corruption_changes_pixels_and_leaves_the_original(face: UInt8Array, kind: str) -> None:
    config = CorruptionConfig(**{f.name: 0.0 for f in _shares()} | {kind: 1.0})  # type: ignore[arg-type]
    before = face.copy()
    first = corrupt(face, config, np.random.default_rng(1))
    np.testing.assert_array_equal(face, before)
    assert first.shape == face.shape
    assert np.abs(first.astype(int) - face).mean() > 0.3
    np.testing.assert_array_equal(first, corrupt(face, config, np.random.default_rng(1)))


def _shares() -> list[dataclasses.Field[Any]]:
    return [f for name, f in CorruptionConfig.__dataclass_fields__.items() if name.endswith("_share")]


def test_teacher_and_student_see_the_same_jittered_face(crops: FaceCrops) -> None:
    batch = _sampler(crops, corruption=UNTOUCHED).batch(3)
    assert batch.clean is not None
    assert torch.equal(batch.clean, batch.corrupted)
    worse = _sampler(crops, corruption=CorruptionConfig(light_share=1.0)).batch(3)
    assert worse.clean is not None
    assert torch.equal(worse.clean, batch.clean)
    assert not torch.equal(worse.corrupted, batch.clean)


def test_batches_depend_on_seed_and_number_alone(crops: FaceCrops) -> None:
    first, again = (_sampler(crops, BatchConfig(people=2, photos_per_person=2)) for _ in range(2))
    first.batch(0), first.batch(1)
    assert torch.equal(first.batch(5).corrupted, again.batch(5).corrupted)
    assert not torch.equal(first.batch(5).corrupted, first.batch(6).corrupted)


def test_a_worker_that_starts_afresh_gets_paths_and_not_pixels(
    crops: FaceCrops, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = _sampler(crops)
    assert len(pickle.dumps(sampler)) < 20_000  # the pixels are a million bytes
    monkeypatch.setattr(multiprocessing, "Process", multiprocessing.get_context("spawn").Process)
    with closing(endless_batches(sampler, first_batch=2, every=3, workers=1)) as batches:
        for number in (2, 5):
            assert torch.equal(next(batches).corrupted, sampler.batch(number).corrupted)


def test_every_crop_comes_once_an_epoch(crops: FaceCrops) -> None:
    plan = BatchPlan(crops.people, np.arange(17), BatchConfig(), size=5, seed=0)
    drawn = np.concatenate([plan[b] for b in range(7)])
    assert sorted(drawn[:17]) == list(range(17))
    assert sorted(drawn[17:34]) == list(range(17))
    assert drawn[:17].tolist() != drawn[17:34].tolist()


def test_a_batch_begins_with_people_who_have_several_photos(crops: FaceCrops) -> None:
    trained = np.array([0, 3, 4, 6, 7, 8, 12, 13])  # person 0 has one crop left
    plan = BatchPlan(crops.people, trained, BatchConfig(2, 4), size=10, seed=1)
    for number in range(5):
        people = crops.people[plan[number][:8]].reshape(2, 4)
        assert (people == people[:, :1]).all()
        assert sorted(people[:, 0]) == [1, 2]
        assert set(plan[number]) <= set(trained)
    with pytest.raises(DataError, match="3 people"):
        BatchPlan(crops.people, trained, BatchConfig(3, 4), size=12, seed=1)
    with pytest.raises(UsageError, match="more than"):
        BatchPlan(crops.people, trained, BatchConfig(3, 4), size=8, seed=1)


def test_held_out_crops_are_never_trained_on(crops: FaceCrops) -> None:
    trained, held_out = crops.split(0.3)
    assert len(held_out)
    assert sorted([*trained, *held_out]) == list(range(17))


def test_teacher_losses_by_hand() -> None:
    ours = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    theirs = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.6, 0.8]])
    assert float(cosine_loss(ours, theirs)) == pytest.approx(1 - (0 + 1 + 1) / 3)
    # Cosines of pairs 01, 02, 12: 0, 0.6, 0.8 against 1, 0.8, 0.8, each twice.
    variance = np.var([1, 0.8, 0.8] * 2, ddof=1)
    assert float(relation_loss(ours, theirs)) == pytest.approx((1 + 0.04) / 3 / variance)
    taps, teacher = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 3.0]]]])
    assert float(hint_loss([taps, taps], [teacher, teacher])) == pytest.approx(2 * 5 / 2)


def test_triplets_by_hand() -> None:
    def at(*degrees: float) -> torch.Tensor:
        radians = torch.tensor([math.radians(d) for d in degrees])
        return torch.stack([radians.cos(), radians.sin()], dim=1)

    def squared(degrees: float) -> float:
        return 2 - 2 * math.cos(math.radians(degrees))

    vectors, people = at(0, 20, 30, 90, 10), torch.tensor([0, 0, 1, 1, NOBODY])
    expected = [
        squared(20) - squared(30) + 0.2,  # 0 and 20: the next one farther is at 30
        squared(20) - squared(70) + 0.2,  # 20 and 0: at 10 is nearer, so 90
        squared(60) - squared(30) + 0.2,  # 30 and 90: none is farther, the farthest is 0
        squared(60) - squared(70) + 0.2,  # 90 and 30
    ]
    semi_hard = np.mean([max(0.0, loss) for loss in expected])
    assert float(triplet_loss(vectors, people, "semi_hard", 0.2)) == pytest.approx(semi_hard, abs=1e-5)
    chord = {d: math.sqrt(squared(d)) for d in (10, 20, 30, 60, 70)}
    hard = [chord[20] - chord[30], chord[20] - chord[10], chord[60] - chord[10], chord[60] - chord[70]]
    batch_hard = np.mean([max(0.0, loss + 0.2) for loss in hard])
    assert float(triplet_loss(vectors, people, "batch_hard", 0.2)) == pytest.approx(batch_hard, abs=1e-5)
    assert float(triplet_loss(vectors, torch.full((5,), NOBODY), "semi_hard", 0.2)) == 0


@pytest.mark.parametrize("margin", ["cosface", "arcface"])
def test_margin_head_by_hand(margin: Margin) -> None:
    head = MarginHead(2, 2, margin, 0.3, 10)
    head.directions.data = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    angle = 0.4
    vectors = torch.tensor([[math.cos(angle), math.sin(angle)], [1.0, 0.0]], requires_grad=True)
    own = math.cos(angle) - 0.3 if margin == "cosface" else math.cos(angle + 0.3)
    logits = torch.tensor([[10 * own, 10 * math.sin(angle)]])
    losses = head(vectors, torch.tensor([0, NOBODY]))
    assert losses[0].item() == pytest.approx(
        float(functional.cross_entropy(logits, torch.tensor([0]))), abs=1e-5
    )
    losses.sum().backward()
    assert vectors.grad is not None
    assert vectors.grad[1].abs().sum() == 0


def test_linear_head_takes_vectors_of_any_length_by_hand() -> None:
    head = people_head(LossConfig(softmax=1, margin="none"), dimensions=2, people=3)
    assert isinstance(head, LinearHead)
    head.linear.weight.data = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    head.linear.bias.data = torch.tensor([0.0, 0.0, 0.5])
    vectors = torch.tensor([[3.0, 1.0], [1.0, 0.0]], requires_grad=True)
    losses = head(vectors, torch.tensor([1, NOBODY]))
    expected = math.log(math.exp(3) + math.exp(2) + math.exp(0.5)) - 2
    assert losses.tolist() == pytest.approx([expected, 0], abs=1e-5)
    losses.sum().backward()
    assert vectors.grad is not None
    assert vectors.grad[1].abs().sum() == 0
    assert people_head(LossConfig(), dimensions=2, people=3) is None


def _sampler(
    crops: FaceCrops,
    batch: BatchConfig = BatchConfig(),  # noqa: B008
    corruption: CorruptionConfig = CorruptionConfig(),  # noqa: B008
) -> FaceSampler:
    plan = BatchPlan(crops.people, np.arange(len(crops)), batch, size=8, seed=0)
    return FaceSampler(crops, plan, 112, JitterConfig(), corruption, seed=0)
