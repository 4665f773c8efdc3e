"""Group pairs of photos by how far the heads are turned, for `facepipe evaluate encoder --pairs`.

python examples/pairs_by_pose.py PAIRS.csv PHOTOS GROUPED.csv

PAIRS.csv has the columns first, second and same, with paths below PHOTOS. The head that is turned farther
counts; its angle is measured from the landmarks, and may be 10 degrees off.
"""

from __future__ import annotations

import csv
import sys
from functools import cache
from pathlib import Path

import facepipe
from facepipe.pose import head_pose
from facepipe.quality import central_face

GROUPS = {"0-15": 15, "15-30": 30, "30-45": 45, "45-60": 60, "60+": float("inf")}
"""Names of the groups and the yaw in degrees that they end below."""


def main(source: str, photos: str, target: str) -> None:
    """Write the pairs with their groups; "no face" is that of pairs with a photo in which none is found."""
    pipeline = facepipe.FacePipeline.load()

    @cache
    def yaw_deg(name: str) -> float | None:
        photo = facepipe.read_image(Path(photos) / name)
        faces = central_face(pipeline.detect(photo), photo.shape[1], photo.shape[0])
        return abs(head_pose(faces.landmarks[0]).yaw_deg) if len(faces) else None

    def group(names: list[str]) -> str:
        yaws = [yaw for name in names if (yaw := yaw_deg(name)) is not None]
        if len(yaws) < len(names):
            return "no face"
        return next(title for title, end in GROUPS.items() if max(yaws) < end)

    with open(source, encoding="utf-8-sig", newline="") as file:
        pairs = list(csv.DictReader(file))
    with open(target, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("first", "second", "same", "group"))
        for pair in pairs:
            names = [pair["first"], pair["second"]]
            rows.writerow((*names, pair["same"], group(names)))


if __name__ == "__main__":
    main(*sys.argv[1:4])
