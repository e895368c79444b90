"""How a program runs: signals, the event loop, and waiting that a stop ends."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any


def run(main: Callable[[asyncio.Event], Any], *, fast: bool) -> None:
    """Run a program until it ends or SIGINT or SIGTERM asks it to; a second signal ends it at once.

    `fast` takes uvloop, for programs that serve.
    """

    async def guarded() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def ask(number: signal.Signals) -> None:
            stop.set()
            loop.remove_signal_handler(number)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ask, number)
        await main(stop)

    factory = None
    if fast:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(guarded())


async def before(stop: asyncio.Event, work: Any) -> bool:
    """Await `work` unless `stop` comes first; returns whether it was done."""
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return False
        task.result()
        return True
    finally:
        task.cancel()
        stopped.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)
