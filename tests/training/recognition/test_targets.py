"""Targets of one or two teachers, and how they are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from recognition_helpers import (
    MARGIN,
    SIDE_PX,
    SPEC,
    TAPS,
    tiny_encoder,
    tiny_network,
    write_people,
    write_teacher,
)
from torch import Tensor
from torch.nn import functional

from facepipe.align import cut
from facepipe.core.errors import UsageError
from facepipe.core.faces import UInt8Array
from facepipe.images.corruption import CorruptionConfig
from facepipe.training.engine.loop_config import LoopConfig
from facepipe.training.recognition.augment import JitterConfig
from facepipe.training.recognition.config import EncoderConfig
from facepipe.training.recognition.crops import FaceCrops
from facepipe.training.recognition.losses import LossConfig
from facepipe.training.recognition.sampling import BatchConfig, BatchPlan, FaceSampler
from facepipe.training.recognition.second_teacher import MeanOfTeachers, SecondTeacherConfig, nearest_rotation
from facepipe.training.recognition.sources import CropSource
from facepipe.training.recognition.task import RecognitionTask
from facepipe.training.recognition.teacher import SharedView, Teacher, TeacherConfig, TeacherOutput


@pytest.fixture
def crops(tmp_path: Path, astronaut: UInt8Array) -> FaceCrops:
    """Three people with four crops each."""
    return FaceCrops(
        [CropSource(write_people(tmp_path / "people", astronaut), labelled=True)], tmp_path / "cache"
    )


def test_a_rotation_is_found() -> None:
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(16, 16)).Q
    theirs = functional.normalize(torch.randn(50, 16))
    torch.testing.assert_close(nearest_rotation(theirs, theirs @ rotation), rotation)
    noisy = nearest_rotation(theirs, theirs @ rotation + 0.1 * torch.randn(50, 16))
    torch.testing.assert_close(noisy @ noisy.T, torch.eye(16), atol=1e-5, rtol=0)


def _rotated(path: Path, rotation: torch.Tensor) -> Path:
    """A teacher file whose vectors are those of another, rotated."""
    usual = write_teacher(path)
    model = onnx.load(str(usual))
    graph = model.graph
    graph.initializer.append(onnx.numpy_helper.from_array(rotation.numpy(), "rotation"))
    graph.node.append(onnx.helper.make_node("MatMul", ["vector", "rotation"], ["rotated"]))
    graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("rotated", 1, [1, 16]))
    onnx.save(model, str(path))
    return path


def test_a_second_teacher_that_is_the_first_one_rotated_changes_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(16, 16)).Q
    first = Teacher(TeacherConfig(str(write_teacher(tmp_path / "first.onnx")), taps=TAPS[:1]), SPEC)
    second = Teacher(TeacherConfig(str(_rotated(tmp_path / "second.onnx", rotation))), SPEC)
    faces = torch.randint(0, 256, (40, SIDE_PX, SIDE_PX, 3), dtype=torch.uint8)
    assert not torch.allclose(first(faces).vectors, second(faces).vectors, atol=0.1)
    targets = MeanOfTeachers(first, second, 0.4, faces.split(20))(faces[:3])
    torch.testing.assert_close(targets.vectors, first(faces[:3]).vectors, atol=1e-4, rtol=0)
    torch.testing.assert_close(targets.taps, first(faces[:3]).taps)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_two_teachers_targets_are_their_mean(tmp_path: Path, crops: FaceCrops, share: float) -> None:
    files = [str(write_teacher(tmp_path / f"{seed}.onnx", seed=seed)) for seed in (1, 2)]
    config = EncoderConfig(
        loss=LossConfig(hints_first=0, hints_last=0),
        teacher=TeacherConfig(files[0]),
        second_teacher=SecondTeacherConfig(files[1], share),
        held_out_share=0.3,
        loop=LoopConfig(batch_size=8, workers=0),
    )
    task = RecognitionTask(tiny_encoder(tiny_network()), crops, config)
    batch = next(task.batches(0))
    assert batch.clean is not None
    upright = torch.from_numpy(np.stack([cut(crops.pixels(i), SIDE_PX, MARGIN) for i in range(len(crops))]))
    first, second = (Teacher(TeacherConfig(file), SPEC) for file in files)
    rotation = nearest_rotation(second(upright).vectors, first(upright).vectors)
    sums = (1 - share) * first(batch.clean).vectors + share * second(batch.clean).vectors @ rotation
    assert task._targets is not None
    torch.testing.assert_close(
        task._targets.of_batch(batch).vectors, functional.normalize(sums), atol=1e-4, rtol=0
    )
    with torch.no_grad():
        assert task.validate(task.module.eval()).keys() == {"cosine_to_teacher", "score"}


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_the_mean_of_two_teachers_is_as_exact_within_a_step_of_half_precision(
    tmp_path: Path, precision: torch.dtype
) -> None:
    first, second = (
        Teacher(TeacherConfig(str(write_teacher(tmp_path / f"{seed}.onnx", seed=seed))), SPEC)
        for seed in (1, 2)
    )
    faces = torch.randint(0, 256, (12, SIDE_PX, SIDE_PX, 3), dtype=torch.uint8)
    both = MeanOfTeachers(first, second, 0.3, [faces])
    with torch.autocast("cpu", dtype=precision):
        within = both(faces).vectors
    assert torch.equal(within, both(faces).vectors)


class _CountingTeacher:
    """A teacher that counts the faces it is given; vectors differ wherever pixels do."""

    size_px = SIDE_PX

    def __init__(self, with_maps: bool) -> None:
        self.faces, self._with_maps = 0, with_maps

    def __call__(self, pixels: Tensor) -> TeacherOutput:
        self.faces += len(pixels)
        flat = pixels.flatten(1).double()
        sums = torch.stack([flat.mean(dim=1), (flat * torch.arange(flat.shape[1])).mean(dim=1)], dim=1)
        return TeacherOutput(sums.float(), [sums[:, :, None, None]] if self._with_maps else [])


def _sampler(crops: FaceCrops, variants: int, people: int = 0) -> FaceSampler:
    plan = BatchPlan(crops.people, np.arange(len(crops)), BatchConfig(people), size=8, seed=3)
    jitter = JitterConfig(variants=variants)
    return FaceSampler(crops, plan, SIDE_PX, jitter, CorruptionConfig(blur_share=0.5), 3)


@pytest.mark.parametrize("people", [0, 1])
@pytest.mark.parametrize("variants", [1, 2, 3])
def test_kept_targets_are_those_of_the_faces_shown(crops: FaceCrops, variants: int, people: int) -> None:
    sampler, teacher = _sampler(crops, variants, people), _CountingTeacher(with_maps=False)
    targets = SharedView(teacher, crops, MARGIN, variants)
    for number in range(18):  # twelve epochs of twelve crops
        batch = sampler.batch(number)
        assert batch.clean is not None
        assert torch.equal(targets.of_batch(batch).vectors, _CountingTeacher(False)(batch.clean).vectors)
    computed = teacher.faces
    for number in range(18, 36):
        targets.of_batch(sampler.batch(number))
    if not people:
        # The first batches of an epoch hold crops of the one before, too.
        assert 12 * variants <= computed <= 12 * variants + 8
        assert teacher.faces == computed
    assert teacher.faces <= 18 * 8


def test_teachers_whose_maps_are_compared_see_every_batch(crops: FaceCrops) -> None:
    sampler, teacher = _sampler(crops, 1), _CountingTeacher(with_maps=True)
    targets = SharedView(teacher, crops, MARGIN, variants=1)
    for _ in range(2):
        assert targets.of_batch(sampler.batch(0)).taps
    assert teacher.faces == 16


@pytest.mark.parametrize("people", [0, 1])
def test_faces_take_turns_with_their_variants_and_are_corrupted_anew(crops: FaceCrops, people: int) -> None:
    seen: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
    in_turn = 8 - 4 * people
    for number in range(8 * len(crops) // in_turn):
        batch = _sampler(crops, 2, people).batch(number)
        assert batch.clean is not None
        for place, index in enumerate(batch.indices.tolist()[8 - in_turn :], 8 - in_turn):
            epoch = (in_turn * number + place - 8 + in_turn) // len(crops)
            assert batch.variants[place] == epoch % 2
            seen.setdefault((index, epoch % 2), []).append((batch.clean[place], batch.corrupted[place]))
    assert len(seen) == 24
    for (index, variant), faces in seen.items():
        assert len(faces) == 4
        assert all(torch.equal(clean, faces[0][0]) for clean, _ in faces)
        assert not torch.equal(faces[0][0], seen[index, 1 - variant][0][0])
    assert any(not torch.equal(faces[0][1], faces[1][1]) for faces in seen.values())


def test_fewer_than_no_variants_are_refused() -> None:
    with pytest.raises(UsageError, match=r"jitter\.variants: expected 0 or more, got -1"):
        JitterConfig(variants=-1)
