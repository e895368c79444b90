"""Modules in the manner of Lightning give what the loop they stand for gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

import engine as ax
from engine.errors import OptionError, ShapeError
from engine.train import Module, Trainer, trainer
from tests.engine.train.test_loop import batches, leaves


def _model() -> ax.Model:
    return ax.input("x", shape=(None, 4)).dense(8, activation="relu").batch_norm().dropout(rate=0.2).dense(3)


class Classifier(Module):
    """Cross entropy of logits, with the accuracy beside it."""

    logs = ("accuracy",)

    def model(self) -> ax.Model:
        return _model()

    def training_step(self, forward: Callable[[Any], jax.Array], batch: tuple[Any, Any]) -> Any:
        inputs, labels = batch
        logits = forward(inputs)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return {"loss": loss, "accuracy": (logits.argmax(-1) == labels).mean()}

    def configure_optimizers(self) -> Any:
        return {"name": "adam", "learning_rate": 1e-3}


def test_a_module_is_trained_like_the_loop_it_stands_for(tmp_path: Path):
    """Same parameters, running statistics, metrics and validation as a trainer with the named loss."""
    fitted = Trainer(max_epochs=3, checkpoints=tmp_path).fit(Classifier(), batches(), batches())
    loss = {"name": "categorical_cross_entropy", "sparse": True, "from_logits": True}
    loop = trainer(_model(), loss, {"name": "adam", "learning_rate": 1e-3}).metric("accuracy", sparse=True)
    expected = loop.validate(batches()).run(batches(), epochs=3)
    for got, wanted in zip(jax.tree.leaves(fitted.model_state), jax.tree.leaves(expected.model_state), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)
    assert fitted.metrics.keys() == expected.metrics.keys()
    for name, value in expected.values().items():
        assert fitted.values()[name] == pytest.approx(value, rel=1e-4), name
    assert len(list(tmp_path.iterdir())) == 3


def test_a_step_may_give_the_loss_alone_and_start_from_a_state():
    """Going on from a fitted state is another fit."""

    class Regression(Module):
        def model(self) -> ax.Model:
            return ax.input("x", shape=(None, 4)).dense(1)

        def training_step(self, forward: Callable[[Any], jax.Array], batch: tuple[Any, Any]) -> Any:
            return ((forward(batch[0])[:, 0] - batch[1]) ** 2).mean()

        def configure_optimizers(self) -> Any:
            return "sgd"

    first = Trainer(max_epochs=2).fit(Regression(), batches())
    second = Trainer(max_epochs=2).fit(Regression(), batches(), state=first.model_state)
    assert second.values()["loss"] < first.values()["loss"]
    assert leaves(first.model_state) != leaves(second.model_state)


def test_a_step_that_does_not_keep_its_word_is_refused():
    """Logs that were not declared, a loss per row, and row weights that the step could not honour."""

    class Silent(Classifier):
        logs = ("accuracy", "recall")

    with pytest.raises(OptionError, match=r"Silent\.training_step: expected loss, accuracy, recall, got loss, acc"):
        Trainer().fit(Silent(), batches())

    class PerRow(Classifier):
        logs = ()

        def training_step(self, forward: Callable[[Any], jax.Array], batch: tuple[Any, Any]) -> Any:
            return forward(batch[0]).sum(-1)

    with pytest.raises(ShapeError, match=r"loss: expected one number for a batch, got shape \(10,\)"):
        Trainer().fit(PerRow(), batches())
    with pytest.raises(OptionError, match="got row weights"):
        Trainer().fit(Classifier(), [(x, y, np.ones(10, np.float32)) for x, y in batches()])
