"""A model, its objective and its optimizer in one class, for those who come from PyTorch Lightning.

class Classifier(Module):
    logs = ("accuracy",)

    def model(self):
        return ax.input("x", shape=(None, 784)).dense(128, activation="relu").dense(10)

    def training_step(self, forward, batch):
        inputs, targets = batch
        logits = forward(inputs)
        return {"loss": cross_entropy(targets, logits), "accuracy": (logits.argmax(-1) == targets).mean()}

    def configure_optimizers(self):
        return {"name": "adam", "learning_rate": 1e-3}

final = Trainer(max_epochs=10).fit(Classifier(), data, validation)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from engine.errors import OptionError
from engine.functional.rows import Rows
from engine.model.model import Model
from engine.model.state import ModelState
from engine.train.data import Batch, Data
from engine.train.loop import Loop, trainer
from engine.train.objectives import Forward, Objective, Outcome, scalar
from engine.train.parallel import Devices
from engine.train.state import LoopState


class Module(ABC):
    """What is trained and how. A step is pure and traced: it is called once per shape of a batch.

    Attributes:
        logs: names of what `training_step` gives besides the loss; they are measured like metrics.
    """

    logs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def model(self) -> Model:
        """The model."""

    @abstractmethod
    def training_step(self, forward: Callable[[Any], Any], batch: tuple[Any, Any]) -> Any:
        """The loss of a batch `(inputs, targets)`, or `{"loss": ..., **logs}`.

        `forward(inputs)` is the model's prediction: in training with dropout and batch statistics, in validation
        without. Called more than once, the layer state of the last call is kept.
        """

    @abstractmethod
    def configure_optimizers(self) -> Any:
        """What `engine.optim.from_spec` takes."""

    def loop(self, *, seed: int = 0, devices: Devices | None = None) -> Loop:
        """The loop that trains it; metrics and handlers may be added."""
        model = self.model()
        goal = Objective(model, lambda prediction: prediction, self._evaluate, self.logs)
        return trainer(model, goal, self.configure_optimizers(), seed=seed, devices=devices)

    def _evaluate(self, forward: Forward, model_state: ModelState, inputs: Any, targets: Any, rows: Rows) -> Outcome:
        if rows is not None:
            raise OptionError("module: expected batches (inputs, targets), got row weights; leave out the remainder")
        prediction, state = None, model_state.state

        def predict(inputs: Any) -> Any:
            nonlocal prediction, state
            prediction, state = forward(model_state, inputs, None)
            return prediction

        answer = self.training_step(predict, (inputs, targets))
        values = dict(answer) if isinstance(answer, Mapping) else {"loss": answer}
        if set(values) != {"loss", *self.logs}:
            expected = ", ".join(("loss", *self.logs))
            raise OptionError(f"{type(self).__name__}.training_step: expected {expected}, got {', '.join(values)}")
        parts: dict[str, jax.Array] = {name: jnp.asarray(values[name]) for name in self.logs}
        return Outcome(scalar(values["loss"]), parts, prediction, state)


@dataclass(frozen=True, slots=True)
class Trainer:
    """How long and where a `Module` is trained.

    Attributes:
        max_epochs: epochs in all.
        devices: as for `engine.train.trainer`.
        seed: of the initial parameters.
        progress: whether to show a progress bar.
        checkpoints: folder for a checkpoint per epoch, of which the three newest stay; None for none.
    """

    max_epochs: int = 1
    devices: Devices | None = None
    seed: int = 0
    progress: bool = False
    checkpoints: Path | None = None

    def fit(
        self,
        module: Module,
        data: Data | Iterable[Batch],
        validation: Data | Iterable[Batch] | None = None,
        *,
        state: ModelState | None = None,
    ) -> LoopState:
        """Train, and validate after every epoch where there is validation data; errors are those of `Loop.run`."""
        loop = module.loop(seed=self.seed, devices=self.devices)
        if validation is not None:
            loop = loop.validate(validation)
        if self.progress:
            loop = loop.progress()
        if self.checkpoints is not None:
            loop = loop.checkpoint(self.checkpoints, keep=3)
        return loop.run(data, state, epochs=self.max_epochs)
