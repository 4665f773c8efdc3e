"""Weights are found by name, verified before use, and written whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import facepipe.weights.registry as registry
from facepipe.core.errors import UsageError, WeightsError
from facepipe.core.home import facepipe_home
from facepipe.weights.cards import AnchorSpec, InputSpec, WeightCard, WeightFile
from facepipe.weights.files import Parameters, read_onnx, read_parameters, verify, write_weight
from facepipe.weights.published import PUBLISHED
from facepipe.weights.registry import Weight, check_new_name, list_weights, load_card, read_card

ONNX = b"\x08\x08\x3a\x00"  # The least that is a model: a version and a graph of nothing.
PARAMETERS: Parameters = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "conv.transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "half": np.linspace(-1, 1, 5, dtype=np.float16),
    "bn.num_batches_tracked": np.array(7, dtype=np.int64),
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of the test's own, no offline folder, and nothing shipped."""
    monkeypatch.setenv("FACEPIPE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FACEPIPE_OFFLINE_WEIGHTS", raising=False)
    monkeypatch.setattr(registry, "shipped_folder", lambda: tmp_path / "shipped")
    return tmp_path / "home"


def file_of_parameters(weight: Weight) -> Path:
    assert weight.parameters_path is not None
    return weight.parameters_path


def hash_of_parameters(card: WeightCard) -> str | None:
    assert card.parameters is not None
    return card.parameters.sha256


def make(folder: Path, name: str = "mine", onnx: bytes | None = ONNX) -> Weight:
    card = WeightCard(
        name=name,
        kind="detector",
        architecture="retinaface_mobilenet025",
        input=InputSpec("rgb", (104.0, 117.0, 123.0), (1.0, 1.0, 1.0)),
        parameters=WeightFile("not-written-yet", None),
        anchors=AnchorSpec(),
    )
    return write_weight(folder, card, PARAMETERS, onnx)


def test_home_is_the_variable_or_a_folder_of_the_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert facepipe_home() == tmp_path / "home"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FACEPIPE_HOME", "~/faces")
    assert facepipe_home() == tmp_path / "faces"
    monkeypatch.setenv("FACEPIPE_HOME", "")
    assert facepipe_home() == tmp_path / ".facepipe"


def test_shipped_weights_are_found_where_there_is_no_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make(tmp_path / "shipped", "default")
    monkeypatch.setenv("FACEPIPE_HOME", "~no_such_user_here/faces")
    with pytest.raises(UsageError, match="FACEPIPE_HOME"):
        facepipe_home()
    assert load_card("default").card.name == "default"


def test_a_written_weight_reads_back_the_same(home: Path) -> None:
    written = make(home / "weights")
    found = load_card("mine")
    assert found == written
    assert found.parameters_path == home / "weights" / "mine.safetensors"
    assert found.onnx_path == home / "weights" / "mine.onnx"
    verify(found)
    assert read_onnx(found) == ONNX
    parameters = read_parameters(found)
    assert parameters.keys() == PARAMETERS.keys()
    for name, array in parameters.items():
        assert (array.dtype, array.shape) == (PARAMETERS[name].dtype, PARAMETERS[name].shape)
        np.testing.assert_array_equal(array, PARAMETERS[name])


def test_a_weight_without_onnx_says_which_runtime_it_needs(home: Path) -> None:
    weight = make(home / "weights", onnx=None)
    assert weight.onnx_path is None
    verify(weight)
    with pytest.raises(WeightsError, match="--runtime torch"):
        read_onnx(weight)


def test_nothing_but_the_weight_is_left_in_the_folder(tmp_path: Path) -> None:
    make(tmp_path / "new" / "folder")
    names = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert names == ["mine.json", "mine.onnx", "mine.safetensors"]


def test_search_order_and_listing(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "shipped", "default")
    make(home / "weights", "default")
    make(home / "weights", "mine")
    make(tmp_path / "offline", "carried")
    monkeypatch.setenv("FACEPIPE_OFFLINE_WEIGHTS", str(tmp_path / "offline"))
    (home / "weights" / "broken.json").write_text("{")
    (home / "weights" / ".mine.staged").mkdir()
    (home / "weights" / ".hidden.json").write_text("{")

    listed = [(entry.name, entry.origin, entry.problem is None) for entry in list_weights()]
    assert listed == [
        ("default", "shipped", True),
        ("broken", "user", False),
        ("default", "user", False),
        ("mine", "user", True),
        ("carried", "offline", True),
    ]
    assert load_card("default").folder == tmp_path / "shipped"
    assert load_card("carried").folder == tmp_path / "offline"


def test_a_card_is_also_found_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = make(tmp_path / "elsewhere")
    path = tmp_path / "elsewhere" / "mine.json"
    monkeypatch.chdir(tmp_path / "elsewhere")
    for given in (path, str(path), "mine.json", "./mine.json"):
        assert load_card(given).card == weight.card
    with pytest.raises(WeightsError, match="no weight is called 'mine'"):
        load_card("mine")


@pytest.mark.parametrize("given", ["elsewhere/none.json", "elsewhere/mine.safetensors", "elsewhere/", "../x"])
def test_a_path_that_is_no_card_is_refused(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=str(Path(given))):
        load_card(given)


@pytest.mark.parametrize("given", ["", " ", "a b", "-x", "..", "nul\0l", "ümlaut", "x" * 101])
def test_names_that_are_none_are_refused(given: str) -> None:
    with pytest.raises(WeightsError, match="can't name a weight"):
        load_card(given)


def test_an_unknown_name_lists_the_known_ones(home: Path) -> None:
    make(home / "weights", "retinaface_garden")
    with pytest.raises(WeightsError, match=r"known: retinaface_garden.*Did you mean retinaface_garden"):
        load_card("retinaface_gardn")


def test_a_published_name_says_how_to_get_it() -> None:
    name = next(iter(PUBLISHED))
    with pytest.raises(WeightsError, match=f"facepipe weights fetch {name}"):
        load_card(name)


def test_a_renamed_card_is_refused(home: Path) -> None:
    make(home / "weights")
    (home / "weights" / "mine.json").rename(home / "weights" / "yours.json")
    with pytest.raises(WeightsError, match=r"yours\.json.*card of 'mine'"):
        load_card("yours")


def test_shipped_names_are_taken(tmp_path: Path) -> None:
    make(tmp_path / "shipped", "default")
    assert check_new_name("mine") == "mine"
    with pytest.raises(WeightsError, match="ships with facepipe"):
        check_new_name("default")
    with pytest.raises(WeightsError, match="can't name a weight"):
        check_new_name("../mine")


@pytest.mark.parametrize("suffix", ["safetensors", "onnx"])
@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
def test_damaged_files_are_never_used(home: Path, suffix: str, damage: str) -> None:
    weight = make(home / "weights")
    path = home / "weights" / f"mine.{suffix}"
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if damage == "changed" else data[:-3])
    read = read_parameters if suffix == "safetensors" else read_onnx
    for check in (verify, read):
        with pytest.raises(WeightsError) as caught:
            check(weight)
        assert str(path) in str(caught.value)
        assert "Import, train or copy this weight again" in str(caught.value)
        file = weight.card.parameters if suffix == "safetensors" else weight.card.onnx
        assert file is not None
        assert damage == "missing" or str(file.sha256) in str(caught.value)


def test_a_damaged_shipped_file_asks_for_a_reinstall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = make(tmp_path / "shipped", "default")
    monkeypatch.setattr("facepipe.weights.files.shipped_folder", lambda: tmp_path / "shipped")
    file_of_parameters(weight).write_bytes(b"damaged")
    with pytest.raises(WeightsError, match=r"Restore the files in|Reinstall facepipe"):
        verify(weight)


def test_a_card_without_a_hash_is_not_enough(home: Path) -> None:
    weight = make(home / "weights")
    unknown = replace(weight.card, parameters=WeightFile("mine.safetensors", None))
    with pytest.raises(WeightsError, match=f"write {hash_of_parameters(weight.card)} into the card"):
        read_parameters(Weight(unknown, weight.folder))


def test_parameters_that_are_no_safetensors_are_refused(home: Path) -> None:
    weight = make(home / "weights")
    assert weight.card.onnx is not None
    posing = replace(weight.card, parameters=weight.card.onnx)
    with pytest.raises(WeightsError, match=r"mine\.onnx: not a readable safetensors file"):
        read_parameters(Weight(posing, weight.folder))


OTHER: Parameters = {"w": np.ones(3, dtype=np.float32)}


def test_a_weight_that_exists_is_not_replaced(home: Path) -> None:
    first = make(home / "weights")
    with pytest.raises(WeightsError, match=r"mine\.json: exists already; choose another name, or remove it"):
        write_weight(home / "weights", first.card, OTHER, None)
    verify(first)
    (home / "weights" / "mine.json").unlink()
    second = write_weight(home / "weights", first.card, OTHER, None)
    assert load_card("mine") == second
    assert list(read_parameters(second)) == ["w"]
    assert not (home / "weights" / "mine.onnx").exists()


def test_a_failed_write_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = make(home / "weights", "mine.more")

    def full_disk(path: Path, data: bytes, mode: int) -> None:
        if path.suffix == ".json":
            raise OSError(28, "No space left on device")
        path.write_bytes(data)

    monkeypatch.setattr("facepipe.weights.files.atomic_write_bytes", full_disk)
    with pytest.raises(WeightsError, match="No space left"):
        make(home / "weights")
    verify(other)
    assert len(list((home / "weights").iterdir())) == 3


def test_a_card_that_shares_files_keeps_them(home: Path) -> None:
    first = make(home / "weights")
    twin = replace(first.card, name="twin", limits="the same network, told otherwise")
    (home / "weights" / "twin.json").write_text(twin.to_json())
    (home / "weights" / "mine.json").unlink()
    make(home / "weights", onnx=None)
    verify(load_card("twin"))


def _dies_at(event_number: int, work: Callable[[], object]) -> bool:
    """Whether a process that is killed when it touches the file system the nth time dies of it."""
    child = os.fork()
    if child == 0:  # pragma: no cover
        count = 0

        def count_events(event: str, _: object) -> None:
            nonlocal count
            if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.link", "os.truncate"):
                count += 1
                if count == event_number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count_events)
        with suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that are forked")
def test_a_first_weight_that_is_killed_is_no_weight_or_a_whole_one(tmp_path: Path) -> None:
    for number in range(1, 200):
        folder = tmp_path / str(number)
        killed = _dies_at(number, lambda: make(folder))  # noqa: B023
        if (folder / "mine.json").exists():
            verify(read_card(folder / "mine.json"))
            break
        verify(make(folder))
        assert killed
    assert number > 4


def test_what_can_not_be_written_is_refused(tmp_path: Path) -> None:
    card = make(tmp_path / "first").card
    with pytest.raises(WeightsError, match="no parameters"):
        write_weight(tmp_path / "w", card, {}, None)
    with pytest.raises(WeightsError, match="safetensors can't hold"):
        write_weight(tmp_path / "w", card, {"w": np.array(["text"])}, None)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WeightsError, match="can't write the weight mine"):
        write_weight(tmp_path / "file", card, PARAMETERS, None)
    assert not (tmp_path / "w").exists()


def test_finding_weights_loads_no_network_code_and_nothing_heavy() -> None:
    script = (
        "import sys, facepipe.weights.registry; facepipe.weights.registry.list_weights();"
        "print([m for m in ('torch', 'numpy', 'safetensors', 'onnxruntime', 'http.client', 'urllib.request',"
        " 'socket', 'facepipe.weights.downloads') if m in sys.modules])"
    )
    root = Path(registry.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_reading_weights_loads_no_network_code(home: Path) -> None:
    make(home / "weights")
    script = (
        "import sys; from facepipe.weights.registry import load_card;"
        "from facepipe.weights.files import read_parameters, read_onnx;"
        "weight = load_card('mine'); read_parameters(weight); read_onnx(weight);"
        "print([m for m in ('torch', 'facepipe.weights.downloads', 'urllib.request') if m in sys.modules])"
    )
    root = Path(registry.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_what_ships_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "shipped_folder", lambda: Path(registry.__file__).parent / "shipped")
    for entry in list_weights():
        assert entry.problem is None, entry.problem
        assert entry.weight is not None
        verify(entry.weight)
