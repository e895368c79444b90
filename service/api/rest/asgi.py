"""ASGI's types, and an application around another that tells an `Observer` of its requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol, final

from service.api.observation import GONE, Exchange, Observer

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
_UNOBSERVED = frozenset({"/metrics", "/v2/health/live", "/v2/health/ready"})
"""What probes and Prometheus ask every few seconds: nobody wants a trace of it."""


def method_of(scope: Scope) -> str:
    """The request's method, `_OTHER` for one that HTTP does not know, as OpenTelemetry's conventions have it."""
    method: str = scope["method"]
    return method if method in _METHODS else "_OTHER"


class Answering(Protocol):
    """What answers one request through `send`."""

    def __call__(self, *, send: Send) -> Awaitable[None]:
        """Answer it."""


async def observed_call(exchange: Exchange, send: Send, answer: Answering) -> None:
    """Run `answer` and end `exchange` with the status and the size of what it sent."""
    status, sent = GONE, 0

    async def counting(message: Message) -> None:
        nonlocal status, sent
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            sent += len(message.get("body", b""))
        await send(message)

    try:
        await answer(send=counting)
    finally:
        exchange.end(int(status), bytes_out=sent)


@final
class ObservedApp:
    """`app`, whose requests `observer` is told of; not those of probes and of Prometheus."""

    def __init__(self, app: App, observer: Observer) -> None:
        self._app = app
        self._observer = observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI connection."""
        if scope["type"] != "http" or scope["path"] in _UNOBSERVED:
            await self._app(scope, receive, send)
            return
        exchange = self._observer.begin("http", method_of(scope), "", dict(scope["headers"]))

        async def counting() -> Message:
            message = await receive()
            exchange.bytes_in += len(message.get("body", b""))
            return message

        async def answer(*, send: Send) -> None:
            try:
                await self._app(scope, counting, send)
            finally:
                # Only now the router has said which of its templates fits; the path itself may be anything.
                exchange.route = getattr(scope.get("route"), "path", "")

        with exchange:
            await observed_call(exchange, send, answer)
