"""Guard against regressions of speed: ratios of a small run against those of `benchmarks/ratios.json`.

    python -m benchmarks.check [--update]

Seconds differ from machine to machine and from hour to hour, ratios taken in one run hardly do: how much
faster the detector is than itself on torch, the encoder likewise, and a batch than a plain loop, than
facenet-pytorch and than the reference system. They are kept for every kind of machine that was measured
(`benchmarks.measure.kind_of_machine`); on another kind nothing is compared, and a line is printed. Exit
code 1 where a ratio fell by more than a fifth in each of three attempts. `--update` writes the ratios of this
run into the file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from benchmarks import detector, encoder, pipeline
from benchmarks.measure import kind_of_machine
from facepipe.weights.registry import DEFAULT_DETECTOR, DEFAULT_ENCODER

RATIOS = Path(__file__).with_name("ratios.json")
ALLOWED_DROP = 0.2
_ATTEMPTS = 3
"""A neighbour on the machine may spoil one."""
_PHOTOS = 24
_SIZE = "640x640"
_BATCH = 8


@click.command()
@click.option("--update", is_flag=True, help="Write the ratios of this run into the file.")
def main(update: bool) -> None:
    """Exit with 1 where something has become slower."""
    known = json.loads(RATIOS.read_text(encoding="utf-8"))
    kind = kind_of_machine()
    if update:
        known[kind] = {name: round(ratio, 2) for name, ratio in measure().items()}
        RATIOS.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return
    if kind not in known:
        click.echo(f"no ratios are known for {kind} ({', '.join(known)} are); --update writes them")
        return
    click.echo(f"{kind}: ratio now, and as it was")
    failed = known[kind]
    for _ in range(_ATTEMPTS):
        failed = slower(measure(), failed)
        if not failed:
            return
    click.echo(f"slower than {100 * (1 - ALLOWED_DROP):.0f}% of what it was: {', '.join(failed)}", err=True)
    sys.exit(1)


def slower(ratios: dict[str, float], known: dict[str, float]) -> dict[str, float]:
    """Those of the known ratios that are now smaller by more than `ALLOWED_DROP`."""
    for name, before in known.items():
        click.echo(f"  {name:<60} {ratios[name]:6.2f} {before:6.2f}")
    return {name: before for name, before in known.items() if ratios[name] < (1 - ALLOWED_DROP) * before}


def measure() -> dict[str, float]:
    """How many times faster, larger is better."""
    times = detector.measure(DEFAULT_DETECTOR, [], 0, None, (_SIZE,), 5)["ms"][_SIZE]
    speeds = encoder.measure(DEFAULT_ENCODER, (_BATCH,), 5)["faces_per_s"][_BATCH]
    ways = pipeline.measure(None, _PHOTOS, pipeline.CONTESTANTS)
    onnx, torch = (next(name for name in times if name.startswith(engine)) for engine in ("ONNX", "torch"))
    if missing := [name for name in pipeline.CONTESTANTS if name not in ways]:
        raise click.ClickException(f"not installed: {', '.join(missing)}; pip install '.[dev]'")
    speed = {name: row["photos"] / row["seconds"] for name, row in ways.items()}
    return {
        "detector, 640 px: ONNX Runtime over torch": times[torch] / times[onnx],
        "encoder, 8 faces: ONNX Runtime over torch": speeds[onnx] / speeds[torch],
        "photos to names: batch over plain loop": speed["batch"] / speed["loop"],
        "photos to names: batch over plain loop on torch": speed["batch"] / speed["torch-loop"],
        "photos to names: batch over facenet-pytorch": speed["batch"] / speed["facenet-pytorch"],
        "photos to names: batch over the reference system": speed["batch"] / speed["reference"],
        "photos to names: batch at 640 px over the reference system": speed["batch-640"] / speed["reference"],
    }


if __name__ == "__main__":
    main()
