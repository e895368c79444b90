"""Checkpoints: every bit comes back, a resumed run ends like one that was not stopped, damage is noticed."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine as ax
from engine.errors import CheckpointError
from engine.train import ArrayData, Event, Loop, LoopState, checkpoint, trainer


def data() -> ArrayData:
    """Twenty rows of noise in four batches."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 6)).astype(np.float32), rng.integers(0, 3, 20).astype(np.int32)
    return ArrayData({"x": x}, y, batch_size=5)


@functools.cache
def training() -> Loop:
    """All that has a state: dropout keys, running statistics, Adam, metrics, validation, the best, a monitor."""
    model = ax.input("x", shape=(None, 6)).dense(8, activation="relu").batch_norm().dropout(rate=0.5)
    loss = {"name": "categorical_cross_entropy", "sparse": True}
    loop = trainer(model.dense(3, activation="softmax"), loss, "adam").metric("accuracy", sparse=True)
    loop = loop.validate(data().split(0.3)[1]).keep_best("validation_loss")
    return loop.early_stop("validation_loss", patience=9)


def bits(tree: Any) -> list[bytes]:
    """The bytes of every leaf."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def everything(state: LoopState) -> tuple[Any, ...]:
    """All that a resumed run must have in common with an undisturbed one."""
    arrays = (state.step_state, state.accumulators, dict(state.metrics), state.history, state.best_model_state)
    plain = (state.epoch, state.iteration, state.event_counts, state.handler_state, state.stage, state.status)
    return bits(arrays), plain


def test_a_run_stopped_anywhere_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """After each event of a small run: restored in another loop, it makes the same events with the same bits."""
    events: list[Any] = []

    def watched() -> Loop:
        return training().handle_event(
            "all", lambda state: events.append((state.event, state.epoch, state.iteration, bits(dict(state.metrics))))
        )

    saving = watched().handle_event("all", lambda state: checkpoint.save(tmp_path / str(len(events)), state))
    undisturbed = saving.run(data(), epochs=2)
    complete = list(events)
    resumable = watched()
    like = resumable.start(data(), seed=99)
    for position in range(1, len(complete)):
        events[:] = complete[:position]
        final = resumable.run(data(), epochs=2, resume=checkpoint.restore(tmp_path / str(position), like))
        assert events == complete, f"resumed after {complete[position - 1][:3]}"
        assert everything(final) == everything(undisturbed)


def test_a_halted_run_goes_on_from_its_own_state() -> None:
    """Without a checkpoint too; and the state resumed from can be resumed again."""
    loop = training()
    undisturbed = loop.run(data(), epochs=2)
    stopped = loop.handle_event(Event.ITERATION_COMPLETED, lambda state: ax.train.Status.HALT_LOOP, once=3)
    state = stopped.run(data(), epochs=2)
    for _ in range(2):
        final = loop.run(data(), epochs=2, resume=state)
        assert bits(final.step_state) == bits(undisturbed.step_state)
        assert bits(final.history) == bits(undisturbed.history)


def test_a_plain_list_of_batches_resumes_too() -> None:
    """The batches done are skipped."""
    loop, batches = training(), list(data().epoch(0))
    undisturbed = loop.run(batches, epochs=2)
    stopping = loop.handle_event(Event.ITERATION_STARTED, lambda state: ax.train.Status.HALT_LOOP, once=6)
    final = loop.run(batches, epochs=2, resume=stopping.run(batches, epochs=2))
    assert bits(final.step_state) == bits(undisturbed.step_state)


def test_the_models_state_alone_is_read_for_another_run(tmp_path: Path) -> None:
    """Whatever the optimizer and the metrics were; marks are those of the state it is read for."""
    state = training().run(data())
    checkpoint.save(tmp_path / "one", state)
    loss = {"name": "categorical_cross_entropy", "sparse": True}
    like = trainer(training().program.step.model, loss, "sgd").start(data()).model_state
    found = checkpoint.restore_model(tmp_path / "one", like.freeze(lambda path: path.startswith("dense_0")))
    assert bits(found) == bits(state.model_state)
    assert found.frozen == {"dense_0.kernel", "dense_0.bias"}
    other = ax.build(ax.input("x", shape=(None, 6)).dense(4))[0]()
    with pytest.raises(CheckpointError, match="differs in"):
        checkpoint.restore_model(tmp_path / "one", other)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, LoopState]:
    """A checkpoint and the state it was made of."""
    state = training().run(data())
    checkpoint.save(tmp_path / "one", state)
    return tmp_path / "one", state


def test_every_kind_of_leaf_comes_back(tmp_path: Path) -> None:
    """Typed keys, bfloat16, 64-bit integers, scalars and empty arrays keep type and bits."""
    with jax.enable_x64(True):
        step_state = {
            "key": jax.random.key(7),
            "keys": jax.random.split(jax.random.key(1, impl="rbg"), 3),
            "half": jnp.array([1.5, -0.0, jnp.nan], jnp.bfloat16),
            "wide": jnp.array([2**40 + 5]),
            "scalar": jnp.float32(0.1),
            "empty": jnp.zeros((0, 3)),
            "flag": jnp.array([True, False]),
        }
    start = Loop.from_step(lambda total, x: total + x).start([1], 0)
    state = replace(start, step_state=step_state, handler_state={"stop": {"best": float("nan"), "since": 1}})
    checkpoint.save(tmp_path / "one", state)
    found = checkpoint.restore(tmp_path / "one", state)
    for name, leaf in step_state.items():
        assert found.step_state[name].dtype == leaf.dtype, name
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        left, right = (jax.random.key_data(v) if key else v for v in (found.step_state[name], leaf))
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes(), name
    assert np.isnan(found.handler_state["stop"]["best"])


def test_an_existing_folder_is_not_overwritten(saved: tuple[Path, LoopState]) -> None:
    """A checkpoint is written once."""
    with pytest.raises(CheckpointError, match="expected a new folder"):
        checkpoint.save(*saved)


def test_a_missing_checkpoint_is_named(saved: tuple[Path, LoopState]) -> None:
    """With the folder that was looked for."""
    with pytest.raises(CheckpointError, match="two: expected a folder, got none"):
        checkpoint.restore(saved[0].with_name("two"), saved[1])


def test_every_damaged_file_is_noticed(saved: tuple[Path, LoopState]) -> None:
    """A byte changed, a file cut short or gone: an error, or (in Orbax's own notes) no effect at all."""
    folder, state = saved
    expected = everything(state)
    noticed = 0
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = file.read_bytes()
        middle = len(content) // 2
        for damaged in (content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :], content[:middle]):
            file.write_bytes(damaged)
            try:
                assert everything(checkpoint.restore(folder, state)) == expected, file
            except CheckpointError:
                noticed += 1
        file.write_bytes(content)
    assert noticed >= 4
    assert everything(checkpoint.restore(folder, state)) == expected


def test_a_checkpoint_of_another_loop_is_refused(saved: tuple[Path, LoopState]) -> None:
    """Other parameters, another optimizer or other metrics are named."""
    model = ax.input("x", shape=(None, 6)).dense(4, activation="softmax")
    other = trainer(model, {"name": "categorical_cross_entropy", "sparse": True}, "adam").start(data())
    with pytest.raises(CheckpointError, match="expected the state of the same loop, differs in"):
        checkpoint.restore(saved[0], other)


def test_a_checkpoint_of_other_shapes_is_refused(tmp_path: Path) -> None:
    """The leaf is named with both shapes."""
    start = Loop.from_step(lambda total, x: total + x).start([1], 0)
    checkpoint.save(tmp_path / "one", replace(start, step_state={"w": jnp.zeros(3)}))
    with pytest.raises(CheckpointError, match=r"expected step_state\['w'\] of \(\(2,\), dtype\('float32'\)\)"):
        checkpoint.restore(tmp_path / "one", replace(start, step_state={"w": jnp.zeros(2)}))
