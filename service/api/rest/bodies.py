"""Request bodies of /v1: streamed, bounded, and never trusted about their size."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, ValidationError
from python_multipart import MultipartParser
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect

from service.core.errors import Cancelled, InvalidRequest, Problem, TooLarge, shown
from service.core.types import Json
from service.core.uploads import check_size

_BUFFER = 2**20
_SMALL = 65_536
_M = TypeVar("_M", bound=BaseModel)
_FRAMING = 65_536  # boundaries and headers of a few parts


async def body_chunks(request: Request, *, limit_bytes: int, what: str) -> AsyncIterator[bytes]:
    """The body in pieces; raises `TooLarge` from the announced length, or as soon as more has come."""
    check_size(announced_bytes(request), limit_bytes=limit_bytes, what=what)
    total = 0
    try:
        async for chunk in request.stream():
            total += len(chunk)
            check_size(total, limit_bytes=limit_bytes, what=what)
            yield chunk
    except ClientDisconnect:
        raise Cancelled(f"{what}: the client went away in mid-upload") from None


def announced_bytes(request: Request) -> int:
    """The length that the client announced; 0 when it did not."""
    announced = request.headers.get("content-length", "")
    return int(announced) if announced.isascii() and announced.isdecimal() and len(announced) <= 19 else 0


async def read_json(request: Request, *, limit_bytes: int, what: str) -> Json:
    """A small JSON body; raises `TooLarge`, or `InvalidRequest` for anything that strict JSON does not allow."""
    return _strict_json(await read_body(request, limit_bytes=limit_bytes, what=what), what)


def _strict_json(data: bytes, what: str) -> Json:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"{what}: expected JSON, got {error}") from None


async def read_model(request: Request, kind: type[_M], *, what: str) -> _M:
    """A very small JSON body as `kind`; FastAPI's own reading has no bound. Raises `TooLarge`, `InvalidRequest`."""
    return _as_model(kind, await read_json(request, limit_bytes=_SMALL, what=what), what)


async def read_optional(request: Request, kind: type[_M], *, what: str) -> _M | None:
    """As `read_model`; None where there is no body."""
    data = await read_body(request, limit_bytes=_SMALL, what=what)
    return _as_model(kind, _strict_json(data, what), what) if data else None


def _as_model(kind: type[_M], value: Json, what: str) -> _M:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problems = [
            Problem(".".join(map(str, each["loc"])) or what, each["msg"], shown(each["input"]))
            for each in error.errors()
        ]
        raise InvalidRequest.from_problems("request", problems) from None


def described(kind: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """What the API's description says of a body that `read_model`, or `read_optional`, reads."""
    schema = kind.model_json_schema()
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


async def read_body(request: Request, *, limit_bytes: int, what: str) -> bytes:
    """A small body as a whole; raises `TooLarge`."""
    return b"".join([chunk async for chunk in body_chunks(request, limit_bytes=limit_bytes, what=what)])


async def receive_parts(request: Request, folder: Path, limits: Mapping[str, int]) -> dict[str, Path]:
    """Write the parts of a multipart body to files in `folder` as they come; `limits` are the known parts' bytes.

    Raises `InvalidRequest` for an unknown or repeated part, `TooLarge` in mid-upload.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise InvalidRequest("content type: expected multipart/form-data with a boundary, got another")
    parts = _Parts(folder, limits)
    try:
        parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": parts.begin,
                "on_header_field": parts.header_field,
                "on_header_value": parts.header_value,
                "on_header_end": parts.header_end,
                "on_headers_finished": parts.headers_finished,
                "on_part_data": parts.data,
            },
        )
        pieces = body_chunks(request, limit_bytes=sum(limits.values()) + _FRAMING, what="multipart body")
        async for chunk in pieces:
            parser.write(chunk)
            if parts.pending >= _BUFFER:
                await asyncio.to_thread(parts.flush)
        parser.finalize()
        await asyncio.to_thread(parts.flush)
    except MultipartParseError as error:
        raise InvalidRequest(f"multipart body: expected form data, got {str(error)[:200]}") from None
    finally:
        parts.close()
    return parts.paths


class _Parts:
    """What the parser's callbacks gather; values wait in memory until the next `flush`, which blocks."""

    def __init__(self, folder: Path, limits: Mapping[str, int]) -> None:
        self.paths: dict[str, Path] = {}
        self.pending = 0
        self._folder = folder
        self._limits = limits
        self._sizes: dict[str, int] = {}
        self._files: dict[str, BinaryIO] = {}
        self._waiting: list[tuple[str, bytes]] = []
        self._headers: dict[bytes, bytes] = {}
        self._field = self._value = b""
        self._name = ""

    def begin(self) -> None:
        self._headers = {}

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name not in self._limits or name in self.paths:
            raise InvalidRequest(
                f"multipart body: expected the parts {', '.join(self._limits)} once, got {name[:80]!r}"
            )
        self._name = name
        self._sizes[name] = 0
        self.paths[name] = self._folder / name  # a known name, never the client's own

    def data(self, data: bytes, start: int, end: int) -> None:
        self._sizes[self._name] += end - start
        if self._sizes[self._name] > self._limits[self._name]:
            raise TooLarge(f"part {self._name!r}: expected at most {self._limits[self._name]} bytes, got more")
        self._waiting.append((self._name, bytes(data[start:end])))
        self.pending += end - start

    def flush(self) -> None:
        for name, data in self._waiting:
            if name not in self._files:
                self._files[name] = self.paths[name].open("wb")
            self._files[name].write(data)
        self._waiting, self.pending = [], 0

    def close(self) -> None:
        for file in self._files.values():
            file.close()
