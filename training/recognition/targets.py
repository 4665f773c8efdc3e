"""The targets that a run's teachers give for its faces."""

from __future__ import annotations

import numpy as np
import torch

from facepipe.core.errors import UsageError
from facepipe.training.recognition.config import EncoderConfig
from facepipe.training.recognition.crops import FaceCrops
from facepipe.training.recognition.second_teacher import MeanOfTeachers
from facepipe.training.recognition.teacher import (
    CanonicalView,
    SharedView,
    Teacher,
    TeacherTargets,
    canonical_vectors,
    upright_faces,
)
from facepipe.weights.cards import InputSpec

_FACES_OF_THE_ROTATION = 2048


def open_teacher_targets(
    config: EncoderConfig,
    crops: FaceCrops,
    student_input: InputSpec,
    margin: float,
    device: torch.device,
) -> TeacherTargets:
    """Open the targets of a run's teachers for these crops.

    Args:
        config: With `teacher.weights`.
        crops: All faces.
        student_input: Of the network that learns.
        margin: Of the crops: see `facepipe.align.MARGINS`.
        device: Where targets go.

    Raises:
        WeightsError: A teacher can't be read.
        UsageError: A teacher can't share the student's view: it takes faces of another size.
        DataError: The cache can't be written.
    """
    if config.teacher.view == "canonical":
        vectors = canonical_vectors(config.teacher, crops, student_input, margin, config.cache_folder)
        return CanonicalView(torch.from_numpy(vectors).to(device))
    teacher = Teacher(config.teacher, student_input, device)
    if teacher.size_px != student_input.size_px:
        raise UsageError(
            f"the teacher takes faces of {teacher.size_px} px, the student has {student_input.size_px}: "
            "set teacher.view=canonical, or train at the teacher's size"
        )
    if not config.second_teacher.share:
        return SharedView(teacher, crops, margin, config.jitter.variants)
    second = Teacher(config.second_teacher.teacher, student_input, device)
    some = np.linspace(0, len(crops) - 1, min(len(crops), _FACES_OF_THE_ROTATION)).astype(np.int64)
    faces = upright_faces(crops, some, teacher.size_px, margin)
    both = MeanOfTeachers(teacher, second, config.second_teacher.share, faces)
    return SharedView(both, crops, margin, config.jitter.variants)
