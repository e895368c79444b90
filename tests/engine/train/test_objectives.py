"""Objectives: outputs by path, weights, regularizers, functions of one's own, and what is refused."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import engine as ax
from engine.errors import DataError, OptionError, ShapeError
from engine.functional.losses import LOSSES
from engine.model.layers.basics import container_from_nodes
from engine.model.state import flatten
from engine.train import ObjectiveFunction, checkpoint, trainer
from engine.train.objectives import objective

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 4)).astype(np.float32)
LABELS = RNG.integers(0, 3, 8).astype(np.int32)
VALUES = RNG.normal(size=(8, 2)).astype(np.float32)
SPARSE = {"name": "categorical_cross_entropy", "sparse": True}
SLOW = {"name": "sgd", "learning_rate": 0.1}


def trunk() -> ax.Model:
    """What all models here begin with."""
    return ax.input("x", shape=(None, 4)).dense(5, activation="tanh", name="trunk")


def heads() -> ax.Model:
    """Classes and values, in a dict of dicts."""
    base = trunk()
    classes = base.dense(3, activation="softmax", name="classes")
    values = base.dense(2, name="values")
    return ax.container({"heads": {"a": classes, "b": values}, "features": base})


TARGETS = {"heads": {"a": LABELS, "b": VALUES}}


def by_hand(model: ax.Model, loss: Any, state: Any = None) -> tuple[Any, Any, Any]:
    """One step of gradient descent by jax.grad: the first state, the loss and the parameters after it."""
    init_fn, predict = ax.build(model, mode="train")
    state = init_fn({"x": X}, seed=0) if state is None else state

    def value(parameters: Any) -> Any:
        return loss(parameters, predict(state.with_trainable(parameters), {"x": X}).prediction)

    found, gradients = jax.value_and_grad(value)(state.trainable())
    return state, found, jax.tree.map(lambda p, g: p - 0.1 * g, state.trainable(), gradients)


def assert_same(got: Any, expected: Any, rtol: float = 1e-5) -> None:
    """Equal trees, within float error."""
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=rtol, atol=1e-6), got, expected)


def entropy(probabilities: Any) -> Any:
    """The cross entropy of the labels, by the formula."""
    return -jnp.mean(jnp.log(probabilities[jnp.arange(8), LABELS]))


@pytest.mark.parametrize(
    "loss",
    [
        {"heads.a": SPARSE, "heads.b": {"loss": "mean_squared_error", "weight": 0.25}},
        {
            "heads.b": {"loss": lambda t, p: jnp.mean((t - p) ** 2), "weight": 0.25},
            "heads.a": {"loss": SPARSE},
        },
    ],
)
def test_losses_by_path_are_their_weighted_sum(loss: Any) -> None:
    """Loss and parameters are those of the sum by hand, its parts are reported, and validated too."""

    def total(parameters: Any, y: Any) -> Any:
        return entropy(y["heads"]["a"]) + 0.25 * jnp.mean((VALUES - y["heads"]["b"]) ** 2)

    _, value, parameters = by_hand(heads(), total)
    data = [({"x": X}, TARGETS)]
    final = trainer(heads(), loss, SLOW).validate(data).run(data)
    assert_same(final.model_state.parameters, parameters)
    np.testing.assert_allclose(final.metrics["loss"], value, rtol=1e-5)
    parts = float(final.metrics["loss_heads.a"]) + 0.25 * float(final.metrics["loss_heads.b"])
    np.testing.assert_allclose(parts, value, rtol=1e-5)
    assert {"validation_loss", "validation_loss_heads.a", "validation_loss_heads.b"} <= set(final.metrics)


def test_metrics_see_probabilities_of_outputs_by_path() -> None:
    """The loss is that of the logits, but what a metric gets is the model's output."""
    loop = trainer(heads(), {"heads.a": SPARSE}, SLOW)
    loop = loop.metric(lambda t, y: jnp.max(jnp.abs(jnp.sum(y["heads"]["a"], -1) - 1)), "unnormalized")
    assert float(loop.run([({"x": X}, TARGETS)]).metrics["unnormalized"]) < 1e-5


def test_an_output_used_twice_keeps_its_activation() -> None:
    """Where something else is made of the probabilities too, the cross entropy is taken of them, not of logits."""
    classes = trunk().dense(3, activation="softmax")
    node = ax.container((classes, classes)).node
    repeated = ax.Model(container_from_nodes(node.inputs[:1], (0, 0)))
    one_hot = np.eye(3, dtype=np.float32)[LABELS]
    _, value, _ = by_hand(repeated, lambda p, y: entropy(y[0]) + jnp.mean((one_hot - y[1]) ** 2))
    final = trainer(repeated, [(SPARSE, 1.0), ("mean_squared_error", 1.0)], SLOW).run([({"x": X}, (LABELS, one_hot))])
    np.testing.assert_allclose(final.metrics["loss"], value, rtol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        {**SPARSE, "regularizers": [{"name": "l2", "factor": 0.5, "paths": "*.kernel"}, {"name": "l1", "factor": 0.1}]},
        {
            **SPARSE,
            "regularizers": [
                {"name": "l2", "factor": 0.5, "exclude": ["*.bias"]},
                lambda p: 0.1 * sum(jnp.sum(jnp.abs(w)) for w in jax.tree.leaves(p)),
            ],
        },
    ],
)
def test_regularizers_are_added(loss: Any) -> None:
    """Loss, gradients and validation loss hold the penalty, which is reported beside."""
    model = trunk().dense(3, activation="softmax")

    def penalty(parameters: Any) -> Any:
        leaves = dict(flatten(parameters))
        squares = sum(jnp.sum(w**2) for path, w in leaves.items() if path.endswith("kernel"))
        return 0.5 * squares + 0.1 * sum(jnp.sum(jnp.abs(w)) for w in leaves.values())

    state, value, parameters = by_hand(model, lambda p, y: entropy(y) + penalty(p))
    final = trainer(model, loss, SLOW).validate([({"x": X}, LABELS)]).run([({"x": X}, LABELS)])
    assert_same(final.model_state.parameters, parameters)
    np.testing.assert_allclose(final.metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(final.metrics["regularization"], penalty(state.parameters), rtol=1e-5)
    np.testing.assert_allclose(
        final.metrics["validation_regularization"], penalty(final.model_state.parameters), rtol=1e-5
    )


def test_an_objective_of_ones_own() -> None:
    """Two passes at different inputs in one loss, as for a consistency or a triplet; the loop measures it."""
    model = trunk().dense(2)

    def consistent(forward: Any, model_state: Any, inputs: Any, targets: Any) -> Any:
        output = forward(model_state, inputs)
        moved, _ = forward(model_state, {"x": inputs["x"] + 0.5})
        fit = jnp.mean((output.prediction - targets) ** 2)
        return fit + 0.3 * jnp.mean((output.prediction - moved) ** 2), output

    init_fn, predict = ax.build(model, mode="train")
    state = init_fn({"x": X}, seed=0)

    def value(parameters: Any) -> Any:
        here = predict(state.with_trainable(parameters), {"x": X}).prediction
        there = predict(state.with_trainable(parameters), {"x": X + 0.5}).prediction
        return jnp.mean((here - VALUES) ** 2) + 0.3 * jnp.mean((here - there) ** 2)

    found, gradients = jax.value_and_grad(value)(state.trainable())
    loop = trainer(model, ObjectiveFunction(consistent), SLOW).metric("mean_absolute_error")
    final = loop.validate([({"x": X}, VALUES)]).run([({"x": X}, VALUES)])
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.trainable(), gradients)
    assert_same(final.model_state.parameters, expected)
    np.testing.assert_allclose(final.metrics["loss"], found, rtol=1e-5)
    assert set(final.metrics) == {"loss", "mean_absolute_error", "validation_loss", "validation_mean_absolute_error"}


def test_an_objective_of_ones_own_keeps_layer_state() -> None:
    """The running statistics move with the output it returns; without one they could not."""
    model = trunk().batch_norm().dense(2)

    def squared(forward: Any, model_state: Any, inputs: Any, targets: Any) -> Any:
        output = forward(model_state, inputs)
        return jnp.mean((output.prediction - targets) ** 2), output

    data = [({"x": X}, VALUES)]
    got = trainer(model, ObjectiveFunction(squared), SLOW).run(data)
    expected = trainer(model, "mean_squared_error", SLOW).run(data)
    assert_same(got.model_state, expected.model_state)
    alone = ObjectiveFunction(lambda *arguments: squared(*arguments)[0])
    with pytest.raises(OptionError, match=r"expected \(loss, output\) of a model whose layers keep state"):
        trainer(model, alone, SLOW).run(data)


def test_an_objective_without_output_cannot_be_measured() -> None:
    """The loss alone will do, unless a metric wants to see predictions, or rows have weights."""

    def squared(forward: Any, model_state: Any, inputs: Any, targets: Any) -> Any:
        return jnp.mean((forward(model_state, inputs).prediction - targets) ** 2)

    loop = trainer(trunk().dense(2), ObjectiveFunction(squared), SLOW)
    assert list(loop.run([({"x": X}, VALUES)]).metrics) == ["loss"]
    with pytest.raises(OptionError, match="metrics: expected an objective that returns"):
        loop.metric("mean_absolute_error").run([({"x": X}, VALUES)])
    with pytest.raises(OptionError, match="objective: expected a function with a parameter rows"):
        loop.run([({"x": X}, VALUES, np.ones(8, np.float32))])


def test_row_weights_are_weights_of_samples() -> None:
    """Weights 2, 1 and 0 train as rows that are there twice, once and not at all."""
    model = trunk().dense(3, activation="softmax")
    rows = np.array([2, 1, 0, 1, 2, 2, 0, 1], np.float32)
    chosen = np.repeat(np.arange(8), rows.astype(int))
    loss = {**SPARSE, "class_weights": [0.5, 1.0, 2.0]}
    got = trainer(model, loss, SLOW).run([({"x": X}, LABELS, rows)])
    expected = trainer(model, loss, SLOW).run([({"x": X[chosen]}, LABELS[chosen])])
    assert_same(got.model_state, expected.model_state)
    np.testing.assert_allclose(got.metrics["loss"], expected.metrics["loss"], rtol=1e-5)


def test_a_loss_of_ones_own_masks_what_it_wants() -> None:
    """Targets may be a structure: labels with a mask of their positions."""

    def masked(y_true: Any, y_pred: Any) -> Any:
        losses = LOSSES["categorical_cross_entropy"](y_true["labels"], y_pred, sparse=True)
        return jnp.sum(losses * y_true["mask"]) / jnp.sum(y_true["mask"])

    model = trunk().dense(3, activation="softmax")
    mask = (np.arange(8) < 5).astype(np.float32)
    got = trainer(model, masked, SLOW).run([({"x": X}, {"labels": LABELS, "mask": mask})])
    expected = trainer(model, SPARSE, SLOW).run([({"x": X[:5]}, LABELS[:5])])
    assert_same(got.model_state, expected.model_state)


@pytest.mark.parametrize("padded", [False, True])
def test_accumulated_batches_are_one_batch(padded: bool) -> None:
    """Batches of 4, 2 and 2 rows, or all of 4 with padding, move the parameters as one batch of 8 does."""
    model = trunk().dense(3, activation="softmax")
    adam = {"name": "adam", "learning_rate": 0.05}
    cuts = [(0, 4), (4, 6), (6, 8)]
    batches: list[Any] = [({"x": X[a:b]}, LABELS[a:b]) for a, b in cuts]
    if padded:
        rows = [(np.arange(4) < b - a).astype(np.float32) for a, b in cuts]
        batches = [({"x": X[a : a + 4]}, LABELS[a : a + 4], r) for (a, b), r in zip(cuts[:2], rows[:2], strict=True)]
        batches.append(({"x": X[4:8][::-1]}, LABELS[4:8][::-1], rows[2]))
    accumulating = {"name": "accumulate_gradients", "steps": 3, "inner": adam}
    got = trainer(model, SPARSE, accumulating).run(batches, epochs=4)
    expected = trainer(model, SPARSE, adam).run([({"x": X}, LABELS)], epochs=4)
    assert_same(got.model_state, expected.model_state, rtol=1e-4)
    assert_same(got.optimizer_state.inner, expected.optimizer_state, rtol=1e-3)


def test_averages_can_be_validated_and_taken_away() -> None:
    """Validation of the averages is that of a state that holds them; frozen layers and types stay."""
    model = trunk().dense(3, activation="softmax", name="head")
    init_fn, _ = ax.build(model)
    start = init_fn(seed=0).freeze(lambda path: path.startswith("trunk"))
    data = [({"x": X}, LABELS)]
    averaging = {"name": "chain", "transforms": [SLOW, {"name": "ema", "decay": 0.9}]}
    loop = trainer(model, SPARSE, averaging)
    final = loop.validate(data, averaged=True).run(data, state=start, epochs=5)
    averaged = final.averaged_model_state
    jax.tree.map(np.testing.assert_array_equal, averaged.parameters["trunk"], start.parameters["trunk"])
    assert not np.allclose(averaged.parameters["head"]["kernel"], final.model_state.parameters["head"]["kernel"])
    expected = trainer(model, SPARSE, "sgd").validate(data, event="started").run(data, state=averaged, epochs=0)
    np.testing.assert_allclose(final.metrics["validation_loss"], expected.metrics["validation_loss"], rtol=1e-6)
    with pytest.raises(OptionError, match="expected an optimizer with an ema"):
        trainer(model, SPARSE, "sgd").validate(data, averaged=True).run(data)


COMPOSED = {
    "name": "accumulate_gradients",
    "steps": 2,
    "inner": {
        "name": "chain",
        "transforms": [
            "keep_gradients",
            {"name": "groups", "groups": [{"paths": "*.bias", "optimizer": "set_to_zero"}], "default": "adam"},
            {"name": "max_norm", "paths": "*.kernel"},
            "ema",
        ],
    },
}


def test_composed_optimizers_resume_bit_for_bit(tmp_path: Path) -> None:
    """A checkpoint in the middle of a group of batches leads to where the uninterrupted run ends."""
    loop = trainer(trunk().dense(3, activation="softmax"), SPARSE, COMPOSED)
    data = [({"x": X[i : i + 2]}, LABELS[i : i + 2]) for i in range(0, 6, 2)]
    whole = loop.run(data, epochs=4)
    checkpoint.save(tmp_path / "saved", loop.run(data, epochs=1))
    restored = checkpoint.restore(tmp_path / "saved", loop.start(data))
    resumed = loop.run(data, epochs=4, resume=restored)
    jax.tree.map(np.testing.assert_array_equal, resumed.step_state, whole.step_state)


def test_optimizers_that_evaluate_the_loss_plug_in() -> None:
    """Optax's L-BFGS with its line search: it needs the loss, its gradient, and the loss elsewhere."""
    model = ax.input("x", shape=(None, 4)).dense(2)
    final = trainer(model, "mean_squared_error", optax.lbfgs()).run([({"x": X}, VALUES)], epochs=15)
    design = np.concatenate([X, np.ones((8, 1), np.float32)], axis=1)
    residual = VALUES - design @ np.linalg.lstsq(design, VALUES, rcond=None)[0]
    np.testing.assert_allclose(final.metrics["loss"], np.mean(residual**2), rtol=1e-3)


@pytest.mark.parametrize(
    ("model", "loss", "message"),
    [
        (heads, {"heads.c": "huber"}, r"paths of outputs out of heads\.a, heads\.b, features, got 'heads\.c'"),
        (heads, {"heads.a": {"loss": SPARSE, "wait": 1}}, "heads.a: expected loss and weight, got 'wait'"),
        (heads, {"heads.a": {"loss": SPARSE, "weight": "1"}}, "heads.a: expected weight to be a finite number"),
        (heads, {"heads.a": 3}, "heads.a: expected a loss, or an object"),
        (heads, {"heads.a": {"loss": 3}}, "heads.a: expected a loss, or an object"),
        (heads, {"heads.b": "hubber"}, "expected one of .*huber.*got 'hubber'"),
        (heads, {}, "expected a loss of one output at least"),
        (trunk, {"a": "huber"}, "expected a name, or a model with several outputs"),
        (trunk, {"name": 3}, "expected a name, or a model with several outputs"),
        (trunk, {"name": "huber", "regularizers": [{"name": "l3"}]}, r"regularizers\[0\]: expected one of l1, l2"),
        (trunk, {"name": "huber", "regularizers": [{"name": "l2"}]}, "expected a value for factor"),
        (trunk, {"name": "huber", "regularizers": [{"name": "l2", "factor": -1}]}, "l2: expected factor"),
        (trunk, {"name": "huber", "regularizers": ["l2"]}, r"regularizers\[0\]: expected an object"),
        (trunk, {"name": "huber", "regularizers": {"name": "l2"}}, "expected options out of .*got regularizers"),
        (trunk, {"name": "huber", "delta": "wide"}, "huber: expected delta to be a finite number"),
        (trunk, {"name": "huber", "delta": -1.0}, "huber: expected delta to be a finite number"),
        (trunk, {"name": "huber", "reduction": "average"}, "huber: expected reduction to be one of"),
        (trunk, {"name": "huber", "reduction": ["mean"]}, "huber: expected reduction to be one of"),
        (trunk, {**SPARSE, "sparse": "yes"}, "expected sparse to be true or false"),
        (trunk, {**SPARSE, "label_smoothing": 2}, "label_smoothing to be a finite number"),
        (trunk, {**SPARSE, "class_weights": {"a": 1}}, "class_weights to be a list"),
        (trunk, "cosine_similarity", "expected one of .*cosine_distance"),
    ],
)
def test_objectives_explain_what_is_wrong(model: Any, loss: Any, message: str) -> None:
    """Before any data is there: names, values, paths and weights."""
    with pytest.raises(OptionError, match=message):
        trainer(model(), loss, SLOW)


def test_what_only_data_and_parameters_show() -> None:
    """Patterns without a parameter, targets of another structure, losses that are not one number."""
    data = [({"x": X}, TARGETS)]
    nowhere = {"heads.a": SPARSE, "regularizers": [{"name": "l2", "factor": 1.0, "paths": "decoder.*"}]}
    with pytest.raises(OptionError, match=r"'decoder\.\*' to match some of"):
        trainer(heads(), nowhere, SLOW).run(data)
    with pytest.raises(DataError, match="expected targets with 'b' at heads, got a"):
        trainer(heads(), {"heads.b": "huber"}, SLOW).run([({"x": X}, {"heads": {"a": LABELS}})])
    base = trunk()
    pair = ax.container((base.dense(2), base.dense(2)))
    with pytest.raises(DataError, match="expected 2 targets at the top, got 1"):
        trainer(pair, [("huber", 1.0), ("huber", 1.0)], SLOW).run([({"x": X}, (VALUES,))])
    with pytest.raises(ShapeError, match="expected one number for a batch, got shape"):
        trainer(heads(), {"heads.b": lambda t, p: t - p}, SLOW).run(data)


NASTY = ["x", None, [], {}, -1, 1.5, True, float("nan"), 10**400, [[1]], ["a"], [1.0, float("inf")], 2**40]


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_any_value_of_any_loss_option_is_taken_or_refused(name: str) -> None:
    """An OptionError at once, or an objective; nothing else."""
    for option, parameter in inspect.signature(LOSSES[name]).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY or option == "rows":
            continue
        for value in NASTY:
            try:
                objective(trunk(), {"name": name, option: value})
            except OptionError:
                continue


@pytest.mark.parametrize(
    ("activation", "loss"),
    [
        ("softmax", "categorical_cross_entropy"),
        ("sigmoid", "binary_cross_entropy"),
        ("sigmoid", "categorical_cross_entropy"),
    ],
)
def test_an_activated_output_taken_for_logits_is_warned_of(activation: str, loss: str) -> None:
    """In the caller's line; not without `from_logits`, nor without the activation."""
    logits = {"name": loss, "from_logits": True}
    with pytest.warns(UserWarning, match=f"loss {loss}: expected logits .* got the output of {activation}") as found:
        trainer(trunk().dense(3, activation=activation), logits, SLOW)
    assert [Path(warning.filename) for warning in found] == [Path(__file__)]
    trainer(trunk().dense(3, activation=activation), loss, SLOW)
    trainer(trunk().dense(3), logits, SLOW)
