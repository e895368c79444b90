"""Training and evaluation end to end: what is learnt, what is measured, what is refused."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

import engine as ax
from engine.errors import DataError, DivergedError, OptionError, ShapeError, StateError
from engine.functional.losses import categorical_cross_entropy
from engine.train import ArrayData, Event, LoopState, evaluator, trainer

SPARSE = {"name": "categorical_cross_entropy", "sparse": True}


def classifier() -> ax.Model:
    """Four inputs, three classes."""
    return ax.input("x", shape=(None, 4)).dense(8, activation="relu").dense(3, activation="softmax")


def blobs(rows: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Points around three corners, with the corner's number."""
    labels = np.arange(rows) % 3
    noise = np.random.default_rng(0).normal(size=(rows, 4))
    return (np.eye(3, 4)[labels] * 2 + 0.3 * noise).astype(np.float32), labels.astype(np.int32)


def batches(size: int = 10) -> list[Any]:
    """The blobs in batches."""
    x, y = blobs()
    return [({"x": x[i : i + size]}, y[i : i + size]) for i in range(0, len(x), size)]


def leaves(tree: Any) -> list[bytes]:
    """The bytes of every leaf."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_digits_are_learnt() -> None:
    """A small network reads scikit-learn's real handwritten digits it has not seen."""
    digits = load_digits()
    data = ArrayData({"x": (digits.data / 16).astype(np.float32)}, digits.target, batch_size=64)
    training, held_out = data.split(0.2)
    model = ax.input("x", shape=(None, 64)).dense(64, activation="relu").dense(10, activation="softmax")
    loop = trainer(model, SPARSE, {"name": "adam", "learning_rate": 0.01}).metric("accuracy", sparse=True)
    final = loop.validate(held_out).run(training, epochs=8)
    assert final.history[-1]["validation_accuracy"] > 0.95
    losses = [float(metrics["loss"]) for metrics in final.history]
    assert losses == sorted(losses, reverse=True)
    found = evaluator(model).metric("accuracy", sparse=True).run(held_out, final.model_state)
    assert found.metrics["accuracy"] == final.history[-1]["validation_accuracy"]


def test_one_step_equals_jax_by_hand() -> None:
    """Loss and parameters after one step of gradient descent are those of jax.grad on the same function."""
    model, (inputs, labels) = classifier(), batches()[0]
    state = ax.build(model)[0](inputs)
    predict = ax.build(model)[1]

    def loss_of(parameters: Any) -> jax.Array:
        p = predict(ax.ModelState(parameters), inputs)
        return -jnp.log(p[jnp.arange(len(labels)), labels]).mean()

    loss, gradients = jax.value_and_grad(loss_of)(state.parameters)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.parameters, gradients)
    final = trainer(model, SPARSE, {"name": "sgd", "learning_rate": 0.1}).run([(inputs, labels)], state)
    np.testing.assert_allclose(final.metrics["loss"], loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), final.model_state.parameters, expected)


def test_the_initial_state_is_left_alone() -> None:
    """Steps take over memory, but never that of the caller: the same start gives the same end."""
    loop = trainer(classifier(), SPARSE, "adam")
    state = ax.build(classifier())[0]()
    before = leaves(state)
    first = loop.run(batches(), state, epochs=2)
    assert leaves(state) == before
    assert leaves(loop.run(batches(), state, epochs=2).step_state) == leaves(first.step_state)
    assert leaves(loop.run(batches(), resume=first, epochs=3).step_state) != leaves(first.step_state)


def test_frozen_parameters_stay() -> None:
    """Only what is not frozen is trained; the optimizer has no state for the rest."""
    state = ax.build(classifier())[0]().freeze(lambda path: path.startswith("dense_0"))
    final = trainer(classifier(), SPARSE, "adam").run(batches(), state, epochs=2)
    assert leaves(final.model_state.parameters["dense_0"]) == leaves(state.parameters["dense_0"])
    assert leaves(final.model_state.parameters["dense_1"]) != leaves(state.parameters["dense_1"])
    assert "dense_0" not in final.optimizer_state[0].mu


def test_saturated_outputs_still_have_a_loss_and_gradients() -> None:
    """The loss is computed on the logits: a probability that rounds to zero does no harm."""
    model = ax.input("x", shape=(None, 3)).softmax()
    x = np.array([[1000.0, 0.0, -1000.0]], np.float32)
    metrics = trainer(model, SPARSE, "sgd").run([({"x": x}, np.array([2], np.int32))]).metrics
    np.testing.assert_allclose(metrics["loss"], 2000.0)
    weighted = ax.input("x", shape=(None, 1)).dense(1, use_bias=False, activation="sigmoid")
    state = ax.ModelState({"dense_0": {"kernel": jnp.array([[100.0]])}})
    batch = ({"x": np.array([[10.0]], np.float32)}, np.array([[0.0]], np.float32))
    final = trainer(weighted, "binary_cross_entropy", {"name": "sgd", "learning_rate": 1.0}).run([batch], state)
    np.testing.assert_allclose(final.metrics["loss"], 1000.0)
    np.testing.assert_allclose(final.model_state.parameters["dense_0"]["kernel"], [[90.0]])


def test_metrics_see_the_activated_prediction() -> None:
    """Though the loss takes logits, a metric gets the probabilities."""
    loop = trainer(classifier(), SPARSE, "sgd").metric(lambda t, p: p.sum(axis=-1).mean(), "total")
    np.testing.assert_allclose(loop.run(batches()).metrics["total"], 1.0, rtol=1e-6)


def test_weighted_losses_of_several_outputs_add_up() -> None:
    """A list of (loss, weight) pairs with a tuple of outputs; an activation in it is left to its loss."""
    x = ax.input("x", shape=(None, 4))
    model = ax.container((x.dense(1), x.dense(3, activation="softmax")))
    inputs, labels = batches()[0]
    targets = (np.ones((10, 1), np.float32), labels)
    state = ax.build(model)[0](inputs)
    first, second = ax.build(model)[1](state, inputs)
    expected = 0.75 * np.mean((first - 1) ** 2)
    expected += 0.25 * np.mean(categorical_cross_entropy(jnp.asarray(labels), second, sparse=True))
    loop = trainer(model, [("mean_squared_error", 0.75), (SPARSE, 0.25)], "sgd")
    np.testing.assert_allclose(loop.run([(inputs, targets)], state).metrics["loss"], expected, rtol=1e-5)


def test_running_averages_weigh_batches_by_their_rows() -> None:
    """A smaller last batch counts for its rows; a running sum adds; a function gets value and index."""
    x = np.zeros((10, 1), np.float32)
    y = np.arange(10, dtype=np.float32)[:, None]
    loop = evaluator(ax.input("x", shape=(None, 1)))
    loop = loop.metric(lambda t, p: t.mean(), "mean").metric(lambda t, p: t.sum(), "sum", "running_sum")
    loop = loop.metric(lambda t, p: t.max(), "last", lambda so_far, value, i: jnp.where(i == 2, value, so_far))
    data = ArrayData({"x": x}, y, batch_size=4, shuffle=False)
    metrics = loop.run(data, ax.ModelState({})).metrics
    assert {name: float(value) for name, value in metrics.items()} == {"mean": 4.5, "sum": 45.0, "last": 9.0}


def test_metrics_start_anew_in_every_epoch() -> None:
    """The history has each epoch's own values, the loss of the current batches included."""
    loop = trainer(classifier(), SPARSE, {"name": "sgd", "learning_rate": 0.0}).metric("accuracy", sparse=True)
    final = loop.run(batches(), epochs=3)
    assert len(final.history) == 3
    assert len({float(metrics["loss"]) for metrics in final.history}) == 1
    assert list(final.metrics) == ["loss", "accuracy"]


def test_validation_adds_metrics_without_touching_training() -> None:
    """Parameters are the same with and without it, batch_norm and dropout included."""
    model = ax.input("x", shape=(None, 4)).dense(8).batch_norm().dropout(rate=0.5).dense(3, activation="softmax")
    loop = trainer(model, SPARSE, "adam").metric("accuracy", sparse=True)
    plain, validated = loop.run(batches(), epochs=2), loop.validate(batches(6)).run(batches(), epochs=2)
    assert leaves(plain.step_state) == leaves(validated.step_state)
    assert set(validated.history[0]) - set(plain.history[0]) == {"validation_loss", "validation_accuracy"}


def test_validation_covers_metrics_added_after_it() -> None:
    """The order of `validate` and `metric` does not matter."""
    loop = trainer(classifier(), SPARSE, "sgd").validate(batches()).metric("accuracy", sparse=True)
    assert "validation_accuracy" in loop.run(batches()).metrics


def test_batches_of_other_sizes_compile_again() -> None:
    """The last batch may be smaller; nothing else is needed."""
    final = trainer(classifier(), SPARSE, "sgd").run(batches(8))
    assert final.total_iterations == 4


def test_sixty_four_bit_models_train_in_their_precision() -> None:
    """A graph with a 64-bit input is trained on 64-bit values, and JAX's global setting stays as it was."""
    model = ax.input("x", shape=(None, 1), dtype="f64").dense(1)
    seen: list[Any] = []
    loop = trainer(model, "mean_squared_error", "sgd").metric(lambda t, p: p.mean(), "mean")
    loop = loop.handle_event(Event.EPOCH_COMPLETED, lambda state: seen.append(state.metrics["mean"].dtype))
    loop.run([({"x": np.ones((2, 1))}, np.ones((2, 1)))])
    assert seen == [np.float64]
    assert jnp.ones(1).dtype == np.float32


def test_a_diverging_run_ends_with_the_epoch() -> None:
    """The error names value, epoch and iterations; handlers of the epoch's end are not called."""
    called: list[LoopState] = []
    model = ax.input("x", shape=(None, 4)).dense(3)
    loop = trainer(model, "mean_squared_error", {"name": "sgd", "learning_rate": 1e30})
    data = [(inputs, np.ones((10, 3), np.float32)) for inputs, _ in batches()]
    with pytest.raises(DivergedError, match=r"expected a finite loss, got (nan|inf) in epoch 0 after 3 iterations"):
        loop.handle_event("epoch_completed", called.append).run(data, epochs=4)
    assert not called


def test_a_diverging_run_may_go_on() -> None:
    """With on_nonfinite=ignore nothing is checked."""
    model = ax.input("x", shape=(None, 4)).dense(3)
    loop = trainer(model, "mean_squared_error", {"name": "sgd", "learning_rate": 1e30}, on_nonfinite="ignore")
    data = [(inputs, np.ones((10, 3), np.float32)) for inputs, _ in batches()]
    assert loop.run(data, epochs=2).status == "completed"


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("cross_entropy", "loss: expected one of .*got 'cross_entropy'"),
        ({"name": "hinge", "sparse": True}, "loss hinge: expected options out of reduction; got sparse"),
        ({"name": "hinge", "reduction": "none"}, "expected the reduction mean or sum"),
        ([("hinge", 1.0), ("hinge", 1.0)], "expected a model whose output is a tuple of 2 arrays"),
    ],
)
def test_unknown_losses_are_refused(loss: Any, message: str) -> None:
    """When the trainer is made, not when it runs."""
    with pytest.raises(OptionError, match=message):
        trainer(classifier(), loss, "sgd")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("acuracy",), {}, "metric: expected one of .*accuracy"),
        (("accuracy",), {"sparce": True}, "metric accuracy: expected options out of .*sparse.*got sparce"),
        ((lambda t, p: p,), {}, "expected a name for"),
        (("accuracy", "a", "running_mean"), {}, "expected accumulate to be one of"),
        (("accuracy", "loss"), {}, "expected a name not in use, got 'loss'"),
    ],
)
def test_unknown_metrics_are_refused(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    """Names, options, accumulators and clashes are checked when the metric is added."""
    with pytest.raises(OptionError, match=message):
        trainer(classifier(), SPARSE, "sgd").metric(*arguments, **options)


@pytest.mark.parametrize("options", [{"epochs": -1}, {"iterations": 0}])
def test_impossible_lengths_are_refused(options: dict[str, int]) -> None:
    """Epochs are zero or more, iterations one or more."""
    with pytest.raises(OptionError, match="run: expected"):
        trainer(classifier(), SPARSE, "sgd").run(batches(), **options)


def test_unfit_data_is_refused() -> None:
    """No batches, batches that are no pairs, wrong shapes, and a loss per row."""
    loop = trainer(classifier(), SPARSE, "sgd")
    with pytest.raises(DataError, match="at least one batch"):
        loop.run([])
    with pytest.raises(DataError, match=r"expected batches \(inputs, targets\) or .*, got ndarray"):
        loop.run([np.zeros((2, 4))])
    with pytest.raises(ShapeError, match="input 'x': expected shape"):
        loop.run([({"x": np.zeros((2, 5), np.float32)}, np.zeros(2, np.int32))])
    rowwise = trainer(classifier(), lambda t, p: p.sum(axis=-1), "sgd")
    with pytest.raises(ShapeError, match=r"loss: expected one number for a batch, got shape \(10,\)"):
        rowwise.run(batches())


def test_a_one_shot_iterator_ends_with_an_error_after_its_epoch() -> None:
    """Data that cannot be read twice is named, not trained on silently."""
    with pytest.raises(DataError, match="expected at least one batch in epoch 1, got none"):
        trainer(classifier(), SPARSE, "sgd").run(iter(batches()), epochs=2)


def test_an_evaluator_needs_a_state() -> None:
    """There is nothing to evaluate without one."""
    with pytest.raises(StateError, match="expected a ModelState to evaluate"):
        evaluator(classifier()).run(batches())


def test_misspelled_options_of_run_are_errors() -> None:
    """`epoch=` trains nothing else than asked."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'epoch'"):
        trainer(classifier(), SPARSE, "sgd").run(batches(), epoch=3)  # type: ignore[call-arg]
