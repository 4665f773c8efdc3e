"""Whether losses, teacher, network and data of a run fit together."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from facepipe.core.errors import DataError, UsageError
from facepipe.facenet.layers import ChainedBackbone
from facepipe.facenet.network import FaceNet
from facepipe.training.recognition.config import EncoderConfig
from facepipe.training.recognition.crops import FaceCrops
from facepipe.training.recognition.losses import LossConfig

_WHOLE_BATCH_PX = 14
"""Side of the largest maps that are learned from all faces of a batch, with teacher forcing."""


def check_objectives(config: EncoderConfig) -> None:
    """Refuse losses that can't be computed, before hours are spent on data.

    Raises:
        UsageError: Nothing is learned, or a loss lacks a teacher, its maps or people in a batch.
    """
    loss, teacher = config.loss, config.teacher if config.teacher.weights else None
    if loss.needs_teacher and teacher is None:
        wanted = f"; this recipe's is {config.teacher.source}" if config.teacher.source else ""
        raise UsageError(
            f"loss.cosine, hints and relation compare with a teacher: name one (--teacher{wanted}), or set "
            "loss.cosine, loss.hints_first, loss.hints_last and loss.relation to 0"
        )
    second = config.second_teacher
    if second.share and teacher is None:
        raise UsageError("second_teacher comes after a first: name that (--teacher), or set its share to 0")
    if second.share and not second.weights:
        wanted = f"; this recipe's is {second.source}" if second.source else ""
        raise UsageError(
            f"the mean of two teachers is learned: name the second (second_teacher.weights{wanted}), or set "
            "second_teacher.share to 0"
        )
    if second.share and config.teacher.view == "canonical":
        raise UsageError("second_teacher needs teacher.view=shared")
    if not loss.needs_teacher and not loss.needs_people:
        raise UsageError("all parts of the loss have weight 0")
    if teacher is not None and not loss.needs_teacher:
        raise UsageError("a teacher is named, and nothing is learned from it: set loss.cosine above 0")
    if teacher is not None and loss.needs_hints and not teacher.taps:
        why = "the canonical view has none" if teacher.view == "canonical" else "teacher.taps names none"
        raise UsageError(
            f"hints compare inner maps, and {why}: set loss.hints_first and loss.hints_last to 0, or share "
            "the teacher's view and name its maps"
        )
    if loss.teacher_forcing and not loss.needs_hints:
        raise UsageError("loss.teacher_forcing teaches by hints: set loss.hints_first above 0")
    if loss.triplet and not config.batch.people:
        raise UsageError("loss.triplet needs several faces of a person in a batch: set batch.people")


def check_people(loss: LossConfig, crops: FaceCrops) -> None:
    """Refuse losses that compare people, without people.

    Raises:
        DataError: There are fewer than two.
    """
    if loss.needs_people and crops.people_count < 2:
        raise DataError(
            f"loss.triplet and loss.softmax tell people apart, and the data has {crops.people_count}: "
            "give a folder with a sub-folder per person (labelled = true)"
        )


def forced_modules(network: FaceNet, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> list[nn.Module]:
    """Return the modules whose outputs a teacher's maps replace.

    Raises:
        UsageError: The teacher's maps are not those of the student's blocks, or it is no chain of blocks.
    """
    if not isinstance(network.trunk, ChainedBackbone):
        raise UsageError(
            "loss.teacher_forcing feeds blocks one by one: set network.architecture to facenet_mobilenetv1 "
            "or facenet_mobilefacenet"
        )
    wanted, given = ([tuple(tap.shape[1:]) for tap in taps] for taps in (ours, theirs))
    if wanted != given:
        raise UsageError(
            "loss.teacher_forcing needs all maps of the student: name teacher.taps of shapes "
            f"{', '.join('x'.join(map(str, shape)) for shape in wanted)}, in this order; got "
            f"{', '.join('x'.join(map(str, shape)) for shape in given)}"
        )
    return network.trunk.parts()


def frozen_parts(network: FaceNet, maps: int) -> list[nn.Module]:
    """Return the parts of a backbone that make its first maps.

    Raises:
        UsageError: The backbone is no chain of blocks, or has no more maps than these.
    """
    if not maps:
        return []
    if not isinstance(network.trunk, ChainedBackbone):
        raise UsageError(
            "network.frozen_maps needs a chain of blocks: set network.architecture to facenet_mobilenetv1 "
            "or facenet_mobilefacenet"
        )
    parts = network.trunk.parts()
    if maps >= len(parts):
        raise UsageError(f"network.frozen_maps: expected fewer than the backbone's {len(parts)}, got {maps}")
    return parts[:maps]


def forced_parts(maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return what each of `forced_modules` is compared with, and what replaces its map.

    Modules with large maps take most of the time and have few weights: of maps of 28 px they learn from half
    of the faces, of 56 px from a quarter. What follows the last of them gets all faces.

    Args:
        maps: The teacher's (batch, channels, h, w), one for each module.

    Returns:
        The maps that the modules' are compared with, and those that are given on to the next.
    """
    batch = len(maps[0])
    sizes = [max(1, batch * _WHOLE_BATCH_PX // max(_WHOLE_BATCH_PX, each.shape[-1])) for each in maps]
    compared = [each[:size] for each, size in zip(maps, sizes, strict=True)]
    return compared, [each[:size] for each, size in zip(maps, [*sizes[1:], batch], strict=True)]


def check_dimensions(ours: Tensor, theirs: Tensor) -> None:
    """Refuse a teacher whose embeddings are longer or shorter than the student's.

    Raises:
        UsageError: They are.
    """
    if ours.shape[1] != theirs.shape[1]:
        raise UsageError(
            f"the teacher's vectors have {theirs.shape[1]} dimensions, the student's {ours.shape[1]}: set "
            f"network.dimensions={theirs.shape[1]}"
        )
