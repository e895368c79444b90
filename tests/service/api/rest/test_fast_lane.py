"""The fast lane: the same answers as the long way, in order, bounded, and given up as soon as the client goes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import orjson
import pytest

from service.api.observation import Observer
from service.api.rest.http_head import read_head
from tests.hostile.http_cases import binary, body, head, posted, script, tensor
from tests.hostile.server import MODEL
from tests.service.api.rest.lanes import Connection, Service
from tests.service.core.served import WAIT_S, RealClock
from tests.service.fake_tracer import FakeTracer
from tests.service.waiting import wait_until

PATH = f"/v2/models/{MODEL}/infer"
PLAIN = posted(body())


def bytes_of(rows: int = 1, *headers: bytes) -> bytes:
    """A right binary request."""
    text, raw = binary(rows)
    return posted(text + raw, b"Inference-Header-Content-Length: %d" % len(text), *headers)


def statuses(written: bytes) -> list[int]:
    """Of all answers."""
    return [int(each[:3]) for each in written.split(b"HTTP/1.1 ")[1:]]


@pytest.fixture
async def lanes() -> AsyncIterator[tuple[Service, Service]]:
    """The same service with the fast lane and without."""
    made = Service(fast=True), Service(fast=False)
    yield made
    for each in made:
        await each.close()


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    """With the fast lane."""
    made = Service(fast=True)
    yield made
    await made.close()


@pytest.fixture
async def held() -> AsyncIterator[Service]:
    """With the fast lane, and a model that computes only when its gate opens."""
    made = Service(fast=True, held=True)
    yield made
    await made.close()


async def both(lanes: tuple[Service, Service], pieces: list[bytes]) -> tuple[bytes, bool]:
    """What one connection is answered, and whether it was closed: the same by both lanes.

    One thing may differ: when garbage comes in one piece with a request, the long way answers the garbage alone.
    """
    ends = []
    for each in lanes:
        connection = each.connect()
        for piece in pieces:
            connection.send(piece)
            await asyncio.sleep(0)
        ends.append((await connection.answers(), connection.transport.closed))
        connection.leave()
        await connection.settle()
    (fast, closed), (long, _) = ends
    if fast != long and b"Invalid HTTP request" in long:
        assert fast.endswith(long)
        assert closed
    else:
        assert ends[0] == ends[1]
    return ends[0]


FAST = {
    "json": PLAIN,
    "binary": bytes_of(4),
    "id": posted(body(id="a-1 \u00e9")),
    "version": posted(body(), path=f"/v2/models/{MODEL}/versions/1/infer"),
    "percent": posted(body(), path=f"/v2/models/{MODEL.replace('s', '%73')}/infer"),
    "query": posted(body(), path=f"{PATH}?a=b"),
    "close": posted(body(), b"Connection: close"),
    "outputs": posted(body(outputs=[{"name": "total", "parameters": {"binary_data": True}}])),
    "classification": posted(body(outputs=[{"name": "total", "parameters": {"classification": 2}}])),
    "raw": posted(b"\1" * 32, b"Inference-Header-Content-Length: 0"),
    "many encodings": posted(body(), b"Accept-Encoding: gzip, deflate"),
    "timeout over": posted(body(parameters={"timeout": 1, "priority": 1})),
    "no json": posted(b"{"),
    "no model": posted(body(), path="/v2/models/none/infer"),
    "no version": posted(body(), path=f"/v2/models/{MODEL}/versions/9/infer"),
    "loading": posted(body(), path="/v2/models/slow/infer"),
    "raw of no model": posted(b"1", b"Inference-Header-Content-Length: 0", path="/v2/models/none/infer"),
    "bad json of no model": posted(b"{", path="/v2/models/none/infer"),
    "wrong shape": posted(body(tensor(shape=[1, 3]))),
    "wrong output": posted(body(outputs=[{"name": "nothing"}])),
    "too many rows": posted(body(tensor(5))),
    "shared memory": posted(body(tensor(parameters={"shared_memory_region": "r"}))),
    "lone surrogate": posted(body(id="\ud800")),
    "header length beyond": posted(body(), b"Inference-Header-Content-Length: 99999"),
}
LONG = {
    "get": posted(body()).replace(b"POST", b"GET", 1),
    "other path": posted(body(), path="/v2/models/x/ready"),
    "old http": PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    "expect": posted(body(), b"Expect: 100-continue"),
    "gzip wanted": posted(body(), b"Accept-Encoding: gzip"),
    "gzip sent": posted(body(), b"Content-Encoding: gzip"),
    "identity": posted(body(), b"Content-Encoding: identity"),
    "chunked": head(None, b"Transfer-Encoding: chunked") + b"4\r\nwhat\r\n0\r\n\r\n",
    "no length": head(None),
    "no body": head(0),
    "too long": head(2**21),
    "upgrade": posted(body(), b"Connection: upgrade", b"Upgrade: websocket"),
    "twice": posted(body(), *[b"Inference-Header-Content-Length: 1"] * 2),
    "bad header length": posted(body(), b"Inference-Header-Content-Length: x"),
    "blank line before": b"\r\n" + PLAIN,
}


@pytest.mark.parametrize("name", [*FAST, *LONG])
async def test_both_lanes_answer_alike(lanes: tuple[Service, Service], name: str) -> None:
    """Status, headers and body to the byte; and each request goes by the lane that it is for."""
    request = FAST.get(name) or LONG[name]
    written, closed = await both(lanes, [request])
    if name == "timeout over":
        return  # the message has the time
    assert lanes[0].long_way == (0 if name in FAST else 1)
    assert lanes[1].long_way == 1
    assert len(statuses(written)) == (2 if name == "expect" else 1)
    assert closed == (name in ("close", "old http"))


async def test_both_lanes_answer_hostile_scripts_alike(lanes: tuple[Service, Service]) -> None:
    """What the fuzzer sends, in its pieces and in others."""
    for number in range(150):
        case = script(number)
        pieces = [step for step in case.steps if isinstance(step, bytes)]
        await both(lanes, pieces)
        whole, cuts = b"".join(pieces), random.Random(number)
        if len(whole) < 20_000:
            at = sorted(cuts.randrange(len(whole) + 1) for _ in range(3))
            await both(lanes, [whole[start:stop] for start, stop in zip([0, *at], [*at, len(whole)], strict=True)])


async def test_pieces_make_the_same_request(lanes: tuple[Service, Service]) -> None:
    """A head alone, a body byte by byte, the next request in the same piece as the end of the one before."""
    request = bytes_of(2)
    start = request.index(b"\r\n\r\n") + 4
    stream = request + PLAIN
    for pieces in (
        [request[:start], request[start:]],
        [request[: start + 5], *(bytes([byte]) for byte in request[start + 5 :])],
        [stream[: start + 9], stream[start + 9 :]],
        [stream[: len(request) + 20], stream[len(request) + 20 :]],
    ):
        written, _ = await both(lanes, pieces)
        assert set(statuses(written)) == {200}


async def test_answers_come_in_order_whichever_lane_they_take(lanes: tuple[Service, Service]) -> None:
    """Pipelined: fast, long, wrong, fast, and nothing after the one that closes."""
    requests = [
        posted(body(id="1")),
        posted(body(id="2"), b"Content-Encoding: identity"),
        posted(b"{"),
        posted(body(id="3")),
        posted(body(), path="/v2/none"),
        posted(body(id="4"), b"Connection: close"),
        posted(body(id="5")),
    ]
    written, closed = await both(lanes, [b"".join(requests)])
    assert statuses(written) == [200, 200, 400, 200, 404, 200]
    assert closed
    assert b'"5"' not in written


@pytest.mark.parametrize("name", [b"Upgrade", b"upgrade"])
async def test_clients_that_offer_http2_are_answered(service: Service, name: bytes) -> None:
    """`Upgrade: h2c` with a body, as Java's client and `curl --http2` send it, is an offer that may be ignored."""
    offer = (b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMAAABk", name + b": h2c")
    whole = posted(body(), *offer)
    for pieces in ([whole + PLAIN], [whole[:-9], whole[-9:] + PLAIN]):
        each = service.connect()
        for piece in pieces:
            each.send(piece)
            await asyncio.sleep(0)
        assert statuses(await each.answers()) == [200, 200]
        each.leave()


async def test_answer_is_one_write(service: Service) -> None:
    """Status line, headers and body together."""
    connection = service.connect()
    connection.send(bytes_of())
    await connection.answers()
    assert connection.transport.writes == 1


async def test_client_that_leaves_frees_its_place_at_once(held: Service) -> None:
    """Queued behind a batch that runs: gone with its connection, without a look at the clock."""
    first, second = held.connect(), held.connect()
    first.send(PLAIN)
    assert await asyncio.to_thread(held.model.started.acquire, timeout=WAIT_S)
    second.send(PLAIN)
    assert held.served[0].queue_depth == 1
    second.leave()
    assert held.served[0].queue_depth == 0
    assert held.served[0].statistics.failures == {"cancelled": 1}
    held.model.gate.set()
    assert statuses(await first.answers()) == [200]
    assert second.transport.written == b""
    assert held.admission.held_bytes == 0


async def test_client_that_leaves_during_its_classification_is_forgotten(held: Service) -> None:
    """What takes a task is cancelled with its connection."""
    connection = held.connect()
    connection.send(FAST["classification"])
    assert await asyncio.to_thread(held.model.started.acquire, timeout=WAIT_S)
    connection.leave()
    while held.state.tasks:
        await asyncio.sleep(0)
    assert held.served[0].statistics.failures == {"cancelled": 1}
    assert connection.transport.written == b""


async def test_thousands_pipelined_are_bounded_and_answered_in_order(held: Service) -> None:
    """What waits behind the first request is 64 KiB or a read more; then all are answered."""
    connection = held.connect()
    count = 0
    while not connection.transport.paused:
        connection.send(b"".join(posted(body(id=str(count + number))) for number in range(100)))
        count += 100
    assert 300 <= count <= 500
    assert held.served[0].in_flight == 1
    held.model.gate.set()
    while connection.transport.written.count(b"HTTP/1.1 200") < count:
        await asyncio.sleep(0.001)
    assert not connection.transport.paused
    ids = [
        orjson.loads(each.split(b"\r\n\r\n")[1])["id"]
        for each in bytes(connection.transport.written).split(b"HTTP/1.1 ")[1:]
    ]
    assert ids == [str(number) for number in range(count)]


async def test_client_that_does_not_read_is_not_answered_further(service: Service) -> None:
    """Its next requests wait as bytes, the connection is read no more; when it reads, all goes on."""
    connection = service.connect()
    connection.send(PLAIN)
    await connection.settle()
    connection.protocol.pause_writing()
    connection.send(PLAIN + PLAIN)
    connection.send(posted(body(), path="/v2/none"))
    assert statuses(await connection.answers()) == [200]
    assert connection.transport.paused
    connection.protocol.resume_writing()
    assert statuses(await connection.answers()) == [200, 200, 200, 404]
    assert not connection.transport.paused


async def test_stop_answers_what_has_begun_and_closes(held: Service) -> None:
    """In flight and in mid-body: answered with `connection: close`; between requests: closed."""
    idle, flying, reading = held.connect(), held.connect(), held.connect()
    flying.send(PLAIN + PLAIN)
    reading.send(PLAIN[:-1])
    for each in (idle, flying, reading):
        each.protocol.shutdown()
    assert [each.transport.closed for each in (idle, flying, reading)] == [True, False, False]
    reading.send(PLAIN[-1:])
    held.model.gate.set()
    for each in (flying, reading):
        written = await each.answers()
        assert statuses(written) == [200]
        assert b"\r\nconnection: close\r\n\r\n" in written
        assert each.transport.closed


async def test_silence_is_ended(held: Service) -> None:
    """In mid-body with a reason, after an answer at the end of keep-alive; while the model computes never."""
    reading, flying = held.connect(), held.connect()
    reading.send(PLAIN[:-1])
    flying.send(PLAIN)
    for _ in range(4):
        for each in (reading, flying):
            each.protocol.end_silence(3, 1)
    assert statuses(bytes(reading.transport.written)) == [408]
    assert b"body: expected more of it" in reading.transport.written
    assert not flying.transport.closed
    held.model.gate.set()
    await flying.settle()
    flying.protocol.end_silence(3, 1)
    assert not flying.transport.closed
    flying.protocol.end_silence(3, 1)
    assert flying.transport.closed


@pytest.mark.parametrize("second", [PLAIN, posted(body(), b"Content-Encoding: identity")])
async def test_pipelined_request_is_not_ended_as_idle(held: Service, second: bytes) -> None:
    """Keep-alive does not run while a model computes, though an answer went out after the request had come."""
    each = held.connect()
    each.send(posted(b"no JSON") + second)  # the second in the fast lane, or by the long way
    for _ in range(4):
        await asyncio.sleep(0)
        each.protocol.end_silence(9, 1)
    assert not each.transport.closed
    held.model.gate.set()
    assert statuses(await each.answers()) == [400, 200]


async def test_bodies_are_counted_until_their_answer(held: Service) -> None:
    """All that has come; what does not fit goes the long way and is refused there, and nothing is left over."""
    length = len(body())
    first, second = held.connect(), held.connect()
    first.send(PLAIN[:-1])
    assert held.admission.held_bytes == length - 1
    held.admission.max_bodies_bytes = 2 * length - 2
    second.send(PLAIN)
    assert held.long_way == 0  # the task has not run yet
    await asyncio.sleep(0)
    assert held.long_way == 1
    first.send(PLAIN[-1:])
    held.model.gate.set()
    assert statuses(await first.answers()) == [200]
    assert statuses(await second.answers()) == [429]
    third = held.connect()
    third.send(PLAIN[:-1])
    third.leave()
    assert held.admission.held_bytes == 0


@pytest.mark.parametrize("fast", [True, False])
async def test_body_that_no_longer_fits_is_refused_as_it_comes(fast: bool) -> None:
    """Announced it still fitted: 429 in mid-body with what to do, and its bytes count no longer."""
    service = Service(fast=fast)
    length = len(body())
    service.admission.max_bodies_bytes = length
    connection = service.connect()
    connection.send(PLAIN[:-1])
    await asyncio.sleep(0)
    assert service.admission.hold(1)
    connection.send(PLAIN[-1:])
    written = await connection.answers()
    assert statuses(written) == [429]
    assert b"retry-after: 1" in written
    assert service.admission.held_bytes == 1
    await service.close()


@pytest.mark.parametrize("fast", [True, False])
async def test_body_is_not_read_for_a_queue_that_is_full(fast: bool) -> None:
    """429 though it is no JSON; a body that names a priority is read, for urgent ones may still have room."""
    service = Service(fast=fast, held=True, max_queue_requests=1)
    clients = [service.connect() for _ in range(4)]
    clients[0].send(PLAIN)
    assert await asyncio.to_thread(service.model.started.acquire, timeout=WAIT_S)
    clients[1].send(PLAIN)
    await wait_until(lambda: service.served[0].queue_depth)
    clients[2].send(posted(b"no JSON"))
    written = await clients[2].answered()
    assert statuses(written) == [429]
    assert b"retry-after-ms: 1000" in written
    clients[3].send(posted(b'no JSON with "priority"'))
    assert statuses(await clients[3].answered()) == [400]
    assert service.served[0].statistics.failures == {"overloaded": 1}
    service.model.gate.set()
    for client in clients[:2]:
        assert statuses(await client.answered()) == [200]
    await service.close()


@pytest.mark.parametrize("fast", [True, False])
async def test_connection_too_many_is_told_so_and_closed(fast: bool) -> None:
    """503 without a request; those that are there stay, and when one goes there is room again."""
    service = Service(fast=fast)
    service.admission.max_connections = 1
    first, second = service.connect(), service.connect()
    assert statuses(bytes(second.transport.written)) == [503]
    assert (second.transport.closed, first.transport.closed) == (True, False)
    second.leave()
    assert service.admission.connections == 1
    first.leave()
    third = service.connect()
    third.send(PLAIN)
    assert statuses(await third.answers()) == [200]
    await service.close()


async def test_head_is_read_as_the_other_lane_reads_it() -> None:
    """Only what ends where the bytes do; names of any case, the last of what may be repeated."""
    raw = head(5, b"X-A: 1", b"x-a: 2", b"Inference-Header-Content-Length: 3")
    found = read_head(raw)
    assert found is not None
    assert (found.model, found.version, found.length, found.size) == (MODEL, None, 5, len(raw))
    assert (found.header_length, found.keep_alive, found.headers[b"x-a"]) == (3, True, b"2")
    assert read_head(raw[:-2]) is None
    assert read_head(raw + b"1") is None
    assert read_head(raw.replace(b"\r\n", b"\n")) is None
    assert read_head(raw.replace(b"/v2", b"/v1", 1)) is None
    assert read_head(raw.replace(b"Host", b"Ho st", 1)) is None


def _connections(service: Service, count: int) -> list[Connection]:
    return [service.connect() for _ in range(count)]


async def test_requests_of_many_connections_share_a_batch(held: Service) -> None:
    """Each gets its own rows."""
    connections = _connections(held, 5)
    connections[0].send(PLAIN)
    assert await asyncio.to_thread(held.model.started.acquire, timeout=WAIT_S)
    for number, each in enumerate(connections[1:]):
        each.send(posted(body(tensor(data=[number] * 4))))
    held.model.gate.set()
    for number, each in enumerate(connections[1:]):
        answer = orjson.loads((await each.answers()).split(b"\r\n\r\n")[1])
        assert answer["outputs"][0]["data"] == [2 * number] * 4
    assert len(held.model.batches) == 2


async def test_both_lanes_tell_the_observer_alike() -> None:
    """Status, sizes, model, version and error of what was answered, refused, and given up by its client."""
    told = []
    for fast in (True, False):
        tracer = FakeTracer()
        observer = Observer(RealClock(), tracer=tracer, access_log=False)
        service = Service(fast=fast, held=True, observer=observer)
        service.model.gate.set()
        for name in ("json", "binary", "version", "classification", "no json", "no model", "wrong shape"):
            connection = service.connect()
            connection.send(FAST[name].replace(b"Host: x", b"Host: x\r\nx-request-id: r-1"))
            await connection.settle()
        service.model.gate.clear()
        while service.model.started.acquire(blocking=False):
            pass
        connection.send(FAST["json"].replace(b"Host: x", b"Host: x\r\nx-request-id: r-2"))
        assert await asyncio.to_thread(service.model.started.acquire, timeout=WAIT_S)
        connection.leave()
        await asyncio.sleep(0.1 if not fast else 0)  # two looks of the long way
        await service.close()
        await connection.settle()
        observer.work_off()
        told.append([(span.name, span.attributes, span.failed) for span in tracer.spans])
    assert told[0] == told[1]
    assert len([each for each in told[0] if each[0].startswith("POST")]) == 8
