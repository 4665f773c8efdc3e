"""The gallery under SIGKILL and in a crowd. The tests run it briefly; run it for longer by night:

    python tests/crash_gallery.py --count 5000 --crowd 60

Every worker is a forked process of its own that tells on a pipe what it begins and what it has finished.
After each kill the gallery must open, verify, and hold exactly what was acknowledged; of the one change that
was under way, all or nothing.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# Before NumPy is loaded: its threads would not survive the fork.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from gallery_helpers import ENCODER, person_vectors, template

from gallery import Gallery
from gallery.repair import verify

PEOPLE_MAX = 12
LINES_MAX = 4
DELAY_S_MAX = 0.01

People = dict[str, frozenset[str]]
"""Name to the photos of that person."""


@dataclass
class Change:
    """One call: what it makes of the people, as a line of text that goes through a pipe."""

    line: str

    def applied(self, people: People) -> People:
        """The people after it."""
        verb, *words = self.line.split("|")
        after = dict(people)
        if verb == "add":
            name, *photos = words
            after[name] = after.get(name, frozenset()) | set(photos)
        elif verb == "remove":
            del after[words[0]]
        elif verb == "merge":
            after[words[1]] = after[words[1]] | after.pop(words[0])
        return after

    def made(self, gallery: Gallery) -> None:
        """Do it."""
        verb, *words = self.line.split("|")
        if verb == "add":
            gallery.add(words[0], [template(person_vectors(int(photo), 1)[0], photo) for photo in words[1:]])
        elif verb == "remove":
            gallery.remove(words[0])
        elif verb == "merge":
            gallery.merge(words[0], words[1])
        elif verb == "match":
            gallery.match(person_vectors(1, 2))
        else:
            gallery.rebuild_index()


def next_change(people: People, rng: random.Random) -> Change:
    """Something to do."""
    names = sorted(people)
    dice = rng.random()
    if len(names) > PEOPLE_MAX or (len(names) > 2 and dice < 0.15):
        return Change(f"remove|{rng.choice(names)}")
    if len(names) > 2 and dice < 0.3:
        return Change("merge|" + "|".join(rng.sample(names, 2)))
    if dice < 0.4:
        return Change("index")
    if dice < 0.5:
        return Change("match")
    name = rng.choice(names) if names and dice < 0.6 else f"person {rng.randrange(10**9)}"
    photos = [str(rng.randrange(10**9)) for _ in range(rng.randint(1, 4))]
    return Change("|".join(["add", name, *photos]))


def fork(work: Callable[[int], None]) -> tuple[int, int]:
    """Run `work(pipe)` in a process of its own; answers its id and the pipe's end to read."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    status = 1
    try:
        os.close(reading)
        work(writing)
        status = 0
    except BaseException as error:
        os.write(writing, f"failed {error!r}\n".encode())
    finally:
        os._exit(status)


def stored(folder: Path) -> People:
    """What the gallery holds; fails where it holds anything twice."""
    with Gallery.open(folder, ENCODER) as gallery:
        people: People = {}
        for person in gallery.people():
            photos = [Path(t.source or "").stem for t in gallery.templates(person.name)]
            assert len(photos) == len(set(photos)), f"{person.name} has faces twice: {photos}"
            people[person.name] = frozenset(photos)
        return people


# Killed


@dataclass
class Tally:
    """What happened to the killed."""

    kills: int = 0
    acknowledged: int = 0
    halfway_done: int = 0
    halfway_undone: int = 0


def live_and_be_killed(folder: Path, people: People, seed: int) -> str:
    """Let a process change the gallery until it is killed at some moment; answers what it told."""

    def work(pipe: int) -> None:
        rng = random.Random(seed)
        mine = people
        while True:
            with Gallery.open(folder, ENCODER) as gallery:
                for _ in range(rng.randint(1, 4)):
                    change = next_change(mine, rng)
                    os.write(pipe, f"begin {change.line}\n".encode())
                    change.made(gallery)
                    os.write(pipe, f"done {change.line}\n".encode())
                    mine = change.applied(mine)

    child, pipe = fork(work)
    rng = random.Random(-seed)
    with os.fdopen(pipe) as told:
        # By what it told, not by the clock alone: so that busy machines see no fewer changes.
        lines = [told.readline() for _ in range(rng.randint(1, LINES_MAX))]
        time.sleep(rng.uniform(0, DELAY_S_MAX))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "".join([*lines, told.read()])


def kill_many(folder: Path, count: int, seed: int) -> Tally:
    """Kill `count` processes, one after the other, all at the same gallery."""
    tally = Tally()
    people: People = {}
    Gallery.open(folder, ENCODER, create=True).close()
    while tally.kills < count:
        told = live_and_be_killed(folder, people, seed + tally.kills)
        tally.kills += 1
        assert "failed" not in told, told
        under_way = None
        for line in told.splitlines():
            word, text = line.split(" ", 1)
            under_way = Change(text) if word == "begin" else None
            if word == "done":
                people = Change(text).applied(people)
                tally.acknowledged += 1
        findings = verify(folder, ENCODER)
        assert not findings, f"after kill {tally.kills}: {findings}"
        found = stored(folder)
        after = under_way.applied(people) if under_way else people
        assert found in (people, after), f"after kill {tally.kills} ({told}): {found}, expected {people}"
        if after != people:
            tally.halfway_done += found == after
            tally.halfway_undone += found == people
        people = found
    return tally


# Crowded


@dataclass
class Crowd:
    """What a crowd did."""

    writers: int
    readers: int
    changes: int = 0
    looks: int = 0
    people: People = field(default_factory=dict)


def crowd(folder: Path, seconds: float, writers: int, readers: int) -> Crowd:
    """Let processes write and read the same gallery at once, and compare what is left with what they told."""
    deadline = time.monotonic() + seconds
    Gallery.open(folder, ENCODER, create=True).close()

    def write(pipe: int, writer: int) -> None:
        rng = random.Random(writer)
        mine: People = {}
        while time.monotonic() < deadline:
            with Gallery.open(folder, ENCODER) as gallery:
                for _ in range(rng.randint(1, 8)):
                    name, first = f"writer {writer} person {rng.randrange(10**9)}", rng.randrange(10**9)
                    change = Change(f"add|{name}|{first}|{first + 1}")
                    if len(mine) > PEOPLE_MAX:
                        change = Change(f"remove|{rng.choice(sorted(mine))}")
                    change.made(gallery)
                    Change(f"add|everybody|{first}").made(gallery)
                    mine = change.applied(mine)
                    os.write(pipe, f"done {change.line}\ndone add|everybody|{first}\n".encode())

    def read(pipe: int, reader: int) -> None:
        while time.monotonic() < deadline:
            with Gallery.open(folder, ENCODER) as gallery:
                people = gallery.people()
                assert all(p.template_count == 2 for p in people if p.name != "everybody"), people
                for person in people[:3]:
                    vectors = person_vectors(reader, 2)
                    (first, _) = gallery.match(vectors, one_person_per_photo=False)
                    assert first.distance_l2 is not None, person
            findings = verify(folder, ENCODER)
            assert not findings, findings
            os.write(pipe, b"looked\n")

    works = [lambda pipe, w=w: write(pipe, w) for w in range(writers)]
    works += [lambda pipe, r=r: read(pipe, r) for r in range(readers)]
    done = Crowd(writers, readers)
    for child, pipe in [fork(work) for work in works]:
        with os.fdopen(pipe) as told:
            for line in told.read().splitlines():
                assert not line.startswith("failed"), line
                done.looks += line == "looked"
                if line.startswith("done "):
                    done.people = Change(line[5:]).applied(done.people)
                    done.changes += 1
        assert os.waitpid(child, 0)[1] == 0
    assert not verify(folder, ENCODER)
    assert stored(folder) == done.people
    return done


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="processes to kill (default: 200)")
    parser.add_argument(
        "--crowd", type=float, default=0, metavar="SECONDS", help="then, 4 writers and 4 readers"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where to (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        if arguments.count:
            print(kill_many(Path(folder) / "killed", arguments.count, arguments.seed), flush=True)
        if arguments.crowd:
            done = crowd(Path(folder) / "crowded", arguments.crowd, writers=4, readers=4)
            print(f"{done.changes} changes, {done.looks} looks, {len(done.people)} people left", flush=True)


if __name__ == "__main__":
    main()
