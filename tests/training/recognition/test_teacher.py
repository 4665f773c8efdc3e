"""A teacher's two views, and where faces come from besides crops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
    export_teacher,
    tiny_encoder,
    tiny_network,
    write_people,
    write_teacher,
)
from torch import nn
from torch.nn import functional
from training_helpers import LANDMARKS, BatchNormGradients, export_maps, write_dataset

from facepipe.align import align_faces, cut
from facepipe.core.errors import UsageError
from facepipe.core.faces import UInt8Array
from facepipe.facenet.layers import ChainedBackbone
from facepipe.facenet.mobilefacenet import InvertedResidual
from facepipe.facenet.network import FaceNet, facenet_mobilefacenet, facenet_mobilenetv1
from facepipe.images.reading import write_image
from facepipe.training.distillation.onnx_teacher import open_onnx
from facepipe.training.engine.loop import TrainingLoop
from facepipe.training.engine.loop_config import LoopConfig
from facepipe.training.engine.optimizer import OptimiserConfig
from facepipe.training.engine.pixels import Normalisation
from facepipe.training.recognition.config import EncoderConfig, NetworkConfig
from facepipe.training.recognition.crops import NOBODY, FaceCrops
from facepipe.training.recognition.losses import LossConfig, MarginHead, hint_loss
from facepipe.training.recognition.objectives import forced_parts
from facepipe.training.recognition.sources import CropSource, DetectionSource, PhotoSource
from facepipe.training.recognition.task import RecognitionTask
from facepipe.training.recognition.teacher import (
    Teacher,
    TeacherConfig,
    canonical_vectors,
    find_teacher,
    matching_taps,
)


@pytest.fixture
def crops(tmp_path: Path, astronaut: UInt8Array) -> FaceCrops:
    folder = write_people(tmp_path / "people", astronaut)
    return FaceCrops([CropSource(folder, labelled=True), CropSource(folder / "person0")], tmp_path / "cache")


def test_a_teacher_whose_file_reshapes_for_one_face_gives_a_vector_for_each(tmp_path: Path) -> None:
    usual = write_teacher(tmp_path / "teacher.onnx")
    model = onnx.load(str(usual))
    graph = model.graph
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, -1]), "row"))
    graph.node.append(onnx.helper.make_node("Reshape", ["vector", "row"], ["vectors in a row"]))
    graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("vectors in a row", 1, [1, 16]))
    onnx.save(model, str(tmp_path / "row.onnx"))
    faces = torch.randint(0, 256, (3, SIDE_PX, SIDE_PX, 3), dtype=torch.uint8)
    expected, found = (
        Teacher(TeacherConfig(str(file)), SPEC)(faces).vectors for file in (usual, tmp_path / "row.onnx")
    )
    assert found.shape == (3, 16)
    torch.testing.assert_close(found, expected)


def test_a_teacher_gives_unit_vectors_and_the_maps_that_are_named(tmp_path: Path) -> None:
    config = TeacherConfig(str(write_teacher(tmp_path / "teacher.onnx")), taps=(TAPS[2], TAPS[0]))
    faces = torch.randint(0, 256, (3, SIDE_PX, SIDE_PX, 3), dtype=torch.uint8)
    said = Teacher(config, SPEC)(faces)
    with torch.no_grad():
        expected = tiny_network(seed=1).eval()(Normalisation(SPEC, torch.device("cpu"))(faces))
    torch.testing.assert_close(said.vectors, functional.normalize(expected.vectors), atol=1e-5, rtol=1e-4)
    for ours, tap in zip(said.taps, (2, 0), strict=True):
        torch.testing.assert_close(ours, expected.taps[tap], atol=1e-4, rtol=1e-3)


def test_a_card_says_how_a_teacher_wants_its_pixels() -> None:
    path, spec = find_teacher(TeacherConfig("facenet_mobilefacenet_128"), SPEC)
    assert path.name == "facenet_mobilefacenet_128.onnx"
    assert (spec.size_px, spec.mean[0]) == (112, 123.675)


def test_canonical_vectors_are_means_over_the_mirror_image_and_are_kept(
    tmp_path: Path, crops: FaceCrops, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TeacherConfig(str(write_teacher(tmp_path / "teacher.onnx")), view="canonical")
    vectors = canonical_vectors(config, crops, SPEC, MARGIN, tmp_path / "cache")
    assert vectors.shape == (len(crops), 16)
    teacher = Teacher(config, SPEC)
    face = torch.from_numpy(cut(crops.pixels(9), SIDE_PX, MARGIN))[None]
    both = teacher(face).vectors + teacher(face.flip(2)).vectors
    np.testing.assert_allclose(vectors[9], functional.normalize(both)[0], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    with monkeypatch.context() as patched:
        patched.setattr(
            "facepipe.training.recognition.teacher.Teacher", lambda *_: pytest.fail("looked again")
        )
        again = canonical_vectors(config, crops, SPEC, MARGIN, tmp_path / "cache")
    assert np.array_equal(again, vectors)
    other = TeacherConfig(str(write_teacher(tmp_path / "other.onnx", seed=2)), view="canonical")
    assert not np.allclose(canonical_vectors(other, crops, SPEC, MARGIN, tmp_path / "cache"), vectors)
    assert len(list((tmp_path / "cache").glob("teacher-*.npy"))) == 4  # two teachers, two sources


def test_in_the_canonical_view_no_teacher_runs_while_training(
    tmp_path: Path, crops: FaceCrops, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TeacherConfig(str(write_teacher(tmp_path / "teacher.onnx")), view="canonical")
    task = RecognitionTask(
        tiny_encoder(tiny_network()),
        crops,
        EncoderConfig(
            cache=tmp_path / "cache",
            loss=LossConfig(hints_first=0, hints_last=0),
            held_out_share=0.3,
            teacher=config,
            loop=LoopConfig(batch_size=8, workers=0),
        ),
    )
    monkeypatch.setattr(Teacher, "__call__", lambda *_: pytest.fail("the teacher ran"))
    batch = next(task.batches(0))
    assert batch.clean is None
    (cosine,) = task.losses(task.module, batch, 0.0).values()
    vectors = canonical_vectors(config, crops, SPEC, MARGIN, tmp_path / "cache")
    with torch.no_grad():
        ours = task.module(Normalisation(SPEC, torch.device("cpu"))(batch.corrupted))[0]
    expected = 3 * (1 - (ours * torch.from_numpy(vectors[batch.indices])).sum(dim=1).mean())
    assert cosine.item() == pytest.approx(expected.item(), abs=1e-3)
    with torch.no_grad():
        assert set(task.validate(task.module.eval())) == {"cosine_to_teacher", "score"}


@pytest.mark.parametrize("build", [facenet_mobilefacenet, facenet_mobilenetv1])
def test_frozen_maps_stay_and_the_layers_behind_them_learn(
    tmp_path: Path, crops: FaceCrops, build: Callable[[int], FaceNet]
) -> None:
    network = _network(build, 1)
    file = export_teacher(_network(build, 2), tmp_path / "teacher.onnx", 112, ())
    config = EncoderConfig(
        network=NetworkConfig(frozen_maps=2),
        loss=LossConfig(hints_first=0, hints_last=0),
        teacher=TeacherConfig(str(file)),
        optimiser=OptimiserConfig(weight_decay=0.1),
        loop=LoopConfig(steps=2, batch_size=4, warmup_steps=0, workers=0),
    )
    task = RecognitionTask(tiny_encoder(network, 112), crops, config)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    TrainingLoop(task, config.optimiser, config.loop, tmp_path / "run", {}).run()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert not [name for name in changed if name.startswith(("trunk.stem.", "trunk.blocks.0."))]
    assert {name for name, _ in network.named_parameters() if name.startswith("trunk.blocks.1.")} <= changed
    assert [name for name in changed if name.startswith("trunk.blocks.1.") and "running_mean" in name]


def test_more_frozen_maps_than_there_are_leave_nothing_to_learn(tmp_path: Path, crops: FaceCrops) -> None:
    network = _network(facenet_mobilenetv1, 1)
    losses = LossConfig(cosine=0, hints_first=0, hints_last=0, relation=0, softmax=1)
    config = EncoderConfig(network=NetworkConfig(frozen_maps=12), loss=losses)
    with pytest.raises(UsageError, match="expected fewer than the backbone's 12, got 12"):
        RecognitionTask(tiny_encoder(network, 112), crops, config)


def test_solved_projections_are_better_than_any_others(tmp_path: Path, crops: FaceCrops) -> None:
    """A teacher that is the student, some of whose maps are named: the identity is found."""
    config = TeacherConfig(str(write_teacher(tmp_path / "teacher.onnx", seed=0)), taps=TAPS[1:])
    task = RecognitionTask(
        tiny_encoder(tiny_network(seed=0)),
        crops,
        EncoderConfig(teacher=config, loop=LoopConfig(batch_size=8, workers=0)),
    )
    batch = task._sampler.batch(0)
    assert batch.clean is not None
    batch = replace(batch, corrupted=batch.clean)

    def hint() -> float:
        task.module.eval()
        return task.losses(task.module, batch, 0.0)["hint"].item()

    before = hint()
    task.fit_to_network()
    assert hint() < 0.1 < 0.5 < before


def test_maps_of_equal_layers_are_compared_without_projections(tmp_path: Path, crops: FaceCrops) -> None:
    config = TeacherConfig(str(write_teacher(tmp_path / "teacher.onnx", seed=1)), taps=TAPS)
    task = RecognitionTask(
        tiny_encoder(tiny_network(seed=0)),
        crops,
        EncoderConfig(
            loss=LossConfig(hints_first=1), teacher=config, loop=LoopConfig(batch_size=8, workers=0)
        ),
    )
    assert not task.module.projections
    batch = next(task.batches(0))
    assert batch.clean is not None
    theirs = Teacher(config, SPEC)(batch.clean).taps
    ours = task.module.network(Normalisation(SPEC, torch.device("cpu"))(batch.corrupted)).taps
    hint = task.losses(task.module, batch, 0.0)["hint"]
    assert hint.item() == pytest.approx(hint_loss(ours, theirs).item(), rel=1e-4)


def _task_with_forcing(folder: Path, crops: FaceCrops, student: FaceNet, teacher: FaceNet) -> RecognitionTask:
    taps = tuple(f"map{number}" for number in range(len(student.trunk.widths)))
    path = export_teacher(teacher, folder / "mobile.onnx", 112, taps)
    return RecognitionTask(
        tiny_encoder(student, 112),
        crops,
        EncoderConfig(
            loss=LossConfig(teacher_forcing=True),
            teacher=TeacherConfig(str(path), taps=taps),
            loop=LoopConfig(batch_size=4, workers=0),
        ),
    )


def _network(build: Callable[[int], FaceNet], seed: int) -> FaceNet:
    torch.manual_seed(seed)
    return build(16)


def _last_pointwise(block: nn.Module) -> nn.Module:
    return block.project[0] if isinstance(block, InvertedResidual) else block.pointwise[0]  # type: ignore[index, return-value]


@pytest.mark.parametrize("build", [facenet_mobilefacenet, facenet_mobilenetv1])
def test_forced_blocks_learn_the_teachers_maps_each_from_the_map_before(
    tmp_path: Path, crops: FaceCrops, build: Callable[[int], FaceNet]
) -> None:
    """A student that differs from its teacher in one block errs in that block's map and in no later one."""
    student, teacher = _network(build, 1), _network(build, 1)
    assert isinstance(student.trunk, ChainedBackbone)
    with torch.no_grad():
        _last_pointwise(student.trunk.blocks[3]).weight.mul_(-1)  # type: ignore[operator]
    task = _task_with_forcing(tmp_path, crops, student, teacher)
    batch = task._sampler.batch(0)
    task.module.eval()
    assert task._targets is not None
    truth = task._targets.of_batch(batch)
    assert batch.clean is not None
    compared, given = forced_parts(truth.taps)
    with torch.no_grad():
        vectors, maps, _ = task.module(task._input(batch.clean)[: len(compared[0])], None, given)
    off = [hint_loss([ours], [theirs]).item() for ours, theirs in zip(maps, compared, strict=True)]
    assert off[4] > 1e-3
    assert max(off[:4] + off[5:]) < 1e-6
    torch.testing.assert_close(vectors, truth.vectors, atol=1e-4, rtol=1e-3)
    parts = task.losses(task.module, batch, 0.0)
    assert parts["hint"].item() == pytest.approx(off[4], rel=1e-3)

    parts["hint"].backward()
    blocks = student.trunk.blocks
    pulls = [
        max(float(p.grad.abs().max()) for p in block.parameters() if p.grad is not None) for block in blocks
    ]
    assert max(pulls[:3] + pulls[4:]) < 0.01 * pulls[3]


@pytest.mark.parametrize("build", [facenet_mobilefacenet, facenet_mobilenetv1])
def test_gradients_of_hints_have_their_channels_last_as_the_maps_have(
    tmp_path: Path, crops: FaceCrops, build: Callable[[int], FaceNet]
) -> None:
    """Otherwise BatchNorm's backward pass takes over ten times as long."""
    task = _task_with_forcing(tmp_path, crops, _network(build, 1), _network(build, 2))
    hint = task.losses(task.module, next(task.batches(0)), 0.0)["hint"]
    with BatchNormGradients() as gradients:
        hint.backward()
    assert len(gradients.channel_strides) >= 12
    assert set(gradients.channel_strides) == {1}


def test_blocks_with_large_maps_learn_from_a_part_of_the_batch() -> None:
    sides = (56, 28, 14, 7)
    maps = [torch.arange(8.0)[:, None, None, None].expand(8, 2, side, side) for side in sides]
    compared, given = forced_parts(maps)
    assert [len(each) for each in compared] == [2, 4, 8, 8]
    assert [len(each) for each in given] == [4, 8, 8, 8]  # what the next one takes, and the head
    for part, whole in zip([*compared, *given], maps * 2, strict=True):
        assert torch.equal(part, whole[: len(part)])
    compared, _ = forced_parts([each[:1] for each in maps])
    assert [len(each) for each in compared] == [1, 1, 1, 1]


def test_prelus_of_a_teacher_are_computed_as_they_are(tmp_path: Path) -> None:
    """With slopes by channel, which another form of the same function replaces, and with one for all."""
    torch.manual_seed(0)
    by_channel, shared = nn.PReLU(8), nn.PReLU(1)
    with torch.no_grad():
        by_channel.weight.uniform_(-0.5, 1.5)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), by_channel, nn.Conv2d(8, 8, 3), shared, nn.Flatten()).eval()
    images = torch.randn(2, 3, 12, 12)
    path = export_maps(network, tmp_path / "prelus.onnx", 12, ["values"])
    slopes = [node for node in onnx.load(str(path)).graph.node if node.op_type == "PRelu"]
    assert len(slopes) == 2
    (values,) = open_onnx(path, ["values"])(images.numpy())
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(values), network(images), atol=1e-5, rtol=1e-4)


def test_weights_of_fewer_bits_are_unfolded(tmp_path: Path) -> None:
    """Weights in bytes give the floats that they stand for."""
    weights = np.random.default_rng(0).integers(-127, 128, (4, 3), np.int8)
    arrays = {"weights": weights, "scale": np.float32(0.25), "zero": np.int8(0)}
    nodes = [
        onnx.helper.make_node("DequantizeLinear", ["weights", "scale", "zero"], ["floats"]),
        onnx.helper.make_node("MatMul", ["images", "floats"], ["values"]),
    ]
    images, values = (
        onnx.helper.make_tensor_value_info(name, 1, ["n", size])
        for name, size in (("images", 4), ("values", 3))
    )
    constants = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()]
    graph = onnx.helper.make_graph(nodes, "bytes", [images], [values], constants)
    path = tmp_path / "bytes.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), str(path))
    (found,) = open_onnx(path, ["values"])(np.eye(4, dtype=np.float32))
    np.testing.assert_allclose(found, weights * 0.25)


def test_forcing_needs_every_map_of_a_chain_of_blocks(tmp_path: Path, crops: FaceCrops) -> None:
    with pytest.raises(UsageError, match="facenet_mobilefacenet"):
        RecognitionTask(
            tiny_encoder(tiny_network()),
            crops,
            EncoderConfig(
                loss=LossConfig(teacher_forcing=True),
                teacher=TeacherConfig(str(write_teacher(tmp_path / "teacher.onnx")), taps=TAPS),
                loop=LoopConfig(batch_size=4, workers=0),
            ),
        )


def test_directions_begin_as_the_means_of_peoples_vectors(crops: FaceCrops) -> None:
    people_only = LossConfig(cosine=0, hints_first=0, hints_last=0, softmax=1)
    config = EncoderConfig(loss=people_only, held_out_share=0.1, loop=LoopConfig(batch_size=8, workers=0))
    task = RecognitionTask(tiny_encoder(tiny_network(seed=0)), crops, config)
    trained, _ = crops.split(0.1)
    own = trained[crops.people[trained] == 1]
    faces = torch.from_numpy(np.stack([cut(crops.pixels(int(i)), SIDE_PX, MARGIN) for i in own]))
    assert 1 < len(own) <= 8
    task.fit_to_network()
    with torch.no_grad():
        vectors = task.module.eval()(Normalisation(SPEC, torch.device("cpu"))(faces))[0]
    assert isinstance(task.module.margin_head, MarginHead)
    torch.testing.assert_close(
        task.module.margin_head.directions[1].detach(), functional.normalize(vectors.mean(dim=0), dim=0)
    )


def test_photos_are_aligned_as_the_pipeline_aligns_them(tmp_path: Path, astronaut: UInt8Array) -> None:
    (tmp_path / "people" / "eileen").mkdir(parents=True)
    write_image(tmp_path / "people" / "eileen" / "a.png", astronaut)
    write_image(tmp_path / "people" / "stray.png", astronaut[:400])
    crops = FaceCrops([PhotoSource(tmp_path / "people", True, 140)], tmp_path / "cache")
    assert crops.names == ["people/stray.png", "people/eileen/a.png"]
    assert crops.people.tolist() == [NOBODY, 0]
    from facepipe.detector import FaceDetector

    faces = FaceDetector.load().detect(astronaut)
    expected = align_faces(astronaut, faces.landmarks[:1], "arcface_112")[0]
    assert np.abs(cut(crops.pixels(1), 112, MARGIN).astype(int) - expected).mean() < 2


def test_faces_of_a_detectors_data_set_are_cut_out_by_their_landmarks(
    tmp_path: Path, astronaut: UInt8Array
) -> None:
    folder = write_dataset(tmp_path / "wider", astronaut, scales=(0.3, 1.0))
    crops = FaceCrops([DetectionSource(folder, 140, min_face_px=40)], tmp_path / "cache")
    assert crops.names == ["wider/images/1.png#0"]  # the other one is 27 px wide
    assert crops.people.tolist() == [NOBODY]
    expected = align_faces(astronaut, LANDMARKS[None], "arcface_112")[0]
    assert np.abs(cut(crops.pixels(0), 112, MARGIN).astype(int) - expected).mean() < 2
    both = FaceCrops([DetectionSource(folder, 140, min_face_px=20)], tmp_path / "cache")
    assert len(both) == 2


def test_maps_of_one_size_are_taken_in_order_and_the_last_for_all_others() -> None:
    ours = [torch.zeros(1, 4, side, side) for side in (28, 28, 14)]
    theirs = [torch.zeros(1, 8, side, side) for side in (28, 28, 28, 14)]
    config = TeacherConfig("teacher.onnx", taps=("a", "b", "c", "d"))
    assert matching_taps(config, ours, theirs) == (0, 1, 1, 2)
    with pytest.raises(UsageError, match=r"map d is of size \(14, 14\)"):
        matching_taps(config, ours[:2], theirs)
