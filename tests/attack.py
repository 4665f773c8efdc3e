"""Attack what facepipe promises, for as long as you like, and tell what broke.

    python tests/attack.py --hours 8
    python tests/attack.py --case "kills/gallery merge/17" --seed 3

kills: commands and calls killed at random moments; corruptions: files with random damage; inputs: mutated
photos, sidecars and videos; bombs: small files that become huge, with the peak memory of the process tree.
The time is divided among these, and within each among its targets. Every case is made from the seed and its
number; a failure is printed with the options that repeat it. Nothing is written outside a temporary folder.
Exit code 1: a promise was broken. What is promised: docs/promises.md.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import textwrap
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Before NumPy is loaded: its threads would not survive the forks. As many for the commands.
os.environ.update(FACEPIPE_THREADS="1", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from attacks import bombs, corruptions, inputs, kills
from attacks.cases import Attack, Verdict, run_case
from attacks.workshop import Workshop, opened_workshop

ATTACKS: list[Attack] = [*kills.ATTACKS, *corruptions.ATTACKS, *inputs.ATTACKS, *bombs.ATTACKS]
KINDS = tuple(dict.fromkeys(attack.kind for attack in ATTACKS))


@dataclass
class Row:
    """What came of the cases of one attack."""

    cases: int = 0
    tries: int = 0
    failures: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    found: Counter[str] = field(default_factory=Counter)

    def add(self, verdict: Verdict) -> None:
        """Count a case."""
        self.cases += 1
        self.tries += verdict.case.tries
        self.failures += verdict.failure is not None
        self.seconds += verdict.seconds
        self.peak_bytes = max(self.peak_bytes, verdict.case.peak_bytes)
        self.found += verdict.case.found


Rows = dict[Attack, Row]


def attack(
    workshop: Workshop, attacks: Sequence[Attack], seed: int, hours: float | None, rounds: int, rows: Rows
) -> None:
    """Run cases for so many hours, or so many of each attack; `rows` is filled on the way."""
    rows.update((each, Row()) for each in attacks)
    deadline = time.monotonic() + (hours or 0) * 3600
    while due := _due(rows, None if hours is not None else rounds):
        if hours is not None and time.monotonic() > deadline:
            return
        number = rows[due].cases
        verdict = run_case(due, workshop, seed, number)
        rows[due].add(verdict)
        if verdict.failure is not None:
            tell_failure(due, seed, number, verdict.failure)


def _due(rows: Rows, rounds: int | None) -> Attack | None:
    """The attack that had the least time, of the kind that had the least; None: all are done."""
    open_rows = {each: row for each, row in rows.items() if rounds is None or row.cases < rounds}
    spent: dict[str, float] = defaultdict(float)
    for each, row in open_rows.items():
        spent[each.kind] += row.seconds
    return min(open_rows, key=lambda each: (spent[each.kind], open_rows[each].seconds), default=None)


def tell_failure(attack: Attack, seed: int, number: int, failure: str) -> None:
    """Print what broke, and how to see it again."""
    print(f'BROKEN  --seed {seed} --case "{attack.name}/{number}"')
    print(textwrap.indent(failure.strip(), "    "), flush=True)


def table(rows: Rows) -> Iterator[str]:
    """The lines of a table, in Markdown."""
    yield "| attack | on | cases | tries | failures | peak memory | outcomes |"
    yield "|---|---|---|---|---|---|---|"
    for attack, row in rows.items():
        peak = f"{row.peak_bytes / 1e6:,.0f} MB" if row.peak_bytes else ""
        found = ", ".join(f"{count} {what}" for what, count in sorted(row.found.items()))
        counts = f"{row.cases:,} | {row.tries:,} | {row.failures:,}"
        yield f"| {attack.kind} | {attack.target} | {counts} | {peak} | {found} |"


def chosen(attacks: Iterable[Attack], names: Sequence[str]) -> list[Attack]:
    """Attacks of these kinds or names; all where none is given."""
    attacks = list(attacks)
    unknown = set(names) - {word for attack in attacks for word in (attack.kind, attack.name)}
    if unknown:
        known = ", ".join(attack.name for attack in attacks)
        sys.exit(f"no attack is called {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}; {known}")
    return [attack for attack in attacks if not names or {attack.kind, attack.name} & set(names)]


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--hours", type=float, metavar="N", help="attack for so long")
    length.add_argument("--rounds", type=int, metavar="N", help="run N cases of each attack instead")
    length.add_argument("--case", metavar="KIND/TARGET/NUMBER", help="run one case")
    parser.add_argument("--seed", type=int, default=1, help="what the cases are made from (default: 1)")
    parser.add_argument(
        "--only", default="", metavar="NAME,...", help="only these kinds (kills) or attacks (kills/enroll)"
    )
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; answers its exit code."""
    options, rows = parsed(words), Rows()
    logging.getLogger("facepipe").addHandler(logging.NullHandler())  # Commands write what they have to tell.
    with opened_workshop() as workshop:
        if options.case:
            name, _, number = options.case.rpartition("/")
            (only,) = chosen(ATTACKS, [name])
            rows[only] = Row()
            rows[only].add(verdict := run_case(only, workshop, options.seed, int(number)))
            if verdict.failure is not None:
                tell_failure(only, options.seed, int(number), verdict.failure)
        else:
            attacks = chosen(ATTACKS, list(filter(None, options.only.split(","))))
            try:
                attack(workshop, attacks, options.seed, options.hours, options.rounds or 0, rows)
            except KeyboardInterrupt:
                print("interrupted", file=sys.stderr)
    print("\n".join(table(rows)), flush=True)
    return int(any(row.failures for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
