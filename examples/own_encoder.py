"""Use another encoder: any ONNX file that takes aligned faces, RGB 0..255, (n, 3, 112, 112), such as SFace.

python examples/own_encoder.py face_recognition_sface.onnx FIRST SECOND
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime

import facepipe


def main(model: str, first: str, second: str) -> None:
    """Print the Euclidean distance of the unit vectors of the first face of each photo."""
    session = onnxruntime.InferenceSession(model)
    detector = facepipe.FaceDetector.load()
    vectors = []
    for path in (first, second):
        photo = facepipe.read_image(path)
        crops = facepipe.align_faces(photo, detector.detect(photo)[:1].landmarks, "arcface_112")
        planes = crops.transpose(0, 3, 1, 2).astype(np.float32)
        (vector,) = session.run(None, {session.get_inputs()[0].name: planes})[0]
        vectors.append(vector / np.linalg.norm(vector))
    print(f"distance {np.linalg.norm(vectors[0] - vectors[1]):.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
