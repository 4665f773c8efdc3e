"""A batch that is killed again and again must end as an undisturbed one does, line by line.

    python -m benchmarks.batch_kills --photos 2000 --kills 20 --source ../shared/data

Makes a folder of photos from `--source` (5% broken files, duplicates, EXIF-rotated and unicode-named ones)
and a gallery of the people in `SOURCE/photos/people/enroll`, works through it once in peace and once with
kills at random moments, and compares the results.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from PIL import Image

from facepipe.finding import find_photos

_BROKEN, _TWICE, _TURNED = 0.05, 0.05, 0.1
_EXIF_ORIENTATION = 0x0112


@click.command()
@click.option("--source", type=click.Path(path_type=Path, exists=True), required=True, metavar="DIR")
@click.option("--photos", default=2000, show_default=True)
@click.option("--kills", default=20, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(source: Path, photos: int, kills: int, seed: int) -> None:
    """Exits with 1 where the results differ."""
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = find_photos([source / "wider" / "dev", source / "photos"])
        make_archive(folder / "photos", sources, photos, dice)
        facepipe("enroll", source / "photos" / "people" / "enroll", "--gallery", folder / "gallery")
        peace_s = in_peace(folder, folder / "peace")
        killed = disturbed(folder, folder / "killed", kills, peace_s, dice)
        same = all(
            (folder / "peace" / file).read_bytes() == (folder / "killed" / file).read_bytes()
            for file in ("results.jsonl", "faces.csv")
        )
    click.echo(f"{photos} photos, killed {killed} times: results are {'the same' if same else 'DIFFERENT'}")
    sys.exit(not same)


def make_archive(folder: Path, sources: list[Path], count: int, dice: random.Random) -> None:
    """Photos as archives hold them."""
    made: list[Path] = []
    for number in range(count):
        place = folder / dice.choice(("", "2019", "2020/Ünï çode", "2021/顔")) / f"фото {number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        if made and dice.random() < _TWICE:
            shutil.copyfile(dice.choice(made), place)
        else:
            write_photo(place, dice.choice(sources), turned=dice.random() < _TURNED)
        if dice.random() < _BROKEN:
            data = place.read_bytes()
            place.write_bytes(data[: dice.randrange(len(data) // 2)])
        made.append(place)


def write_photo(place: Path, source: Path, turned: bool) -> None:
    """A photo as JPEG, or lying on its side with a word about that in its EXIF."""
    photo = Image.open(source).convert("RGB")
    exif = Image.Exif()
    if turned:
        photo = photo.transpose(Image.Transpose.ROTATE_90)
        exif[_EXIF_ORIENTATION] = 6
    photo.save(place, quality=90, exif=exif)


def in_peace(folder: Path, out: Path) -> float:
    """Work through it; answers the seconds it took."""
    start = time.monotonic()
    facepipe(*command(folder, out))
    return time.monotonic() - start


def disturbed(folder: Path, out: Path, kills: int, peace_s: float, dice: random.Random) -> int:
    """Work through it with kills on the way; answers how many there were."""
    killed = 0
    while killed < kills:
        process = subprocess.Popen(words(*command(folder, out)), stderr=subprocess.DEVNULL)
        try:
            process.wait(dice.uniform(0.2, 2.0) * peace_s / kills)
            break  # done before its time
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    facepipe(*command(folder, out))
    return killed


def command(folder: Path, out: Path) -> tuple[str | Path, ...]:
    """The batch."""
    return ("batch", folder / "photos", "--gallery", folder / "gallery", "--out", out)


def facepipe(*arguments: str | Path) -> None:
    """Run a command; some photos may fail."""
    done = subprocess.run(words(*arguments), stdout=subprocess.DEVNULL, check=False)
    if done.returncode not in (0, 3):
        sys.exit(f"facepipe {arguments[0]} failed")


def words(*arguments: str | Path) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "cli", *map(str, arguments)]


if __name__ == "__main__":
    main()
