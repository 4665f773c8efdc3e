"""Pose of heads: angles from five landmarks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from facepipe.core.faces import FloatArray

_HEAD = np.array(
    [(-0.5, 0.0, 0.0), (0.5, 0.0, 0.0), (0.0, 0.67, -0.41), (-0.415, 1.155, -0.03), (0.415, 1.155, -0.03)]
)
"""Landmarks of a head that faces the viewer; x to the right, y down, z away; the eyes are 1 apart.

Source: x and y of eyes and mouth are those of the usual five-point template, depths those of the generic head
in OpenCV's pose examples. The nose stands so that the median pitch of 320 press photos is 0.
"""
_TO_AFFINE = np.linalg.pinv(_HEAD - _HEAD.mean(axis=0))
"""Pseudoinverse (3, 5): times centred landmarks (5, 2), it gives the least-squares affine map, transposed."""


@dataclass(frozen=True, slots=True)
class HeadPose:
    """Angles of a head in degrees, 0 for one that faces the viewer; rough: 5 to 10 degrees off is usual.

    Attributes:
        yaw_deg: -90..90, positive towards the left of the photo.
        pitch_deg: -180..180, positive looking down.
        roll_deg: -180..180, positive turned clockwise in the photo.
    """

    yaw_deg: float
    pitch_deg: float
    roll_deg: float


def head_pose(landmarks: FloatArray) -> HeadPose:
    """Return the pose of one face from its landmarks (5, 2) in pixels, under scaled orthographic projection.

    The affine map that best takes the head's landmarks to those seen is brought to the nearest rotation.
    Landmarks all in one point give angles that mean nothing.
    """
    seen = np.asarray(landmarks, np.float64)
    affine = (_TO_AFFINE @ (seen - seen.mean(axis=0))).T
    left, _, right = np.linalg.svd(affine, full_matrices=False)
    return _angles(left @ right)


def _angles(rows: npt.NDArray[np.float64]) -> HeadPose:
    """Of the rotation (turn by pitch, then yaw, then roll) whose first two rows (2, 3) these are."""
    (ax, ay, az), (bx, by, bz) = rows.tolist()
    third_x, third_y, third_z = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    yaw = math.asin(min(max(-third_x, -1.0), 1.0))
    pitch = math.atan2(third_y, third_z)
    roll = math.atan2(bx, ax)
    return HeadPose(math.degrees(yaw), math.degrees(pitch), math.degrees(roll))
