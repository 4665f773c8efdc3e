"""Group the faces in photos of people whom nobody has named, without a gallery.

python examples/group_strangers.py PHOTOS
"""

from __future__ import annotations

import sys

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage

import facepipe

SAME_PERSON_L2 = 1.0


def main(photos: str) -> None:
    """Print the photos of each group, the largest first."""
    vectors, paths = [], []
    for path in facepipe.find_photos([photos]):
        for face in facepipe.represent(path):
            if face.embedding is not None and face.score > 0.8:
                vectors.append(face.embedding)
                paths.append(path)
    groups = fcluster(linkage(np.array(vectors), "average"), SAME_PERSON_L2, "distance")
    for group in sorted(set(groups), key=lambda number: -(groups == number).sum()):
        print(f"group {group}:", *(str(paths[row]) for row in np.flatnonzero(groups == group)))


if __name__ == "__main__":
    main(sys.argv[1])
