"""The encoder with the layers that only training needs: projections for hints, and a head over people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from facepipe.facenet.network import FaceNet
from facepipe.training.distillation.teacher_forcing import InnerMaps
from facepipe.training.recognition.losses import LinearHead, MarginHead


class TrainedEncoder(nn.Module):
    """The network, and layers that are discarded after training.

    Args:
        network: What is trained and shipped.
        projections: For each of `taps`, a layer to the teacher's width; empty: widths are the same.
        taps: Which of the network's maps are compared.
        people_head: Over the labelled people.
        forced: Modules whose outputs a teacher's maps can replace, in the order of the network's maps.
        frozen: Parts of the network that never change, BatchNorm's statistics included.
    """

    def __init__(
        self,
        network: FaceNet,
        projections: list[nn.Conv2d],
        taps: tuple[int, ...] = (),
        people_head: LinearHead | MarginHead | None = None,
        forced: Sequence[nn.Module] = (),
        frozen: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.projections = nn.ModuleList(projections)
        self.taps = taps
        self.margin_head = people_head  # as it is called in checkpoints
        self._inner_maps = InnerMaps(forced)
        self._frozen = tuple(frozen)  # not registered a second time
        for part in self._frozen:
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """See `torch.nn.Module.train`."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def forward(
        self, images: Tensor, people: Tensor | None = None, teacher_maps: Sequence[Tensor] = ()
    ) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Preprocessed faces (batch, 3, side, side) to unit vectors, maps and the head's losses.

        With `teacher_maps`, which replace the outputs of `forced` (teacher forcing), maps are those outputs.
        """
        with self._inner_maps.recording(teacher_maps) as own_maps:
            output = self.network(images)
        raw = output.vectors.float()
        maps = own_maps if teacher_maps else [output.taps[tap] for tap in self.taps]
        if self.projections:
            maps = [projection(each) for projection, each in zip(self.projections, maps, strict=True)]
        losses = None if self.margin_head is None or people is None else self.margin_head(raw, people)
        return functional.normalize(raw), maps, losses


class LeastSquares:
    """Least squares for a 1x1 convolution from one map's channels to another's.

    Args:
        inputs: Channels of the one.
    """

    def __init__(self, inputs: int) -> None:
        self._gram = torch.zeros(inputs + 1, inputs + 1, dtype=torch.float64)
        self._cross: Tensor | None = None

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Add maps (batch, channels, h, w) of the same places."""
        x, y = (m.detach().cpu().double().movedim(1, -1).flatten(0, -2) for m in (inputs, outputs))
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        self._gram += x.T @ x
        cross = x.T @ y
        self._cross = cross if self._cross is None else self._cross + cross

    def solve_into(self, layer: nn.Conv2d, ridge: float) -> None:
        """Set a 1x1 convolution; `ridge`, as a share of the mean square, damps rarely active channels."""
        assert self._cross is not None
        damping = ridge * self._gram.diagonal().mean() * torch.eye(len(self._gram), dtype=torch.float64)
        solution = torch.linalg.solve(self._gram + damping, self._cross).float()
        assert layer.bias is not None
        layer.weight.copy_(solution[:-1].T[:, :, None, None])
        layer.bias.copy_(solution[-1])
