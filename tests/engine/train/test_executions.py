"""Several steps in one program: nothing but the number of calls differs from one step at a time."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine as ax
from engine.errors import DataError, DivergedError, OptionError
from engine.train import ArrayData, Event, Loop, LoopState, Status, checkpoint, evaluator, trainer
from engine.train.runner import Runner

SPARSE = {"name": "categorical_cross_entropy", "sparse": True}
ROWS, SIZE = 46, 4
"""Eleven batches and a smaller one."""


def arrays() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Rows of noise, each with one of three classes."""
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(ROWS, 6)).astype(np.float32)}, rng.integers(0, 3, ROWS).astype(np.int32)


@functools.cache
def data() -> ArrayData:
    """The rows in batches."""
    return ArrayData(*arrays(), batch_size=SIZE)


@functools.cache
def training(steps_per_execution: int, *, random: bool = False) -> Loop:
    """A classifier with Adam, a metric and validation; `random` adds batch statistics and dropout."""
    model = ax.input("x", shape=(None, 6)).dense(8, activation="relu")
    model = model.batch_norm().dropout(rate=0.5) if random else model
    loop = trainer(model.dense(3, activation="softmax"), SPARSE, "adam", steps_per_execution=steps_per_execution)
    return loop.metric("accuracy", sparse=True).validate(data())


def everything(state: LoopState) -> tuple[Any, ...]:
    """All of a final state."""
    arrays = (state.step_state, state.accumulators, dict(state.metrics), state.history)
    plain = (state.epoch, state.iteration, state.total_iterations, state.event_counts, state.data_state, state.stage)
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(arrays)], plain, state.status


def adding(steps_per_execution: int) -> Loop:
    """A loop that adds up its batches."""
    return Loop.from_step(lambda total, x: total + x, steps_per_execution=steps_per_execution)


def numbers(count: int) -> list[np.ndarray]:
    """0, 1, 2, ..."""
    return [np.full((), number, np.float32) for number in range(count)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many steps each call of a compiled program makes, in all loops from now on."""
    made: list[int] = []
    step = Runner._step

    def spy(self: Runner, function: Any, batch: Any, steps: int = 1) -> None:
        made.append(steps)
        step(self, function, batch, steps)

    monkeypatch.setattr(Runner, "_step", spy)
    return made


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("steps", [2, 5])
def test_executions_end_with_the_same_bits(steps: int, random: bool, calls: list[int]) -> None:
    """Parameters, optimizer, metrics and history, with an odd number of batches and a smaller last one."""
    single, several = training(1, random=random), training(steps, random=random)
    found = several.run(data(), epochs=2)
    epoch = [steps] * (11 // steps) + [1] * (11 % steps + 1)
    assert calls == epoch * 4  # two of training, two of validation
    assert everything(found) == everything(single.run(data(), epochs=2))


def test_steps_go_together_where_nobody_is_called(calls: list[int]) -> None:
    """Whole executions first, then what is left one by one; a limit of iterations is kept."""
    loop = adding(4)
    final = loop.run(numbers(10), 0.0)
    assert calls == [4, 4, 1, 1]
    assert (float(final.step_state), final.total_iterations) == (45.0, 10)
    calls.clear()
    final = loop.run(numbers(10), 0.0, iterations=7)
    assert calls == [4, 1, 1, 1]
    assert float(final.step_state) == 21.0


@pytest.mark.parametrize(
    ("event", "filters", "expected", "seen"),
    [
        ("iteration_completed", {}, [1] * 10, list(range(10))),
        ("iteration_completed", {"every": 5}, [1, 4, 1, 4], [0, 5]),
        ("iteration_completed", {"once": 6}, [4, 1, 1, 4], [5]),
        ("iteration_completed", {"once": 8}, [4, 4, 1, 1], [7]),
        ("iteration_completed", {"after": 8}, [4, 4, 1, 1], [8, 9]),
        ("iteration_completed", {"when": lambda state: state.iteration == 2}, [1] * 10, [2]),
        ("iteration_started", {"once": 6}, [4, 1, 1, 4], [5]),
        ("iteration_started", {"once": 5}, [4, 1, 4, 1], [4]),
    ],
)
def test_handlers_are_called_at_their_iterations(
    event: str, filters: dict[str, Any], expected: list[int], seen: list[int], calls: list[int]
) -> None:
    """With the state of that iteration, and no execution goes past one; elsewhere steps go together."""
    states: list[tuple[int, float]] = []
    loop = adding(4).handle_event(
        event, lambda state: states.append((state.iteration, float(state.step_state))), **filters
    )
    loop.run(numbers(10), 0.0)
    done = 1 if event == "iteration_completed" else 0
    assert states == [(number, float(sum(range(number + done)))) for number in seen]
    assert calls == expected


@pytest.mark.parametrize("event", ["iteration_started", "iteration_completed"])
@pytest.mark.parametrize("status", [Status.HALT_EPOCH, Status.HALT_LOOP])
def test_a_run_is_halted_at_its_iteration(event: str, status: Status) -> None:
    """Between what would have been one execution, and goes on from there with the same bits."""
    ended = []
    for steps in (1, 5):
        loop = training(steps, random=True)
        halted = loop.handle_event(event, lambda state: status, once=8).run(data(), epochs=2)
        ended.append([everything(halted), everything(loop.run(data(), epochs=2, resume=halted))])
    assert ended[0] == ended[1]


def test_a_run_resumes_within_an_epoch(tmp_path: Path) -> None:
    """From checkpoints at any iteration, in a loop of other steps per execution, to the same bits."""
    whole = everything(training(1, random=True).run(data(), epochs=2))
    saving = training(3, random=True).checkpoint(tmp_path, event=Event.ITERATION_COMPLETED, every=7)
    assert everything(saving.run(data(), epochs=2))[0] == whole[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint_{n}" for n in (1, 15, 22, 8)]
    loop = training(5, random=True)
    for number in (1, 8, 15):
        state = checkpoint.restore(tmp_path / f"checkpoint_{number}", loop.start(data(), seed=9))
        assert everything(loop.run(data(), epochs=2, resume=state)) == whole


def test_an_evaluation_gives_the_same_numbers() -> None:
    """An evaluator's metrics too are added up in one program."""
    model = ax.input("x", shape=(None, 6)).dense(3, activation="softmax")
    state = ax.build(model)[0]()
    single, several = (
        evaluator(model, steps_per_execution=steps).metric("accuracy", sparse=True).run(data(), state)
        for steps in (1, 4)
    )
    assert everything(several) == everything(single)


def test_batches_of_other_forms_run_one_by_one(calls: list[int]) -> None:
    """Shapes that differ, and values that are no arrays."""
    loop = Loop.from_step(lambda total, x: total + jnp.sum(x), steps_per_execution=2)
    batches: list[Any] = [np.ones(2, np.float32), np.ones(3, np.float32), 1.0, 2.0]
    assert float(loop.run(batches, 0.0).step_state) == 8.0
    assert calls == [1, 1, 1, 1]


def test_a_strict_run_names_the_batch_of_another_form() -> None:
    """Within an execution too."""
    batches = [np.ones(2, np.float32)] * 2 + [np.ones(3, np.float32)]
    with pytest.raises(DataError, match=r"got .* in iteration 2 of epoch 0"):
        Loop.from_step(lambda total, x: total + jnp.sum(x), steps_per_execution=3).run(batches, 0.0, strict=True)


def test_a_debugged_run_looks_at_every_step(calls: list[int]) -> None:
    """So its steps go one by one."""
    loop = adding(4)
    loop.run(numbers(8), 0.0, debug=True)
    assert calls == [1] * 8


def test_a_diverging_execution_names_its_iteration() -> None:
    """The report is that of single steps."""
    model = ax.input("x", shape=(None, 6)).dense(3)
    inputs, labels = arrays()
    held = ArrayData(inputs, np.eye(3, dtype=np.float32)[labels], batch_size=SIZE, drop_remainder=True)
    messages = []
    for steps in (1, 5):
        optimizer = {"name": "sgd", "learning_rate": 1e15}
        with pytest.raises(DivergedError) as error:
            trainer(model, "mean_squared_error", optimizer, steps_per_execution=steps).run(held)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert "first in iteration" in messages[0]


@pytest.mark.parametrize("steps", [0, 1.5])
def test_impossible_executions_are_refused(steps: Any) -> None:
    """One step or more."""
    model = ax.input("x", shape=(None, 6)).dense(3)
    for make in (
        lambda: trainer(model, "mean_squared_error", "sgd", steps_per_execution=steps),
        lambda: evaluator(model, steps_per_execution=steps),
        lambda: adding(steps),
    ):
        with pytest.raises(OptionError, match="steps_per_execution"):
            make()


def printed(y_true: Any, y_pred: Any) -> jax.Array:
    """A loss with an effect."""
    jax.debug.callback(lambda: None)
    return jnp.mean((y_true - y_pred) ** 2)


@pytest.mark.parametrize(
    ("kind", "loss", "width", "expected"),
    [
        ("dense", "mean_squared_error", 6, 8),
        ("conv", "mean_squared_error", 6, 1),
        ("dense", printed, 6, 1),
        ("dense", "mean_squared_error", 2**17 + 1, 1),
    ],
)
def test_what_was_measured_is_chosen_on_the_cpu(
    kind: str, loss: Any, width: int, expected: int, calls: list[int]
) -> None:
    """Eight steps, but one with convolutions, with effects, and with more than 16 MiB of batches."""
    model = ax.input("x", shape=(None, width, 1))
    model = (model.conv(1, kernel_size=3) if kind == "conv" else model).flatten().dense(1)
    rows = {"x": np.ones((4 * 9, width, 1), np.float32)}
    loop = trainer(model, loss, {"name": "sgd", "learning_rate": 0.0})
    loop.run(ArrayData(rows, np.ones((4 * 9, 1), np.float32), batch_size=4))
    assert calls == ([1, 8] if expected == 8 else [1] * 9)
