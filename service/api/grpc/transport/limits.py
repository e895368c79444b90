"""What one connection may ask of this server."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, final

from service.api.grpc.transport.frames import ConnectionFault, ErrorCode


class WantsRoom(Protocol):
    """A stream with a message that is longer than its window; `room_wanted` is 0 once it wants none."""

    room_wanted: int

    def room_given(self) -> None:
        """It has been taken for it."""


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """Bounds on one connection, and how long its client may be silent. Sizes are in bytes, times in seconds.

    `max_message_bytes` is for one message, compressed or not. A message that is longer than `window_bytes` gets room
    as soon as it says its length, while those of its connection have no more than `max_room_bytes` together; further
    ones wait. `stream_window_bytes` is the window of calls that send many messages. `max_unread_bytes` bounds answers
    that the client does not take. `max_resets` and `max_noise` are for calls cancelled and for frames that ask for
    nothing, of which `resets_per_s` and `noise_per_s` come back. A client that sends nothing for `keepalive_s` is asked
    whether it lives, and has `keepalive_timeout_s` to say so; one that leaves a message unfinished, or does not take
    its answers, is given up after `patience_s`. The server looks for those every `look_s`.
    """

    max_message_bytes: int
    max_room_bytes: int
    max_unread_bytes: int
    patience_s: float = 60.0
    max_streams: int = 256
    window_bytes: int = 2**16 - 1
    stream_window_bytes: int = 2**18
    connection_window_bytes: int = 2**22
    max_resets: int = 1000
    resets_per_s: float = 200.0
    max_noise: int = 4000
    noise_per_s: float = 2000.0
    keepalive_s: float = 60.0
    keepalive_timeout_s: float = 20.0
    look_s: float = 0.5


_NOISE_PER_FRAME = 4
"""Updates of windows, pings and the like that a frame of use excuses."""


@final
class Manners:
    """Counts what a client may do only so often. `useful` is the number of frames since that asked for something."""

    __slots__ = ("_noise", "_resets", "useful")

    def __init__(self, limits: TransportLimits, now: Callable[[], float]) -> None:
        self._resets = _Allowance(limits.max_resets, limits.resets_per_s, now)
        self._noise = _Allowance(limits.max_noise, limits.noise_per_s, now)
        self.useful = 0

    def count_reset(self) -> None:
        """A call that was begun for nothing; raises `ConnectionFault`."""
        if not self._resets.take():
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many streams reset")

    def count_noise(self, what: str) -> None:
        """A frame that asks for nothing; raises `ConnectionFault`."""
        if not self._noise.take():
            self._noise.give(self.useful * _NOISE_PER_FRAME)
            self.useful = 0
            if not self._noise.take():
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"too many {what}")


@final
class Room:
    """Bytes of long messages that one connection may have under way beyond its streams' usual windows."""

    __slots__ = ("_most", "_taken", "_waiting")

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._taken = 0
        self._waiting: deque[WantsRoom] = deque()

    def take(self, size: int) -> bool:
        """Whether `size` bytes more fit, and are taken."""
        if self._taken + size > self._most:
            return False
        self._taken += size
        return True

    def want(self, stream: WantsRoom) -> None:
        """Give `stream` the room that it wants, as soon as it is there."""
        if not self._waiting and self.take(stream.room_wanted):
            stream.room_given()
        else:
            self._waiting.append(stream)

    def give(self, size: int) -> None:
        """Give back what was taken; those that wait for it come next, in order."""
        self._taken -= size
        while self._waiting:
            stream = self._waiting[0]
            if stream.room_wanted and not self.take(stream.room_wanted):
                return
            self._waiting.popleft()
            if stream.room_wanted:
                stream.room_given()


@final
class _Allowance:
    """So many of something may come at once, and so many more per second."""

    __slots__ = ("_at", "_left", "_most", "_now", "_per_s")

    def __init__(self, most: int, per_s: float, now: Callable[[], float]) -> None:
        self._left = self._most = most
        self._per_s = per_s
        self._now = now
        self._at = now()

    def take(self) -> bool:
        """Whether another one is allowed."""
        if self._left <= 0:
            now = self._now()
            self._left = min(self._most, int((now - self._at) * self._per_s))
            self._at = now
            if self._left <= 0:
                return False
        self._left -= 1
        return True

    def give(self, count: int) -> None:
        """Allow `count` more, at most as many as at first."""
        self._left = min(self._most, self._left + count)
