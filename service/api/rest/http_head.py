"""Heads of inference requests that the fast lane takes. A client sends the same bytes with every request: read once."""

from __future__ import annotations

import re
import urllib.parse
from typing import final

import httptools

from service.api.rest.infer_wire import CONTENT_ENCODING, HEADER_LENGTH, WINDOW_BITS, header_length_of, target_of
from service.api.rest.recent import Recent
from service.core.errors import InvalidRequest

_START = b"POST /v2/models/"
_END = b"\r\n\r\n"
_MAX_BYTES = 8192
"""Longer heads go the long way."""
_KEPT_BYTES = 2048
"""Longer ones are read each time."""
_KEPT_HEADS = 512

_LONG_WAY = frozenset({b"transfer-encoding", b"expect", b"upgrade", CONTENT_ENCODING})
_READ = frozenset({b"content-length", b"accept-encoding", HEADER_LENGTH})
_MAX_DIGITS = 18
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)


@final
class Head:
    """A head that needs no more than its body, of `length` bytes, to be answered; it is itself `size` bytes long.

    `header_length` is N, None where it was not given. `headers` are all of them by lower-case name, the last of each.
    """

    __slots__ = ("header_length", "headers", "keep_alive", "length", "model", "size", "version")

    def __init__(
        self,
        size: int,
        length: int,
        target: tuple[str, str | None],
        header_length: int | None,
        headers: dict[bytes, bytes],
        *,
        keep_alive: bool,
    ) -> None:
        self.size = size
        self.length = length
        self.model, self.version = target
        self.header_length = header_length
        self.headers = headers
        self.keep_alive = keep_alive


@final
class Heads:
    """Reads heads and remembers them by their bytes; bodies of more than `max_body_bytes` go the long way."""

    def __init__(self, *, max_body_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._known: Recent[bytes, Head] = Recent(_KEPT_HEADS)

    def find(self, data: bytes) -> Head | None:
        """The head that `data`, which starts between two requests, begins with; None unless the fast lane takes it."""
        end = data.find(_END, 0, _MAX_BYTES)
        if end < 0:
            return None
        raw = data[: end + len(_END)]
        head = self._known.get(raw)
        if head is None:
            head = read_head(raw)
            if head is None or head.length > self._max_body_bytes:
                return None
            if len(raw) <= _KEPT_BYTES:
                self._known.put(raw, head)
        return head


def read_head(raw: bytes) -> Head | None:
    """Read `raw`, which ends as a head does, with the parser that reads those of the other lane.

    None for what is no request for inference with a plain body of a known length, and for what is no request.
    """
    if not raw.startswith(_START):
        return None
    found = _Found()
    parser = httptools.HttpRequestParser(found)
    try:
        # The head must end where this one does, for this parser too.
        parser.feed_data(raw[:-1])
        early = found.complete
        parser.feed_data(raw[-1:])
        if early or not found.complete or parser.get_http_version() != "1.1" or parser.should_upgrade():
            return None
        path = httptools.parse_url(found.url).path.decode("ascii")
        header_length = header_length_of(found.headers.get(HEADER_LENGTH))
    except (httptools.HttpParserError, httptools.HttpParserUpgrade, UnicodeDecodeError, InvalidRequest):
        return None
    target = target_of(urllib.parse.unquote(path) if "%" in path else path)
    length = found.headers.get(b"content-length", b"")
    if target is None or not found.plain() or not length.isdigit() or len(length) > _MAX_DIGITS or not int(length):
        return None
    keep_alive = parser.should_keep_alive()
    return Head(len(raw), int(length), target, header_length, found.headers, keep_alive=keep_alive)


def without_upgrade(data: bytes) -> bytes:
    """`data`, whose first head, where that is whole, does not ask for another protocol any more: there is none.

    RFC 9110, section 7.8, lets a server go on as if it had not been asked; the parser would leave the body unread. Some
    clients ask for HTTP/2 with every first request.
    """
    end = data.find(_END)
    if end < 0 or _UPGRADE.search(data, 0, end) is None:
        return data
    return _UPGRADE.sub(b"\r\nx-upgrade:", data[:end]) + data[end:]


@final
class _Found:
    """What the parser calls."""

    complete: bool

    def __init__(self) -> None:
        self.url = b""
        self.headers: dict[bytes, bytes] = {}
        self.repeated: set[bytes] = set()
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in self.headers:
            self.repeated.add(name)
        self.headers[name] = value

    def on_headers_complete(self) -> None:
        self.complete = True

    def plain(self) -> bool:
        """Whether the body is as it is read, and the answer as it is written."""
        accepted = self.headers.get(b"accept-encoding", b"").strip().lower()
        return not (accepted in WINDOW_BITS or self.repeated & _READ or any(name in self.headers for name in _LONG_WAY))
