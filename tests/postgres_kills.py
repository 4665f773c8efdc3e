"""Kill PostgreSQL and its clients in mid-write, many times, and tell what was lost.

    python tests/postgres_kills.py --server-kills 50 --client-kills 200 [--seed 1]

Several processes add people to one gallery and erase some again; each writes down what it is about to do, and
what was acknowledged. Whoever was killed, all that was acknowledged has to be there afterwards, and what was
not is there whole or not at all. Exit code 1: it is not so. What is promised: docs/promises.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.update(FACEPIPE_THREADS="1", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from gallery_helpers import ENCODER, person_vectors, templates
from postgres_helpers import OWNER, PostgresServer, new_database, new_server

from facepipe.core.errors import GalleryError, one_line
from facepipe.gallery import Gallery
from facepipe.gallery.repair import verify

FACES = 3
"""Of each person: one that has fewer was added by half."""

_WRITERS = 3
_WAIT_S = 60.0
_RETRY_S = 0.02
_KILLED_WITHIN_S = 0.25


@dataclass(frozen=True, slots=True)
class Losses:
    """What came of the kills.

    Attributes:
        kills: Number of processes or servers killed.
        acknowledged: Number of changes that had returned.
        uncertain: Number of changes that were begun and had not returned, or had failed.
        errors: The different messages of those that failed.
        lost: What is not as it was acknowledged, or half there.
    """

    kills: int
    acknowledged: int
    uncertain: int
    errors: tuple[str, ...]
    lost: tuple[str, ...]

    def __str__(self) -> str:
        errors = "".join(f"\n    {error}" for error in self.errors)
        return (
            f"{self.kills} kills: {self.acknowledged} changes acknowledged, {self.uncertain} not, "
            f"{len(self.lost)} lost{errors}"
        )


def kill_servers(kills: int, seed: int = 1) -> Losses:
    """Kill the server under writers that go on, each in one process, and start it again."""
    rng = random.Random(seed)
    with _gallery() as (server, url, folder):
        writers = [_start_writer(url, folder / f"writer{number}") for number in range(_WRITERS)]
        for _ in range(kills):
            _wait_for_changes(folder)
            time.sleep(rng.uniform(0, _KILLED_WITHIN_S))
            server.kill()
            server.start()
        _wait_for_changes(folder)
        (folder / "stop").touch()
        for writer in writers:
            writer.join(_WAIT_S)
            assert writer.exitcode == 0, writer.exitcode
        return _losses(kills, url, folder)


def kill_clients(kills: int, seed: int = 1) -> Losses:
    """Kill processes that write to a server, two of which write at any time."""
    rng = random.Random(seed)
    with _gallery() as (_, url, folder):
        other = _start_writer(url, folder / "other")
        for number in range(kills):
            file = folder / f"writer{number}"
            victim = _start_writer(url, file)
            _wait_for_lines(file)
            time.sleep(rng.uniform(0, _KILLED_WITHIN_S))
            victim.kill()
            victim.join()
        (folder / "stop").touch()
        other.join(_WAIT_S)
        assert other.exitcode == 0, other.exitcode
        return _losses(kills, url, folder)


def write(url: str, file: Path) -> None:
    """Add people and erase each third until a file `stop` appears, and write down what was done.

    `undone` in place of `failed` says that the error promised that nothing was changed.
    """
    gallery: Gallery | None = None
    stop = file.parent / "stop"
    with file.open("w", buffering=1) as notes:
        step = 0
        while not stop.exists():
            step += 1
            name, doing = f"{file.name} {step}", "open"
            try:
                gallery = gallery or Gallery.open(url, ENCODER)
                doing = "add"
                print(doing, name, sep="\t", file=notes)
                gallery.add(name, templates(person_vectors(step, FACES)))
                print("added", name, sep="\t", file=notes)
                if step % 3 == 0:
                    doing = "remove"
                    print(doing, name, sep="\t", file=notes)
                    gallery.remove(name)
                    print("removed", name, sep="\t", file=notes)
            except GalleryError as error:
                outcome = "undone" if "nothing was changed" in str(error) else "failed"
                print(f"{outcome} {doing}", name, one_line(error), sep="\t", file=notes)
                time.sleep(_RETRY_S)
    if gallery is not None:
        gallery.close()


@contextmanager
def _gallery() -> Iterator[tuple[PostgresServer, str, Path]]:
    with new_server() as server, new_database(server) as name, TemporaryDirectory() as folder:
        url = server.url(name, OWNER)
        Gallery.open(url, ENCODER, create=True).close()
        yield server, url, Path(folder)


def _start_writer(url: str, file: Path) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["postgres_kills"])
    writer = context.Process(target=write, args=(url, file), daemon=True)
    writer.start()
    return writer


def _notes(file: Path) -> list[list[str]]:
    """The lines that were written whole."""
    text = file.read_text()
    return [line.split("\t") for line in text[: text.rfind("\n") + 1].splitlines()]


def _wait_for_lines(file: Path) -> None:
    """Wait until a writer has had an answer."""
    deadline = time.monotonic() + _WAIT_S
    while not (file.exists() and any(note[0] == "added" for note in _notes(file))):
        assert time.monotonic() < deadline, _notes(file) if file.exists() else "the writer did not start"
        time.sleep(0.005)


def _wait_for_changes(folder: Path) -> None:
    """Wait until each writer has had one more change acknowledged."""
    before = {file: _acknowledged(file) for file in _files(folder)}
    deadline = time.monotonic() + _WAIT_S
    while len(before) < _WRITERS or any(_acknowledged(file) <= count for file, count in before.items()):
        assert time.monotonic() < deadline, [_notes(file)[-3:] for file in before]
        time.sleep(0.01)
        before = {file: before.get(file, 0) for file in _files(folder)}


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.name != "stop"]


def _acknowledged(file: Path) -> int:
    return sum(note[0] in ("added", "removed") for note in _notes(file))


def _losses(kills: int, url: str, folder: Path) -> Losses:
    """Compare what is in the gallery with what was written down."""
    with Gallery.open(url, ENCODER) as gallery:
        held = {person.name: person.template_count for person in gallery.people()}
    lost = [f"{finding.code}: {finding.message}" for finding in verify(url)]
    notes = [note for file in _files(folder) for note in _notes(file)]
    said: defaultdict[str, set[str]] = defaultdict(set)
    for word, name, *_ in notes:
        said[word].add(name)
    lost += [f"{name} was added" for name in sorted(said["added"] - said["remove"] - held.keys())]
    lost += [f"{name} was removed" for name in sorted(said["removed"] & held.keys())]
    lost += [f"{name} was never added" for name in sorted(held.keys() - said["add"])]
    lost += [f"{name} was said not to be added" for name in sorted(said["undone add"] & held.keys())]
    lost += [f"{name} was said not to be removed" for name in sorted(said["undone remove"] - held.keys())]
    lost += [f"{name} has {count} faces" for name, count in held.items() if count != FACES]
    uncertain = len(said["add"] - said["added"]) + len(said["remove"] - said["removed"])
    acknowledged = len(said["added"]) + len(said["removed"])
    errors = sorted({error for _, _, *errors in notes for error in errors})
    return Losses(kills, acknowledged, uncertain, tuple(errors), tuple(lost))


def main() -> int:
    """Run the command; answers its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--server-kills", type=int, default=50, metavar="N")
    parser.add_argument("--client-kills", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=1, help="when they are killed (default: 1)")
    options = parser.parse_args()
    found = {
        "server": kill_servers(options.server_kills, options.seed),
        "clients": kill_clients(options.client_kills, options.seed),
    }
    for what, losses in found.items():
        print(f"{what}: {losses}")
        print("".join(f"BROKEN  {lost}\n" for lost in losses.lost), end="")
    return int(any(losses.lost for losses in found.values()))


if __name__ == "__main__":
    sys.exit(main())
