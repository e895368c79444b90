"""gRPC's headers (its "gRPC over HTTP/2"): timeouts, metadata, statuses, and which requests are none of its calls."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

from grpc import StatusCode

Metadata = tuple[tuple[str, str | bytes], ...]

MAX_MESSAGE_BYTES: Final = 6000
"""Of a status's text, encoded: it travels in a header, and clients bound those to 8 KiB together."""

ENCODINGS: Final = ("identity", "deflate", "gzip")

_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNIT_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE = re.compile(rb"[^\x00\r\n]*")
_OF_THE_CONNECTION: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
_PSEUDO: Final = frozenset({b":method", b":scheme", b":path", b":authority"})
_NOT_METADATA: Final = frozenset({b"te", b"content-type", b"content-length", b"host"})
_PLAIN: Final = frozenset(range(0x20, 0x7F)) - {0x25}


@dataclass(frozen=True, slots=True)
class Status:
    """How a call ends; `trailing` is metadata behind it."""

    code: StatusCode
    message: str = ""
    trailing: tuple[tuple[str, str], ...] = ()


OK: Final = Status(StatusCode.OK)


@final
class RequestHead:
    """What the headers of a request say.

    `fault` is why HTTP/2 forbids them (`None`: it does not), `http_status` what they get that are no gRPC (0: they
    are), `status` what they get that cannot be served. `timeout_s` is None without one, `length` what
    `content-length` says.
    """

    __slots__ = ("_headers", "authority", "encoding", "fault", "http_status", "length", "path", "status", "timeout_s")

    def __init__(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self._headers = headers
        self.path = self.authority = ""
        self.encoding = "identity"
        self.http_status = 0
        self.status: Status | None = None
        self.timeout_s: float | None = None
        self.length: int | None = None
        self.fault = _malformed(headers)
        if self.fault is None:
            self._read(dict(reversed(headers)))

    def _read(self, first: Mapping[bytes, bytes]) -> None:
        self.path = first[b":path"].decode("latin-1")
        self.authority = first.get(b":authority", b"").decode("latin-1")
        if b"content-length" in first:
            self.length = int(first[b"content-length"])
        kind = first.get(b"content-type", b"")
        if not (kind.startswith(b"application/grpc") and kind[16:17] in (b"", b"+", b";")):
            self.http_status = 415
        elif first[b":method"] != b"POST":
            self.http_status = 405
        encoding = first.get(b"grpc-encoding", b"identity").decode("latin-1")
        if encoding in ENCODINGS:
            self.encoding = encoding
        else:
            accepted = (("grpc-accept-encoding", ",".join(ENCODINGS)),)
            text = f"grpc-encoding: expected one of {', '.join(ENCODINGS)}, got {encoding[:80]!r}"
            self.status = Status(StatusCode.UNIMPLEMENTED, text, accepted)
        timeout = first.get(b"grpc-timeout")
        if timeout is not None:
            found = _TIMEOUT.fullmatch(timeout)
            if found is None:
                self.status = Status(StatusCode.INVALID_ARGUMENT, "grpc-timeout: expected 1 to 8 digits and a unit")
            else:
                self.timeout_s = int(found[1]) * _UNIT_S[found[2]]

    def metadata(self) -> Metadata:
        """What the caller added, in order; values of names that end with `-bin` are bytes."""
        return tuple(
            (name.decode("ascii"), binary(value) if name.endswith(b"-bin") else value.decode("latin-1"))
            for name, value in self._headers
            if name[:1] != b":" and name not in _NOT_METADATA and not name.startswith(b"grpc-")
        )

    def raw(self) -> dict[bytes, bytes]:
        """All headers; of those that are repeated the first."""
        return dict(reversed(self._headers))


def _malformed(headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    """What RFC 9113, sections 8.2 and 8.3, forbids in a request; None when it is well formed."""
    seen: set[bytes] = set()
    regular = False
    for name, value in headers:
        if name[:1] == b":":
            if regular or name in seen or name not in _PSEUDO:
                return "pseudo-header fields: expected each known one once, before the others"
            seen.add(name)
            continue
        regular = True
        if (wrong := _malformed_field(name, value)) is not None:
            return wrong
        if name == b"content-length":
            if name in seen or not (value.isdigit() and len(value) < 19):
                return "content-length: expected one number"
            seen.add(name)
    if not {b":method", b":scheme", b":path"} <= seen:
        return "pseudo-header fields: expected :method, :scheme and :path"
    if not dict(headers)[b":path"]:
        return ":path: expected one, got an empty one"
    return None


def _malformed_field(name: bytes, value: bytes) -> str | None:
    if _NAME.fullmatch(name) is None:
        return "field name: expected a token in lower case"
    if _VALUE.fullmatch(value) is None:
        return "field value: expected one line"
    if name in _OF_THE_CONNECTION or (name == b"te" and value != b"trailers"):
        return "fields of the connection: expected none in HTTP/2"
    return None


def malformed_trailers(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether headers behind a request's body are none: they have no pseudo-header fields."""
    return any(name[:1] == b":" or _malformed_field(name, value) is not None for name, value in headers)


def binary(value: bytes) -> bytes:
    """The bytes of a `-bin` value, padded or not; those of one that is no base64 are none."""
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error:
        return b""


def percent_encoded(text: str) -> bytes:
    """A status's text as `grpc-message` spells it: UTF-8, all but printable ASCII as %XX; at most 6000 bytes."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= MAX_MESSAGE_BYTES and all(byte in _PLAIN for byte in raw):
        return raw
    pieces: list[bytes] = []
    room = MAX_MESSAGE_BYTES
    for character in text:
        piece = b"".join([b"%c" % b if b in _PLAIN else b"%%%02X" % b for b in character.encode("utf-8", "replace")])
        room -= len(piece)
        if room < 0:
            break
        pieces.append(piece)
    return b"".join(pieces)


def percent_decoded(value: bytes) -> str:
    """What `percent_encoded` was given."""
    found = re.sub(rb"%([0-9A-Fa-f]{2})", lambda match: bytes([int(match[1], 16)]), value)
    return found.decode("utf-8", "replace")
