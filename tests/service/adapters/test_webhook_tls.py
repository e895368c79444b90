"""Webhooks over TLS: the connection goes to the checked address, the certificate must be that of the name."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

import pytest
import trustme

from service.adapters.webhook_sender import HttpWebhookSender
from service.core.webhooks import allowed

NAME = "hooks.example.test"


class Receiver:
    """An HTTPS server that takes everything, and keeps the requests and the names that clients asked for."""

    def __init__(self, certificate: trustme.LeafCert) -> None:
        self.requests: list[bytes] = []
        self.names: list[str | None] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self._context)
        self._context.sni_callback = lambda _, name, __: self.names.append(name)

    async def __aenter__(self) -> Receiver:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()


@pytest.fixture(autouse=True)
def _resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the name lead to this machine."""
    real = socket.getaddrinfo

    def resolve(host: Any, *rest: Any, **options: Any) -> Any:
        return real("127.0.0.1" if host == NAME else host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Whom the sender trusts."""
    return trustme.CA()


async def deliver(authority: trustme.CA, receiver: Receiver, host: str = NAME) -> str | None:
    """One delivery to a host with a port that the settings name."""
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    sender = HttpWebhookSender(timeout_s=10.0, trust=trust)
    try:
        target = allowed(f"https://{host}:{receiver.port}/hook", [f"{host}:{receiver.port}"])
        return await sender.send(target, b"{}", secret="key", timestamp=7)
    finally:
        await sender.close()


async def test_certificate_of_the_name_is_accepted(authority):
    """Although the connection goes to an address; the server is asked for the name, and hears it again as its host."""
    async with Receiver(authority.issue_cert(NAME)) as receiver:
        assert await deliver(authority, receiver) is None
    assert receiver.names == [NAME]
    assert f"Host: {NAME}:{receiver.port}".encode() in receiver.requests[0].split(b"\r\n")


@pytest.mark.parametrize("names", [["other.example.test"], ["127.0.0.1"], ["example.test", "*.hooks.example.test"]])
async def test_certificate_of_another_name_is_refused(authority, names):
    """Also that of the very address; nothing is sent."""
    async with Receiver(authority.issue_cert(*names)) as receiver:
        assert "certificate verify failed: Hostname mismatch" in str(await deliver(authority, receiver))
    assert (receiver.names, receiver.requests) == ([NAME], [])


async def test_certificate_of_another_authority_is_refused(authority):
    """Whatever name it has; nothing is sent."""
    async with Receiver(trustme.CA().issue_cert(NAME)) as receiver:
        assert "certificate verify failed" in str(await deliver(authority, receiver))
    assert receiver.requests == []


async def test_address_in_a_url_needs_its_own_certificate(authority):
    """No name is asked for then."""
    async with Receiver(authority.issue_cert("127.0.0.1")) as receiver:
        assert await deliver(authority, receiver, "127.0.0.1") is None
    assert receiver.names == [None]
    async with Receiver(authority.issue_cert(NAME)) as receiver:
        assert "IP address mismatch" in str(await deliver(authority, receiver, "127.0.0.1"))


async def test_usual_trust_knows_no_such_authority(authority):
    """Without being told, nobody's own authority counts."""
    sender = HttpWebhookSender(timeout_s=10.0)
    async with Receiver(authority.issue_cert(NAME)) as receiver:
        target = allowed(f"https://{NAME}:{receiver.port}/", [f"{NAME}:{receiver.port}"])
        assert "certificate verify failed" in str(await sender.send(target, b"{}", secret="", timestamp=7))
    await sender.close()
