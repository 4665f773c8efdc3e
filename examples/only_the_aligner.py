"""Cut the faces out of a photo, upright and of one size, from five landmarks each.

python examples/only_the_aligner.py PHOTO
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

import facepipe


def main(path: str) -> None:
    """Write `face0.png`, `face1.png` and so on, 112 pixels wide and high."""
    photo = facepipe.read_image(path)
    faces = facepipe.FaceDetector.load().detect(photo)
    for number, crop in enumerate(facepipe.align_faces(photo, faces.landmarks, "arcface_112")):
        Image.fromarray(crop).save(Path(f"face{number}.png"))


if __name__ == "__main__":
    main(sys.argv[1])
