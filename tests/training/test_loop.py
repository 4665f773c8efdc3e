from __future__ import annotations

import importlib.util
import math
import signal
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from facepipe.core.errors import DataError, MissingExtraError, OutputError, UsageError
from facepipe.images.reading import read_image
from facepipe.training.engine.checkpoints import (
    averaged_network,
    changed_settings,
    load_checkpoint,
    save_checkpoint,
)
from facepipe.training.engine.curves import write_curves
from facepipe.training.engine.logs import RunLog, read_log
from facepipe.training.engine.loop import NonFiniteLossError, TrainingLoop
from facepipe.training.engine.loop_config import LoopConfig
from facepipe.training.engine.optimizer import OptimiserConfig, build_optimiser
from facepipe.training.engine.task import Progress

_SHORT = LoopConfig(
    steps=6, batch_size=4, warmup_steps=0, schedule="constant", log_every=2, checkpoint_every=2, workers=0
)
_SGD = OptimiserConfig(name="sgd", learning_rate=0.05, reference_batch=4, weight_decay=0.0)


class _Line(nn.Module):
    """A backbone with BatchNorm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))  # type: ignore[no-any-return]


@dataclass
class _ToyTask:
    """Batch i is a function of i; validation scores come from a list."""

    module: nn.Module
    batch_size: int = 4
    samples_per_epoch: int = 10
    scores: list[float] = field(default_factory=list)
    poison_at: int = -1
    poison: float = math.nan

    def pretrained_parts(self) -> list[nn.Module]:
        return [part for name, part in self.module.named_children() if name == "backbone"]

    def batches(self, first_step: int) -> Generator[tuple[int, Tensor]]:
        number = first_step
        while True:
            yield number, torch.randn(self.batch_size, 3, generator=torch.Generator().manual_seed(number))
            number += 1

    def losses(self, module: nn.Module, batch: tuple[int, Tensor], progress: float) -> dict[str, Tensor]:
        number, x = batch
        error = (module(x).float().squeeze(1) - x.sum(dim=1)).square().mean()
        return {"square": error, "extra": error * (self.poison if number == self.poison_at else 0.0)}

    def validate(self, module: nn.Module) -> dict[str, float]:
        assert not module.training
        return {"score": self.scores.pop(0), "other": 1.0} if self.scores else {}

    def describe(self, batch: tuple[int, Tensor]) -> str:
        return f"photo{batch[0]}.jpg"


def _task(**settings: Any) -> _ToyTask:
    torch.manual_seed(1)
    return _ToyTask(_Line(), **settings)


def _loop(
    folder: Path, task: _ToyTask, config: LoopConfig = _SHORT, optimiser: OptimiserConfig = _SGD, **more: Any
) -> TrainingLoop[tuple[int, Tensor]]:
    return TrainingLoop(task, optimiser, config, folder, {"loop": {"steps": config.steps}}, **more)


def _weights(loop: TrainingLoop[Any]) -> list[Tensor]:
    return [*loop.task.module.state_dict().values(), *loop.average.state_dict().values()]


def _equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("shape", "step", "factor"),
    [
        ("cosine", 0, 0.25),
        ("cosine", 3, 1.0),
        ("cosine", 4, 1.0),
        ("cosine", 54, 0.5),
        ("cosine", 104, 0.0),
        ("cosine", 200, 0.0),
        ("constant", 1, 0.5),
        ("constant", 90, 1.0),
        ("step", 63, 1.0),
        ("step", 64, 0.1),
        ("step", 89, 0.01),
        ("step", 104, 0.01),
    ],
)
def test_the_rate_over_a_run(shape: Any, step: int, factor: float) -> None:
    config = LoopConfig(steps=104, warmup_steps=4, schedule=shape)
    assert config.rate_factor(step) == pytest.approx(factor, abs=1e-12)


def test_the_rate_grows_with_the_batch_and_norms_do_not_decay() -> None:
    optimiser = build_optimiser(_Line(), OptimiserConfig(learning_rate=1e-3, reference_batch=16), 64)
    weights, rest = optimiser.param_groups
    assert weights["initial_lr"] == pytest.approx(4e-3)
    assert (weights["weight_decay"], rest["weight_decay"]) == (0.02, 0.0)
    assert [p.ndim for p in weights["params"]] == [2, 2]
    assert [p.ndim for p in rest["params"]] == [1, 1, 1, 1]


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_training_makes_the_loss_fall(tmp_path: Path, name: Any, precision: Any) -> None:
    steps: list[Progress] = []
    config = replace(_SHORT, steps=120, precision=precision, log_every=40)
    torch.manual_seed(0)
    task = _ToyTask(nn.Sequential(nn.Linear(3, 1)))
    optimiser = replace(_SGD, name=name, matrix_rate=1.0)
    _loop(tmp_path, task, config, optimiser, on_step=steps.append).run()
    assert steps[-1].losses["square"] < 0.3 * steps[0].losses["square"]
    assert (steps[-1].step, steps[-1].steps) == (120, 120)
    assert [int(s.step) for s in steps] == list(range(1, 121))
    scaler = load_checkpoint(tmp_path / "last.pt")["scaler"]
    assert bool(scaler) == (precision == "float16")


def test_the_average_follows_the_weights(tmp_path: Path) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    task = _task()

    def remember(_: Progress) -> None:
        head = dict(loop.average.named_parameters())["head.weight"]
        seen.append((task.module.head.weight.detach().clone(), head.clone()))  # type: ignore[operator, union-attr]

    loop = _loop(tmp_path, task, replace(_SHORT, ema_decay=0.15), on_step=remember)
    loop.run()
    # The decay is min(0.15, (1 + n) / (10 + n)): 0.1, then 0.15.
    expected = 0.9 * seen[0][0] + 0.1 * _task().module.head.weight.detach()  # type: ignore[operator, union-attr]
    torch.testing.assert_close(seen[0][1], expected)
    torch.testing.assert_close(seen[1][1], 0.85 * seen[1][0] + 0.15 * seen[0][1])


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    class Halves(_ToyTask):
        def batches(self, first_step: int) -> Generator[tuple[int, Tensor]]:
            for number, x in super().batches(first_step // 2):
                yield from ((number, half) for half in x.chunk(2))

    def linear() -> nn.Module:  # without BatchNorm, which sees each batch alone
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(3, 1))

    large = _loop(tmp_path / "a", _ToyTask(linear()))
    small = _loop(
        tmp_path / "b", Halves(linear()), replace(_SHORT, batch_size=2), replace(_SGD, accumulate=2)
    )
    for loop in (large, small):
        loop.run()
    for ours, theirs in zip(_weights(large), _weights(small), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_frozen_backbone_stays_as_it_is_and_then_trains(tmp_path: Path) -> None:
    task = _task()
    before = {k: v.clone() for k, v in task.module.state_dict().items()}
    _loop(tmp_path, task, replace(_SHORT, steps=3, freeze_steps=3)).run()
    changed = {k for k, v in task.module.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"head.weight", "head.bias"}
    _loop(tmp_path, task, replace(_SHORT, steps=4, freeze_steps=3)).run()
    changed = {k for k, v in task.module.state_dict().items() if not torch.equal(v, before[k])}
    assert {"backbone.0.weight", "backbone.1.running_mean", "backbone.1.weight"} <= changed


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, name: Any, precision: Any, number: int
) -> None:
    config, optimiser = replace(_SHORT, precision=precision, schedule="cosine"), replace(_SGD, name=name)
    whole = _loop(tmp_path / "whole", _task(), config, optimiser)
    whole.run()

    def interrupt(progress: Progress) -> None:
        if progress.step == 3:
            signal.raise_signal(number)

    cut = _loop(tmp_path / "cut", _task(), config, optimiser, on_step=interrupt)
    cut.run()
    assert cut.step == load_checkpoint(tmp_path / "cut" / "last.pt")["step"] == 3
    resumed = _loop(tmp_path / "cut", _task(), config, optimiser)
    resumed.run()
    assert resumed.step == 6
    assert _equal(_weights(whole), _weights(resumed))


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    def twice(_: Progress) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        _loop(tmp_path, _task(), on_step=twice).run()
    assert signal.getsignal(signal.SIGINT) is before


def test_settings_changed_on_resume_count_and_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _loop(tmp_path, _task()).run()
    resumed = _loop(tmp_path, _task(), replace(_SHORT, steps=8), replace(_SGD, learning_rate=0.001))
    resumed.run()
    assert resumed.step == 8
    assert resumed.optimiser.param_groups[0]["lr"] == pytest.approx(0.001)
    assert "loop.steps: 6 -> 8" in caplog.text


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_the_photos(tmp_path: Path, poison: float) -> None:
    with pytest.raises(NonFiniteLossError, match=r"step 4: .*extra (nan|inf); files: photo4\.jpg"):
        _loop(tmp_path, _task(poison_at=4, poison=poison)).run()
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 4


def test_a_gradient_that_is_not_finite_names_the_photos(tmp_path: Path) -> None:
    task = _task()

    class RootAtZero(_ToyTask):
        def losses(self, module: nn.Module, batch: tuple[int, Tensor], progress: float) -> dict[str, Tensor]:
            return {"root": (module(batch[1]) * 0).sum().sqrt()}  # finite, but with a slope of 0/0

    with pytest.raises(NonFiniteLossError, match=r"gradient.*photo0\.jpg"):
        _loop(tmp_path, RootAtZero(task.module)).run()


def test_the_best_checkpoint_is_that_of_the_best_score(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    config = replace(_SHORT, validate_every=2, keep_every=3)
    loop = _loop(tmp_path, _task(scores=[0.5, 0.7, 0.6]), config, on_log=rows.append)
    assert loop.run() == 0.7
    best = load_checkpoint(tmp_path / "best.pt")
    assert (best["step"], best["best"], best["figures"]) == (4, 0.7, {"score": 0.7, "other": 1.0})
    assert best["epoch"] == pytest.approx(4 * 4 / 10)
    assert [row["score"] for row in rows if "score" in row] == [0.5, 0.7, 0.6]
    assert {path.name for path in tmp_path.glob("step_*")} == {"step_000003.pt", "step_000006.pt"}
    # A worse score after a resume does not replace it.
    _loop(tmp_path, _task(scores=[0.1]), replace(config, steps=8)).run()
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 4


def test_patience_ends_a_run_that_gets_no_better(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = replace(_SHORT, steps=20, validate_every=2, patience=2)
    loop = _loop(tmp_path, _task(scores=[0.5, 0.7, 0.6, 0.7, 0.9]), config)
    assert loop.run() == 0.7
    assert loop.step == loop.config.steps == 8
    assert "no better score in 2 validations: the run ends at step 8" in caplog.text
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 4
    last = load_checkpoint(tmp_path / "last.pt")
    assert (last["step"], last["record"]["loop"]["steps"]) == (8, 8)


def test_patience_counts_on_in_a_resumed_run(tmp_path: Path) -> None:
    config = replace(_SHORT, steps=20, validate_every=2, patience=2)
    _loop(tmp_path, _task(scores=[0.5, 0.4]), replace(config, steps=4)).run()
    loop = _loop(tmp_path, _task(scores=[0.3, 0.9]), config)
    loop.run()
    assert (loop.step, loop.best) == (6, 0.5)


def test_epochs_are_passes_over_all_samples() -> None:
    config = LoopConfig(steps=7, epochs=2.5).with_known_length(samples=1000, samples_per_step=16)
    assert (config.steps, config.epochs) == (156, None)
    assert LoopConfig(epochs=0.1).with_known_length(3, 16).steps == 1
    assert LoopConfig(steps=7).with_known_length(1000, 16).steps == 7


def test_the_log_has_every_figure_once_also_after_a_crash(tmp_path: Path) -> None:
    class CrashError(Exception):
        pass

    def crash(progress: Progress) -> None:
        if progress.step == 5:
            raise CrashError

    with pytest.raises(CrashError):
        _loop(tmp_path, _task(), replace(_SHORT, log_every=1), on_step=crash).run()
    _loop(tmp_path, _task(), replace(_SHORT, log_every=1)).run()
    curves = read_log(tmp_path / "log.csv")
    assert [step for step, _ in curves["square"]] == [1, 2, 3, 4, 5, 6]
    assert {"square", "extra", "learning_rate", "samples_per_s"} == set(curves)
    assert (tmp_path / "log.csv").read_text().splitlines()[0] == "step,seconds,figure,value"


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_every_figure_has_its_panel(tmp_path: Path, count: int) -> None:
    """Five panels of one curve each, in rows of three."""
    points = [(step, 1 / step) for step in range(1, 100)]
    write_curves({f"figure {number}": points for number in range(count)}, tmp_path / "curves.png")
    picture = read_image(tmp_path / "curves.png")
    assert picture.shape[:2] == (260 * max(1, -(-count // 3)), 420 * min(3, max(1, count)))
    line = (picture == (31, 119, 180)).all(axis=2)  # matplotlib's first colour
    columns = min(3, max(1, count))
    panels = [
        panel for row in np.split(line, line.shape[0] // 260) for panel in np.split(row, columns, axis=1)
    ]
    assert [bool(panel.sum() > 20) for panel in panels] == [n < count for n in range(len(panels))]


def test_a_log_cut_short_is_mended(tmp_path: Path) -> None:
    log = RunLog(tmp_path, tensorboard=False)
    for step in (1, 2, 3):
        log.write(step, 0.5, {"a": 1.0, "b": 2.0})
    path = tmp_path / "log.csv"
    path.write_text(path.read_text()[:-4], encoding="utf-8")
    log.forget_after(3)
    assert read_log(path) == {"a": [(1, 1.0), (2, 1.0), (3, 1.0)], "b": [(1, 2.0), (2, 2.0)]}
    log.forget_after(1)
    assert read_log(path) == {"a": [(1, 1.0)], "b": [(1, 2.0)]}
    path.write_text("1,2\n")
    with pytest.raises(DataError, match=r"log\.csv"):
        read_log(path)


def test_tensorboard_that_is_not_installed_is_said(tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(MissingExtraError, match="TensorBoard"):
            _loop(tmp_path, _task(), replace(_SHORT, tensorboard=True)).run()
    else:
        _loop(tmp_path, _task(), replace(_SHORT, tensorboard=True)).run()
        assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    _loop(tmp_path, _task()).run()
    with pytest.raises(DataError, match=r"last\.pt: does not fit"):
        _loop(tmp_path, _ToyTask(nn.Sequential(nn.Linear(3, 1)))).run()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_damaged_checkpoints_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "last.pt"
    if content is None:
        torch.save({"weights": torch.zeros(3)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"last\.pt: not a"):
        load_checkpoint(path)


def test_a_checkpoint_never_runs_code(tmp_path: Path) -> None:
    torch.save({"step": 1, "module": {}, "average": {}, "record": Path("x")}, tmp_path / "evil.pt")
    with pytest.raises(DataError, match=r"evil\.pt"):
        load_checkpoint(tmp_path / "evil.pt")


def test_a_checkpoint_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"last\.pt"):
        save_checkpoint(tmp_path / "no" / "last.pt", {})


def test_the_mean_of_checkpoints() -> None:
    def state(value: float) -> dict[str, Any]:
        network = {"network.w": torch.full((2,), float(value)), "network.count": torch.tensor(int(value))}
        return {"average": network | {"head.w": torch.zeros(int(value))}}  # of other shapes, and not shipped

    mean = averaged_network([state(1), state(2), state(6)])
    assert mean["w"].tolist() == [3, 3]
    assert mean["count"].item() == 6
    assert mean.keys() == {"w", "count"}
    with pytest.raises(DataError, match="different networks"):
        averaged_network([state(1), {"average": state(1)["average"] | {"network.w": torch.zeros(3)}}])


def test_changed_settings() -> None:
    old = {"loop": {"steps": 1, "seed": 0}, "data": [{"folder": "a"}], "cache": "x"}
    new = {"loop": {"steps": 2, "seed": 0}, "data": [{"folder": "b"}], "device": "cpu"}
    assert changed_settings(old, old) == []
    assert changed_settings(old, new) == [
        "loop.steps: 1 -> 2",
        "data: [{'folder': 'a'}] -> [{'folder': 'b'}]",
        "cache: x -> absent",
        "device: absent -> cpu",
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"log_every": 0},
        {"workers": -1},
        {"ema_decay": 1.0},
        {"freeze_steps": -2},
        {"patience": -1},
        {"epochs": 0},
    ],
)
def test_impossible_loops_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        replace(LoopConfig(), **settings)
