"""The shipped detector's network: RetinaFace with a second, finer backbone for faces of few pixels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from facepipe.retinaface.backbones import MobileNetV1Stages
from facepipe.retinaface.layers import conv_bn, pointwise_depthwise, separable_conv_bn
from facepipe.retinaface.network import FeaturePyramid, RetinaFace, enlarged

STORED_NAMES = {"small_face_branch.": "detail.", "small_face_laterals.": "detail_laterals."}
"""Prefixes of parameters' names here, and in weight files and checkpoints, whose names are older."""


class BranchMaps(NamedTuple):
    """Maps of a `SmallFaceBranch`, (batch, 64, h/4, w/4), (.., h/8, w/8) and (.., h/16, w/16)."""

    stride4: Tensor
    stride8: Tensor
    stride16: Tensor


class SmallFaceBranch(nn.Module):
    """YuNet (Wu et al., Machine Intelligence Research 20, 2023) up to its finest map before its heads.

    MobileNetV1-0.25 has 32 channels at a stride of 4, too few to tell faces of some ten pixels; this has 64.
    Its coarser maps are small and cheap, and add context to the finest ones.
    """

    width = 64

    def __init__(self) -> None:
        super().__init__()
        w = self.width
        rows = [(16, 16), (16, 16), (16, w), *[(w, w)] * 12]
        self.blocks = nn.ModuleList([conv_bn(3, 16, 3, 2), *(pointwise_depthwise(*row) for row in rows)])

    def forward(self, images: Tensor) -> BranchMaps:
        """Maps of images (batch, 3, h, w); those at strides 8 and 16 include the coarser ones."""
        x2 = self._through(0, 2, images)  # (batch, 16, h/2, w/2)
        x4 = self._through(2, 6, functional.max_pool2d(x2, 2))  # from here on 64 channels
        x8 = self._through(6, 8, functional.max_pool2d(x4, 2))
        x16 = self._through(8, 10, functional.max_pool2d(x8, 2))
        x32 = self._through(10, 13, functional.max_pool2d(x16, 2))
        s4 = self._through(13, 14, x16 + enlarged(x32, x16))
        s3 = self._through(14, 16, x8 + enlarged(s4, x8))
        return BranchMaps(x4, s3, s4)

    def _through(self, first: int, end: int, x: Tensor) -> Tensor:
        for number in range(first, end):
            x = functional.relu(self.blocks[number](x))
        return x


class SmallFacePyramid(FeaturePyramid):
    """FPN to whose laterals at strides 8 and 16 further maps are added.

    The 3x3 merge at stride 8 is separable: this and SSH's like it would be near half of all operations.
    """

    def __init__(self, inputs: tuple[int, int, int], width: int, slope: float) -> None:
        super().__init__(inputs, width, slope)
        self.merges[0] = separable_conv_bn(width, width, slope)

    def forward(self, c3: Tensor, c4: Tensor, c5: Tensor, *added: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """C3, C4, C5, and two maps of the pyramid's width at strides 8 and 16, to P3, P4, P5."""
        l3, l4, l5 = self.lateral_maps(c3, c4, c5)
        s3, s4 = added
        return self.top_down(l3 + s3, l4 + s4, l5)


class SmallFaceRetinaFace(RetinaFace):
    """RetinaFace with a `SmallFaceBranch`, of which FPN takes the maps at strides 8 and 16.

    The laterals of the branch are zero at first: before training it changes no output.

    Args:
        backbone, width, slope: See `RetinaFace`.
    """

    def __init__(self, backbone: MobileNetV1Stages, width: int, slope: float) -> None:
        super().__init__(backbone, width, slope)
        self.fpn = SmallFacePyramid(backbone.widths, width, slope)
        self.contexts[0].field3 = separable_conv_bn(width, width // 2)
        self.contexts[0].reduce = separable_conv_bn(width, width // 4, slope)
        self.small_face_branch = SmallFaceBranch()
        self.small_face_laterals = nn.ModuleList(
            _zero_lateral(SmallFaceBranch.width, width) for _ in range(2)
        )
        self._keep_order_of_checkpoints()
        self.register_state_dict_post_hook(_to_stored_names)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_from_stored_names)  # type: ignore[no-untyped-call]

    def pyramid(self, images: Tensor, c3: Tensor, c4: Tensor, c5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """P3, P4, P5."""
        return self.with_branch(self.small_face_branch(images), c3, c4, c5)

    def with_branch(
        self, branch: BranchMaps, c3: Tensor, c4: Tensor, c5: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """P3, P4, P5 of the branch's maps at strides 8 and 16 and the backbone's three."""
        maps = branch.stride8, branch.stride16
        added = (lateral(m) for lateral, m in zip(self.small_face_laterals, maps, strict=True))
        return self.fpn(c3, c4, c5, *added)  # type: ignore[no-any-return]

    def _keep_order_of_checkpoints(self) -> None:
        """Put the parameters of SSH and heads last: optimizers' states know parameters by their order."""
        for name in ("contexts", "box_heads", "class_heads", "landmark_heads"):
            self._modules[name] = self._modules.pop(name)


class FocusHead(nn.Module):
    """Where faces are that only a finer look finds: see `facepipe.retinaface.focus`.

    Made of the branch's maps at strides of 4 and 8, at a stride of 16 with four cells for each position.
    Before it is trained, all of a photo is to be looked at.
    """

    width, depth = 96, 2

    def __init__(self) -> None:
        super().__init__()
        branch, width = SmallFaceBranch.width, self.width
        self.finer = separable_conv_bn(branch, branch, slope=0.0, size=5, stride=2)
        self.merged = separable_conv_bn(2 * branch, width, slope=0.0, size=5, stride=2)
        self.blocks = nn.ModuleList(
            separable_conv_bn(width, width, slope=0.0, size=5) for _ in range(self.depth)
        )
        self.cells = nn.Conv2d(width, 4, 1)
        nn.init.zeros_(self.cells.weight)
        nn.init.ones_(self.cells.get_parameter("bias"))

    def forward(self, branch: BranchMaps) -> Tensor:
        """Logits (batch, h/8, w/8) of the branch's maps of images (batch, 3, h, w)."""
        x = self.merged(torch.cat([branch.stride8, self.finer(branch.stride4)], dim=1))
        for block in self.blocks:
            x = x + block(x)
        return functional.pixel_shuffle(self.cells(x), 2)[:, 0]


class FocusedRetinaFace(SmallFaceRetinaFace):
    """A `SmallFaceRetinaFace` that also tells where a look at four times the size would find more faces.

    Args:
        backbone, width, slope: See `RetinaFace`.
    """

    def __init__(self, backbone: MobileNetV1Stages, width: int, slope: float) -> None:
        super().__init__(backbone, width, slope)
        self.focus = FocusHead()

    def context_maps_and_focus(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """SSH's three maps, and the logits of the focus map (batch, h/8, w/8)."""
        branch = self.small_face_branch(images)
        pyramid = self.with_branch(branch, *self.backbone(images))
        return self.in_context(pyramid), self.focus(branch)

    def focus_logits(self, images: Tensor) -> Tensor:
        """The logits of the focus map alone, for which the branch suffices."""
        logits: Tensor = self.focus(self.small_face_branch(images))
        return logits


def _zero_lateral(inputs: int, outputs: int) -> nn.Sequential:
    """BatchNorm and a 1x1 convolution of zeros."""
    convolution = nn.Conv2d(inputs, outputs, 1)
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(nn.BatchNorm2d(inputs), convolution)


def _to_stored_names(_network: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    _rename(state, ((prefix + ours, prefix + stored) for ours, stored in STORED_NAMES.items()))


def _from_stored_names(_network: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    _rename(state, ((prefix + stored, prefix + ours) for ours, stored in STORED_NAMES.items()))


def _rename(state: dict[str, Any], beginnings: Iterable[tuple[str, str]]) -> None:
    """Replace the beginnings of keys, in place; the order stays."""
    renamed = dict(state)
    for old, new in beginnings:
        renamed = {
            new + key.removeprefix(old) if key.startswith(old) else key: value
            for key, value in renamed.items()
        }
    state.clear()
    state.update(renamed)


def retinaface_mobilenet025_detail() -> SmallFaceRetinaFace:
    """RetinaFace with MobileNetV1-0.25 and a `SmallFaceBranch`: 0.441 M parameters.

    A fifth more operations than `retinaface_mobilenet025`.
    """
    return SmallFaceRetinaFace(MobileNetV1Stages(stem=8, slope=0.1), width=64, slope=0.1)


def retinaface_mobilenet025_focus() -> FocusedRetinaFace:
    """`retinaface_mobilenet025_detail` with a focus map: 0.488 M parameters."""
    return FocusedRetinaFace(MobileNetV1Stages(stem=8, slope=0.1), width=64, slope=0.1)
