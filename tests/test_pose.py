"""Angles of heads, from heads turned by known ones."""

from __future__ import annotations

import numpy as np
import pytest

from facepipe.core.faces import FloatArray, UInt8Array
from facepipe.pipeline import FacePipeline
from facepipe.pose import _HEAD, head_pose
from facepipe.runtime.engines import RuntimeChoice


def turned_head(yaw_deg: float, pitch_deg: float, roll_deg: float) -> FloatArray:
    """What is seen from afar of a head that nods, then turns, then tilts; in pixels."""
    yaw, pitch, roll = np.deg2rad([yaw_deg, pitch_deg, roll_deg])
    x, y, z = _HEAD.T
    y, z = y * np.cos(pitch) - z * np.sin(pitch), y * np.sin(pitch) + z * np.cos(pitch)
    x, z = x * np.cos(yaw) + z * np.sin(yaw), z * np.cos(yaw) - x * np.sin(yaw)
    x, y = x * np.cos(roll) - y * np.sin(roll), x * np.sin(roll) + y * np.cos(roll)
    return (np.column_stack([x, y]) * 55 + (300, 200)).astype(np.float32)


@pytest.mark.parametrize(
    "angles", [(0, 0, 0), (30, 0, 0), (-70, 0, 0), (0, 25, 0), (0, -35, 0), (0, 0, 170), (-40, 15, -20)]
)
def test_the_angles_of_a_turned_head(angles: tuple[float, float, float]) -> None:
    pose = head_pose(turned_head(*angles))
    assert (pose.yaw_deg, pose.pitch_deg, pose.roll_deg) == pytest.approx(angles, abs=0.01)


def test_signs() -> None:
    face = turned_head(0, 0, 0)
    left, down, clockwise = face.copy(), face.copy(), face.copy()
    left[2, 0] -= 15  # the nose towards the left of the photo
    down[2, 1] += 12
    clockwise[[1, 4], 1] += 25  # the side on the right is lower
    assert head_pose(left).yaw_deg > 15
    assert head_pose(down).pitch_deg > 10
    assert head_pose(clockwise).roll_deg > 10


def test_a_mirrored_face_looks_the_other_way() -> None:
    face = turned_head(35, 10, 12)
    mirrored = (face * (-1, 1))[[1, 0, 2, 4, 3]].astype(np.float32)
    there, back = head_pose(face), head_pose(mirrored)
    assert back.yaw_deg == pytest.approx(-there.yaw_deg, abs=1e-3)
    assert back.pitch_deg == pytest.approx(there.pitch_deg, abs=1e-3)
    assert back.roll_deg == pytest.approx(-there.roll_deg, abs=1e-3)


def test_a_portrait_looks_at_the_viewer_and_tilts_with_the_photo(astronaut: UInt8Array) -> None:
    pipeline = FacePipeline.load(runtime=RuntimeChoice("onnx", "cpu", 1))
    upright = head_pose(pipeline.detect(astronaut).landmarks[0])
    assert max(map(abs, (upright.yaw_deg, upright.pitch_deg, upright.roll_deg))) < 25


@pytest.mark.parametrize("landmarks", [np.zeros((5, 2)), np.full((5, 2), 7.0)])
def test_landmarks_in_one_point_are_no_error(landmarks: FloatArray) -> None:
    assert np.isfinite(head_pose(landmarks.astype(np.float32)).yaw_deg)
