"""Training FaceNet: a teacher's vectors and maps, people apart from each other; see `Task`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from facepipe.align import MARGINS, cut
from facepipe.core.errors import DataError, UsageError
from facepipe.evaluation.metrics.distances import area_under_roc
from facepipe.facenet.network import FaceNet, MobileFaceNetTrunk, MobileNetV1Trunk112
from facepipe.images.corruption import CorruptionConfig
from facepipe.training.engine.distributed import sum_over_ranks, world_size
from facepipe.training.engine.pixels import Normalisation
from facepipe.training.engine.stream import Batches, batches_of_process
from facepipe.training.recognition.augment import JitterConfig
from facepipe.training.recognition.crops import NOBODY, FaceCrops
from facepipe.training.recognition.losses import (
    LossConfig,
    MarginHead,
    cosine_loss,
    hint_loss,
    relation_loss,
    triplet_loss,
)
from facepipe.training.recognition.sampling import (
    BatchConfig,
    BatchPlan,
    FaceBatch,
    FaceSampler,
    Indices,
    grouped_by_person,
)
from facepipe.training.recognition.teacher import (
    TeacherConfig,
    TeacherOutput,
    TeacherTargets,
    matching_taps,
    open_teacher_targets,
)
from facepipe.weights.cards import InputSpec

_MOST_HELD_OUT = 4000
_FACES_OF_A_DIRECTION = 8

Validator = Callable[[FaceNet], dict[str, float]]


@dataclass(frozen=True, slots=True)
class RecognitionTaskConfig:
    """What a batch is, what is done to faces, and what the loss is made of.

    Attributes:
        held_out_share: Of the crops: never trained on, to measure the cosine to the teacher.
    """

    batch: BatchConfig = field(default_factory=BatchConfig)
    jitter: JitterConfig = field(default_factory=JitterConfig)
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    held_out_share: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.held_out_share < 1:
            raise UsageError(f"held_out_share: expected 0 or more and below 1, got {self.held_out_share}")


class TrainedEncoder(nn.Module):
    """The network, and what is thrown away after training.

    Args:
        network: What is trained and shipped.
        projections: From maps of the network to the teacher's width.
        taps: Which of the network's maps each of them takes.
        margin_head: Over the labelled people.
    """

    def __init__(
        self,
        network: FaceNet,
        projections: list[nn.Conv2d],
        taps: tuple[int, ...] = (),
        margin_head: MarginHead | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.projections = nn.ModuleList(projections)
        self.taps = taps
        self.margin_head = margin_head

    def forward(
        self, images: Tensor, people: Tensor | None = None, given: Sequence[Tensor] = ()
    ) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Preprocessed faces (batch, 3, side, side) to unit vectors, maps and the head's losses.

        Maps are projected to the teacher's width, or as they are where blocks are `given` the teacher's maps.
        """
        output = self.network(images, given)
        vectors = functional.normalize(output.vectors.float())
        projected = [
            projection(output.taps[tap]) for projection, tap in zip(self.projections, self.taps, strict=True)
        ]
        maps = list(output.taps) if given else projected
        losses = None if self.margin_head is None or people is None else self.margin_head(vectors, people)
        return vectors, maps, losses


class RecognitionTask:
    """See `facepipe.training.engine.task.Task`.

    Args:
        network: What is trained.
        input_spec: Its preprocessing; states its size.
        crops: All faces.
        config: See `RecognitionTaskConfig`.
        batch_size: Faces a batch, in this process.
        seed: Of batches, augmentation and projections.
        workers: Processes that prepare batches.
        teacher: What to learn from besides labels.
        alignment: Name of the landmark template that faces are aligned to.
        cache: Folder for what a teacher says of whole data sets.
        validator: Further figures of the network; a "score" among them replaces ours.
        device: Where it all runs.

    Raises:
        UsageError: A loss wants a teacher or people that there are not, or the teacher's maps do not fit.
        DataError: Too few people or faces for a batch.
        WeightsError: The teacher can't be read.
    """

    def __init__(
        self,
        network: FaceNet,
        input_spec: InputSpec,
        crops: FaceCrops,
        config: RecognitionTaskConfig,
        *,
        batch_size: int,
        seed: int,
        workers: int,
        teacher: TeacherConfig | None = None,
        alignment: str = "arcface_112",
        cache: Path | None = None,
        validator: Validator | None = None,
        device: torch.device | None = None,
    ) -> None:
        teacher = teacher if teacher and teacher.weights else None
        check_objectives(config.loss, config.batch, teacher)
        _check_people(config.loss, crops)
        if input_spec.size_px is None:
            raise UsageError("network.input.size_px: an encoder needs faces of one size")
        self._config, self._validator = config, validator
        self._batch_size, self._workers = batch_size, workers
        self._device = device or torch.device("cpu")
        self._input = Normalisation(input_spec, self._device)
        self._crops, self._size_px, self._margin = crops, input_spec.size_px, MARGINS[alignment]
        trained, held_out = crops.split(config.held_out_share)
        plan = BatchPlan(crops.people, trained, config.batch, size=batch_size, seed=seed)
        self.samples_per_epoch = len(trained)
        self._trained_crops = trained
        self._lessons: TeacherTargets | None = None
        if teacher and config.loss.needs_teacher:
            self._lessons = open_teacher_targets(
                teacher, crops, input_spec, self._margin, cache, self._device
            )
        self._sampler = FaceSampler(
            crops,
            plan,
            self._size_px,
            config.jitter,
            config.corruption,
            seed,
            margin=self._margin,
            with_clean=self._lessons is not None and self._lessons.wants_clean,
        )
        self.module = self._trained(network, teacher, seed)
        self._held_out = self._to_measure(held_out)
        self._held_out_truth: Tensor | None = None

    def pretrained_parts(self) -> list[nn.Module]:
        """The trunk."""
        return [self.module.network.trunk]

    def batches(self, first_step: int) -> Batches[FaceBatch]:
        """Endless batches of this process; a resumed run sees what it would have seen."""
        return batches_of_process(self._sampler, first_step, self._workers)

    def losses(self, module: nn.Module, batch: FaceBatch, progress: float) -> dict[str, Tensor]:
        """Weighted parts against the teacher and the labels."""
        people = batch.people.to(self._device)
        truth = self._lessons.of_batch(batch) if self._lessons else None
        if truth is not None and self._config.loss.teacher_forcing:
            assert batch.clean is not None
            vectors, maps, of_head = module(self._input(batch.clean), people, truth.taps)
        else:
            vectors, maps, of_head = module(self._input(batch.damaged), people)
        # Products of unit vectors in half the precision would be off by more than margins care for.
        with torch.autocast(self._device.type, enabled=False):
            return self._parts(vectors, maps, of_head, people, truth, progress)

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Figures on undamaged held-out faces, and the validator's.

        With a teacher the cosine to its vectors is the score; without one the share of (same person,
        different people) couples of pairs in which the same person's are the nearer ones.
        """
        assert isinstance(module, TrainedEncoder)
        figures = self._held_out_figures(module) if len(self._held_out) else {}
        return figures | (self._validator(module.network) if self._validator else {})

    def describe(self, batch: FaceBatch) -> str:
        """The batch's crops."""
        return ", ".join(self._crops.names[i] for i in batch.indices.tolist())

    @torch.no_grad()
    def fit_to_network(self) -> None:
        """Begin with the projections and the people's directions that suit the network as it is.

        For a network that is trained already: random ones would pull at it for no reason.
        """
        self.module.eval()
        self._solve_projections()
        self._take_mean_directions()
        self.module.train()

    def _solve_projections(self, batches: int = 8, ridge: float = 1e-3) -> None:
        """By least squares."""
        if self._lessons is None or not self.module.projections:
            return
        sums = [_LeastSquares(p.in_channels) for p in self._projections()]
        for number in range(batches):
            batch = self._sampler.batch(number)
            assert batch.clean is not None
            taps = self.module.network(self._input(batch.clean)).taps
            truth = self._lessons.of_batch(batch).taps
            for equations, tap, theirs in zip(sums, self.module.taps, truth, strict=True):
                equations.add(taps[tap], theirs)
        for equations, projection in zip(sums, self._projections(), strict=True):
            equations.solve_into(projection, ridge)

    def _take_mean_directions(self) -> None:
        """The mean of the vectors of a few of a person's faces; random for who has none to train on."""
        head = self.module.margin_head
        groups = grouped_by_person(self._crops.people, self._trained_crops)
        if head is None or not groups:
            return
        faces = np.concatenate([group[:_FACES_OF_A_DIRECTION] for group in groups])
        people = torch.from_numpy(self._crops.people[faces]).to(self._device)
        vectors = torch.cat([self.module(self._input(part))[0] for part in self._upright(faces)])
        means = torch.zeros_like(head.directions).index_add_(0, people, vectors)
        seen = means.any(dim=1)
        head.directions[seen] = functional.normalize(means[seen])

    def _projections(self) -> list[nn.Conv2d]:
        return list(self.module.projections)  # type: ignore[arg-type]

    def _parts(
        self,
        vectors: Tensor,
        maps: list[Tensor],
        of_head: Tensor | None,
        people: Tensor,
        truth: TeacherOutput | None,
        progress: float,
    ) -> dict[str, Tensor]:
        config = self._config.loss
        parts = {}
        if truth is not None:
            parts = self._against_teacher(vectors, maps, truth, progress)
        if config.triplet:
            parts["triplet"] = config.triplet * triplet_loss(
                vectors, people, config.mining, config.triplet_margin
            )
        if of_head is not None:
            # Over the labelled faces of all processes, whose gradients will be averaged.
            labelled = sum_over_ranks((people != NOBODY).sum()).clamp(min=1)
            parts["softmax"] = config.softmax * of_head.sum() * world_size() / labelled
        return parts

    def _against_teacher(
        self, vectors: Tensor, maps: list[Tensor], truth: TeacherOutput, progress: float
    ) -> dict[str, Tensor]:
        config = self._config.loss
        parts = {"cosine": config.cosine * cosine_loss(vectors, truth.vectors)}
        if truth.taps:
            weight = config.hints_first + (config.hints_last - config.hints_first) * progress
            parts["hint"] = weight * hint_loss(maps, truth.taps)
        if config.relation:
            parts["relation"] = config.relation * relation_loss(vectors, truth.vectors)
        return parts

    @torch.no_grad()
    def _trained(self, network: FaceNet, teacher: TeacherConfig | None, seed: int) -> TrainedEncoder:
        """The network with random projections and directions that fit it, the teacher and the people."""
        config = self._config.loss
        projections: list[nn.Conv2d] = []
        taps: tuple[int, ...] = ()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            batch = self._sampler.batch(0)
            network = network.to(self._device).eval()
            ours = network(self._input(batch.damaged[:2]))
            if teacher is not None and self._lessons is not None:
                truth = self._lessons.of_batch(batch)
                _check_dimensions(ours.vectors, truth.vectors)
                if config.teacher_forcing:
                    _check_forced(network, ours.taps, truth.taps)
                else:
                    taps = matching_taps(teacher, ours.taps, truth.taps)
                    projections = [
                        nn.Conv2d(ours.taps[tap].shape[1], theirs.shape[1], 1)
                        for tap, theirs in zip(taps, truth.taps, strict=True)
                    ]
            people = self._crops.people_count
            head = MarginHead(ours.vectors.shape[1], people, config) if config.softmax else None
            module = TrainedEncoder(network, projections, taps, head)
        # Convolutions are fastest with channels last in memory, on CPUs and GPUs alike.
        return module.to(device=self._device, memory_format=torch.channels_last).train()  # type: ignore[call-overload, no-any-return]

    def _to_measure(self, held_out: Indices) -> Indices:
        """Not more than takes a minute: evenly chosen for a teacher, whole people for labels."""
        if self._lessons is not None:
            return held_out[:: max(1, -(-len(held_out) // _MOST_HELD_OUT))]
        labelled: Indices = held_out[self._crops.people[held_out] != NOBODY]
        return labelled[:_MOST_HELD_OUT]

    def _held_out_figures(self, module: TrainedEncoder) -> dict[str, float]:
        vectors = torch.cat([module(self._input(part))[0] for part in self._upright(self._held_out)])
        if self._lessons is not None:
            if self._held_out_truth is None:
                self._held_out_truth = self._lessons.of_crops(self._held_out)
            cosine = float((vectors * self._held_out_truth).sum(dim=1).mean())
            return {"cosine_to_teacher": cosine, "score": cosine}
        auc = _same_person_auc(vectors, self._crops.people[self._held_out])
        return {} if auc is None else {"same_person_auc": auc, "score": auc}

    def _upright(self, indices: Indices) -> Iterator[Tensor]:
        """Batches of crops as they are, neither shaken nor damaged."""
        for first in range(0, len(indices), self._batch_size):
            crops = (self._crops.pixels(int(i)) for i in indices[first : first + self._batch_size])
            yield torch.from_numpy(np.stack([cut(crop, self._size_px, self._margin) for crop in crops]))


class _LeastSquares:
    """Sums for the linear map with offset from one map's channels to another's."""

    def __init__(self, inputs: int) -> None:
        self._gram = torch.zeros(inputs + 1, inputs + 1, dtype=torch.float64)
        self._cross: Tensor | None = None

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Maps (batch, channels, h, w) of the same places."""
        x, y = (m.detach().cpu().double().movedim(1, -1).flatten(0, -2) for m in (inputs, outputs))
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        self._gram += x.T @ x
        cross = x.T @ y
        self._cross = cross if self._cross is None else self._cross + cross

    def solve_into(self, layer: nn.Conv2d, ridge: float) -> None:
        """Set a 1x1 convolution; `ridge`, as a share of the mean square, keeps rare channels calm."""
        assert self._cross is not None
        calm = ridge * self._gram.diagonal().mean() * torch.eye(len(self._gram), dtype=torch.float64)
        solution = torch.linalg.solve(self._gram + calm, self._cross).float()
        assert layer.bias is not None
        layer.weight.copy_(solution[:-1].T[:, :, None, None])
        layer.bias.copy_(solution[-1])


def _same_person_auc(vectors: Tensor, people: Indices) -> float | None:
    """None where there is no pair of one person, or none of two."""
    first, second = np.triu_indices(len(people), 1)
    same = people[first] == people[second]
    if same.all() or not same.any():
        return None
    distances = torch.cdist(vectors, vectors).cpu().numpy()[first, second]
    return area_under_roc(distances[same], distances[~same])


def check_objectives(loss: LossConfig, batch: BatchConfig, teacher: TeacherConfig | None) -> None:
    """Refuse losses that can't be, before hours are spent on data.

    Raises:
        UsageError: Nothing is learned, or a loss lacks a teacher, its maps or people in a batch.
    """
    teacher = teacher if teacher and teacher.weights else None
    if loss.needs_teacher and teacher is None:
        raise UsageError(
            "loss.cosine, hints and relation compare with a teacher: name one (teacher.weights), or set "
            "loss.cosine, loss.hints_first, loss.hints_last and loss.relation to 0"
        )
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
    if loss.triplet and not batch.people:
        raise UsageError("loss.triplet needs several faces of a person in a batch: set batch.people")


def _check_people(loss: LossConfig, crops: FaceCrops) -> None:
    if loss.needs_people and crops.people_count < 2:
        raise DataError(
            f"loss.triplet and loss.softmax tell people apart, and the data has {crops.people_count}: "
            "give a folder with a sub-folder per person (labelled = true)"
        )


def _check_forced(network: FaceNet, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    if not isinstance(network.trunk, MobileFaceNetTrunk | MobileNetV1Trunk112):
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


def _check_dimensions(ours: Tensor, theirs: Tensor) -> None:
    if ours.shape[1] != theirs.shape[1]:
        raise UsageError(
            f"the teacher's vectors have {theirs.shape[1]} dimensions, the student's {ours.shape[1]}: set "
            f"network.dimensions={theirs.shape[1]}"
        )
