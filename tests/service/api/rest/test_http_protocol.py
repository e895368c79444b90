"""Headers and body in one write, nothing lost, nothing late."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.api.rest.http_protocol import JOIN_BYTES, JoinedWrites


class Recorder(asyncio.Transport):
    """Remembers what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


@pytest.fixture
async def joined() -> tuple[JoinedWrites, Recorder]:
    """A transport over a recorder."""
    recorder = Recorder()
    return JoinedWrites(recorder, asyncio.get_running_loop()), recorder


async def test_headers_and_body_are_one_write(joined: tuple[JoinedWrites, Recorder]) -> None:
    """Two writes of one turn reach the wire together, and pairs do not mix."""
    transport, recorder = joined
    for data in (b"h1", b"b1", b"h2", memoryview(b"b2")):
        transport.write(data)
    assert recorder.writes == [b"h1b1", b"h2b2"]
    await asyncio.sleep(0)
    assert recorder.writes == [b"h1b1", b"h2b2"]


async def test_single_write_goes_out_at_the_end_of_the_turn(joined: tuple[JoinedWrites, Recorder]) -> None:
    """Headers of a stream whose first event is yet to come do not wait for it."""
    transport, recorder = joined
    transport.write(b"headers")
    assert recorder.writes == []
    await asyncio.sleep(0)
    assert recorder.writes == [b"headers"]


async def test_long_body_is_not_copied(joined: tuple[JoinedWrites, Recorder]) -> None:
    """Beyond the limit there are two writes, in order."""
    transport, recorder = joined
    transport.write(b"headers")
    transport.write(bytes(JOIN_BYTES + 1))
    assert [len(write) for write in recorder.writes] == [7, JOIN_BYTES + 1]


async def test_close_sends_what_is_held_and_abort_does_not(joined: tuple[JoinedWrites, Recorder]) -> None:
    """A reply that ends the connection arrives."""
    transport, recorder = joined
    transport.write(b"last words")
    transport.close()
    assert (recorder.writes, recorder.closed, transport.is_closing()) == ([b"last words"], True, True)
    aborted = Recorder()
    lost = JoinedWrites(aborted, asyncio.get_running_loop())
    lost.write(b"lost")
    lost.abort()
    await asyncio.sleep(0)
    assert aborted.writes == []


async def test_nothing_is_written_to_a_connection_that_broke(joined: tuple[JoinedWrites, Recorder]) -> None:
    """What was held when the client went away is dropped."""
    transport, recorder = joined
    transport.write(b"held")
    recorder.closed = True
    await asyncio.sleep(0)
    assert recorder.writes == []
