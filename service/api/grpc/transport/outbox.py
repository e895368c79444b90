"""What goes out on one connection: frames of a turn of the event loop in one write, the rest as its windows allow."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final, Protocol, final

from service.api.grpc.transport.frames import FIRST_WINDOW_BYTES, LEAST_FRAME_BYTES

_PUMP_BYTES: Final = 2**18


class Sender(Protocol):
    """A stream with more to send than its client takes."""

    def pump(self, most_bytes: int) -> int:
        """Send up to `most_bytes`, as far as the windows allow; returns how much that was."""

    def pumped(self) -> bool:
        """Whether nothing waits any more."""

    def wake(self) -> None:
        """Let whoever waits for that go on."""


@final
class Outbox:
    """`pieces` go out at the end of this turn of the event loop; `write` puts something there.

    `send_window` is what the client takes on all streams together, `frame_bytes` the largest frame it takes,
    `unsent_bytes` what its windows hold back (at most `most_unsent_bytes`), `paused` that it reads too slowly.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, most_unsent_bytes: int) -> None:
        self._loop = loop
        self._transport = transport
        self._most_unsent_bytes = most_unsent_bytes
        self._blocked: OrderedDict[Sender, None] = OrderedDict()
        self._waiting: set[Sender] = set()
        self.pieces: list[bytes | memoryview] = []
        self.paused = self.ended = False
        self.unsent_bytes = 0
        self.send_window = FIRST_WINDOW_BYTES
        self.frame_bytes = LEAST_FRAME_BYTES

    def write(self, data: bytes) -> None:
        """Send `data` with all else that is written in this turn."""
        if not self.pieces and not self.ended:
            self._loop.call_soon(self.flush)
        self.pieces.append(data)

    def flush(self) -> None:
        """Send what was written now."""
        if self.pieces and not self._transport.is_closing():
            self._transport.write(b"".join(self.pieces))
        self.pieces.clear()

    def end(self) -> None:
        """Send what was written, and nothing more."""
        self.flush()
        self.ended = True

    def pause(self) -> None:
        """The client reads too slowly."""
        self.paused = True

    def resume(self) -> None:
        """It caught up: those that wait send on."""
        self.paused = False
        self.pump()
        waiting, self._waiting = self._waiting, set()
        for stream in waiting:
            stream.wake()

    def wait(self, stream: Sender) -> None:
        """Wake `stream` when the client has caught up; when its own windows let it send, it is woken anyway."""
        self._waiting.add(stream)

    def enqueue(self, stream: Sender, size: int) -> bool:
        """Note that `size` bytes of a stream wait for its client; False when too many do already."""
        if self.unsent_bytes + size > self._most_unsent_bytes and self.unsent_bytes:
            return False
        self.unsent_bytes += size
        if not self._blocked:
            self._loop.call_soon(self.pump)
        self._blocked[stream] = None
        return True

    def forget(self, stream: Sender) -> None:
        """A stream sends no more."""
        self._blocked.pop(stream, None)
        self._waiting.discard(stream)

    def pump(self) -> int:
        """Let the streams that wait send in turn, until none may; returns how often one did."""
        going, count = True, 0
        while going and self._may_send():
            going = False
            for stream in list(self._blocked):
                if stream.pump(_PUMP_BYTES):
                    going = True
                    count += 1
                if stream.pumped():
                    self._blocked.pop(stream, None)
                    stream.wake()
                self.flush()
                if not self._may_send():
                    break
        return count

    def _may_send(self) -> bool:
        return bool(self._blocked) and not self.paused and not self.ended
