"""Events of a loop, what handlers may answer, and the filters that choose occurrences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from engine.errors import OptionError
from engine.functional.options import as_integer

if TYPE_CHECKING:
    from engine.train.state import LoopState

Bound = int | tuple[Literal["epoch", "total"], int]
"""A number of occurrences: over the whole run, or within the current epoch with `("epoch", n)`."""


class Event(StrEnum):
    """What a loop announces, in the order in which it happens.

    `HALTED` or `COMPLETED` comes last, once. `EPOCH_HALTED` stands in for `EPOCH_COMPLETED` when a handler cut
    the epoch short. Source: Axon.Loop (which never fires its `halted` and `completed`).
    """

    STARTED = "started"
    EPOCH_STARTED = "epoch_started"
    ITERATION_STARTED = "iteration_started"
    ITERATION_COMPLETED = "iteration_completed"
    EPOCH_COMPLETED = "epoch_completed"
    EPOCH_HALTED = "epoch_halted"
    HALTED = "halted"
    COMPLETED = "completed"


class Status(StrEnum):
    """What a handler asks for: go on, end this epoch, or end the run.

    Before the first epoch `HALT_EPOCH` ends the run; in `epoch_halted` it changes nothing, and after the run no status
    does.
    """

    CONTINUE = "continue"
    HALT_EPOCH = "halt_epoch"
    HALT_LOOP = "halt_loop"


@dataclass(frozen=True, slots=True)
class Count:
    """How often an event has happened: in the current epoch, and over the whole run."""

    epoch: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class Filter:
    """Which occurrences of an event reach a handler: those that pass every condition given.

    Occurrences count from 1. Each bound is a number over the whole run, or `("epoch", n)` to count anew in each
    epoch.

    Attributes:
        every: the 1st, (n+1)th, (2n+1)th ... occurrence.
        once: the n-th one only.
        before: those before the n-th.
        after: those after the n-th.
        first: the very first only.
        when: `when(state) -> bool`, asked last.

    Source: Axon.Loop.handle_event/4 (filters).
    """

    every: Bound | None = None
    once: Bound | None = None
    before: Bound | None = None
    after: Bound | None = None
    first: bool = False
    when: Callable[[LoopState], bool] | None = None

    def __post_init__(self) -> None:
        for name in ("every", "once", "before", "after"):
            _check_bound(name, getattr(self, name))
        if not isinstance(self.first, bool):
            raise OptionError(f"handle_event: expected first to be true or false, got {self.first!r}")
        if self.when is not None and not callable(self.when):
            raise OptionError(f"handle_event: expected when to be a function of the state, got {self.when!r}")

    def counts_pass(self, count: Count) -> bool:
        """Whether the occurrence with this count passes all conditions but `when`."""
        if self.first and count.total != 1:
            return False
        if self.every is not None and (_occurrence(count, self.every) - 1) % _number(self.every) != 0:
            return False
        if self.once is not None and _occurrence(count, self.once) != _number(self.once):
            return False
        if self.before is not None and _occurrence(count, self.before) >= _number(self.before):
            return False
        return self.after is None or _occurrence(count, self.after) > _number(self.after)


def _check_bound(name: str, bound: Any) -> None:
    if isinstance(bound, tuple):
        if len(bound) != 2 or bound[0] not in ("epoch", "total"):
            raise OptionError(f'handle_event: expected {name} to be n, ("epoch", n) or ("total", n), got {bound!r}')
        bound = bound[1]
    if bound is not None:
        as_integer("handle_event", name, bound, at_least=1)


def _number(bound: Bound) -> int:
    return bound[1] if isinstance(bound, tuple) else bound


def _occurrence(count: Count, bound: Bound) -> int:
    return count.epoch if isinstance(bound, tuple) and bound[0] == "epoch" else count.total


def parse_events(event: str | Event | list[str | Event] | tuple[str | Event, ...]) -> tuple[Event, ...]:
    """The events that `event` names: one, several, or `"all"`; raises `OptionError` on an unknown one."""
    if event == "all":
        return tuple(Event)
    names = event if isinstance(event, (list, tuple)) else (event,)
    try:
        return tuple(Event(name) for name in names)
    except ValueError:
        known = ", ".join(Event)
        raise OptionError(f"handle_event: expected an event out of {known}, or all; got {event!r}") from None


@dataclass(frozen=True, slots=True)
class Handling:
    """A handler attached to an event."""

    event: Event
    handler: Any
    filter: Filter = field(default_factory=Filter)
