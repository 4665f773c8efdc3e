"""Speed of the encoder, in faces a second, on each runtime.

    python -m benchmarks.encoder [--encoder-weights NAME] [--batch N]... [--rounds N] [--json]

Every runtime that is installed encodes the same crops, in turns, and so does the Inception-ResNet-v1 of
facenet-pytorch as people use it (torch, one pass, faces of 160 px; its values do not matter here, so they
are random). Ours encodes a face and its mirror image where its card says so: two passes. The share of the
peak is that of the machine's own product of two matrices.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import numpy as np
import torch

from benchmarks.measure import Cost, cost, in_turns, peak, table
from facepipe.core.errors import MissingExtraError
from facepipe.encoder import FaceEncoder
from facepipe.runtime.architectures import load_network
from facepipe.runtime.engines import Engine, choose_runtime
from facepipe.weights.registry import DEFAULT_ENCODER, load_card

OTHER = "facenet-pytorch Inception-ResNet-v1, torch"
_ENGINES: tuple[Engine, ...] = ("onnx", "openvino", "torch")
_OTHER_SIDE_PX = 160


@click.command()
@click.option("--encoder-weights", default=DEFAULT_ENCODER, show_default=True, metavar="NAME")
@click.option("--batch", "batches", multiple=True, default=(1, 8, 32), show_default=True, type=int)
@click.option("--rounds", default=9, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(encoder_weights: str, batches: tuple[int, ...], rounds: int, as_json: bool) -> None:
    """Print a table, or JSON."""
    figures = measure(encoder_weights, batches, rounds)
    click.echo(json.dumps(figures) if as_json else as_table(figures))


def measure(encoder_weights: str, batches: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Faces a second by batch and contestant, and what the networks are."""
    encoders = _encoders(encoder_weights)
    costs = {"ours": _own_cost(encoder_weights)}
    faces = {batch: _in_turns(encoders, batch, rounds, costs) for batch in batches}
    return {
        "weights": encoder_weights,
        "faces_per_s": faces,
        "parameters": {name: known.parameters for name, known in costs.items()},
        "macs_per_face": {name: known.macs for name, known in costs.items()},
        "peak_flops": peak().flops,
    }


def _in_turns(
    encoders: dict[str, FaceEncoder], batch: int, rounds: int, costs: dict[str, Cost]
) -> dict[str, float]:
    rng = np.random.default_rng(0)
    ways: dict[str, Callable[[], object]] = {}
    for name, encoder in encoders.items():
        side = encoder.input_size_px
        crops = rng.integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
        ways[name] = partial(encoder.encode, crops)
    other = _inception(batch, costs)
    if other is not None:
        ways[OTHER] = other
    return {name: batch / taken for name, taken in in_turns(ways, rounds).items()}


def _encoders(weights: str) -> dict[str, FaceEncoder]:
    found = {}
    for engine in _ENGINES:
        try:
            choice = choose_runtime(engine)
        except MissingExtraError as error:
            click.echo(f"left out: {error}", err=True)
        else:
            found[str(choice)] = FaceEncoder.load(weights, choice)
    return found


def _own_cost(weights: str) -> Cost:
    weight = load_card(weights)
    side, embedding = weight.card.input.size_px, weight.card.embedding
    assert side is not None
    assert embedding is not None
    one = cost(load_network(weight), torch.zeros(1, 3, side, side))
    return Cost(one.parameters, one.macs * (2 if embedding.flip_average else 1))


def _inception(batch: int, costs: dict[str, Cost]) -> Callable[[], object] | None:
    try:
        from facenet_pytorch import InceptionResnetV1
    except ImportError:
        click.echo(f"left out: {OTHER}: not installed", err=True)
        return None
    network = InceptionResnetV1(pretrained=None).eval()
    costs[OTHER] = cost(network, torch.zeros(1, 3, _OTHER_SIDE_PX, _OTHER_SIDE_PX))
    faces = torch.rand(batch, 3, _OTHER_SIDE_PX, _OTHER_SIDE_PX)

    def encode() -> object:
        with torch.inference_mode():
            return network(faces)

    return encode


def as_table(figures: dict[str, Any]) -> str:
    """Faces a second; in brackets times the first contestant's, and the share of the machine's peak."""
    batches = list(figures["faces_per_s"])
    first = next(iter(figures["faces_per_s"][batches[0]]))
    rows = []
    for name in figures["faces_per_s"][batches[0]]:
        flops = 2 * figures["macs_per_face"][OTHER if name == OTHER else "ours"]
        row = [name]
        for batch in batches:
            speeds = figures["faces_per_s"][batch]
            share = speeds[name] * flops / figures["peak_flops"]
            row.append(f"{speeds[name]:.0f} ({speeds[name] / speeds[first]:.2f}, {100 * share:.0f}%)")
        rows.append(row)
    known = "; ".join(
        f"{name}: {figures['parameters'][name] / 1e6:.2f} M parameters, "
        f"{figures['macs_per_face'][name] / 1e6:.0f} million multiply-adds a face"
        for name in figures["parameters"]
    )
    head = ["faces/s (times the first, share of peak)", *(f"batch {batch}" for batch in batches)]
    return f"{table(head, rows)}\n\n{known}"


if __name__ == "__main__":
    main()
