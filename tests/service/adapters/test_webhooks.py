"""Webhooks on the wire, and their store on a real Valkey."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import socket

import pytest

from service.adapters.redis_jobs import connect
from service.adapters.redis_webhooks import RedisWebhookStore
from service.adapters.webhook_sender import HttpWebhookSender
from service.core.errors import InvalidRequest
from service.core.webhook_delivery import Due
from service.core.webhooks import allowed

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Receiver:
    """An HTTP server that answers every request with one reply, and keeps what it got."""

    def __init__(self, reply: bytes) -> None:
        self.reply = reply
        self.requests: list[bytes] = []

    async def __aenter__(self) -> Receiver:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        self.requests.append(head + await reader.readexactly(length))
        writer.write(self.reply)
        await writer.drain()
        writer.close()


async def deliver(port: int, host: str = "127.0.0.1", timeout_s: float = 5.0) -> str | None:
    """One delivery to a port that the settings name."""
    sender = HttpWebhookSender(timeout_s=timeout_s)
    try:
        target = allowed(f"http://{host}:{port}/hook?a=b", [f"{host}:{port}"])
        return await sender.send(target, b"{}", secret="key", timestamp=7)
    finally:
        await sender.close()


async def test_delivery_is_signed():
    """Path, name, time and signature arrive."""
    async with Receiver(b"HTTP/1.1 204 No Content\r\n\r\n") as receiver:
        assert await deliver(receiver.port, "localhost") is None
    (request,) = receiver.requests
    assert request.startswith(b"POST /hook?a=b HTTP/1.1\r\n")
    lines = request.split(b"\r\n")
    expected = hmac.new(b"key", b"7.{}", hashlib.sha256).hexdigest()
    assert {f"Host: localhost:{receiver.port}".encode(), b"Axon-Timestamp: 7"} <= set(lines)
    assert f"Axon-Signature: v1={expected}".encode() in lines


async def test_redirects_are_not_followed():
    """A redirect is a failure, wherever it leads."""
    async with Receiver(b"") as inner:
        reply = f"HTTP/1.1 307 X\r\nLocation: http://127.0.0.1:{inner.port}/\r\nContent-Length: 0\r\n\r\n"
        async with Receiver(reply.encode()) as receiver:
            assert await deliver(receiver.port) == "status 307"
    assert inner.requests == []


async def test_endless_answers_are_not_read():
    """The status line is all that counts."""
    async with Receiver(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\nx") as receiver:
        assert await deliver(receiver.port) is None


async def test_absent_and_silent_receivers_fail_in_time():
    """Nobody there, and somebody who never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert await deliver(port, timeout_s=0.2) == "no answer within 0.2 s"
    assert "Connect" in str(await deliver(port))


async def test_private_address_behind_an_allowed_name_is_refused():
    """`localhost` resolves inwards, and nothing is sent to it."""
    sender = HttpWebhookSender()
    with pytest.raises(InvalidRequest, match="public addresses only, got"):
        await sender.send(allowed("http://localhost/", ["localhost"]), b"{}", secret="", timestamp=7)
    await sender.close()


async def test_one_of_several_processes_gets_a_job(redis_url):
    """For the time of a lease; then the next goes on where the first has come to."""
    client, prefix = connect(redis_url), f"{{axon-test-{secrets.token_hex(6)}}}"
    one, two = RedisWebhookStore(client, prefix=prefix), RedisWebhookStore(client, prefix=prefix)
    for job in ("a", "b", "a"):
        await one.add(job)
    found = await asyncio.gather(one.claim(lease_s=60, limit=5), two.claim(lease_s=60, limit=5))
    assert sorted(due.job_id for taken in found for due in taken) == ["a", "b"]
    await one.put(Due("a", "7-1", 2), delay_s=0)
    await one.add("a")  # a repetition does not bring it forward
    assert await two.claim(lease_s=0, limit=5) == [Due("a", "7-1", 2)]
    assert await one.claim(lease_s=60, limit=5) == [Due("a", "7-1", 2)]
    for job in ("a", "b"):
        await two.remove(job)
    assert [key async for key in client.scan_iter(match=prefix + "*")] == []
    await client.aclose()
