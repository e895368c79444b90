"""Blocking calls from the event loop: in threads, or one after the other by urgency."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar, cast, final

P = ParamSpec("P")
T = TypeVar("T")


@final
class Threads:
    """A few threads for calls that block."""

    def __init__(self, count: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `function`, called in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: function(*args, **kwargs))

    def close(self) -> None:
        """Start nothing more; what runs goes on."""
        self._pool.shutdown(wait=False, cancel_futures=True)


async def held_by(function: Callable[[], T], let_go: Callable[[T], object]) -> T:
    """What `function` gives, called in a thread: something held, which a caller that is cancelled lets go of."""
    taking = asyncio.ensure_future(asyncio.to_thread(function))

    def give_up(taken: asyncio.Future[T]) -> None:
        if not taken.cancelled() and taken.exception() is None:
            threading.Thread(target=let_go, args=(taken.result(),), daemon=True).start()

    try:
        return await asyncio.shield(taking)
    except asyncio.CancelledError:
        taking.add_done_callback(give_up)
        raise


async def in_own_thread(function: Callable[[], T]) -> T:
    """The result of `function`, called in a thread of its own, which does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if answer.cancelled():
            return
        if error is None:
            answer.set_result(cast("T", result))
        else:
            answer.set_exception(error)

    def run() -> None:
        result, failure = None, None
        try:
            result = function()
        except Exception as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
            loop.call_soon_threadsafe(tell, result, failure)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await answer


@final
class Turns:
    """One at a time, of those who wait the least `key` first. Belongs to one event loop."""

    def __init__(self) -> None:
        self._waiting: list[tuple[tuple[float, ...], int, asyncio.Future[None]]] = []
        self._count = itertools.count()
        self._taken = False

    @contextlib.asynccontextmanager
    async def turn(self, key: tuple[float, ...]) -> AsyncIterator[None]:
        """Wait until it is this one's turn, which lasts as long as the context."""
        loop = asyncio.get_running_loop()
        mine: asyncio.Future[None] = loop.create_future()
        heapq.heappush(self._waiting, (key, next(self._count), mine))
        loop.call_soon(self._next)  # who asks in the same moment is compared with
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self._leave()
            raise
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        self._taken = False
        self._next()

    def _next(self) -> None:
        while not self._taken and self._waiting:
            _, _, first = heapq.heappop(self._waiting)
            if not first.done():
                self._taken = True
                first.set_result(None)
