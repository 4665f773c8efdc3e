"""Learn people from a folder with one sub-folder each, and name the faces in the photos of another folder.

python examples/name_a_folder.py PEOPLE PHOTOS
"""

from __future__ import annotations

import sys

import facepipe


def main(people: str, photos: str) -> None:
    """Keep the people in the gallery `my-gallery`, and print who is in each photo."""
    with facepipe.FacePipeline.load("my-gallery", create_gallery=True) as pipeline:
        for report in facepipe.enroll(pipeline, facepipe.photos_in_folders(people)):
            print(report)
        for result in pipeline.identify_files(facepipe.find_photos([photos])):
            if result.faces is None:
                print(result.error)
                continue
            names = [face.name or "unknown" for face in result.faces]
            print(f"{result.path}: {', '.join(names) or 'no faces'}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
