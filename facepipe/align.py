"""Faces to upright crops: five landmarks, one similarity transform, one warp straight from the full photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from facepipe.core.errors import LandmarkError, UsageError
from facepipe.core.faces import FloatArray, UInt8Array
from facepipe.images.photo_input import Photo, as_rgb

Matrix = npt.NDArray[np.float64]

MARGINS = {"arcface_112": 0.1, "facenet_160": 0.0}
"""By landmark template: what of a crop lies outside the alignment's frame, on each side: shares of its side.

For crops of another size than the network's input; one of that size is the frame itself.
"""

_MIN_SPREAD_PX = 0.1  # root mean square distance from the centre; below it landmarks carry no direction
_MIN_SCALE = 1e-6  # crop pixels per photo pixel; mirrored landmarks can shrink a face to nothing


_REFERENCE_PX = 112
_REFERENCE_POINTS = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
"""float64 (5, 2): landmarks in the template of the ArcFace and InsightFace projects."""


@dataclass(frozen=True, slots=True)
class LandmarkTemplate:
    """Where the five landmarks of an aligned face stand: those of `arcface_112`, scaled, within a margin.

    So one similarity transform of a face serves all templates.

    Attributes:
        name: Its name in `TEMPLATES`, written on the cards of the encoders that want it.
        size_px: Side of the square crop.
        margin_px: What the crop shows beyond that of `arcface_112`, on each side.
        source: Where the numbers come from.
    """

    name: str
    size_px: int
    margin_px: int
    source: str

    def points_at(self, size_px: int) -> Matrix:
        """float64 (5, 2): the landmarks in a crop of this side, in the order of `LANDMARK_NAMES`."""
        scale, shift = self._from_reference(size_px)
        return scale * _REFERENCE_POINTS + shift

    def matrix_at(self, alignment: Alignment, size_px: int) -> Matrix:
        """float64 (2, 3): from pixels of the photo to those of a crop of this side."""
        scale, shift = self._from_reference(size_px)
        matrix = scale * alignment.matrix
        matrix[:, 2] += shift
        return matrix

    def _from_reference(self, size_px: int) -> tuple[float, float]:
        scale = size_px / self.size_px
        return scale * (self.size_px - 2 * self.margin_px) / _REFERENCE_PX, scale * self.margin_px


TEMPLATES = {
    template.name: template
    for template in (
        LandmarkTemplate(
            "arcface_112",
            _REFERENCE_PX,
            0,
            "the five-point template of the ArcFace and InsightFace projects",
        ),
        LandmarkTemplate(
            "facenet_160",
            160,
            16,
            "our choice: arcface_112 in the inner 128 of 160 pixels; the published 160-pixel FaceNets saw "
            "detector boxes with a margin and have no template of their own",
        ),
    )
}
"""Every landmark template by name."""


@dataclass(frozen=True, slots=True, eq=False)
class Alignment:
    """How one face is made upright: the similarity transform that fits its landmarks to a template best.

    Attributes:
        matrix: float64 (2, 3), from pixels of the photo to those of an `arcface_112` crop of 112 pixels; its
            left half rotates and scales evenly, and has a determinant > 0: nothing is ever mirrored.
        misfit: Root mean square distance of the aligned landmarks from the template's, as a share of the
            crop's side: how far a face is turned away, or its landmarks have gone astray. Frontal faces lie
            at 0.02..0.04, strong profiles above 0.08.
    """

    matrix: Matrix
    misfit: float

    @classmethod
    def fit(cls, landmarks: npt.ArrayLike) -> Alignment:
        """Fit by least squares.

        Args:
            landmarks: (5, 2) in pixels of the photo; mirrored ones get the best transform without a mirror.

        Raises:
            LandmarkError: They are not finite, or all in one point, or fit the template at no scale.
        """
        points = np.asarray(landmarks, dtype=np.float64)
        if points.shape != (5, 2):
            raise ValueError(f"expected landmarks of shape (5, 2), got {points.shape}")
        if not np.isfinite(points).all():
            raise LandmarkError("landmarks are not finite numbers; the detection is broken")
        if np.sqrt(((points - points.mean(axis=0)) ** 2).sum(axis=1).mean()) < _MIN_SPREAD_PX:
            raise LandmarkError("all five landmarks are in one point; they determine no alignment")
        matrix = _least_squares(points, _REFERENCE_POINTS)
        if not np.isfinite(matrix).all() or np.linalg.det(matrix[:, :2]) < _MIN_SCALE**2:
            raise LandmarkError("the landmarks look like no face; no alignment fits them")
        aligned = points @ matrix[:, :2].T + matrix[:, 2]
        distances = np.linalg.norm(aligned - _REFERENCE_POINTS, axis=1)
        return cls(matrix, float(np.sqrt((distances**2).mean()) / _REFERENCE_PX))

    def in_reduced_copy(self, reduction: float) -> Alignment:
        """Return the same face in a copy of the photo with `reduction` times fewer pixels a side.

        Whole numbers are the middles of pixels in both, as warps have it.
        """
        if reduction == 1:
            return self
        to_photo = np.array([[reduction, 0, (reduction - 1) / 2], [0, reduction, (reduction - 1) / 2]])
        return replace(self, matrix=_chain(self.matrix, to_photo))

    def scale(self, template: str, size_px: int) -> float:
        """Crop pixels per photo pixel; above 1 the face is enlarged."""
        return _scale(_template(template).matrix_at(self, size_px))


def fit_alignments(landmarks: FloatArray) -> list[Alignment | None]:
    """Return the alignment of each of n faces, None where its landmarks (n, 5, 2) determine none."""
    return [_fit_if_possible(points) for points in landmarks]


def _fit_if_possible(points: FloatArray) -> Alignment | None:
    try:
        return Alignment.fit(points)
    except LandmarkError:
        return None


def align_faces(
    image: Photo, landmarks: FloatArray, template: str = "arcface_112", size_px: int | None = None
) -> UInt8Array:
    """Warp the faces of one photo to upright crops of equal size.

    What lies outside the photo is black: as in the crops that encoders learn from, and because repeated or
    mirrored edges would look like skin and second features. Faces more than twice as large as the crop are
    averaged down first, in the photo's own frame, so that fine texture does not turn into noise.

    Args:
        image: RGB uint8 (H, W, 3), the full photo; or what `facepipe.images.photo_input.as_rgb` takes.
        landmarks: (n, 5, 2) in pixels of the photo.
        template: A name in `TEMPLATES`.
        size_px: Side of the crops; the template's own when None.

    Returns:
        RGB uint8 (n, size_px, size_px, 3).

    Raises:
        LandmarkError: A face's landmarks determine no similarity transform; the message counts from 0.
        UsageError: The template is unknown, or it is no photo.
        PhotoError: Its file can't be read.
    """
    photo = as_rgb(image)
    if landmarks.ndim != 3 or landmarks.shape[1:] != (5, 2):
        raise ValueError(f"expected landmarks of shape (n, 5, 2), got {landmarks.shape}")
    alignments = []
    for index, points in enumerate(landmarks):
        try:
            alignments.append(Alignment.fit(points))
        except LandmarkError as error:
            raise LandmarkError(f"face {index}: {error}") from error
    return warp_faces(photo, alignments, template, size_px)


def warp_faces(
    photo: UInt8Array,
    alignments: Sequence[Alignment],
    template: str = "arcface_112",
    size_px: int | None = None,
) -> UInt8Array:
    """As `align_faces`, of faces in an RGB uint8 photo (H, W, 3) whose alignments are known."""
    chosen = _template(template)
    size_px = chosen.size_px if size_px is None else size_px
    crops = np.zeros((len(alignments), size_px, size_px, 3), np.uint8)
    for crop, alignment in zip(crops, alignments, strict=True):
        crop[:] = _warp(photo, chosen.matrix_at(alignment, size_px), size_px)
    return crops


def _template(name: str) -> LandmarkTemplate:
    if name not in TEMPLATES:
        raise UsageError(f"unknown landmark template {name!r}; known are {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def _least_squares(source: Matrix, target: Matrix) -> Matrix:
    """Return the similarity transform (2, 3), without a mirror, that takes points (n, 2) nearest to others.

    With points as complex numbers it is target = factor * source + shift, whose factor is the scale and the
    rotation: in the plane, the closed form of S. Umeyama (PAMI 1991) is a linear regression.
    """
    points, wanted = (array[:, 0] + 1j * array[:, 1] for array in (source, target))
    centre, wanted_centre = points.mean(), wanted.mean()
    offsets = points - centre
    factor = np.vdot(offsets, wanted - wanted_centre) / np.vdot(offsets, offsets).real
    shift = wanted_centre - factor * centre
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def _warp(image: UInt8Array, matrix: Matrix, size_px: int) -> UInt8Array:
    """One bilinear warp, from the part of the photo under the crop: OpenCV warps nothing wider than 32767."""
    left, top, right, bottom = _bounds_under_crop(matrix, size_px, image.shape)
    if left >= right or top >= bottom:
        return np.zeros((size_px, size_px, 3), np.uint8)
    region, region_to_photo = _averaged_down(image[top:bottom, left:right], _scale(matrix))
    region_to_photo[:, 2] += (left, top)
    warped = cv2.warpAffine(
        region, _chain(matrix, region_to_photo), (size_px, size_px), flags=cv2.INTER_LINEAR
    )
    return np.asarray(warped, dtype=np.uint8)


def _scale(matrix: Matrix) -> float:
    """Crop pixels per photo pixel."""
    return float(np.sqrt(np.linalg.det(matrix[:, :2])))


def _bounds_under_crop(matrix: Matrix, size_px: int, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the photo's pixels that the crop can show, inside the photo."""
    corners = np.array([(0, 0), (size_px, 0), (size_px, size_px), (0, size_px)], dtype=np.float64) - 0.5
    under = (corners - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    margin = 2 / _scale(matrix) + 2  # bilinear neighbours, also after averaging down
    limits = np.array(shape[1::-1], dtype=np.float64)
    left, top = np.floor(np.clip(under.min(axis=0) - margin, 0, limits)).astype(int)
    right, bottom = np.ceil(np.clip(under.max(axis=0) + margin, 0, limits)).astype(int)
    return int(left), int(top), int(right), int(bottom)


def _averaged_down(region: UInt8Array, scale: float) -> tuple[UInt8Array, Matrix]:
    """Return the region reduced by the whole factor that leaves a warp of less than 2 to 1, and the way back.

    Plain bilinear sampling skips pixels beyond 2 to 1. Measured against a 6 x 6 supersampled warp, mean
    squared error of faces 2 to 2.5 times the crop falls from 12 to 5 gray levels squared, above 3 times from
    31 to 8. Rounding the factor up or to the nearest whole number blurs, and is worse.
    """
    factor = int(1 / scale)
    if factor < 2:
        return region, np.eye(2, 3)
    height, width = region.shape[:2]
    small_width, small_height = -(-width // factor), -(-height // factor)
    small = cv2.resize(region, (small_width, small_height), interpolation=cv2.INTER_AREA)
    step_x, step_y = width / small_width, height / small_height
    to_region = np.array([[step_x, 0, (step_x - 1) / 2], [0, step_y, (step_y - 1) / 2]])
    return np.asarray(small, dtype=np.uint8), to_region


def _chain(second: Matrix, first: Matrix) -> Matrix:
    """Return the affine transform, (2, 3), that does `first` and then `second`."""
    product: Matrix = second @ np.vstack([first, (0.0, 0.0, 1.0)])
    return product


def frame_matrix(crop_px: int, size_px: int, margin: float) -> FloatArray:
    """Return the affine map (2, 3) from a crop's pixels to the network's input (no jitter; `MARGINS`)."""
    margin = 0.0 if crop_px == size_px else margin * crop_px
    scale = size_px / (crop_px - 2 * margin)
    # Pixel centres lie at whole numbers, the picture's corner at -0.5.
    offset = -scale * (margin - 0.5) - 0.5
    return np.array([[scale, 0, offset], [0, scale, offset]], np.float32)


def cut(crop: UInt8Array, size_px: int, margin: float, jitter: FloatArray | None = None) -> UInt8Array:
    """The network's input (size, size, 3) from an aligned crop, shaken or not, in one interpolation."""
    matrix = frame_matrix(crop.shape[0], size_px, margin)
    if jitter is not None:
        matrix = (jitter @ np.vstack([matrix, [0, 0, 1]]).astype(np.float32))[:2]
    # Edges are repeated: where the margin does not reach, no black wedge gives the shift away.
    warped = cv2.warpAffine(
        crop, matrix, (size_px, size_px), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(warped, np.uint8)
