"""Events: their order, filters, what handlers may answer."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import OptionError
from engine.train import Event, Loop, LoopState, Status

DATA = [1, 2, 3, 4]


def counting(**filters: Any) -> tuple[Loop, list[tuple[int, int]]]:
    """A loop that adds numbers and notes at which iterations its handler is called."""
    fired: list[tuple[int, int]] = []
    loop = adding().handle_event(
        Event.ITERATION_COMPLETED, lambda state: fired.append((state.epoch, state.iteration)), **filters
    )
    return loop, fired


def adding() -> Loop:
    """A loop that adds up its batches."""
    return Loop.from_step(lambda total, x: total + x)


def trace(loop: Loop, **options: Any) -> tuple[list[str], LoopState]:
    """The events of a run, and its final state."""
    events: list[str] = []
    final = loop.handle_event("all", lambda state: events.append(str(state.event))).run(DATA, 0, **options)
    return events, final


def test_events_come_in_order() -> None:
    """Started, then per epoch its iterations between its start and end, then completed."""
    iteration = ["iteration_started", "iteration_completed"]
    epoch = ["epoch_started", *iteration * 2, "epoch_completed"]
    events, final = trace(adding(), epochs=2, iterations=2)
    assert events == ["started", *epoch * 2, "completed"]
    assert (final.status, final.epoch, int(final.step_state)) == ("completed", 2, 6)
    assert final.event_counts[Event.ITERATION_COMPLETED].total == 4


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"every": 3}, [(0, 0), (0, 3), (1, 2)]),
        ({"every": ("epoch", 3)}, [(0, 0), (0, 3), (1, 0), (1, 3)]),
        ({"once": 6}, [(1, 1)]),
        ({"once": ("epoch", 2)}, [(0, 1), (1, 1)]),
        ({"before": 3}, [(0, 0), (0, 1)]),
        ({"after": ("total", 6)}, [(1, 2), (1, 3)]),
        ({"first": True}, [(0, 0)]),
        ({"when": lambda state: state.iteration == state.epoch}, [(0, 0), (1, 1)]),
        ({"every": 2, "after": 3, "when": lambda state: state.epoch == 1}, [(1, 0), (1, 2)]),
    ],
)
def test_filters_choose_occurrences(filters: dict[str, Any], expected: list[tuple[int, int]]) -> None:
    """Occurrences count from 1, over the run or anew in each epoch; several conditions must all hold."""
    loop, fired = counting(**filters)
    loop.run(DATA, 0, epochs=2)
    assert fired == expected


def test_halt_epoch_goes_on_with_the_next_epoch() -> None:
    """The epoch ends with epoch_halted, keeps its metrics, and the next one begins."""
    halting = adding().metric(lambda total: total, "total", "running_sum")
    halting = halting.handle_event(
        Event.ITERATION_COMPLETED, lambda state: Status.HALT_EPOCH if state.iteration == 1 else None
    )
    events, final = trace(halting, epochs=2)
    assert events.count("epoch_halted") == 2
    assert "epoch_completed" not in events
    assert (final.status, final.epoch) == ("completed", 2)
    assert [int(metrics["total"]) for metrics in final.history] == [1 + 3, 4 + 6]


def test_halt_loop_ends_the_run_where_it_is() -> None:
    """No later handler of that event is called, and halted comes last."""
    halting = adding().handle_event(
        Event.ITERATION_COMPLETED, lambda state: Status.HALT_LOOP if state.iteration == 1 else None
    )
    events, final = trace(halting, epochs=2)
    assert events[-2:] == ["iteration_started", "halted"]
    assert (final.status, final.epoch, final.iteration, int(final.step_state)) == ("halted", 0, 1, 3)


@pytest.mark.parametrize("status", [Status.HALT_EPOCH, Status.HALT_LOOP])
def test_halting_at_the_start_runs_nothing(status: Status) -> None:
    """Before the first epoch both ways of halting end the run."""
    events, final = trace(adding().handle_event(Event.STARTED, lambda state: status))
    assert events == ["halted"]
    assert int(final.step_state) == 0


def test_handlers_run_in_order_and_see_each_others_changes() -> None:
    """A handler's state reaches the next handler and the next step; status and state may come together."""
    seen: list[int] = []
    loop = adding().handle_event("epoch_completed", lambda state: state.with_step_state(state.step_state + 100))
    loop = loop.handle_event("epoch_completed", lambda state: seen.append(int(state.step_state)))
    loop = loop.handle_event("epoch_completed", lambda state: (Status.HALT_LOOP, state.with_step_state(7)))
    assert int(loop.run(DATA, 0, epochs=3).step_state) == 7
    assert seen == [110]


def test_a_handler_must_return_what_is_known() -> None:
    """Anything but None, a state, a status or both is an error that names the event."""
    loop = adding().handle_event("epoch_completed", lambda state: True)  # type: ignore[arg-type,return-value]
    with pytest.raises(OptionError, match="handler of epoch_completed: expected None"):
        loop.run(DATA, 0)


@pytest.mark.parametrize(
    ("event", "filters", "message"),
    [
        ("epoch_ended", {}, "expected an event out of"),
        ("started", {"every": 0}, "every to be an integer of at least 1"),
        ("started", {"once": ("day", 1)}, "expected once to be n"),
        ("started", {"first": 1}, "first to be true or false"),
        ("started", {"when": "now"}, "when to be a function"),
    ],
)
def test_unknown_events_and_filters_are_refused(event: str, filters: dict[str, Any], message: str) -> None:
    """Misspelled or impossible conditions fail when the handler is attached."""
    with pytest.raises(OptionError, match=message):
        adding().handle_event(event, lambda state: None, **filters)


def test_a_loop_is_immutable() -> None:
    """Adding a handler gives another loop."""
    loop = adding()
    assert loop.handle_event("all", lambda state: None) is not loop
    assert loop.handlings == ()
