"""Handlers that a loop offers: logging, monitoring, stopping, the learning rate."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import engine as ax
from engine.errors import DivergedError, OptionError
from engine.train import Event, Loop, LoopState, checkpoint, trainer
from engine.train.answers import Plan
from engine.train.events import Count
from engine.train.progress import ProgressBar
from engine.train.runner import Runner

DATA = [({"x": np.ones((4, 1), np.float32)}, np.zeros((4, 1), np.float32))] * 3


def training(optimizer: Any = "sgd", **options: Any) -> Loop:
    """A trainer of one weight, which starts at 1."""
    model = ax.input("x", shape=(None, 1)).dense(1, use_bias=False, kernel_initializer="ones")
    return trainer(model, "mean_squared_error", optimizer, **options)


def scripted(values: list[float]) -> Loop:
    """A loop whose metric `m` has these values at the ends of its epochs."""
    loop = Loop.from_step(lambda total, x: total + x)
    return loop.handle_event("epoch_completed", lambda state: state.with_metrics(m=values[state.epoch]))


def test_log_sends_a_line_of_metrics() -> None:
    """Epoch, iteration and every metric, at the chosen occurrences."""
    lines: list[str] = []
    training({"name": "sgd", "learning_rate": 0.0}).log(every=("epoch", 2), sink=lines.append).run(DATA)
    assert lines == ["epoch 0, iteration 0, loss 1", "epoch 0, iteration 2, loss 1"]


def test_trainer_logs_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    """Every so many iterations of an epoch; never by default."""
    training(log=3).run(DATA)
    assert capsys.readouterr().out.startswith("epoch 0, iteration 0, loss 1")
    training().run(DATA)
    assert capsys.readouterr().out == ""


def test_logging_notices_a_diverging_loss() -> None:
    """Where a value is fetched anyway, the run ends before its epoch does."""
    loop = training({"name": "sgd", "learning_rate": 1e30}).log(sink=lambda line: None)
    with pytest.raises(DivergedError, match="in epoch 0 after 2 iterations"):
        loop.run(DATA)


@pytest.mark.parametrize(
    ("mode", "patience", "expected"),
    [("min", 0, [2, 3, 5]), ("min", 1, [3]), ("max", 1, [2, 4])],
)
def test_monitor_calls_after_patience_is_over(mode: Any, patience: int, expected: list[int]) -> None:
    """The (patience + 1)-th event without improvement calls the handler and becomes the new best value."""
    fired: list[int] = []
    loop = scripted([5, 4, 4, 4, 3, 9]).monitor(
        "m", lambda state: fired.append(state.epoch), "probe", mode=mode, patience=patience
    )
    final = loop.run([1], 0, epochs=6)
    assert fired == expected
    assert set(final.handler_state) == {"probe"}


def test_early_stop_ends_the_run() -> None:
    """With patience 2 a constant metric stops at the end of the fourth epoch."""
    final = scripted([1.0] * 9).early_stop("m", patience=2).run([1], 0, epochs=9)
    assert (final.status, final.epoch, len(final.history)) == ("halted", 3, 4)


def test_min_delta_is_what_an_improvement_is_at_least() -> None:
    """A metric that creeps stalls; one that is not a number is worse than any."""
    creeping = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75]
    final = scripted(creeping).early_stop("m", patience=1, min_delta=0.2).run([1], 0, epochs=6)
    assert (final.status, len(final.history)) == ("halted", 3)
    assert scripted(creeping).early_stop("m", patience=1).run([1], 0, epochs=6).status == "completed"
    rising = scripted([1.0, 1.1, 1.3, 1.3]).early_stop("m", patience=0, min_delta=0.25, mode="max")
    assert len(rising.run([1], 0, epochs=4).history) == 2
    assert scripted([float("nan"), 2.0, 1.0]).early_stop("m", patience=0).run([1], 0, epochs=3).status == "completed"


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 1)])
def test_keep_best_keeps_the_state_of_the_best_epoch(mode: Any, best: int) -> None:
    """A copy, which later steps leave alone; of equal epochs the first."""
    seen: list[float] = []
    values = [3.0, 4.0, 2.0, 2.0]
    loop = training({"name": "sgd", "learning_rate": 0.1}).handle_event(
        Event.EPOCH_COMPLETED, lambda state: state.with_metrics(m=values[state.epoch])
    )
    loop = loop.handle_event(
        Event.EPOCH_COMPLETED, lambda state: seen.append(float(state.model_state.parameters["dense_0"]["kernel"][0, 0]))
    )
    final = loop.keep_best("m", mode=mode).run(DATA, epochs=4)
    assert final.handler_state["keep_best"] == {"best": values[best], "epoch": best}
    assert final.best_model_state is not None
    assert float(final.best_model_state.parameters["dense_0"]["kernel"][0, 0]) == seen[best]
    assert len(set(seen)) == 4


def test_keep_best_keeps_averages_where_they_are_published() -> None:
    """With `averaged` it is the optimizer's average."""
    averaging = {"name": "chain", "transforms": [{"name": "sgd", "learning_rate": 0.1}, {"name": "ema", "decay": 0.5}]}
    final = training(averaging).keep_best("loss", averaged=True).run(DATA, epochs=1)
    assert final.best_model_state is not None
    kept, average = (s.parameters["dense_0"]["kernel"] for s in (final.best_model_state, final.averaged_model_state))
    np.testing.assert_array_equal(kept, average)
    assert not np.array_equal(kept, final.model_state.parameters["dense_0"]["kernel"])


def test_reduce_lr_on_plateau_multiplies_the_learning_rate() -> None:
    """The next steps are shorter, without another compilation."""
    loop = training({"name": "sgd", "learning_rate": 0.5}).handle_event(
        Event.EPOCH_COMPLETED, lambda state: state.with_metrics(m=1.0)
    )
    loop = loop.reduce_lr_on_plateau("m", factor=0.1, patience=0)
    final = loop.run(DATA, epochs=2)
    np.testing.assert_allclose(final.optimizer_state[0].scale, -0.05)
    assert loop.program.iteration._cache_size() == 1  # type: ignore[attr-defined]


def test_checkpoint_writes_on_improvement_only(tmp_path: Path) -> None:
    """The best epochs are kept, and the best value goes on counting after a resume."""
    loop = scripted([3.0, 4.0, 2.0, 2.5]).checkpoint(tmp_path, metric="m")
    loop.run([1], 0, epochs=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_1", "checkpoint_3"]
    restored = checkpoint.restore(tmp_path / "checkpoint_3", loop.start([1], 0))
    assert restored.handler_state == {"checkpoint": 2.0}
    assert int(loop.run([1], resume=restored, epochs=4).step_state) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_1", "checkpoint_3"]


def test_checkpoint_replaces_one_of_the_same_step(tmp_path: Path) -> None:
    """A second run over the same folder writes its own."""
    loop = Loop.from_step(lambda total, x: total + x).checkpoint(tmp_path, event="iteration_completed", every=2)
    for start in (0, 10):
        loop.run([1, 2, 3], start)
    restored = checkpoint.restore(tmp_path / "checkpoint_3", loop.start([1], 0))
    assert int(restored.step_state) == 16


def test_monitor_names_an_unknown_metric() -> None:
    """A misspelled metric is an error at the first event."""
    with pytest.raises(OptionError, match=r"monitor early_stop: expected a metric out of loss; got 'los'"):
        training().early_stop("los").run(DATA)


@pytest.mark.parametrize("options", [{"mode": "up"}, {"patience": -1}, {"min_delta": -0.1}])
def test_monitor_checks_its_options(options: dict[str, Any]) -> None:
    """Before anything runs."""
    with pytest.raises(OptionError, match="monitor: expected"):
        training().early_stop("loss", **options)


def test_nothing_is_fetched_between_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps, metrics and handlers that do not ask for a value never make the host wait for one."""
    import jax

    fetched: list[str] = []
    array = type(jax.numpy.ones(()))
    original = array._value

    def spy(self: Any) -> Any:
        fetched.append("value")
        return original.fget(self)  # type: ignore[attr-defined]

    loop = training(on_nonfinite="ignore").metric("mean_absolute_error").handle_event("all", lambda state: None)
    loop.run(DATA)
    monkeypatch.setattr(array, "_value", property(spy))
    loop.run(DATA, epochs=3)
    assert fetched == []


class Sometimes:
    """A handler that is due at every third occurrence."""

    def __init__(self) -> None:
        self.asked: list[tuple[Event, int, int]] = []
        self.seen: list[int] = []

    def due(self, event: Event, count: Count) -> bool:
        self.asked.append((event, count.epoch, count.total))
        return count.total % 3 == 0

    def __call__(self, state: LoopState) -> None:
        self.seen.append(state.iteration)


def test_a_handler_that_is_not_due_costs_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked with event and count alone, where its filter lets the occurrence pass."""
    made: list[Event] = []
    snapshot = Runner._snapshot

    def spy(self: Runner, event: Event, status: str = "running") -> LoopState:
        made.append(event)
        return snapshot(self, event, status)

    handler = Sometimes()
    loop = training(steps_per_execution=1).handle_event(Event.ITERATION_COMPLETED, handler, after=1)
    monkeypatch.setattr(Runner, "_snapshot", spy)
    loop.run(DATA, epochs=2)
    assert handler.asked == [(Event.ITERATION_COMPLETED, 1 + (n - 1) % 3, n) for n in range(2, 7)]
    assert handler.seen == [2, 2]
    assert made.count(Event.ITERATION_COMPLETED) == 2


def test_the_progress_bar_is_due_when_it_has_not_moved_for_a_while() -> None:
    """Not within a twentieth of a second after it moved, but at an epoch's end always."""
    now = [100.0]
    bar = ProgressBar(Console(file=io.StringIO()), Plan(1, 3), lambda: now[0])
    try:
        assert bar.due(Event.ITERATION_COMPLETED, Count(1, 1))
        bar(replace(training().start(DATA), event=Event.ITERATION_COMPLETED))
        now[0] += 0.04
        assert not bar.due(Event.ITERATION_COMPLETED, Count(2, 2))
        assert bar.due(Event.EPOCH_COMPLETED, Count(1, 1))
        now[0] += 0.02
        assert bar.due(Event.ITERATION_COMPLETED, Count(3, 3))
    finally:
        bar.close()
