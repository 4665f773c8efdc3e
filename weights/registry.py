"""Weights by name: those shipped in the package, the user's own, and those in the offline folder."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from facepipe.core.errors import UsageError, WeightsError
from facepipe.core.home import expand_home, facepipe_home
from facepipe.weights.cards import CARD_BYTES_MAX, WeightCard, check_name
from facepipe.weights.published import PUBLISHED

DEFAULT_DETECTOR = "retinaface_mobilenet025_focus"
DEFAULT_ENCODER = "facenet_mobilenetv1_128"

Origin = Literal["shipped", "user", "offline"]


@dataclass(frozen=True, slots=True)
class Weight:
    """A card and the folder of its files, which are not read yet."""

    card: WeightCard
    folder: Path

    @property
    def parameters_path(self) -> Path | None:
        """The safetensors file; None for an imported ONNX file."""
        return self.folder / self.card.parameters.name if self.card.parameters else None

    @property
    def onnx_path(self) -> Path | None:
        """The ONNX file; None for a weight that runs on torch only."""
        return self.folder / self.card.onnx.name if self.card.onnx else None


@dataclass(frozen=True, slots=True)
class WeightEntry:
    """One line of the list of weights. `weight` None: damaged card; `problem`: why the name can't be used."""

    name: str
    origin: Origin
    card_path: Path
    weight: Weight | None
    problem: str | None = None


def shipped_folder() -> Path:
    """Folder of the weights inside the package."""
    return Path(__file__).parent / "shipped"


def user_folder() -> Path:
    """Folder that imported weights go to: `$FACEPIPE_HOME/weights`. It need not exist yet."""
    return facepipe_home() / "weights"


def offline_folder() -> Path | None:
    """`$FACEPIPE_OFFLINE_WEIGHTS`: cards and published files to use instead of the network; None: unset."""
    value = os.environ.get("FACEPIPE_OFFLINE_WEIGHTS")
    return expand_home(value) if value else None


def list_weights() -> list[WeightEntry]:
    """List all cards in the order of search: shipped, the user's, offline.

    A damaged card, and one hidden by an earlier card of the same name, is listed with its `problem`.
    """
    entries: list[WeightEntry] = []
    for origin, path in _card_paths():
        hidden = any(entry.name == path.stem for entry in entries)
        entries.append(_entry(origin, path, hidden))
    return entries


def load_card(name_or_path: str | Path) -> Weight:
    """Load the card of this name, or at this path (a `Path`, or text with a slash or with `.json`).

    Shipped weights come first: a card elsewhere can't replace one of the package.

    Raises:
        WeightsError: Unknown (lists the known names and near matches), or the card is damaged.
    """
    if isinstance(name_or_path, Path) or name_or_path.endswith(".json") or set(name_or_path) & {"/", os.sep}:
        return read_card(Path(name_or_path))
    name = check_name(name_or_path)
    for _, path in _card_paths():
        if path.stem == name:
            return read_card(path)
    raise WeightsError(_unknown(name))


def read_card(path: Path) -> Weight:
    """Read the card at `path`.

    Raises:
        WeightsError: Missing, unreadable, damaged, or not named after the weight that it describes.
    """
    if path.suffix != ".json":
        raise WeightsError(
            f"{path}: expected a weight's card, NAME.json (a .pth or .pt file is imported first)"
        )
    try:
        card = WeightCard.from_json(_read_text(path), source=path)
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: can't read this card: {error}") from error
    if card.name != path.stem:
        raise WeightsError(f"{path}: is the card of {card.name!r}; rename it to {card.name}.json")
    return Weight(card, path.parent)


def _read_text(path: Path) -> str:
    with path.open("rb") as stream:
        data = stream.read(CARD_BYTES_MAX + 1)
    if len(data) > CARD_BYTES_MAX:
        raise WeightsError(f"{path}: larger than {CARD_BYTES_MAX} bytes: not a weight's card")
    return data.decode()


def check_new_name(name: str) -> str:
    """Return `name` if a user's weight may have it.

    Raises:
        WeightsError: Not usable in a path, or the name of a shipped weight, which would hide the new one.
    """
    if (shipped_folder() / f"{check_name(name)}.json").exists():
        raise WeightsError(f"{name!r} is the name of a weight that ships with facepipe; choose another name")
    return name


def _card_paths() -> Iterator[tuple[Origin, Path]]:
    for origin, folder in _folders():
        for path in sorted(folder.glob("[!.]*.json")):
            yield origin, path


def _folders() -> Iterator[tuple[Origin, Path]]:
    yield "shipped", shipped_folder()
    with suppress(UsageError):  # without a home folder nothing has been imported
        yield "user", user_folder()
    if offline := offline_folder():
        yield "offline", offline


def _entry(origin: Origin, path: Path, hidden: bool) -> WeightEntry:
    try:
        weight = read_card(path)
    except WeightsError as error:
        return WeightEntry(path.stem, origin, path, None, str(error))
    problem = f"{path}: hidden by another weight of the same name" if hidden else None
    return WeightEntry(path.stem, origin, path, weight, problem)


def _unknown(name: str) -> str:
    known = list(dict.fromkeys(path.stem for _, path in _card_paths()))
    message = f"no weight is called {name!r}; known: {', '.join(known) or 'none'}"
    if name in PUBLISHED:
        return f"{message}. It is a published one: facepipe weights fetch {name}, then import the file"
    near = difflib.get_close_matches(name, [*known, *PUBLISHED])
    return f"{message}. Did you mean {' or '.join(near)}?" if near else message
