"""Running a loop: epochs, batches, events. The only mutable object of training, and it lives for one run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from engine.errors import DataError, DivergedError
from engine.train.answers import Bindable, Closing, Due, Handler, Plan, Sparing, read_answer
from engine.train.data import Batch, BatchIterator, Data
from engine.train.divergence import explain, require_finite
from engine.train.events import Count, Event, Filter, Status
from engine.train.saving import Saver
from engine.train.state import LoopState, Metrics, Stage
from engine.train.step import TrainStep

if TYPE_CHECKING:
    from engine.train.loop import Loop

_NO_BATCH = object()
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Listener:
    """A handler of this run at one event, and what it says before a state is made for it."""

    filter: Filter
    handler: Handler
    due: Due | None


class Runner:
    """One execution of a loop from a given state."""

    def __init__(
        self,
        loop: Loop,
        data: Data,
        begin: LoopState,
        epochs: int | None,
        iterations: int | None,
        strict: bool = False,
        debug: bool = False,
    ) -> None:
        self._loop = loop
        self._expected = jax.tree.map(_kind, data.peek()) if strict else None
        self._debug = debug
        self._data = data
        self._epochs = epochs
        self._iterations = iterations
        self._together = 1 if debug else loop.program.steps_per_execution
        self._listeners: dict[Event, list[_Listener]] = {event: [] for event in Event}
        given = {id(handling.handler): handling.handler for handling in loop.handlings}
        plan = Plan(epochs, _batches(data, iterations))
        bound = {key: _bound(handler, loop, plan) for key, handler in given.items()}
        handlers: list[Any] = list(bound.values())
        self._closing: list[Closing] = [handler for handler in handlers if isinstance(handler, Closing)]
        for handling in loop.handlings:
            handler = bound[id(handling.handler)]
            due = handler.due if isinstance(handler, Sparing) else None
            self._listeners[handling.event].append(_Listener(handling.filter, handler, due))
        measured = [metric.name for metric in loop.program.metrics]
        reports = [name for name in begin.accumulators.values if name not in measured]
        self._names = (*reports, *measured)  # a compiled step gives them back sorted
        self._step_state = begin.step_state
        self._accumulators = begin.accumulators
        self._added: Metrics = {k: v for k, v in begin.metrics.items() if k not in begin.accumulators.values}
        self._epoch = begin.epoch
        self._iteration = begin.iteration
        self._total = begin.total_iterations
        self._history = begin.history
        self._counts = {event: [c.epoch, c.total] for event, c in begin.event_counts.items()}
        self._handler_state = begin.handler_state
        self._stage = begin.stage
        self._event = begin.event
        self._data_state = begin.data_state
        self._best = begin.best_model_state
        self._iterator: BatchIterator | None = None

    def run(self) -> LoopState:
        """Run to the end, or to where a handler halts it."""
        for state in self.epochs():
            last = state
        return last

    def epochs(self) -> Generator[LoopState]:
        """The state after every epoch but the last, and that at the end; handlers are closed however it ends."""
        halted = False
        try:
            if self._stage is Stage.NEW:
                self._stage = Stage.BETWEEN
                halted = self._fire(Event.STARTED) is Status.HALT_LOOP
            while not halted and self._more():
                halted = self._run_epoch() is Status.HALT_LOOP
                if not halted and self._more():
                    yield self._snapshot(Event.EPOCH_COMPLETED)
            last = Event.HALTED if halted else Event.COMPLETED
            self._fire(last, str(last))
        except DivergedError as error:
            raise DivergedError(f"{error}; {self._explanation()}") from None
        finally:
            for part in (self._iterator, *self._closing):
                if isinstance(part, Closing):
                    part.close()
        yield self._snapshot(last, str(last))

    def _explanation(self) -> str:
        """What a step that diverged shows when it is run again, and the last good checkpoint."""
        step, number = self._loop.program.step, int(self._accumulators.iterations)
        parts = []
        if isinstance(step, TrainStep) and step.guarded:
            batch = next(islice(self._data.epoch(self._epoch), number, None), None)
            if jax.process_count() > 1:
                found = "not run again, since its arrays are spread over several processes"
            elif batch is None:
                found = "its batch is not to be had again"
            else:
                found = explain(step, self._step_state, batch)
            parts.append(f"first in iteration {number} of epoch {self._epoch}: {found}")
        savers = [handler for handler in self._closing if isinstance(handler, Saver)]
        for saver in savers:
            saver.wait()
        saved = [str(saver.last) for saver in savers if saver.last is not None]
        parts.append(f"the last checkpoint before it is {saved[-1]}" if saved else "there is no checkpoint before it")
        return "; ".join(parts)

    def _more(self) -> bool:
        return self._epochs is None or self._epoch < self._epochs

    def _run_epoch(self) -> Status:
        status = self._open_epoch() if self._stage is Stage.BETWEEN else Status.CONTINUE
        if self._stage is Stage.OPEN and status is Status.CONTINUE:
            status = self._iterate()
        if self._stage is Stage.OPEN and status is Status.CONTINUE:
            status = self._complete_epoch()
        if status is Status.HALT_EPOCH:
            self._stage = Stage.CLOSING
            self._iteration = self._counts[Event.ITERATION_COMPLETED][0]
            status = self._fire(Event.EPOCH_HALTED)
        if self._stage is Stage.CLOSING:
            self._record_epoch()
        if status is not Status.HALT_LOOP:
            self._next_epoch()
        return status

    def _open_epoch(self) -> Status:
        self._stage = Stage.OPEN
        self._iterator = self._data.epoch(self._epoch)
        self._accumulators = self._loop.program.reset(self._accumulators)
        self._added = {}
        return self._fire(Event.EPOCH_STARTED)

    def _complete_epoch(self) -> Status:
        if self._counts[Event.ITERATION_COMPLETED][0] == 0:
            raise DataError(f"data: expected at least one batch in epoch {self._epoch}, got none")
        self._stage = Stage.CLOSING
        self._iteration = self._counts[Event.ITERATION_COMPLETED][0]
        loss = self._accumulators.values.get("loss")
        if loss is not None and self._loop.on_nonfinite == "raise":
            require_finite("loss", loss.item(), self._snapshot(Event.EPOCH_COMPLETED))
        return self._fire(Event.EPOCH_COMPLETED)

    def _record_epoch(self) -> None:
        if len(self._history) == self._epoch:
            self._history = (*self._history, self._metrics())
        for count in self._counts.values():
            count[0] = 0

    def _next_epoch(self) -> None:
        self._stage = Stage.BETWEEN
        self._epoch += 1
        self._iteration = 0
        self._iterator = None
        self._data_state = None

    def _iterate(self) -> Status:
        iterator = self._resumed_iterator()
        step = self._loop.program.iteration
        watched = bool(self._listeners[Event.ITERATION_STARTED])
        started, completed = self._counts[Event.ITERATION_STARTED], self._counts[Event.ITERATION_COMPLETED]
        announced = started[0] > completed[0]
        while self._iterations is None or completed[0] < self._iterations:
            if not announced and self._unwatched():
                if not (batches := list(islice(iterator, self._together))):
                    break
                self._execute(batches)
            else:
                if watched:
                    self._data_state = iterator.get_state()
                batch = next(iterator, _NO_BATCH)
                if batch is _NO_BATCH:
                    break
                self._iteration = completed[0]
                self._check(batch)
                if not announced and (status := self._fire(Event.ITERATION_STARTED)) is not Status.CONTINUE:
                    return status
                announced = False
                self._step(step, batch)
                if self._together is None:
                    self._together = self._loop.program.steps_together(self._step_state, self._accumulators, batch)
            if self._debug:
                self._inspect()
            if (status := self._fire(Event.ITERATION_COMPLETED)) is not Status.CONTINUE:
                return status
        return Status.CONTINUE

    def _unwatched(self) -> bool:
        """Whether the steps of a whole execution are to be done, and no handler is called before the last one's end."""
        steps, done = self._together, self._counts[Event.ITERATION_COMPLETED]
        if steps is None or steps == 1 or (self._iterations is not None and done[0] + steps > self._iterations):
            return False
        counts = [Count(done[0] + i, done[1] + i) for i in range(1, steps + 1)]
        return not any(
            listener.filter.counts_pass(count)
            for event, within in ((Event.ITERATION_STARTED, counts), (Event.ITERATION_COMPLETED, counts[:-1]))
            for listener in self._listeners[event]
            if listener.due is None
            for count in within
        )

    def _execute(self, batches: list[Batch]) -> None:
        """The steps over these batches: together where there are enough of one form, else one by one."""
        started, completed = self._counts[Event.ITERATION_STARTED], self._counts[Event.ITERATION_COMPLETED]
        program, first = self._loop.program, completed[0]
        for self._iteration, batch in enumerate(batches, first):
            self._check(batch)
        if len(batches) == self._together and _are_alike(batches):
            self._step(program.execution, tuple(batches), len(batches))
        else:
            for self._iteration, batch in enumerate(batches, first):
                self._step(program.iteration, batch)
        for position in (0, 1):
            started[position] += len(batches)
            completed[position] += len(batches) - 1  # the last one is announced

    def _step(self, step: Callable[..., Any], batch: Batch, steps: int = 1) -> None:
        try:
            self._step_state, self._accumulators = step(self._step_state, self._accumulators, batch)
        except Exception as error:
            error.add_note(f"in iteration {self._iteration} of epoch {self._epoch}")
            raise
        self._total += steps

    def _check(self, batch: Batch) -> None:
        """In a strict run, raise `DataError` for a batch of another form than the first."""
        if self._expected is not None and (found := jax.tree.map(_kind, batch)) != self._expected:
            raise DataError(
                f"data: expected every batch like the first, {self._expected}, got {found} in iteration "
                f"{self._iteration} of epoch {self._epoch}; drop or pad the last batch"
            )

    def _inspect(self) -> None:
        """Wait for the iteration, say what came of it, and end with the first loss that is not finite."""
        state = self._snapshot(Event.ITERATION_COMPLETED)
        _LOG.debug("epoch %d iteration %d: %s", state.epoch, state.iteration, state.values())
        if self._loop.on_nonfinite == "raise" and "loss" in state.metrics:
            require_finite("loss", state.values()["loss"], state)

    def _resumed_iterator(self) -> BatchIterator:
        if self._iterator is None:
            self._iterator = self._data.epoch(self._epoch)
            if self._data_state is not None:
                self._iterator.set_state(self._data_state)
        return self._iterator

    def _fire(self, event: Event, status: str = "running") -> Status:
        count = self._counts[event]
        count[0] += 1
        count[1] += 1
        listeners = self._listeners[event]
        if not listeners:
            return Status.CONTINUE
        occurrence = Count(*count)
        state: LoopState | None = None
        for listener in listeners:
            chosen = listener.filter
            if not chosen.counts_pass(occurrence) or (listener.due and not listener.due(event, occurrence)):
                continue
            state = self._snapshot(event, status) if state is None else state
            if chosen.when is not None and not chosen.when(state):
                continue
            answer, changed = read_answer(listener.handler(state), state)
            if changed is not state:
                state = changed
                self._adopt(state)
            if answer is not Status.CONTINUE:
                return self._meaning(answer, event)
        return Status.CONTINUE

    @staticmethod
    def _meaning(status: Status, event: Event) -> Status:
        if status is Status.HALT_EPOCH and event is Event.STARTED:
            return Status.HALT_LOOP
        if status is Status.HALT_EPOCH and event is Event.EPOCH_HALTED:
            return Status.CONTINUE
        return status

    def _adopt(self, state: LoopState) -> None:
        self._step_state = state.step_state
        self._handler_state = state.handler_state
        self._best = state.best_model_state
        self._added = {k: v for k, v in state.metrics.items() if k not in self._accumulators.values}

    def _metrics(self) -> Metrics:
        values = self._accumulators.values
        return {**{name: values[name] for name in self._names}, **self._added}

    def _position(self) -> Mapping[str, Any] | None:
        """Where the data stands: before a batch that has been announced but not stepped over."""
        pending = self._counts[Event.ITERATION_STARTED][0] > self._counts[Event.ITERATION_COMPLETED][0]
        if pending or self._iterator is None:
            return self._data_state
        return self._iterator.get_state()

    def _snapshot(self, event: Event, status: str = "running") -> LoopState:
        return LoopState(
            step_state=self._step_state,
            accumulators=self._accumulators,
            epoch=self._epoch,
            iteration=self._iteration,
            total_iterations=self._total,
            metrics=self._metrics(),
            history=self._history,
            event=event,
            event_counts={event: Count(*count) for event, count in self._counts.items()},
            handler_state=self._handler_state,
            data_state=self._position(),
            stage=self._stage,
            status=status,
            best_model_state=self._best,
        )


def _bound(handler: Any, loop: Loop, plan: Plan) -> Handler:
    return handler.bind(loop, plan) if isinstance(handler, Bindable) else handler


def _kind(leaf: Any) -> tuple[tuple[int, ...], str]:
    """Shape and type of an array of a batch."""
    return np.shape(leaf), np.dtype(getattr(leaf, "dtype", None) or np.asarray(leaf).dtype).name


def _are_alike(batches: Sequence[Batch]) -> bool:
    """Whether these are batches of arrays of the same shapes and types."""
    first: Any = None
    for batch in batches:
        leaves, structure = jax.tree.flatten(batch)
        if not all(isinstance(leaf, np.ndarray | jax.Array) for leaf in leaves):
            return False
        form = structure, [(leaf.shape, leaf.dtype) for leaf in leaves]
        if first is not None and form != first:
            return False
        first = form
    return True


def _batches(data: Data, iterations: int | None) -> int | None:
    """Batches of an epoch, where the data can tell."""
    if not isinstance(data, Sized):
        return iterations
    return len(data) if iterations is None else min(len(data), iterations)
