"""Runs that are stopped, killed, out of space or out of luck, and what they leave behind."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from training_helpers import assert_same_run

from facepipe.core.errors import DataError, FacepipeError, OutputError, PhotoError, UsageError
from facepipe.training.engine.checkpoints import load_checkpoint, load_last
from facepipe.training.engine.logs import read_log
from facepipe.training.engine.loop import NonFiniteLossError, TrainingLoop
from facepipe.training.engine.loop_config import LoopConfig
from facepipe.training.engine.optimizer import OptimiserConfig
from facepipe.training.engine.runs import check_folder, only_run_in, outcome_of
from facepipe.training.engine.stream import endless_batches
from facepipe.training.engine.task import Progress

_CONFIG = LoopConfig(
    steps=6, batch_size=4, warmup_steps=0, log_every=1, checkpoint_every=4, validate_every=3, workers=0
)
_SGD = OptimiserConfig(name="sgd", learning_rate=0.05, reference_batch=4)

SIGNALS = [signal.SIGINT, signal.SIGTERM]


class _Network(nn.Sequential):
    """With dropout, which draws random numbers at every step, and BatchNorm."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))


@dataclass
class _Task:
    """Something may happen before batch i or in validation."""

    before_batch: Callable[[int], object] = lambda number: None
    in_validation: Callable[[], object] = lambda: None
    module: nn.Module = field(default_factory=_Network)
    samples_per_epoch: int = 10

    def pretrained_parts(self) -> list[nn.Module]:
        return [self.module[0]]  # type: ignore[index]

    def batches(self, first_step: int) -> Generator[Tensor]:
        torch.rand(first_step + 1)  # as whatever opens the data may draw
        number = first_step
        while True:
            self.before_batch(number)
            yield torch.randn(4, 3, generator=torch.Generator().manual_seed(number))
            number += 1

    def losses(self, module: nn.Module, batch: Tensor, progress: float) -> dict[str, Tensor]:
        return {"square": (module(batch).float().squeeze(1) - batch.sum(dim=1)).square().mean()}

    def validate(self, module: nn.Module) -> dict[str, float]:
        self.in_validation()
        with torch.no_grad():
            return {"score": float(module(torch.ones(1, 3)))}

    def describe(self, batch: Tensor) -> str:
        return "photo.jpg"


def _loop(folder: Path, config: LoopConfig = _CONFIG, **task: Any) -> TrainingLoop[Tensor]:
    torch.manual_seed(1)
    return TrainingLoop(_Task(**task), _SGD, config, folder, {"loop": {"compile": config.compile}})


def _same(folder: Path, whole: Path) -> None:
    """Two runs of the same configuration, to the last bit, whatever happened to one of them."""
    for name in ("last.pt", "best.pt"):
        first, second = (load_checkpoint(f / name) for f in (folder, whole))
        assert_same_run(first, second)
        assert (first["best"], first["figures"]) == (second["best"], second["figures"])
    for figure in ("square", "score"):
        assert read_log(folder / "log.csv")[figure] == read_log(whole / "log.csv")[figure]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    _loop(tmp_path / "whole").run()
    return tmp_path / "whole"


def _raise_at(step: int, error: type[BaseException] | Exception) -> Callable[[Progress], None]:
    def at(progress: Progress) -> None:
        if progress.step == step:
            raise error

    return at


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_a_network_with_dropout_resumes_exactly(tmp_path: Path, whole: Path, step: int) -> None:
    cut = _loop(tmp_path / "cut")
    cut.on_step = lambda progress: signal.raise_signal(signal.SIGTERM) if progress.step == step else None
    cut.run()
    assert cut.step == step
    _loop(tmp_path / "cut").run()
    _same(tmp_path / "cut", whole)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_validation_interrupts_it_and_the_resumed_run_does_it_again(
    tmp_path: Path, whole: Path, number: signal.Signals
) -> None:
    after = []

    def interrupt() -> None:
        signal.raise_signal(number)
        after.append("the validation went on")

    cut = _loop(tmp_path / "cut", in_validation=interrupt)
    cut.run()
    assert (cut.step, after) == (3, [])
    assert load_checkpoint(tmp_path / "cut" / "last.pt")["step"] == 3
    assert not (tmp_path / "cut" / "best.pt").exists()
    again = _loop(tmp_path / "cut", in_validation=interrupt)
    again.run()
    assert (again.step, after) == (3, [])
    _loop(tmp_path / "cut").run()
    _same(tmp_path / "cut", whole)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_interrupts_the_wait_for_a_batch(
    tmp_path: Path, whole: Path, number: signal.Signals
) -> None:
    after = []

    def interrupt(batch: int) -> None:
        if batch == 2:
            signal.raise_signal(number)
            after.append("it waited on")

    cut = _loop(tmp_path / "cut", before_batch=interrupt)
    cut.run()
    assert (cut.step, after) == (2, [])
    _loop(tmp_path / "cut").run()
    _same(tmp_path / "cut", whole)


class _Hanging:
    """From the third batch on nothing comes, as from a disk that has gone."""

    def batch(self, number: int) -> Tensor:
        if number == 2:
            time.sleep(1000)
        return torch.ones(4, 3)

    def files(self, number: int) -> list[str]:
        return ["photo.jpg"]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_run_whose_worker_hangs(tmp_path: Path, number: signal.Signals) -> None:
    loop = _loop(tmp_path)
    loop.task.batches = lambda first_step: endless_batches(  # type: ignore[method-assign]
        _Hanging(), first_batch=first_step, every=1, workers=1
    )
    timer = threading.Timer(1, os.kill, (os.getpid(), number))
    loop.on_step = lambda progress: timer.start() if progress.step == 2 else None
    loop.run()
    assert load_checkpoint(tmp_path / "last.pt")["step"] == loop.step == 2
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_a_checkpoint_is_written_lets_it_be_written(
    tmp_path: Path, whole: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, signals = os.fsync, [number]

    def fsync(descriptor: int) -> None:
        if signals:
            signal.raise_signal(signals.pop())
        real(descriptor)

    cut = _loop(tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        cut.run()
    assert load_checkpoint(tmp_path / "cut" / "last.pt")["step"] == cut.step == 3
    _loop(tmp_path / "cut").run()
    _same(tmp_path / "cut", whole)


def test_a_signal_before_the_first_step_leaves_nothing_to_continue(tmp_path: Path) -> None:
    def interrupt(batch: int) -> None:
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        _loop(tmp_path, before_batch=interrupt).run()
    check_folder(tmp_path, resume=False)


@pytest.mark.parametrize("error", [DataError("x.jpg"), PhotoError("x.jpg"), ValueError("x.jpg")])
def test_a_batch_that_fails_ends_the_run_with_all_steps_kept(
    tmp_path: Path, whole: Path, error: Exception
) -> None:
    def fail(batch: int) -> None:
        if batch == 5:
            raise error

    with pytest.raises(type(error), match=r"x\.jpg"):
        _loop(tmp_path / "cut", before_batch=fail).run()
    assert load_checkpoint(tmp_path / "cut" / "last.pt")["step"] == 5
    _loop(tmp_path / "cut").run()
    _same(tmp_path / "cut", whole)


def test_a_first_batch_that_fails_leaves_no_run(tmp_path: Path) -> None:
    def fail(batch: int) -> None:
        raise PhotoError("x.jpg")

    with pytest.raises(PhotoError):
        _loop(tmp_path, before_batch=fail).run()
    check_folder(tmp_path, resume=False)


def test_a_validation_that_fails_keeps_all_steps(tmp_path: Path, whole: Path) -> None:
    def fail() -> None:
        raise PhotoError("x.jpg: cut off")

    for _ in range(2):  # it fails again until the photo is mended
        with pytest.raises(PhotoError, match=r"x\.jpg"):
            _loop(tmp_path / "cut", in_validation=fail).run()
        assert load_checkpoint(tmp_path / "cut" / "last.pt")["step"] == 3
    _loop(tmp_path / "cut").run()
    _same(tmp_path / "cut", whole)


def test_a_run_after_one_that_died_early_begins_its_log_anew(tmp_path: Path, whole: Path) -> None:
    dead = _loop(tmp_path / "cut")
    dead.on_step = _raise_at(3, SystemExit)
    with pytest.raises(SystemExit):
        dead.run()
    assert len(read_log(tmp_path / "cut" / "log.csv")["square"]) == 2
    _loop(tmp_path / "cut").run()
    _same(tmp_path / "cut", whole)


@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_continues(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(_CONFIG, checkpoint_every=1)
    _loop(tmp_path / "whole", config).run()
    cut = _loop(tmp_path / "cut", config)
    cut.on_step = _raise_at(5, SystemExit)
    with pytest.raises(SystemExit):
        cut.run()
    last = tmp_path / "cut" / "last.pt"
    if damage == "gone":
        last.unlink()
    else:
        last.write_bytes(last.read_bytes()[: 0 if damage == "empty" else last.stat().st_size // 2])
    check_folder(tmp_path / "cut", resume=True)
    assert load_last(tmp_path / "cut").state["step"] == 3
    _loop(tmp_path / "cut", config).run()
    assert "last.pt: not a readable checkpoint" in caplog.text
    assert "the one before, of step 3" in caplog.text
    _same(tmp_path / "cut", tmp_path / "whole")


def test_without_a_whole_checkpoint_the_damaged_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"half")
    (tmp_path / "previous.pt").write_bytes(b"half")
    with pytest.raises(DataError, match=r"last\.pt"):
        load_last(tmp_path)


@pytest.mark.parametrize("full_at", [1, 2])
def test_a_full_disk_is_named_and_leaves_the_checkpoint_before(
    tmp_path: Path, full_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, calls, real = replace(_CONFIG, checkpoint_every=2, validate_every=100), [], os.fsync

    def fsync(descriptor: int) -> None:
        if os.fstat(descriptor).st_size > 1000:  # a checkpoint
            calls.append(descriptor)
            if len(calls) >= full_at:
                raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    _loop(tmp_path / "whole", config).run()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OutputError, match=r"can't write this checkpoint.*No space left.*free some space"):
            _loop(tmp_path / "cut", config).run()
    left = {path.name for path in (tmp_path / "cut").iterdir()}
    assert left == {"log.csv"} if full_at == 1 else {"log.csv", "last.pt"}
    _loop(tmp_path / "cut", config).run()
    _same(tmp_path / "cut", tmp_path / "whole")


def test_a_log_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.csv").mkdir()
    with pytest.raises(OutputError, match=r"log\.csv"):
        _loop(tmp_path).run()


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with only_run_in(tmp_path / "run"):
        with (
            pytest.raises(UsageError, match="another run trains in this folder"),
            only_run_in(tmp_path / "run"),
        ):
            pass
        with only_run_in(tmp_path / "other"):
            pass
    with only_run_in(tmp_path / "run"):
        pass


def test_a_folder_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"), only_run_in(tmp_path / "file" / "run"):
        pass


def test_a_run_stopped_before_its_first_line_of_the_log_has_an_outcome(tmp_path: Path) -> None:
    loop = _loop(tmp_path, replace(_CONFIG, log_every=5))
    loop.on_step = lambda progress: signal.raise_signal(signal.SIGTERM)
    loop.run()
    outcome = outcome_of(loop, tmp_path)
    assert (outcome.step, outcome.steps) == (1, 6)
    assert outcome.curves.is_file()


def _fail(*_: object) -> Any:
    raise RuntimeError("no compiler for this")


def _uncompiled(graph: Any, _: object) -> Any:
    return graph.forward


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("part", ["forward", "backward"])
def test_where_compiling_fails_the_run_goes_on_as_if_it_had_not_been_tried(
    tmp_path: Path,
    precision: Any,
    part: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = replace(_CONFIG, precision=precision, freeze_steps=2)
    _loop(tmp_path / "whole", config).run()
    torch.compiler.reset()
    compilers: Any = {"forward": (_fail, _uncompiled), "backward": (_uncompiled, _fail)}[part]
    backend, real = aot_autograd(fw_compiler=compilers[0], bw_compiler=compilers[1]), torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: real(module, backend=backend))
    _loop(tmp_path / "cut", replace(config, compile=True)).run()
    assert caplog.text.count("torch.compile does not work here") == 1
    assert "no compiler for this" in caplog.text
    assert load_checkpoint(tmp_path / "cut" / "last.pt")["record"]["loop"]["compile"] is False
    _same(tmp_path / "cut", tmp_path / "whole")
    # Other code of the process compiles as before.
    with pytest.raises(Exception, match="no compiler for this"):
        torch.compile(nn.Linear(2, 1))(torch.ones(1, 2)).sum().backward()
    torch.compiler.reset()


class _SlowUncompiled(_Network):
    def forward(self, images: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            time.sleep(0.05)
        output: Tensor = super().forward(images)  # type: ignore[no-untyped-call]
        return output


class _Compiler:
    """Compiles nothing, and counts how often what it made is called, which takes `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.calls = seconds, 0

    def __call__(self, module: nn.Module) -> nn.Module:
        backend = aot_autograd(fw_compiler=self._forward, bw_compiler=_uncompiled)
        return _COMPILE(module, backend=backend)  # type: ignore[no-any-return]

    def _forward(self, graph: Any, _: object) -> Any:
        def call(*tensors: Tensor) -> Any:
            self.calls += 1
            time.sleep(self.seconds)
            return graph.forward(*tensors)

        return call


_COMPILE: Any = torch.compile
_TRIED = 1 + 3
"""Steps before the first of a run: whether it compiles, and how long it takes."""


@pytest.mark.parametrize("pays", [True, False])
def test_a_run_is_compiled_where_that_pays_and_stays_so(
    tmp_path: Path, pays: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "facepipe.training")
    config = replace(_CONFIG, freeze_steps=2)
    _loop(tmp_path / "whole", config).run()

    def calls(last_step: int, pays: bool) -> int:
        torch.compiler.reset()
        compiler = _Compiler(0.0 if pays else 0.05)
        monkeypatch.setattr(torch, "compile", compiler)
        torch.manual_seed(1)  # as _loop, for the same weights
        module = _SlowUncompiled() if pays else _Network()
        loop = _loop(tmp_path / "cut", replace(config, compile=True), module=module)
        loop.on_step = lambda done: signal.raise_signal(signal.SIGTERM) if done.step == last_step else None
        loop.run()
        return compiler.calls

    # What is frozen makes another network, which is tried once more, but not measured.
    assert calls(3, pays) == (_TRIED + 2 + 1 + 1 if pays else _TRIED)
    assert ("torch.compile does not pay here" in caplog.text) is not pays
    assert not pays or calls(6, pays=False) > 0
    assert pays or calls(6, pays=True) == 0
    cut, whole = (load_checkpoint(tmp_path / name / "last.pt") for name in ("cut", "whole"))
    assert cut["step"] == whole["step"] == 6
    assert all(torch.equal(value, whole["average"][key]) for key, value in cut["average"].items())
    torch.compiler.reset()


def test_a_loss_that_is_not_finite_is_no_fault_of_the_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda module: module)
    loop = _loop(tmp_path, replace(_CONFIG, compile=True))
    loop.task.losses = lambda *_: {"square": torch.tensor(float("nan"))}  # type: ignore[method-assign]
    with pytest.raises(NonFiniteLossError):
        loop.run()
    assert issubclass(NonFiniteLossError, FacepipeError)
