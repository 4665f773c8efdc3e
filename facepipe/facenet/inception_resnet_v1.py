"""Inception-ResNet-v1 (Szegedy et al., arXiv:1602.07261), from the facenet-pytorch package."""

from __future__ import annotations

from torch import Tensor

from facepipe.core.errors import MissingExtraError
from facepipe.facenet.layers import Backbone


class InceptionResNetV1(Backbone):
    """Inception-ResNet-v1 of the facenet-pytorch package without its head.

    Its convolutions are not padded: a 160-pixel face gives maps of 17, 8 and 3.

    Raises:
        MissingExtraError: facenet-pytorch is not installed.
    """

    widths = (256, 896, 1792)

    def __init__(self) -> None:
        super().__init__()
        try:
            from facenet_pytorch.models.inception_resnet_v1 import InceptionResnetV1
        except ImportError as error:
            raise MissingExtraError("Inception-ResNet-v1", "train") from error
        model = InceptionResnetV1()
        del model.avgpool_1a, model.dropout, model.last_linear, model.last_bn
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps at strides 8, 16, 32."""
        m = self.model
        stem = m.maxpool_3a(m.conv2d_2b(m.conv2d_2a(m.conv2d_1a(images))))
        c1 = m.repeat_1(m.conv2d_4b(m.conv2d_4a(m.conv2d_3b(stem))))
        c2 = m.repeat_2(m.mixed_6a(c1))
        return c1, c2, m.block8(m.repeat_3(m.mixed_7a(c2)))
