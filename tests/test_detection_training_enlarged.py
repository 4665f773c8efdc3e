from __future__ import annotations

import numpy as np
import pytest
import torch

from facepipe.errors import UsageError
from facepipe.retinaface.anchors import make_anchors
from facepipe.retinaface.network import RetinaFaceOutput
from training.detection.enlarged import EnlargedView
from training.detection.targets import encode_boxes, encode_landmarks
from weights.card import AnchorSpec

_SPEC = AnchorSpec()
_SIDE = 96
_SMALLEST = 2 * (_SIDE // 8) ** 2


def _anchors(side: int) -> torch.Tensor:
    return torch.from_numpy(make_anchors(side, side, _SPEC).copy())


def _all_say(box: list[float], points: torch.Tensor, side: int, classes: torch.Tensor) -> RetinaFaceOutput:
    """Every anchor's regression to one and the same face."""
    anchors = _anchors(side)
    boxes = encode_boxes(torch.tensor([box]).expand(len(anchors), 4), anchors, _SPEC.variances)
    landmarks = encode_landmarks(points.expand(len(anchors), 5, 2), anchors, _SPEC.variances)
    return RetinaFaceOutput(boxes[None], classes[None], landmarks[None])


def test_whichever_anchor_speaks_it_means_the_same_face() -> None:
    points = torch.tensor([[31.0, 40], [38, 41], [35, 44], [32, 48], [37, 49]])
    box = [28.5, 35.0, 41.0, 52.0]
    noise = torch.randn(len(_anchors(2 * _SIDE)), 2, generator=torch.Generator().manual_seed(7))
    enlarged = _all_say([2 * x for x in box], 2 * points, 2 * _SIDE, noise)
    seen = EnlargedView(_SPEC).smallest_anchors(enlarged, _SIDE)
    wanted = _all_say(box, points, _SIDE, torch.zeros(len(_anchors(_SIDE)), 2))
    torch.testing.assert_close(seen.boxes[0], wanted.boxes[0, :_SMALLEST], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(seen.landmarks[0], wanted.landmarks[0, :_SMALLEST], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size_px", [16, 32])
def test_the_surest_anchor_of_twice_the_size_at_the_same_place_speaks(size_px: int) -> None:
    """Each anchor of the enlarged picture alone is sure: the anchors it stands for, and no others, say so."""
    small, large = _anchors(_SIDE), _anchors(2 * _SIDE)
    sure = (large[:, 2] == 2 * size_px).nonzero().flatten()
    rng = np.random.default_rng(3)
    for row in rng.choice(sure, 20, replace=False):
        classes = torch.zeros(len(large), 2)
        classes[row, 1] = 5.0
        enlarged = RetinaFaceOutput(
            torch.zeros(1, len(large), 4), classes[None], torch.zeros(1, len(large), 10)
        )
        seen = EnlargedView(_SPEC).smallest_anchors(enlarged, _SIDE).classes[0, :, 1]
        (believing,) = seen.nonzero().flatten().tolist()
        assert small[believing, 2] == size_px
        assert (small[believing, :2] - large[row, :2] / 2).abs().max() <= 2


def test_anchors_without_a_successor_are_refused() -> None:
    with pytest.raises(UsageError, match="no anchor of 20 px"):
        EnlargedView(AnchorSpec(sizes_px=((10, 24), (48, 96), (192, 384))))
    with pytest.raises(UsageError, match="no anchor of 64 px at a stride of 8 or 16 px"):
        EnlargedView(AnchorSpec(sizes_px=((16, 32), (48, 96), (64, 128))))
