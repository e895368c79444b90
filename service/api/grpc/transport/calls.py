"""Calls of the methods that generated code registers: coroutines and asynchronous generators, as grpc.aio has them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, NoReturn, final

from grpc import StatusCode

from service.api.grpc.transport.metadata import OK, Metadata, Status
from service.api.grpc.transport.stream import Stream

_AT_ONCE: Final = 16
"""Messages of one call after which others get a turn, and what was written goes out."""

Explain = Callable[[BaseException], Status]
"""The status of an error that a method raised."""


class Aborted(Exception):
    """Raised by `Context.abort`: the call ends with `status`."""

    def __init__(self, status: Status) -> None:
        self.status = status
        super().__init__(status.message)


@final
class Context:
    """What a method may ask of its call."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def time_remaining(self) -> float | None:
        """Seconds until the call's deadline; None without one."""
        return self._stream.remaining_s()

    def invocation_metadata(self) -> Metadata:
        """What the caller sent along."""
        return self._stream.head.metadata()

    def headers(self) -> dict[bytes, bytes]:
        """All headers as they came; of those that are repeated the first."""
        return self._stream.head.raw()

    async def abort(
        self, code: StatusCode, details: str = "", trailing_metadata: Sequence[tuple[str, str]] = ()
    ) -> NoReturn:
        """End the call; raises what must not be caught."""
        raise Aborted(Status(code, details, tuple(trailing_metadata)))


@final
class _Requests:
    """The messages of a call in order, as they come; what is not taken yet holds its client back."""

    def __init__(self, stream: Stream, read: Callable[[bytes], Any]) -> None:
        self._stream = stream
        self._read = read
        self._waiting: deque[bytes] = deque()
        self._ended = False
        self._taken = 0
        self._waiter: asyncio.Future[None] | None = None

    def put(self, message: bytes) -> None:
        """Add the next one."""
        self._waiting.append(message)
        self._wake()

    def end(self) -> None:
        """There are no more."""
        self._ended = True
        self._wake()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        self._stream.released(self._taken)
        self._taken = 0
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        message = self._waiting.popleft()
        self._taken = len(message)
        self._stream.consumed(self._taken)
        return self._read(message)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@final
class TaskCall:
    """A call of a generated handler, in a task of its own from its first message on (a stream's: from its start)."""

    def __init__(self, stream: Stream, handler: Any, explain: Explain, linger: Callable[[int], None]) -> None:
        self._stream = stream
        self._handler = handler
        self._explain = explain
        self._linger = linger
        self._messages: list[bytes] = []
        self._requests: _Requests | None = None
        self._task: asyncio.Task[None] | None = None
        stream.watch_deadline()
        if handler.request_streaming:
            self._requests = _Requests(stream, handler.request_deserializer)
            self._start(None)
            stream.widen()

    def message(self, message: bytes) -> None:
        """Hand it on; a call of one message is given up at the second."""
        if self._requests is not None:
            self._requests.put(message)
        elif self._messages:
            self._stream.refuse(ONE_MESSAGE)
        else:
            self._messages.append(message)

    def half_closed(self) -> None:
        """Begin a call of one message."""
        if self._requests is not None:
            self._requests.end()
        elif not self._messages:
            self._stream.refuse(ONE_MESSAGE)
        else:
            self._start(self._messages.pop())

    def writable(self) -> None:
        """Nothing: its task waits for it."""

    def cancelled(self) -> None:
        """Cancel the method; until it has ended the connection counts it."""
        task = self._task
        if task is not None and not task.done():
            self._linger(1)
            task.add_done_callback(lambda _: self._linger(-1))
            task.cancel()

    def _start(self, message: bytes | None) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(message))

    async def _run(self, message: bytes | None) -> None:
        status = OK
        try:
            request = self._requests if message is None else self._handler.request_deserializer(message)
            await self._answer(request, Context(self._stream))
        except asyncio.CancelledError:
            if not self._stream.closed:
                self._stream.finish(Status(StatusCode.CANCELLED, "the server gave the call up"))
            raise
        except Exception as error:
            status = self._status(error)
        self._stream.finish(status)

    async def _answer(self, request: Any, context: Context) -> None:
        handler, stream = self._handler, self._stream
        if not handler.response_streaming:
            call = handler.stream_unary if handler.request_streaming else handler.unary_unary
            message = handler.response_serializer(await call(request, context))
            stream.send([message], len(message))
            return
        call = handler.stream_stream if handler.request_streaming else handler.unary_stream
        count = 0
        async with contextlib.aclosing(call(request, context)) as responses:
            async for response in responses:
                message = handler.response_serializer(response)
                stream.send([message], len(message))
                await stream.drained()
                count += 1
                if count % _AT_ONCE == 0:
                    await asyncio.sleep(0)

    def _status(self, error: Exception) -> Status:
        if isinstance(error, Aborted):
            return error.status
        return self._explain(error)


ONE_MESSAGE = Status(StatusCode.UNIMPLEMENTED, "message: expected exactly one, got none or several")
"""gRPC's own code for a call with another number of messages than its method has."""
