"""A trained encoder to learn from: its embeddings and feature maps, computed on the way or before."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from facepipe.align import cut
from facepipe.core.errors import DataError, UsageError, WeightsError
from facepipe.core.faces import FloatArray
from facepipe.core.files import atomic_write_bytes
from facepipe.training.distillation.onnx_teacher import open_onnx, output_names, read_onnx
from facepipe.training.engine.pixels import Normalisation
from facepipe.training.recognition.crops import DecodedCrops, FaceCrops
from facepipe.training.recognition.sampling import FaceBatch, Indices
from facepipe.weights.cards import InputSpec
from facepipe.weights.registry import load_card

_LOG = logging.getLogger("facepipe.training")
_BATCH = 64
_FACES_A_CALL = 4
"""Whose maps stay in the processor's cache: 0.7 of the time of 48 at once."""

View = Literal["shared", "canonical"]


@dataclass(frozen=True, slots=True)
class TeacherConfig:
    """A trained encoder to learn from.

    Attributes:
        weights: Name or card of an encoder's weight, or an ONNX file (.onnx) whose first input takes faces
            and nothing else, and whose first output is their embedding; None: no teacher.
        taps: Names of inner maps for hints, fine to coarse, each of the size of one of the student's.
        input: Its preprocessing; None: that of its card, or else the student's.
        source: Where its file comes from, for errors where it is not there.
        view: "shared": the teacher sees every face with its jitter, before it is corrupted. "canonical": it
            sees every crop and its mirror image once, and the student learns the mean vector, however strong
            jitter and corruption are; fast, but without hints.
    """

    weights: str | None = None
    taps: tuple[str, ...] = ()
    input: InputSpec | None = None
    source: str = ""
    view: View = "shared"

    def __post_init__(self) -> None:
        if self.view == "canonical" and self.taps:
            raise UsageError("teacher.view = canonical gives vectors only: leave teacher.taps away")


class TeacherOutput(NamedTuple):
    """A teacher's embeddings and feature maps of a batch of faces."""

    vectors: Tensor
    """float32 (batch, dimensions), of unit length."""
    taps: list[Tensor]
    """float32 (batch, channels, h, w) each."""


class Teacher:
    """A network on ONNX Runtime.

    Args:
        config: With `weights`.
        student_input: The teacher's preprocessing where neither `config` nor a card has one.
        device: Where its output goes.

    Attributes:
        size_px: Side of the faces that it takes.

    Raises:
        WeightsError: The file can't be read, or lacks a value that `config` names.
    """

    def __init__(
        self, config: TeacherConfig, student_input: InputSpec, device: torch.device | None = None
    ) -> None:
        self._device = device or torch.device("cpu")
        path, spec = find_teacher(config, student_input)
        self._input = Normalisation(spec, torch.device("cpu"))
        assert spec.size_px is not None
        self.size_px = spec.size_px
        values = [output_names(path)[0], *config.taps]
        self._run = open_onnx(path, values)

    def __call__(self, pixels: Tensor) -> TeacherOutput:
        """RGB uint8 faces (batch, side, side, 3) to unit vectors and maps."""
        images = self._input(pixels.cpu()).contiguous().numpy()
        calls = [self._call(images[n : n + _FACES_A_CALL]) for n in range(0, len(images), _FACES_A_CALL)]
        vectors, *taps = (
            torch.from_numpy(np.concatenate(parts)).to(self._device) for parts in zip(*calls, strict=True)
        )
        return TeacherOutput(functional.normalize(vectors), taps)

    def _call(self, images: FloatArray) -> list[FloatArray]:
        """Embeddings and maps of a few preprocessed faces (n, 3, side, side)."""
        vectors, *taps = (np.asarray(value, np.float32) for value in self._run(images))
        # A file that was exported for one face may put the vectors of all into one row.
        return [vectors.reshape(len(images), -1), *taps]


class TeacherTargets(Protocol):
    """Targets that a teacher gives for batches and for single crops."""

    needs_clean: bool
    """Whether batches must hold the undamaged faces."""

    def of_batch(self, batch: FaceBatch) -> TeacherOutput:
        """Return targets of the faces of a batch."""

    def of_crops(self, indices: Indices) -> Tensor:
        """Return unit vectors (n, dimensions) of crops without jitter and corruption."""


class FaceTeacher(Protocol):
    """Anything that gives targets for faces, such as `Teacher`."""

    size_px: int

    def __call__(self, pixels: Tensor) -> TeacherOutput:
        """See `Teacher`."""


class SharedView:
    """Targets of the faces of every batch, with their jitter, computed as batches come.

    Args:
        teacher: Computes them.
        crops: All faces.
        margin: Of the crops: see `facepipe.align.MARGINS`.
        variants: See `JitterConfig`; above 0, vectors of faces that come again are kept, but not maps.
    """

    needs_clean = True

    def __init__(self, teacher: FaceTeacher, crops: FaceCrops, margin: float, variants: int = 0) -> None:
        self._teacher, self._crops, self._margin = teacher, crops, margin
        self._variants = variants
        self._known = torch.zeros(len(crops) * variants, dtype=torch.bool)
        self._kept: Tensor | None = None

    def of_batch(self, batch: FaceBatch) -> TeacherOutput:
        """See `TeacherTargets`."""
        assert batch.clean is not None
        if not self._variants:
            return self._teacher(batch.clean)
        places = batch.indices * self._variants + batch.variants
        if self._kept is not None and self._known[places].all():
            return TeacherOutput(self._kept[places], [])
        # All of them, as a resumed run will: a few faces apart from the others could differ in the last bit.
        output = self._teacher(batch.clean)
        if not output.taps:
            if self._kept is None:
                self._kept = output.vectors.new_empty(len(self._known), output.vectors.shape[1])
            self._kept[places], self._known[places] = output.vectors, True
        return output

    def of_crops(self, indices: Indices) -> Tensor:
        """See `TeacherTargets`."""
        faces = upright_faces(self._crops, indices, self._teacher.size_px, self._margin)
        return torch.cat([self._teacher(batch).vectors for batch in faces])


class CanonicalView:
    """Targets of whole crops, computed once before training.

    Args:
        vectors: Unit vectors (n, dimensions) of all crops.
    """

    needs_clean = False

    def __init__(self, vectors: Tensor) -> None:
        self._vectors = vectors

    def of_batch(self, batch: FaceBatch) -> TeacherOutput:
        """See `TeacherTargets`."""
        return TeacherOutput(self._vectors[batch.indices.to(self._vectors.device)], [])

    def of_crops(self, indices: Indices) -> Tensor:
        """See `TeacherTargets`."""
        return self._vectors[torch.from_numpy(indices).to(self._vectors.device)]


def canonical_vectors(
    config: TeacherConfig, crops: FaceCrops, student_input: InputSpec, margin: float, cache: Path | None
) -> FloatArray:
    """Unit vectors float32 (n, dimensions): the means of the teacher's of every crop and its mirror image.

    They are computed once for each source of crops and kept in `cache` (None: computed anew).

    Raises:
        WeightsError: The teacher can't be read.
        DataError: The cache can't be written.
    """
    path, spec = find_teacher(config, student_input)
    meaning = [_sha256(path), astuple(spec), margin]
    teacher: Teacher | None = None
    parts = []
    for part in crops.parts:
        key = hashlib.sha256(f"{meaning} {part.key}".encode()).hexdigest()[:16]
        file = cache / f"teacher-{key}.npy" if cache else None
        vectors = _saved(file, len(part)) if file else None
        if vectors is None:
            teacher = teacher or Teacher(config, student_input)
            vectors = _mean_vectors(teacher, part, margin)
            if file is not None:
                _save(file, vectors)
        parts.append(vectors)
    return np.concatenate(parts)


def find_teacher(config: TeacherConfig, student_input: InputSpec) -> tuple[Path, InputSpec]:
    """Return the teacher's ONNX file and its preprocessing, with a size.

    Raises:
        WeightsError: No such weight, not an encoder, or one without an ONNX file.
    """
    weights = str(config.weights)
    if weights.endswith(".onnx"):
        if not Path(weights).is_file():
            wanted = f"; put there {config.source}" if config.source else ""
            raise WeightsError(f"{weights}: there is no such teacher{wanted}")
        spec = config.input or student_input
        # Files made for faces of one size say so.
        sides = read_onnx(Path(weights)).graph.input[0].type.tensor_type.shape.dim[-1:]
        return Path(weights), replace(spec, size_px=sides[0].dim_value or spec.size_px)
    weight = load_card(weights)
    if weight.card.kind != "encoder" or weight.onnx_path is None:
        raise WeightsError(f"{weight.card.name}: a teacher must be an encoder with an ONNX file")
    return weight.onnx_path, config.input or weight.card.input


def matching_taps(
    config: TeacherConfig, student_taps: Sequence[Tensor], teacher_taps: Sequence[Tensor]
) -> tuple[int, ...]:
    """For each of the teacher's maps the number of the student's of the same size.

    Where the student has several of a size, they are taken in order, and the last of them for all others.

    Raises:
        UsageError: There is none, so that the two can't be compared place by place.
    """
    sizes = [tuple(tap.shape[2:]) for tap in student_taps]
    numbers: list[int] = []
    for name, tap in zip(config.taps, teacher_taps, strict=True):
        size = tuple(tap.shape[2:])
        if size not in sizes:
            raise UsageError(
                f"{config.weights}: its map {name} is of size {size}, and the student's are of {sizes}; "
                "name other teacher.taps"
            )
        of_size = [number for number, other in enumerate(sizes) if other == size]
        numbers.append(next((number for number in of_size if number not in numbers), of_size[-1]))
    return tuple(numbers)


def _mean_vectors(teacher: Teacher, part: DecodedCrops, margin: float) -> FloatArray:
    vectors = []
    for first in range(0, len(part), _BATCH):
        indices = np.arange(first, min(first + _BATCH, len(part)))
        faces = _cut_all(part, indices, teacher.size_px, margin)
        both = teacher(faces).vectors + teacher(faces.flip(2)).vectors
        vectors.append(functional.normalize(both).cpu().numpy())
        if first % (100 * _BATCH) == 0:
            _LOG.info("the teacher encodes faces from %d of %d", first, len(part))
    return np.concatenate(vectors)


def upright_faces(crops: FaceCrops, indices: Indices, size_px: int, margin: float) -> Iterator[Tensor]:
    """Yield batches of RGB uint8 faces (n, size, size, 3) without jitter and corruption."""
    for part in np.array_split(indices, -(-len(indices) // _BATCH)):
        yield _cut_all(crops, part, size_px, margin)


def _cut_all(crops: FaceCrops | DecodedCrops, indices: Indices, size_px: int, margin: float) -> Tensor:
    return torch.from_numpy(np.stack([cut(crops.pixels(int(i)), size_px, margin) for i in indices]))


def _saved(file: Path, count: int) -> FloatArray | None:
    """Vectors of so many faces; None where there is no such file, or half of it."""
    try:
        vectors: FloatArray = np.load(file)
    except (OSError, ValueError, EOFError):
        return None
    return vectors if len(vectors) == count else None


def _save(file: Path, vectors: FloatArray) -> None:
    stream = io.BytesIO()
    np.save(stream, vectors)
    try:
        atomic_write_bytes(file, stream.getvalue())
    except OSError as error:
        raise DataError(
            f"{file}: can't keep the teacher's vectors: {error}; free some space or name another folder"
        ) from error


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise WeightsError(f"{path}: can't read this teacher: {error}") from error
