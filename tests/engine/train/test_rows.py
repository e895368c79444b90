"""Batches with rows of padding: training, validation and metrics are what the real rows alone give."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

import engine as ax
from engine.errors import DataError, GraphError, OptionError
from engine.functional.losses import mean_squared_error
from engine.train import ArrayData, checkpoint, evaluator, trainer

SPARSE = {"name": "categorical_cross_entropy", "sparse": True}
ROWS = 22
X = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 3, ROWS).astype(np.int32)


def data(size: int = 8, **options: Any) -> ArrayData:
    """The rows in batches of eight: 8, 8 and 6."""
    return ArrayData({"x": X}, LABELS, batch_size=size, **options)


def plain() -> ax.Model:
    """A model whose rows do not depend on each other."""
    return ax.input("x", shape=(None, 4)).dense(8, activation="tanh").dense(3, activation="softmax")


def normalized() -> ax.Model:
    """A model with batch statistics, within a block too."""
    inner = ax.block(lambda x: x.dense(6).batch_norm().relu())
    return inner(ax.input("x", shape=(None, 4)).dense(6).batch_norm()).dense(3, activation="softmax")


@pytest.mark.parametrize(("model", "optimizer"), [(plain, "adam"), (normalized, "sgd")])
def test_padded_training_equals_unpadded(model: Any, optimizer: str) -> None:
    """Parameters, running statistics, losses, metrics and validation agree, though no batch is smaller."""
    loop = trainer(model(), SPARSE, {"name": optimizer, "learning_rate": 0.05})
    for name in ("accuracy", "top_k_categorical_accuracy"):
        loop = loop.metric(name, sparse=True, **({"k": 2} if name.startswith("top") else {}))
    expected = loop.validate(data(7)).run(data(), epochs=2)
    got = loop.validate(data(7, pad_remainder=True)).run(data(pad_remainder=True), epochs=2)
    for g, e in zip(jax.tree.leaves(got.model_state), jax.tree.leaves(expected.model_state), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-6)
    for after, wanted in zip(got.history, expected.history, strict=True):
        assert list(after) == list(wanted)
        for name, value in wanted.items():
            np.testing.assert_allclose(after[name], value, rtol=1e-5)


def test_full_batches_train_bit_for_bit_alike() -> None:
    """Weights of one change no bit: one step over a full batch, with and without them."""
    loop = trainer(plain(), SPARSE, "adam").metric("accuracy", sparse=True)
    inputs, labels = data(16).peek()
    expected = loop.run([(inputs, labels)])
    got = loop.run([(inputs, labels, np.ones(16, np.float32))])
    jax.tree.map(np.testing.assert_array_equal, got.step_state, expected.step_state)
    jax.tree.map(np.testing.assert_array_equal, dict(got.metrics), dict(expected.metrics))


def test_padding_needs_one_compilation() -> None:
    """All batches of an epoch, and of any other, have one shape."""
    loop = trainer(plain(), SPARSE, "sgd")
    loop.run(data(pad_remainder=True), epochs=2)
    assert loop.program.iteration._cache_size() == 1  # type: ignore[attr-defined]


def test_what_padding_holds_does_not_matter() -> None:
    """Rows of weight 0, class numbers out of range included, reach neither parameters nor metrics."""
    loop = trainer(normalized(), SPARSE, "adam").metric("accuracy", sparse=True)
    x, labels = np.resize(X, (8, 4)), np.resize(LABELS, 8)
    rows = np.array([1, 1, 0, 1, 1, 0, 1, 1], bool)
    results = []
    for filling in (0.0, 3e3):
        spoilt = np.where(rows[:, None], x, filling).astype(np.float32)
        results.append(loop.run([({"x": spoilt}, np.where(rows, labels, 99).astype(np.int32), rows)]))
    jax.tree.map(np.testing.assert_array_equal, results[0].step_state, results[1].step_state)
    assert np.isfinite(results[0].metrics["loss"])


def test_running_averages_weigh_batches_by_their_row_weights() -> None:
    """Over batches of 1, 0 and 4 real rows the mean is that of all five; an empty batch does not count."""
    y = np.array([[4.0], [1.0], [2.0], [7.0], [5.0]], np.float32)
    p = np.zeros((5, 1), np.float32)
    rows = [np.array(w, np.float32) for w in ([1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1])]
    chosen = [[0, 1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4]]
    batches = [({"x": p[c]}, y[c], w) for c, w in zip(chosen, rows, strict=True)]
    loop = evaluator(ax.input("x", shape=(None, 1))).metric("mean_absolute_error")
    found = loop.run(batches, ax.ModelState({})).metrics
    assert float(found["mean_absolute_error"]) == pytest.approx(sk.mean_absolute_error(y, p))
    assert float(loop.run(batches[1:2], ax.ModelState({})).metrics["mean_absolute_error"]) == 0


def test_batches_with_and_without_weights_may_follow_each_other() -> None:
    """Weights are a property of a batch, not of a run."""
    x, y = X[:8], LABELS[:8]
    mixed = [({"x": x}, y), ({"x": x}, y, np.array([1, 1, 0, 0, 0, 0, 0, 0]) > 0)]
    loop = trainer(plain(), SPARSE, {"name": "sgd", "learning_rate": 0.0})
    expected = loop.run([({"x": x}, y), ({"x": x[:2]}, y[:2])]).metrics
    np.testing.assert_allclose(loop.run(mixed).metrics["loss"], expected["loss"], rtol=1e-6)


def test_losses_of_several_outputs_take_the_weights() -> None:
    """Each part of a weighted loss leaves padding out."""
    x = ax.input("x", shape=(None, 4))
    model = ax.container((x.dense(1), x.dense(3, activation="softmax")))
    loop = trainer(model, [("mean_squared_error", 0.75), (SPARSE, 0.25)], {"name": "sgd", "learning_rate": 0.0})
    target = np.ones((8, 1), np.float32)
    got = loop.run([({"x": X[:8]}, (target, LABELS[:8]), np.arange(8) < 5)]).metrics["loss"]
    expected = loop.run([({"x": X[:5]}, (target[:5], LABELS[:5]))]).metrics["loss"]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_functions_of_ones_own_need_a_parameter_rows() -> None:
    """A loss or metric that cannot leave padding out is refused by name; one that takes rows gets them."""
    padded = data(pad_remainder=True)
    with pytest.raises(OptionError, match="loss: expected a function with a parameter rows"):
        trainer(plain(), lambda t, p: jnp.mean(p), "sgd").run(padded)
    loop = trainer(plain(), SPARSE, "sgd")
    with pytest.raises(OptionError, match="metric mine: expected a function with a parameter rows"):
        loop.metric(lambda t, p: jnp.mean(p), "mine").run(padded)
    final = loop.metric(lambda t, p, rows: jnp.sum(rows), "real", "running_sum").run(padded)
    assert final.metrics["real"] == ROWS
    wrapped = trainer(ax.input("x", shape=(None, 4)).dense(4), mean_squared_error_to_zero, "sgd")
    assert wrapped.run(padded).status == "completed"


def mean_squared_error_to_zero(y_true: Any, y_pred: Any, *, rows: Any = None) -> jax.Array:
    """A loss that takes rows."""
    return mean_squared_error(jnp.zeros_like(y_pred), y_pred, reduction="mean", rows=rows)


def test_rows_are_no_option_of_losses_and_metrics() -> None:
    """They come with a batch, never with a specification."""
    with pytest.raises(OptionError, match="loss hinge: expected options out of reduction; got rows"):
        trainer(plain(), {"name": "hinge", "rows": [1.0]}, "sgd")
    with pytest.raises(OptionError, match="metric recall: expected options out of threshold; got rows"):
        trainer(plain(), SPARSE, "sgd").metric("recall", rows=[1.0])


def test_models_that_mix_rows_refuse_padding() -> None:
    """In training and in evaluation, with the layer's name; without padding they train."""
    x = ax.input("x", shape=(None, 4)).dense(3, activation="softmax")
    model = ax.cond(x, x, x.tanh(), reduce="mean", name="choice")
    loop = trainer(model, SPARSE, "sgd")
    with pytest.raises(GraphError, match=r"cond: expected a batch without rows of padding.*in layer 'choice'"):
        loop.run(data(pad_remainder=True))
    with pytest.raises(GraphError, match="in layer 'choice'"):
        evaluator(model).metric("accuracy", sparse=True).run(data(pad_remainder=True), ax.build(model)[0]())
    assert loop.run(data()).status == "completed"
    assert loop.run(data(11, pad_remainder=True)).status == "completed"


def test_the_last_batch_is_filled_with_rows_of_weight_zero() -> None:
    """Every row once with weight 1, all batches of one shape; nothing to fill, no weights."""
    batches = list(data(16, pad_remainder=True).epoch(1))
    assert [inputs["x"].shape for inputs, _, _ in batches] == [(16, 4)] * 2
    assert [int(rows.sum()) for _, _, rows in batches] == [16, 6]
    seen = np.concatenate([inputs["x"][rows > 0] for inputs, _, rows in batches])
    np.testing.assert_array_equal(np.sort(seen, axis=0), np.sort(X, axis=0))
    inputs, labels, rows = batches[1]
    assert {tuple(row) for row in inputs["x"][rows == 0]} <= {tuple(row) for row in inputs["x"][rows > 0]}
    assert len(labels) == 16
    assert len(data(11, pad_remainder=True).peek()) == 2
    small = data(50, pad_remainder=True)
    assert len(small) == 1
    assert small.peek()[0]["x"].shape == (50, 4)
    training, held_out = data(4, pad_remainder=True).split(0.25)
    assert [len(batch) for batch in (*training, *held_out)] == [2] * 4 + [3] * 2


def test_padding_and_dropping_exclude_each_other() -> None:
    """One of them, and batches of two or three parts."""
    with pytest.raises(OptionError, match="expected drop_remainder or pad_remainder, got both"):
        data(drop_remainder=True, pad_remainder=True)
    with pytest.raises(DataError, match="got tuple of 4"):
        trainer(plain(), SPARSE, "sgd").run([(X, LABELS, LABELS, LABELS)])


def test_a_padded_run_resumes_bit_for_bit(tmp_path: Any) -> None:
    """Its checkpoint holds the weights' sum so far and the place in the padded data."""
    loop = trainer(plain(), SPARSE, "adam").metric("accuracy", sparse=True)
    padded = data(pad_remainder=True)
    whole = loop.run(padded, epochs=2)

    def save_and_stop(state: Any) -> Any:
        checkpoint.save(tmp_path / "checkpoint", state)
        return ax.train.Status.HALT_LOOP

    loop.handle_event("iteration_completed", save_and_stop, every=4).run(padded, epochs=2)
    restored = checkpoint.restore(tmp_path / "checkpoint", loop.start(padded))
    resumed = loop.run(padded, resume=restored, epochs=2)
    jax.tree.map(np.testing.assert_array_equal, resumed.step_state, whole.step_state)
    jax.tree.map(np.testing.assert_array_equal, dict(resumed.metrics), dict(whole.metrics))
