"""The open-loop load maker against a server whose answers are known."""

from __future__ import annotations

import asyncio
from pathlib import Path

from benchmarks.open_loop import Plan, Run, Tally
from benchmarks.open_loop_wires import HttpClient

BODY = b"body"
REQUESTS_PER_S = 400


class Server(asyncio.Protocol):
    """Answers in turn with 200 and 429, or hangs up."""

    statuses = (b"200 OK", b"429 Too Many Requests")

    def __init__(self, hang_up: bool) -> None:
        self.answers = 0
        self._hang_up = hang_up

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """One request comes whole, over the loopback."""
        assert data.endswith(BODY)
        if self._hang_up:
            self._transport.close()
            return
        status = self.statuses[self.answers % 2]
        self.answers += 1
        self._transport.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\nok")


async def played(tmp_path: Path, hang_up: bool) -> tuple[Tally, list[Server]]:
    """What a short run finds, and the server's connections."""
    servers: list[Server] = []

    def serve() -> Server:
        servers.append(Server(hang_up))
        return servers[-1]

    loop = asyncio.get_running_loop()
    listener = await loop.create_server(serve, "127.0.0.1", 0)
    address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    plan = Plan("http-binary", address, "/", str(tmp_path), [], REQUESTS_PER_S, 0.25, 0.0, 5.0, 1)
    tally = await Run(plan, HttpClient(address, "/", BODY, ["Content-Type=text/plain"])).go()
    listener.close()
    return tally, servers


async def test_answers_are_counted_by_what_they_mean(tmp_path: Path) -> None:
    """Every request has an outcome, and as many as the server gave each."""
    tally, servers = await played(tmp_path, hang_up=False)
    assert tally.unanswered == tally.failed == 0
    assert tally.answered == sum((server.answers + 1) // 2 for server in servers)
    assert tally.shed == sum(server.answers // 2 for server in servers)
    assert tally.offered_per_s == (tally.answered + tally.shed) / 0.25
    assert tally.p99_ms is not None


async def test_a_server_that_hangs_up_has_failed(tmp_path: Path) -> None:
    """Nothing is lost without a trace."""
    tally, _ = await played(tmp_path, hang_up=True)
    assert tally.answered == tally.shed == tally.unanswered == 0
    assert tally.failed > 0
    assert tally.p99_ms is None
