"""The usual way from photos to names, written from the published description of such a system.

A photo is scaled into a gray square of 640 px (letterbox), where RetinaFace with MobileNetV1-0.25 finds
faces; each face's box is cut out and scaled to 160 px, again with gray bars, FaceNet on MobileNetV1 encodes
it, and NumPy compares it with everybody known. All runs on torch, eager, photo after photo and face after
face. (The values of its encoder are random: they don't change its speed.)
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from facepipe.core.faces import Faces, FloatArray, UInt8Array
from facepipe.facenet.network import facenet_mobilenet
from facepipe.retinaface.anchors import decode_boxes, decode_landmarks, make_anchors
from facepipe.retinaface.nms import nms
from facepipe.runtime.architectures import load_network
from facepipe.weights.cards import AnchorSpec
from facepipe.weights.registry import load_card

_DETECTOR = "retinaface_mobilenet025"
_PHOTO_SIDE_PX, _FACE_SIDE_PX = 640, 160
_CONFIDENCE, _NMS_IOU, _THRESHOLD_L2 = 0.5, 0.3, 0.9
_DIMENSIONS = 128
_GRAY = 128


class ReferenceSystem:
    """Detector, encoder and the people that are known.

    Args:
        people: How many; their embeddings are random.
    """

    def __init__(self, people: int) -> None:
        weight = load_card(_DETECTOR)
        assert weight.card.anchors is not None
        self._anchors: AnchorSpec = weight.card.anchors
        self._input = weight.card.input
        self._detector = load_network(weight).eval()
        self._encoder = facenet_mobilenet(_DIMENSIONS).eval()
        random = np.random.default_rng(0).normal(size=(people, _DIMENSIONS)).astype(np.float32)
        self._known: FloatArray = random / np.linalg.norm(random, axis=1, keepdims=True)

    def identify(self, photo: UInt8Array) -> list[int | None]:
        """Return, for each face in an RGB photo (h, w, 3), the person's row; None: nobody near enough."""
        return [self._nearest(self._encode(_cut(photo, box))) for box in self.detect(photo).boxes_xyxy]

    def detect(self, photo: UInt8Array) -> Faces:
        """Find the faces, in pixels of the photo."""
        square, scale, corner = letterbox(photo, _PHOTO_SIDE_PX)
        with torch.inference_mode():
            boxes, classes, landmarks = self._detector(self._planes(square))
            scores = torch.softmax(classes, dim=-1)[0, :, 1].numpy()
        likely = np.flatnonzero(scores > _CONFIDENCE)
        anchors = make_anchors(_PHOTO_SIDE_PX, _PHOTO_SIDE_PX, self._anchors)[likely]
        variances = self._anchors.variances
        in_square = Faces(
            decode_boxes(boxes[0].numpy()[likely], anchors, variances),
            scores[likely],
            decode_landmarks(landmarks[0].numpy()[likely], anchors, variances),
        )
        found = nms(in_square, _NMS_IOU)
        return Faces(
            (found.boxes_xyxy - np.tile(corner, 2)) / scale, found.scores, (found.landmarks - corner) / scale
        )

    def _planes(self, square: UInt8Array) -> Tensor:
        ordered = square if self._input.channels == "rgb" else square[..., ::-1]
        mean, std = (np.array(values, np.float32) for values in (self._input.mean, self._input.std))
        centred = (ordered.astype(np.float32) - mean) / std
        return torch.from_numpy(centred.transpose(2, 0, 1)[None].copy())

    def _encode(self, face: UInt8Array) -> FloatArray:
        pixels = torch.from_numpy(face.astype(np.float32).transpose(2, 0, 1)[None] / 255)
        with torch.inference_mode():
            vectors: FloatArray = torch.nn.functional.normalize(self._encoder(pixels).vectors)[0].numpy()
        return vectors

    def _nearest(self, embedding: FloatArray) -> int | None:
        distances = np.linalg.norm(self._known - embedding, axis=1)
        best = int(distances.argmin())
        return best if distances[best] <= _THRESHOLD_L2 else None


def letterbox(image: UInt8Array, side_px: int) -> tuple[UInt8Array, float, FloatArray]:
    """Scale an image (h, w, 3) into the middle of a gray square.

    Returns:
        The square; the scale; x and y of the scaled image's left top corner in it.
    """
    height, width = image.shape[:2]
    scale = side_px / max(height, width)
    columns, rows = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (side_px - columns) // 2, (side_px - rows) // 2
    square = np.full((side_px, side_px, 3), _GRAY, np.uint8)
    square[top : top + rows, left : left + columns] = cv2.resize(image, (columns, rows))
    return square, scale, np.array([left, top], np.float32)


def _cut(photo: UInt8Array, box_xyxy: FloatArray) -> UInt8Array:
    """Return the photo inside a box, scaled to the encoder's side."""
    height, width = photo.shape[:2]
    left, top = np.floor(box_xyxy[:2]).clip(0, (width - 1, height - 1)).astype(int)
    right, bottom = np.ceil(box_xyxy[2:]).clip((left + 1, top + 1), (width, height)).astype(int)
    return letterbox(photo[top:bottom, left:right], _FACE_SIDE_PX)[0]
