"""What handlers are, what they may answer, and those that belong to one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from engine.errors import OptionError
from engine.train.events import Count, Event, Status
from engine.train.state import LoopState

if TYPE_CHECKING:
    from engine.train.loop import Loop

Answer = None | LoopState | Status | tuple[Status, LoopState]
Handler = Callable[[LoopState], Answer]
Due = Callable[[Event, Count], bool]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long a run will be: `epochs` in all (None: endless), and `batches` in each (None: not known)."""

    epochs: int | None
    batches: int | None


@runtime_checkable
class Bindable(Protocol):
    """A handler made anew for every run, so that it sees the whole loop, whenever its parts were added."""

    def bind(self, loop: Loop, plan: Plan) -> Handler:
        """The handler of one run of `loop`."""


@runtime_checkable
class Closing(Protocol):
    """A bound handler that is told when its run ends, however it ends."""

    def close(self) -> None:
        """Finish what was begun, and let go of threads and files."""


@runtime_checkable
class Sparing(Protocol):
    """A bound handler that lets most occurrences pass, and says so before a state is made for it.

    It is one to which any occurrence is as good as the next, such as a progress bar: of an execution of several steps
    it sees the end only.
    """

    def due(self, event: Event, count: Count) -> bool:
        """Whether to be called now; `count` is that of `event`, this occurrence included."""


def read_answer(answer: Any, state: LoopState) -> tuple[Status, LoopState]:
    """Status and state from what a handler returned; raises `OptionError` for anything else."""
    match answer:
        case None:
            return Status.CONTINUE, state
        case LoopState():
            return Status.CONTINUE, answer
        case Status():
            return answer, state
        case (Status() as status, LoopState() as changed):
            return status, changed
    raise OptionError(
        f"handler of {state.event}: expected None, a LoopState, a Status or (Status, LoopState), got {answer!r:.200}"
    )
