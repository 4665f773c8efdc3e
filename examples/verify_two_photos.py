"""Tell whether two photos show one person, and how sure that is.

python examples/verify_two_photos.py FIRST SECOND
"""

from __future__ import annotations

import sys

import facepipe


def main(first: str, second: str) -> None:
    """Print the answer, the distance, and how often strangers are as near."""
    found = facepipe.verify(first, second)
    print("the same person" if found.same_person else "different people")
    print(f"distance {found.distance_l2:.2f}, threshold {found.threshold_l2:.2f}")
    if found.strangers_share is not None:
        print(f"as near are {found.strangers_share:.1e} of pairs of strangers")


if __name__ == "__main__":
    main(*sys.argv[1:3])
