"""Use another detector, here OpenCV's YuNet, and encode the faces that it finds.

python examples/own_detector.py face_detection_yunet.onnx PHOTO
"""

from __future__ import annotations

import sys

import cv2
import numpy as np

import facepipe


def detect(model: str, photo: np.ndarray) -> facepipe.Faces:
    """Boxes, scores and five landmarks in pixels of the photo, as every detector has to give them."""
    height, width = photo.shape[:2]
    yunet = cv2.FaceDetectorYN.create(model, "", (width, height), 0.7)
    _, rows = yunet.detect(cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))
    found = np.zeros((0, 15), np.float32) if rows is None else np.asarray(rows, np.float32)
    corners = np.concatenate([found[:, :2], found[:, :2] + found[:, 2:4]], axis=1)
    return facepipe.Faces(corners, found[:, 14], found[:, 4:14].reshape(-1, 5, 2))


def main(model: str, path: str) -> None:
    """Print the box and the first numbers of the vector of each face."""
    photo = facepipe.read_image(path)
    encoder = facepipe.FaceEncoder.load()
    faces = detect(model, photo)
    for face, vector in zip(faces, encoder.encode(encoder.align(photo, faces)), strict=True):
        print(face.box_xyxy.round(), vector[:4].round(3))


if __name__ == "__main__":
    main(*sys.argv[1:3])
