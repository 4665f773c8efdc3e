"""Training FaceNet: a teacher's vectors and maps, people apart from each other; see `training.loop.Task`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from facepipe.errors import UsageError
from facepipe.facenet.network import FaceNet
from training.distributed import rank, world_size
from training.recognition.augment import DamageConfig, ShakeConfig, cut
from training.recognition.crops import FaceCrops
from training.recognition.losses import (
    LossConfig,
    MarginHead,
    cosine_loss,
    hint_loss,
    relation_loss,
    triplet_loss,
)
from training.recognition.sampling import BatchConfig, BatchPlan, FaceBatch, FaceSampler, endless_batches
from training.recognition.teacher import Teacher, TeacherConfig, TeacherOutput, check_taps
from weights.card import InputSpec

Validator = Callable[[FaceNet], dict[str, float]]


@dataclass(frozen=True, slots=True)
class RecognitionTaskConfig:
    """What a batch is, what is done to faces, and what the loss is made of.

    Attributes:
        held_out_share: Of the crops: never trained on, to measure the cosine to the teacher.
    """

    batch: BatchConfig = field(default_factory=BatchConfig)
    shake: ShakeConfig = field(default_factory=ShakeConfig)
    damage: DamageConfig = field(default_factory=DamageConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    held_out_share: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.held_out_share < 1:
            raise UsageError(f"held_out_share: expected 0 or more and below 1, got {self.held_out_share}")


class TrainedEncoder(nn.Module):
    """The network, and what is thrown away after training.

    Args:
        network: What is trained and shipped.
        projections: From each of its maps to the teacher's width.
        margin_head: Over the labelled people.
    """

    def __init__(
        self, network: FaceNet, projections: list[nn.Conv2d], margin_head: MarginHead | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.projections = nn.ModuleList(projections)
        self.margin_head = margin_head

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Preprocessed faces (batch, 3, side, side) to unit vectors and projected maps."""
        vectors, taps = self.network(images)
        maps = [projection(tap) for projection, tap in zip(self.projections, taps, strict=False)]
        return functional.normalize(vectors.float()), maps


class RecognitionTask:
    """See `training.loop.Task`.

    Args:
        network: What is trained.
        input_spec: Its preprocessing; states its size.
        crops: All faces.
        config: See `RecognitionTaskConfig`.
        seed: Of batches, augmentation and projections.
        workers: Processes that prepare batches.
        teacher: What to learn from besides labels.
        validator: Further figures of the network; a "score" among them replaces the cosine's.
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
        seed: int,
        workers: int,
        teacher: TeacherConfig | None = None,
        validator: Validator | None = None,
        device: torch.device | None = None,
    ) -> None:
        _check(config, teacher, input_spec)
        assert input_spec.size_px is not None
        self._config, self._validator, self._workers = config, validator, workers
        self._device = device or torch.device("cpu")
        self._input = _Normalisation(input_spec, self._device)
        self._crops, self._size_px = crops, input_spec.size_px
        trained, self._held_out = crops.split(config.held_out_share)
        plan = BatchPlan(crops.people, trained, config.batch, seed)
        self._sampler = FaceSampler(crops, plan, self._size_px, config.shake, config.damage, seed)
        self.samples_per_epoch = len(trained)
        self._teacher = Teacher(teacher) if teacher and config.loss.needs_teacher else None
        self._teacher_input = _Normalisation((teacher and teacher.input) or input_spec, self._device)
        self.module = self._trained(network, teacher, seed)
        self._held_out_truth: Tensor | None = None

    def pretrained_parts(self) -> list[nn.Module]:
        """The trunk."""
        return [self.module.network.trunk]

    def batches(self, first_step: int) -> Iterator[FaceBatch]:
        """Endless batches of this process; a resumed run sees what it would have seen."""
        first = first_step * world_size() + rank()
        return endless_batches(self._sampler, first_batch=first, every=world_size(), workers=self._workers)

    def losses(self, module: nn.Module, batch: FaceBatch, progress: float) -> dict[str, Tensor]:
        """Weighted parts against the teacher and the labels."""
        config = self._config.loss
        vectors, maps = module(self._input(batch.damaged))
        parts = {}
        if self._teacher is not None:
            parts = self._against_teacher(vectors, maps, self._taught(batch.clean), progress)
        people = batch.people.to(self._device)
        if config.triplet:
            parts["triplet"] = config.triplet * triplet_loss(
                vectors, people, config.mining, config.triplet_margin
            )
        if self.module.margin_head is not None:
            parts["softmax"] = config.softmax * self.module.margin_head(vectors, people)
        return parts

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Cosine to the teacher's vectors on undamaged held-out faces, and the validator's figures."""
        assert isinstance(module, TrainedEncoder)
        figures = {}
        if self._teacher is not None and len(self._held_out):
            cosine = self._held_out_cosine(module)
            figures = {"cosine_to_teacher": cosine, "score": cosine}
        return figures | (self._validator(module.network) if self._validator else {})

    def describe(self, batch: FaceBatch) -> str:
        """The batch's crops."""
        return ", ".join(self._crops.names[i] for i in batch.indices.tolist())

    @torch.no_grad()
    def solve_projections(self, batches: int = 8, ridge: float = 1e-3) -> None:
        """Set the projections to the best ones for the network as it is, by least squares.

        For a network that is trained already: random projections would pull at its maps for no reason.
        """
        if self._teacher is None or not self.module.projections:
            return
        self.module.eval()
        sums = [_LeastSquares(p.in_channels) for p in self._projections()]
        for number in range(batches):
            pixels = self._sampler[number].clean
            _, taps = self.module.network(self._input(pixels))
            for equations, ours, theirs in zip(sums, taps, self._taught(pixels).taps, strict=True):
                equations.add(ours, theirs)
        for equations, projection in zip(sums, self._projections(), strict=True):
            equations.solve_into(projection, ridge)
        self.module.train()

    def _projections(self) -> list[nn.Conv2d]:
        return list(self.module.projections)  # type: ignore[arg-type]

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

    def _taught(self, pixels: Tensor) -> TeacherOutput:
        assert self._teacher is not None
        return self._teacher(self._teacher_input(pixels))

    def _trained(self, network: FaceNet, teacher: TeacherConfig | None, seed: int) -> TrainedEncoder:
        """The network with random projections that fit it and the teacher."""
        config = self._config.loss
        projections: list[nn.Conv2d] = []
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            face = torch.zeros(2, self._size_px, self._size_px, 3, dtype=torch.uint8)
            network = network.to(self._device).eval()
            vectors, taps = network(self._input(face))
            if self._teacher is not None:
                truth = self._taught(face)
                _check_dimensions(vectors, truth.vectors)
                if teacher is not None and truth.taps:
                    check_taps(teacher, taps, truth.taps)
                    projections = [
                        nn.Conv2d(a.shape[1], b.shape[1], 1) for a, b in zip(taps, truth.taps, strict=True)
                    ]
            people = self._crops.people_count
            head = MarginHead(vectors.shape[1], people, config) if config.softmax else None
            module = TrainedEncoder(network, projections, head)
        # Convolutions are fastest with channels last in memory, on CPUs and GPUs alike.
        return module.to(device=self._device, memory_format=torch.channels_last).train()  # type: ignore[call-overload, no-any-return]

    def _held_out_cosine(self, module: TrainedEncoder) -> float:
        faces = self._held_out_faces()
        if self._held_out_truth is None:
            self._held_out_truth = torch.cat([self._taught(part).vectors for part in faces])
        vectors = torch.cat([module(self._input(part))[0] for part in faces])
        return float((vectors * self._held_out_truth).sum(dim=1).mean())

    def _held_out_faces(self) -> list[Tensor]:
        faces = np.stack([cut(self._crops.pixels(int(i)), self._size_px) for i in self._held_out])
        return list(torch.split(torch.from_numpy(faces), self._config.batch.size))


class _Normalisation:
    """uint8 RGB (batch, h, w, 3) to float32 (batch, 3, h, w), channels last in memory, as a card says."""

    def __init__(self, spec: InputSpec, device: torch.device) -> None:
        self._device = device
        self._mean, self._std = (torch.tensor(values, device=device) for values in (spec.mean, spec.std))
        self._bgr = spec.channels == "bgr"

    def __call__(self, pixels: Tensor) -> Tensor:
        images = pixels.to(self._device, non_blocking=True)
        images = images.flip(-1) if self._bgr else images
        return ((images.float() - self._mean) / self._std).permute(0, 3, 1, 2)


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


def _check(config: RecognitionTaskConfig, teacher: TeacherConfig | None, input_spec: InputSpec) -> None:
    loss = config.loss
    if input_spec.size_px is None:
        raise UsageError("an encoder's input needs a size in pixels")
    if loss.needs_teacher and teacher is None:
        raise UsageError("loss.cosine, hints and relation compare with a teacher: name one, or set them to 0")
    if not loss.needs_teacher and not loss.needs_people:
        raise UsageError("all parts of the loss have weight 0")
    if loss.needs_people and not config.batch.people:
        raise UsageError("loss.triplet and loss.softmax need labelled people: set batch.people")


def _check_dimensions(ours: Tensor, theirs: Tensor) -> None:
    if ours.shape[1] != theirs.shape[1]:
        raise UsageError(
            f"the teacher's vectors have {theirs.shape[1]} dimensions, the student's {ours.shape[1]}"
        )
