"""Random damage to files, as disks, copies and meddlers do it."""

from __future__ import annotations

import random

_PAGE = 4096


def damaged(data: bytes, dice: random.Random) -> bytes:
    """A file of at least two bytes with some bytes changed, a page zeroed or moved, or its end missing."""
    while True:
        after = dice.choice((_with_other_bytes, _with_other_bytes, _zeroed, _swapped, _cut))(data, dice)
        if after != data:
            return after


def mutated(data: bytes, dice: random.Random) -> bytes:
    """As `damaged`, or with parts put in, left out or repeated, or several of these."""
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        change = dice.choice(
            (_with_other_bytes, _with_other_bytes, _zeroed, _swapped, _cut, _put_in, _repeated)
        )
        data = change(data, dice) if len(data) > 1 else data
    return data


def _with_other_bytes(data: bytes, dice: random.Random) -> bytes:
    """Often near the beginning, where headers are."""
    after = bytearray(data)
    within = len(data) if dice.random() < 0.6 else min(len(data), dice.choice((16, 64, 256, 1024)))
    for _ in range(dice.choice((1, 1, 2, 8, 30))):
        at = dice.randrange(within)
        after[at] = dice.choice((after[at] ^ (1 << dice.randrange(8)), dice.randrange(256), 0, 255))
    return bytes(after)


def _page(data: bytes, dice: random.Random) -> tuple[int, int]:
    """Beginning and end of a page; shorter in files of few pages."""
    length = min(dice.choice((_PAGE, _PAGE, 512, 64)), max(1, len(data) // 2))
    start = dice.randrange(len(data) // length) * length
    return start, start + length


def _zeroed(data: bytes, dice: random.Random) -> bytes:
    start, end = _page(data, dice)
    return data[:start] + bytes(end - start) + data[end:]


def _swapped(data: bytes, dice: random.Random) -> bytes:
    start, end = _page(data, dice)
    length = end - start
    other = dice.randrange(len(data) // length) * length
    after = bytearray(data)
    after[start:end], after[other : other + length] = data[other : other + length], data[start:end]
    return bytes(after)


def _cut(data: bytes, dice: random.Random) -> bytes:
    end = (
        dice.randrange(len(data))
        if dice.random() < 0.7
        else len(data) - 1 - dice.randrange(min(8, len(data)))
    )
    return data[: max(0, end)]


def _put_in(data: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(len(data))
    return data[:at] + dice.randbytes(dice.choice((1, 2, 100))) + data[at:]


def _repeated(data: bytes, dice: random.Random) -> bytes:
    """A part once more or once less."""
    start, end = _page(data, dice)
    return data[:end] + data[start:] if dice.random() < 0.6 else data[:start] + data[end:]
