"""Training FaceNet: distillation from a teacher, metric learning on people; see `Task`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from facepipe.align import MARGINS
from facepipe.evaluation.metrics.distances import area_under_roc
from facepipe.facenet.layers import ChainedBackbone
from facepipe.facenet.network import FaceNet
from facepipe.training.engine.distributed import sum_over_ranks, world_size
from facepipe.training.engine.pixels import Normalisation
from facepipe.training.engine.stream import Batches, batches_of_process
from facepipe.training.recognition.config import EncoderConfig
from facepipe.training.recognition.crops import NOBODY, FaceCrops
from facepipe.training.recognition.initialize import Encoder
from facepipe.training.recognition.losses import (
    MarginHead,
    cosine_loss,
    hint_loss,
    people_head,
    relation_loss,
    triplet_loss,
)
from facepipe.training.recognition.objectives import (
    check_dimensions,
    check_objectives,
    check_people,
    forced_modules,
    forced_parts,
    frozen_parts,
)
from facepipe.training.recognition.sampling import (
    BatchPlan,
    FaceBatch,
    FaceSampler,
    Indices,
    grouped_by_person,
)
from facepipe.training.recognition.targets import open_teacher_targets
from facepipe.training.recognition.teacher import TeacherOutput, TeacherTargets, matching_taps, upright_faces
from facepipe.training.recognition.trained_encoder import LeastSquares, TrainedEncoder

_MOST_HELD_OUT = 4000
_FACES_OF_A_DIRECTION = 8
_BATCHES_OF_A_FIT, _RIDGE = 8, 1e-3
"""Of the projections to a teacher's maps."""

Validator = Callable[[FaceNet], dict[str, float]]


class RecognitionTask:
    """See `facepipe.training.engine.task.Task`.

    Args:
        start: The network with its preprocessing, which gives a size, and its embedding.
        crops: All faces.
        config: Of the run.
        validator: Further figures of the network; a "score" among them replaces ours.
        device: Of the network.

    Raises:
        UsageError: A loss lacks a teacher or people, or the teacher's maps do not fit.
        DataError: Too few people or faces for a batch.
        WeightsError: The teacher can't be read.
    """

    def __init__(
        self,
        start: Encoder,
        crops: FaceCrops,
        config: EncoderConfig,
        *,
        validator: Validator | None = None,
        device: torch.device | None = None,
    ) -> None:
        check_objectives(config)
        check_people(config.loss, crops)
        self._config, self._validator = config, validator
        self._device = device or torch.device("cpu")
        self._input = Normalisation(start.input, self._device)
        self._crops, self._size_px, self._margin = crops, start.size_px, MARGINS[start.embedding.alignment]
        trained, held_out = crops.split(config.held_out_share)
        loop = config.loop
        plan = BatchPlan(crops.people, trained, config.batch, size=loop.batch_size, seed=loop.seed)
        self.samples_per_epoch = len(trained)
        self._trained_crops = trained
        self._hint_loss = torch.compile(hint_loss) if loop.compile else hint_loss
        self._targets: TeacherTargets | None = None
        if config.teacher.weights:
            self._targets = open_teacher_targets(config, crops, start.input, self._margin, self._device)
        self._sampler = FaceSampler(
            crops,
            plan,
            self._size_px,
            config.jitter,
            config.corruption,
            loop.seed,
            margin=self._margin,
            with_clean=self._targets is not None and self._targets.needs_clean,
        )
        self.module = self._trained(start.network)
        self._held_out = self._to_measure(held_out)
        self._held_out_truth: Tensor | None = None

    def pretrained_parts(self) -> list[nn.Module]:
        """Return the backbone, but for the parts that stay frozen."""
        trunk = self.module.network.trunk
        if not isinstance(trunk, ChainedBackbone):
            return [trunk]
        return trunk.parts()[self._config.network.frozen_maps :]

    def batches(self, first_step: int) -> Batches[FaceBatch]:
        """Endless batches of this process; a resumed run gets those that it would have got."""
        return batches_of_process(self._sampler, first_step, self._config.loop.workers)

    def losses(self, module: nn.Module, batch: FaceBatch, progress: float) -> dict[str, Tensor]:
        """Weighted parts against the teacher and the labels."""
        people = batch.people.to(self._device)
        truth = self._targets.of_batch(batch) if self._targets else None
        if truth is not None and self._config.loss.teacher_forcing:
            assert batch.clean is not None
            compared, given = forced_parts(truth.taps)
            vectors, maps, of_head = module(self._input(batch.clean)[: len(compared[0])], people, given)
            truth = truth._replace(taps=compared)
        else:
            vectors, maps, of_head = module(self._input(batch.corrupted), people)
        # Products of unit vectors in half the precision would be off by more than margins care for.
        with torch.autocast(self._device.type, enabled=False):
            return self._parts(vectors, maps, of_head, people, truth, progress)

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Figures on held-out faces without corruption, and the validator's.

        With a teacher the score is the cosine to its vectors; without one it is the area under the ROC curve
        of same-person and different-people pairs.
        """
        assert isinstance(module, TrainedEncoder)
        figures = self._held_out_figures(module) if len(self._held_out) else {}
        return figures | (self._validator(module.network) if self._validator else {})

    def describe(self, batch: FaceBatch) -> str:
        """Return the batch's crops."""
        return ", ".join(self._crops.names[i] for i in batch.indices.tolist())

    @torch.no_grad()
    def fit_to_network(self) -> None:
        """Initialise projections by least squares and people's directions by their mean embeddings.

        For a network that is trained already: gradients of random ones would undo what it has learned.
        """
        self.module.eval()
        self._solve_projections()
        self._take_mean_directions()
        self.module.train()

    def _solve_projections(self) -> None:
        """Fit the projections to the teacher's maps by least squares."""
        if self._targets is None or not self.module.projections:
            return
        sums = [LeastSquares(p.in_channels) for p in self._projections()]
        for number in range(_BATCHES_OF_A_FIT):
            batch = self._sampler.batch(number)
            assert batch.clean is not None
            taps = self.module.network(self._input(batch.clean)).taps
            truth = self._targets.of_batch(batch).taps
            for equations, tap, theirs in zip(sums, self.module.taps, truth, strict=True):
                equations.add(taps[tap], theirs)
        for equations, projection in zip(sums, self._projections(), strict=True):
            equations.solve_into(projection, _RIDGE)

    def _take_mean_directions(self) -> None:
        """Set directions to mean embeddings of a few faces; people without any keep random ones."""
        head = self.module.margin_head
        groups = grouped_by_person(self._crops.people, self._trained_crops)
        if not isinstance(head, MarginHead) or not groups:
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
            parts["triplet"] = config.triplet * triplet_loss(vectors, people, config.mining)
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
            parts["hint"] = weight * self._hint_loss(maps, truth.taps)
        if config.relation:
            parts["relation"] = config.relation * relation_loss(vectors, truth.vectors)
        return parts

    @torch.no_grad()
    def _trained(self, network: FaceNet) -> TrainedEncoder:
        """Return the network, with random projections to the teacher's maps and directions of people."""
        config = self._config.loss
        projections: list[nn.Conv2d] = []
        taps: tuple[int, ...] = ()
        forced: list[nn.Module] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._config.loop.seed)
            batch = self._sampler.batch(0)
            network = network.to(self._device).eval()
            ours = network(self._input(batch.corrupted[:2]))
            if self._targets is not None:
                truth = self._targets.of_batch(batch)
                check_dimensions(ours.vectors, truth.vectors)
                if config.teacher_forcing:
                    forced = forced_modules(network, ours.taps, truth.taps)
                else:
                    taps = matching_taps(self._config.teacher, ours.taps, truth.taps)
                    projections = _random_projections(ours.taps, truth.taps, taps)
            people = self._crops.people_count
            head = people_head(config, ours.vectors.shape[1], people)
            module = TrainedEncoder(
                network,
                projections,
                taps,
                head,
                forced,
                frozen_parts(network, self._config.network.frozen_maps),
            )
        # Convolutions are fastest with channels last in memory, on CPUs and GPUs alike.
        return module.to(device=self._device, memory_format=torch.channels_last).train()  # type: ignore[call-overload, no-any-return]

    def _to_measure(self, held_out: Indices) -> Indices:
        """Limit the held-out faces: evenly for a teacher, to the first people for labels."""
        if self._targets is not None:
            return held_out[:: max(1, -(-len(held_out) // _MOST_HELD_OUT))]
        labelled: Indices = held_out[self._crops.people[held_out] != NOBODY]
        return labelled[:_MOST_HELD_OUT]

    def _held_out_figures(self, module: TrainedEncoder) -> dict[str, float]:
        vectors = torch.cat([module(self._input(part))[0] for part in self._upright(self._held_out)])
        if self._targets is not None:
            if self._held_out_truth is None:
                self._held_out_truth = self._targets.of_crops(self._held_out)
            cosine = float((vectors * self._held_out_truth).sum(dim=1).mean())
            return {"cosine_to_teacher": cosine, "score": cosine}
        auc = _same_person_auc(vectors, self._crops.people[self._held_out])
        return {} if auc is None else {"same_person_auc": auc, "score": auc}

    def _upright(self, indices: Indices) -> Iterator[Tensor]:
        return upright_faces(self._crops, indices, self._size_px, self._margin)


def _same_person_auc(vectors: Tensor, people: Indices) -> float | None:
    """None where there is no pair of one person, or none of two."""
    first, second = np.triu_indices(len(people), 1)
    same = people[first] == people[second]
    if same.all() or not same.any():
        return None
    distances = torch.cdist(vectors, vectors).cpu().numpy()[first, second]
    return area_under_roc(distances[same], distances[~same])


def _random_projections(
    ours: Sequence[Tensor], theirs: Sequence[Tensor], taps: Sequence[int]
) -> list[nn.Conv2d]:
    """Return a layer to the width of each of the teacher's maps; none where all maps have equal shapes."""
    if [each.shape[1:] for each in ours] == [each.shape[1:] for each in theirs]:
        return []
    return [nn.Conv2d(ours[tap].shape[1], each.shape[1], 1) for tap, each in zip(taps, theirs, strict=True)]
