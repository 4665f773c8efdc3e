"""Pair the photos of people of known ages, in groups by age gap, for `facepipe evaluate encoder --pairs`.

python examples/pairs_by_age.py PHOTOS.csv PAIRS.csv

PHOTOS.csv has the columns path, person and age in years. Every group has as many pairs of two people as of
one, so that an age gap alone tells nothing.
"""

from __future__ import annotations

import csv
import random
import sys
from collections import defaultdict
from itertools import combinations

GROUPS = {"0-5": 5, "5-10": 10, "10-20": 20, "20-30": 30, "30+": float("inf")}
"""Names of the groups and the age gaps in years that they end below."""

MAX_PAIRS = 3000
"""Pairs of one person in a group, and as many of two."""

TRIES = 100
"""Random pairs of photos drawn for each pair of two people that is wanted."""

Photo = dict[str, str]


def age_gap(first: Photo, second: Photo) -> str:
    """Return the group of two photos."""
    years = abs(float(first["age"]) - float(second["age"]))
    return next(name for name, end in GROUPS.items() if years < end)


def pairs_of_one_person(photos: list[Photo], rng: random.Random) -> dict[str, list[tuple[Photo, Photo]]]:
    """Return at most `MAX_PAIRS` per group, chosen at random."""
    people, found = defaultdict(list), defaultdict(list)
    for photo in photos:
        people[photo["person"]].append(photo)
    for own in people.values():
        for first, second in combinations(own, 2):
            found[age_gap(first, second)].append((first, second))
    return {name: rng.sample(pairs, min(len(pairs), MAX_PAIRS)) for name, pairs in found.items()}


def pairs_of_two_people(
    photos: list[Photo], wanted: dict[str, int], rng: random.Random
) -> dict[str, list[tuple[Photo, Photo]]]:
    """Return so many per group, or fewer where random draws find no more."""
    found: dict[str, dict[frozenset[str], tuple[Photo, Photo]]] = {name: {} for name in wanted}
    for _ in range(TRIES * sum(wanted.values())):
        first, second = rng.sample(photos, 2)
        name = age_gap(first, second)
        if first["person"] != second["person"] and len(found.get(name, {})) < wanted.get(name, 0):
            found[name][frozenset((first["path"], second["path"]))] = (first, second)
    return {name: list(pairs.values()) for name, pairs in found.items()}


def main(source: str, target: str) -> None:
    """Write the pairs, and print how many each group has."""
    rng = random.Random(0)
    with open(source, encoding="utf-8-sig", newline="") as file:
        photos = list(csv.DictReader(file))
    one = pairs_of_one_person(photos, rng)
    two = pairs_of_two_people(photos, {name: len(pairs) for name, pairs in one.items()}, rng)
    with open(target, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("first", "second", "same", "group"))
        for same, groups in ((1, one), (0, two)):
            for name, pairs in groups.items():
                rows.writerows((first["path"], second["path"], same, name) for first, second in pairs)
    for name in GROUPS:
        print(f"{name}: {len(one.get(name, []))} pairs of one person, {len(two.get(name, []))} of two")


if __name__ == "__main__":
    main(*sys.argv[1:3])
