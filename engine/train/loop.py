"""`Loop`: an immutable description of a training or evaluation run, and its execution.

    trainer(model, "categorical_cross_entropy", "adam").metric("accuracy").run(data, epochs=10)

Every method returns another loop; `run` returns the final `LoopState`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from engine.errors import OptionError
from engine.functional.options import as_integer, require_choice
from engine.model.model import Model
from engine.optim.loss_scale import LossScaleSpec
from engine.train.answers import Bindable, Handler
from engine.train.curve import Plotting
from engine.train.data import Batch, Data, as_data
from engine.train.events import Bound, Event, Filter, Handling, parse_events
from engine.train.handlers import Logging, Validation, describe, write_line
from engine.train.metrics import Accumulate, make_metric
from engine.train.monitoring import Best, Monitor, halt, reduce_learning_rate
from engine.train.objectives import Losses
from engine.train.parallel import Devices, placement
from engine.train.program import Program
from engine.train.progress import Progressing
from engine.train.runner import Runner
from engine.train.saving import Saving
from engine.train.state import LoopState
from engine.train.step import CustomStep, TrainStep, evaluation_step, train_step

OnNonfinite = Literal["raise", "ignore"]
Events = str | Event | list[str | Event] | tuple[str | Event, ...]


@dataclass(frozen=True, eq=False)
class Loop:
    """A step, what is measured in it, and who is told about it. Made by `trainer`, `evaluator` or `from_step`.

    Attributes:
        program: the step with its metrics, and what is compiled of them.
        handlings: handlers with their events and filters, in the order in which they are called.
        on_nonfinite: whether a loss that is not finite at the end of an epoch, or when logged, is an error.

    Source: Axon.Loop.
    """

    program: Program
    handlings: tuple[Handling, ...] = ()
    on_nonfinite: OnNonfinite = "raise"

    @classmethod
    def from_step(
        cls,
        step: Callable[[Any, Any], Any],
        init: Callable[[Any], Any] | None = None,
        *,
        steps_per_execution: int = 1,
    ) -> Loop:
        """A loop over a step of one's own, `step(step_state, batch) -> step_state`, pure and fit for jit.

        `init(first batch)` makes the first step state unless `run` is given one. Metrics are called with the step
        state. `steps_per_execution` is that of `trainer`, with no choice of its own. Source: Axon.Loop.loop/3.
        """
        as_integer("loop", "steps_per_execution", steps_per_execution, at_least=1)
        return cls(Program(CustomStep(step, init), steps_per_execution=steps_per_execution))

    def metric(
        self,
        metric: str | Callable[..., Any],
        name: str | None = None,
        accumulate: str | Accumulate = "running_average",
        **options: Any,
    ) -> Loop:
        """Measure something in every iteration, within the compiled step.

        Args:
            metric: a name out of `engine.functional.metrics`, or `metric(y_true, y_pred) -> array`; with a parameter
                `rows` it takes padded batches too.
            name: under which it appears; needed for a function.
            accumulate: `running_average` (batches weighed by their rows, or row weights), `running_sum`, or
                `accumulate(accumulated, value, i)`, which starts from zero in each epoch.
            **options: of the metric, such as `sparse=True`.
        Raises:
            OptionError: an unknown metric, option or accumulator, or a name in use.
        Source: Axon.Loop.metric/5.
        """
        added = make_metric(metric, name, accumulate, options)
        program = self.program
        reports = program.step.reports if isinstance(program.step, TrainStep) else ()
        if added.name in {*reports, *(m.name for m in program.metrics)}:
            raise OptionError(f"metric: expected a name not in use, got {added.name!r} again")
        return replace(self, program=replace(program, metrics=(*program.metrics, added)))

    def handle_event(
        self,
        event: Events,
        handler: Handler | Bindable,
        *,
        every: Bound | None = None,
        once: Bound | None = None,
        before: Bound | None = None,
        after: Bound | None = None,
        first: bool = False,
        when: Callable[[LoopState], bool] | None = None,
    ) -> Loop:
        """Call `handler(state)` at an event, at several, or at `"all"`.

        The handler returns None, or a changed `LoopState`, or a `Status` (continue, halt_epoch, halt_loop), or both as
        `(Status, LoopState)`. Handlers of one event run in the order of their adding; after one that halts the others
        are not called. The filters are those of `Filter`. A handler that reads a value waits for the device; one that
        does not costs no synchronisation, and an event without handlers costs nothing.

        Raises:
            OptionError: an unknown event or a filter outside its domain.
        Source: Axon.Loop.handle_event/4.
        """
        if not callable(handler) and not isinstance(handler, Bindable):
            raise OptionError(f"handle_event: expected a function of the state, got {type(handler).__name__}")
        chosen = Filter(every, once, before, after, first, when)
        added = tuple(Handling(e, handler, chosen) for e in parse_events(event))
        return replace(self, handlings=self.handlings + added)

    def log(
        self,
        message: Callable[[LoopState], str] = describe,
        *,
        event: Events = Event.ITERATION_COMPLETED,
        sink: Callable[[str], None] = write_line,
        **filters: Any,
    ) -> Loop:
        """Send `message(state)` to `sink` at an event; by default one line of metrics to standard output.

        Source: Axon.Loop.log/3.
        """
        return self.handle_event(event, Logging(message, sink), **filters)

    def validate(
        self,
        data: Data | Iterable[Batch],
        *,
        averaged: bool = False,
        event: Events = Event.EPOCH_COMPLETED,
        **filters: Any,
    ) -> Loop:
        """Evaluate on `data` at the end of every epoch and add `validation_loss` and `validation_<metric>`.

        All the loop's metrics are computed, with their accumulators and options, in inference mode; with `averaged`
        of the parameters' averages, which an optimizer with `ema` keeps. Add it before handlers that read its results.
        Source: Axon.Loop.validate/4.
        """
        if not isinstance(self.program.step, TrainStep):
            raise OptionError("validate: expected the loop of a trainer")
        return self.handle_event(event, Validation(as_data(data), averaged), **filters)

    def monitor(
        self,
        metric: str,
        handler: Handler,
        name: str,
        *,
        mode: Literal["min", "max"] = "min",
        patience: int = 3,
        min_delta: float = 0.0,
        event: Events = Event.EPOCH_COMPLETED,
        **filters: Any,
    ) -> Loop:
        """Call `handler` when `metric` has not improved for more than `patience` events; see `Monitor`."""
        return self.handle_event(event, Monitor(metric, handler, name, mode, patience, min_delta), **filters)

    def early_stop(
        self,
        metric: str,
        *,
        mode: Literal["min", "max"] = "min",
        patience: int = 3,
        min_delta: float = 0.0,
        event: Events = Event.EPOCH_COMPLETED,
        **filters: Any,
    ) -> Loop:
        """End the run when `metric` stalls (see `Monitor`); the last parameters stay, see `keep_best` for others.

        Source: Axon.Loop.early_stop/3.
        """
        options: dict[str, Any] = {"mode": mode, "patience": patience, "min_delta": min_delta, **filters}
        return self.monitor(metric, halt, "early_stop", event=event, **options)

    def keep_best(
        self,
        metric: str,
        *,
        mode: Literal["min", "max"] = "min",
        averaged: bool = False,
        event: Events = Event.EPOCH_COMPLETED,
        **filters: Any,
    ) -> Loop:
        """Keep a copy of the model's state where `metric` was best, as `state.best_model_state`; see `Best`.

        With `averaged` of the parameters' averages. Add it after `validate` and before what may halt the run.
        """
        return self.handle_event(event, Best(metric, mode, averaged), **filters)

    def reduce_lr_on_plateau(
        self,
        metric: str,
        *,
        factor: float = 0.1,
        mode: Literal["min", "max"] = "min",
        patience: int = 3,
        min_delta: float = 0.0,
        event: Events = Event.EPOCH_COMPLETED,
        **filters: Any,
    ) -> Loop:
        """Multiply the learning rate by `factor` when `metric` stalls (see `Monitor`); not for schedules.

        Source: Axon.Loop.reduce_lr_on_plateau/3.
        """
        handler = reduce_learning_rate(factor)
        options: dict[str, Any] = {"mode": mode, "patience": patience, "min_delta": min_delta, **filters}
        return self.monitor(metric, handler, "reduce_lr_on_plateau", event=event, **options)

    def checkpoint(
        self,
        folder: str | Path,
        *,
        metric: str | None = None,
        mode: Literal["min", "max"] = "min",
        keep: int | None = None,
        event: Events = Event.EPOCH_COMPLETED,
        **filters: Any,
    ) -> Loop:
        """Write checkpoints below `folder`, while training goes on; with `metric` only when it has improved.

        The `keep` newest stay (see `Saving`). Add it after handlers whose effects belong into the checkpoint.
        Source: Axon.Loop.checkpoint/2.
        """
        return self.handle_event(event, Saving(Path(folder), metric, mode, keep), **filters)

    def progress(self, console: Any = None, **filters: Any) -> Loop:
        """Show a progress bar with rate, time left and metrics, on stderr unless a `rich` console is given."""
        events = [Event.STARTED, Event.ITERATION_COMPLETED, Event.EPOCH_COMPLETED]
        return self.handle_event([str(event) for event in events], Progressing(console), **filters)

    def plot(
        self,
        path: str | Path,
        *,
        metrics: Sequence[str] | None = None,
        event: Events = Event.EPOCH_COMPLETED,
        **filters: Any,
    ) -> Loop:
        """Draw the metrics as curves to `path` (.png or .svg) at every event, and live in a notebook.

        `metrics` are those to show; None shows all. Needs Matplotlib. Source: Axon.Loop.kino_vega_lite_plot/4.
        """
        chosen = None if metrics is None else tuple(metrics)
        return self.handle_event(event, Plotting(Path(path), chosen), **filters)

    def start(self, data: Data | Iterable[Batch], state: Any = None, *, seed: int | None = None) -> LoopState:
        """The state a run begins with; also the pattern for restoring a checkpoint of it.

        Args:
            data: its first batch gives shapes and types.
            state: a `ModelState` to start from (an evaluator needs one); None makes one from the seed.
            seed: of the parameters; None takes the trainer's.
        """
        batch = as_data(data).peek()
        step = self.program.step
        with step.context():
            step_state = self.program.place(step.init(batch, state, seed))
            return LoopState(step_state, self.program.new_accumulators(step_state, batch))

    def run(
        self,
        data: Data | Iterable[Batch],
        state: Any = None,
        *,
        epochs: int = 1,
        iterations: int | None = None,
        seed: int | None = None,
        resume: LoopState | None = None,
        strict: bool = False,
        debug: bool = False,
    ) -> LoopState:
        """Execute the loop.

        Steps are dispatched without waiting for their results; the device is waited for only where a handler asks for
        a value and, for a trainer, at the end of each epoch (to see that the loss is finite). One executable is
        compiled per shape of a batch.

        Args:
            data: `ArrayData` or other `Data`, or an iterable of batches that is iterated in every epoch. A batch is
                `(inputs, targets)`, or `(inputs, targets, rows)` with a weight per row, 0 for padding, which then
                leaves loss, metrics and batch statistics untouched; it must be finite, so best repeat a row.
            state: a `ModelState` to start from; not changed.
            epochs: how many epochs there shall be in all, those done before a resume included.
            iterations: at most so many batches in each epoch.
            seed: of the parameters; None takes the trainer's.
            resume: a state of an earlier run (from a handler, a checkpoint, or returned), to go on from as if there had
                been no interruption, given the same loop and data; not changed.
        Returns: the final state, status `completed` or `halted`.
        Raises:
            DataError: no batches, or batches of another form.
            GraphError, OptionError: batches have row weights, and a layer, the loss or a metric cannot take them.
            DivergedError: the loss of an epoch is not finite, unless `on_nonfinite` is `ignore`.
            StateError, ShapeError, DtypeError: state or data do not fit the model.
        Source: Axon.Loop.run/4.
        """
        as_integer("run", "epochs", epochs, at_least=0)
        with self.program.step.context():
            return self._runner(as_data(data), state, epochs, iterations, seed, resume, strict, debug).run()

    def stream(
        self,
        data: Data | Iterable[Batch],
        state: Any = None,
        *,
        iterations: int | None = None,
        seed: int | None = None,
        resume: LoopState | None = None,
    ) -> Iterator[LoopState]:
        """Train without end, lazily: the state after every epoch, a copy that is the caller's.

        Nothing is computed until the next state is asked for; a handler that halts the loop ends the stream after the
        last state. Arguments and errors are those of `run`. Source: Axon.Loop.stream (proposed).
        """
        with self.program.step.context():
            runner = self._runner(as_data(data), state, None, iterations, seed, resume)
        epochs = runner.epochs()
        try:
            while True:
                with self.program.step.context():
                    following = next(epochs, None)
                    if following is None:
                        return
                    following = following.copy()
                yield following
        finally:
            epochs.close()

    def _runner(
        self,
        data: Data,
        state: Any,
        epochs: int | None,
        iterations: int | None,
        seed: int | None,
        resume: LoopState | None,
        strict: bool = False,
        debug: bool = False,
    ) -> Runner:
        if iterations is not None:
            as_integer("run", "iterations", iterations, at_least=1)
        if resume is not None and state is not None:
            raise OptionError("run: expected either a state to start from or one to resume, got both")
        begin = self.start(data, state, seed=seed) if resume is None else self._resumed(resume)
        return Runner(self, data, begin, epochs, iterations, strict, debug)

    def _resumed(self, state: LoopState) -> LoopState:
        placed = self.program.place((state.step_state, state.accumulators))
        return replace(state, step_state=placed[0], accumulators=placed[1]).copy()


def trainer(
    model: Model,
    loss: Losses,
    optimizer: Any,
    *,
    seed: int = 0,
    log: int = 0,
    on_nonfinite: OnNonfinite = "raise",
    devices: Devices | None = None,
    shard_params: bool = False,
    loss_scale: LossScaleSpec | None = None,
    steps_per_execution: int | None = None,
) -> Loop:
    """Supervised training on batches `(inputs, targets)` or `(inputs, targets, rows)`, with the metric `loss`.

    Args:
        model: what to train; only parameters that are not frozen change.
        loss: a name out of `engine.functional.losses`, or `{"name": ..., options}` with `regularizers` among them
            (reduction `mean` unless said otherwise), or `loss(y_true, y_pred) -> scalar` (with a parameter `rows`, to
            take padded batches); for several outputs a list of `(loss, weight)` or `{path: loss}`; or an
            `ObjectiveFunction`. See `engine.train.objectives`.
            A model that ends in softmax (sigmoid) with categorical (binary) cross entropy is trained on its logits.
        optimizer: what `engine.optim.from_spec` takes: a name, `{"name": ..., options}`, chains and groups of them, or
            an Optax transformation.
        seed: of the initial parameters.
        log: log the metrics at every so many iterations of an epoch; 0 never.
        on_nonfinite: `raise` a `DivergedError`, or `ignore`, when an epoch's loss is not finite.
        devices: on which to train, each with its rows of every batch: `"all"`, a number, or JAX devices; None leaves
            it to JAX. Several processes (`jax.distributed.initialize`) run the same program on the same batches.
        shard_params: split parameters and optimizer state over the devices instead of copying them.
        loss_scale: for half precision: `dynamic`, `static`, `{"name": ..., options}`, or one of one's own out of
            `engine.optim.loss_scale`. Steps whose gradients are not finite are skipped, and their share of an epoch is
            the metric `skipped`; the metric `loss` is the unscaled one. None scales and skips nothing.
        steps_per_execution: steps handed to the device as one program (`lax.scan`), where no handler is called between
            them and their batches are of one form; others run one by one, so that events, filters, metrics and
            checkpoints are those of 1. None takes what was measured to be fastest (`engine.train.executions`): on the
            CPU 8, but 1 with convolutions or large batches, and from the run's second step on; elsewhere 1.
            Source: Keras `Model.compile`.
    Raises:
        OptionError: an unknown loss, optimizer, loss scale or option, or a value outside its domain.
    Source: Axon.Loop.trainer/4.
    """
    as_integer("trainer", "log", log, at_least=0)
    require_choice("trainer", "on_nonfinite", on_nonfinite, ("raise", "ignore"))
    as_integer("trainer", "seed", seed, at_least=0)
    if steps_per_execution is not None:
        as_integer("trainer", "steps_per_execution", steps_per_execution, at_least=1)
    guarded = on_nonfinite == "raise"
    step = train_step(model, loss, optimizer, seed=seed, loss_scale=loss_scale, guarded=guarded)
    placed = placement(devices, shard_params=shard_params)
    program = Program(step, placement=placed, steps_per_execution=steps_per_execution)
    loop = Loop(program, on_nonfinite=on_nonfinite)
    return loop.log(every=("epoch", log)) if log else loop


def evaluator(model: Model, *, devices: Devices | None = None, steps_per_execution: int | None = None) -> Loop:
    """Evaluation in inference mode: `evaluator(model).metric("accuracy").run(data, state).metrics`.

    `devices` and `steps_per_execution` as for `trainer`. Source: Axon.Loop.evaluator/1.
    """
    if steps_per_execution is not None:
        as_integer("evaluator", "steps_per_execution", steps_per_execution, at_least=1)
    placed = placement(devices)
    return Loop(Program(evaluation_step(model), placement=placed, steps_per_execution=steps_per_execution))
